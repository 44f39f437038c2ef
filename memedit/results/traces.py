"""Results of causal tracing: plain values that turn into JSON. Layers count from 0, ranges include both ends."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict, Field

from memedit.results.report import Figure

if TYPE_CHECKING:
    from torch import Tensor


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FactTrace(_Value):
    """One fact: a line of trace.jsonl. Its tables are in trace.safetensors, under `<id>/<kind>`."""

    id: str
    status: Literal["traced", "unknown"]
    """unknown: the model does not say the answer, so there is nothing to trace."""
    subject: str
    prompt: str
    """The whole prompt."""
    answer: str
    source: Literal["object_old", "object", "own"] | None = None
    """Whose answer was traced: the record's old object, its object (the model says it), or the model's own token."""
    answer_tokens: int = 0
    tokens: tuple[str, ...] = ()
    """The prompt's tokens as text."""
    parts: tuple[tuple[str, int, int], ...] = ()
    """For each token the text that it is a part of, its place there from 1, and of how many tokens that text is: whole
    characters, where a character is several tokens. The text has U+FFFD where such tokens make up no character."""
    subject_tokens: tuple[int, int] | None = None
    """The subject's first and last token."""
    clean: float | None = None
    """Probability of the answer, joint over its tokens."""
    corrupted: float | None = None
    """The same with noise on the subject's embeddings, mean over samples."""
    corrupted_rank: int | None = None
    """Rank of the answer among all tokens with that noise, median over samples; without noise it is 1. Of an answer of
    several tokens, the rank of the token that ranks worst."""
    noise: float | None = None
    """Standard deviation of the noise."""
    samples: int = 0
    window: int = 0
    """Layers in which MLP and attention outputs are put back together."""
    windows: tuple[tuple[int, int], ...] = ()
    """For each layer, the first and last layer of its window."""


class Curve(_Value):
    """An effect by layer, mean over facts with 95 % intervals, clustered by subject."""

    mean: tuple[float, ...]
    low: tuple[float | None, ...]
    high: tuple[float | None, ...]
    """None: one subject alone has no interval."""
    n: int
    """Facts that have such a token."""
    subjects: int


class Average(_Value):
    """Averages over facts: average.json."""

    model: str
    digest: str
    engine: str
    """How it was computed: by sweeps, or by whole forwards and why."""
    n_layers: int
    facts: int
    unknown: int
    """Facts that the model does not know: skipped."""
    noise: float
    noise_rule: str | float
    samples: int
    window: int
    windows: tuple[tuple[int, int], ...]
    seed: int
    clean: Figure
    corrupted: Figure
    total: Figure
    """Total effect: clean less corrupted."""
    effects: dict[str, dict[str, Curve]] = Field(default_factory=dict)
    """Indirect effects by kind (hidden, mlp, attention) and role of the token."""
    severed: dict[str, Curve] = Field(default_factory=dict)
    """At the last subject token: the state put back (hidden), and with the MLP or attention path severed."""
    gap: Curve
    """At the last subject token: hidden less mlp severed, what reaches the answer through MLPs above."""
    layers: str | None
    """The range that this suggests to edit, as `--layers` takes it; None: no site was found."""
    reason: str


@dataclass(frozen=True)
class TracedFact:
    """One fact and its scores: `hidden`, `mlp`, `attention` (T, L); `mlp severed`, `attention severed` (L,)."""

    fact: FactTrace
    scores: Mapping[str, Tensor]


@dataclass(frozen=True)
class TracingResult:
    """The traces of a list of facts, and their average."""

    facts: tuple[TracedFact, ...]
    unknown: tuple[FactTrace, ...]
    average: Average

"""What came of a run: plain values that turn into JSON, with the provenance of every number."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Value):
    """One score: its mean over records, a 95 % interval, and over how many records."""

    mean: float
    low: float
    high: float
    n: int


class Scores(_Value):
    """How a model does on an edit list: shares from 0 to 1, and magnitudes from -1 to 1.

    Each is a mean over an edit's probes first and over edits then. A figure is None where the list has nothing to
    measure it on.
    """

    efficacy: Figure | None = None
    """Share of edits whose new object is likelier than the old."""
    paraphrase: Figure | None = None
    """The same under other wordings."""
    neighborhood: Figure | None = None
    """Share of neighbors whose true object is likelier than the edit's new one."""
    accuracy: Figure | None = None
    """Share of edits whose every object token is the likeliest, given those before."""
    paraphrase_accuracy: Figure | None = None
    """The same under other wordings."""
    neighborhood_accuracy: Figure | None = None
    """Share of neighbors whose true object's every token is the likeliest."""
    efficacy_magnitude: Figure | None = None
    """Geometric mean probability per token of the new object, less that of the old."""
    paraphrase_magnitude: Figure | None = None
    neighborhood_magnitude: Figure | None = None
    """The same of a neighbor's true object, less that of the edit's new one."""
    token_accuracy: Figure | None = None
    """Share of the object's tokens that are the likeliest, given those before: zsRE's efficacy, EasyEdit's
    reliability."""
    paraphrase_token_accuracy: Figure | None = None
    """The same under other wordings: zsRE's paraphrase, EasyEdit's generalization."""
    neighborhood_token_accuracy: Figure | None = None
    """The same of the neighbors' true objects: zsRE's specificity."""
    neighborhood_plus: Figure | None = None
    """Neighborhood with the edited fact said before the neighbor's prompt (specificity-plus)."""
    neighborhood_plus_magnitude: Figure | None = None
    locality: Figure | None = None
    """Share of the neighbors' answer tokens at which the likeliest token is the base's, right or wrong: EasyEdit's."""
    portability: Figure | None = None
    """Token accuracy on questions that follow from the edit: EasyEdit's."""
    portability_accuracy: Figure | None = None
    """Share of such questions whose answer, in one of its spellings, is exact."""
    reversal: Figure | None = None
    """Token accuracy on the fact asked from its other end."""
    reversal_accuracy: Figure | None = None
    generated: dict[str, Figure] = Field(default_factory=dict)
    """Shares of prompts that the model, writing greedily, answers with the right object, by kind of prompt; `old`:
    whose answer names the old one; with a number: behind so many tokens of unrelated text."""
    fluency: Figure | None = None
    """Entropy in bits of what is written on from openings, opening included: H2 / 3 + 2 H3 / 3 over words' n-grams."""
    fluency_written: Figure | None = None
    """The same without the opening."""
    consistency: Figure | None = None
    """Cosine between tf-idf vectors of what is written and of the references."""
    groups: dict[str, Figure] = Field(default_factory=dict)
    """Portability and locality by what the list calls a kind."""
    score: float | None = None
    """Harmonic mean of efficacy, paraphrase and neighborhood."""


class Drift(_Value):
    """What moved on a held-out text; a figure's n counts rows of text."""

    tokens: int
    perplexity: Figure | None = None
    perplexity_base: Figure | None = None
    ppl: Figure | None = None
    """Perplexity over the base's."""
    kl: Figure | None = None
    """Mean KL(base || model) per token, in nats."""
    top1: Figure | None = None
    """Share of tokens at which both find the same next token likeliest."""


class ModelReport(_Value):
    """One of several models judged on the same list."""

    model: str
    scores: Scores
    difference: dict[str, Figure] = Field(default_factory=dict)
    """Less the base's, edit by edit."""
    drift: Drift | None = None
    kept: dict[str, Figure | None] = Field(default_factory=dict)
    retention: Figure | None = None


class EditResult(_Value):
    """What became of one edit; written as one line of results.jsonl, and can be fed back as an edit."""

    id: str
    status: Literal["ok", "failed", "skipped"]
    """ok: the model now says the object (exact match); failed: it does not; skipped: not tried."""
    reason: str | None = None
    edit: dict[str, Any] = Field(default_factory=dict)
    before: dict[str, float | None] = Field(default_factory=dict)
    after: dict[str, float | None] = Field(default_factory=dict)
    said: dict[str, str] = Field(default_factory=dict)
    """What the model wrote after the bare prompt, `before` and `after`."""
    loss: float | None = None
    """The target's loss when its search ended."""
    steps: int | None = None
    redone: int | None = None
    """The last round of `--retry` in which its target was found again, on the edited weights, and kept."""


class RetryRound(_Value):
    """One round of `--retry`: the edits whose targets were found again, and how many of all edits succeeded."""

    ids: tuple[str, ...]
    took_before: int
    took_after: int
    helped: bool


class LayerReport(_Value):
    """One layer's solve."""

    layer: int
    parameter: str
    residual_before: float
    """Mean length of what was missing at the last edited layer before this layer's change."""
    residual_after: float
    """The same after it, with the rounded weights in the model."""
    leverage: float
    """Median of k M^-1 k / d_mlp over the edited keys: 1 on average over the corpus."""
    fitted: float
    """Share of this layer's part of the residual that the change reproduces on the edited keys."""
    delta_norm: float
    """|delta| / |W|, Frobenius."""
    rounding: Literal["nearest", "key-aware"]
    rounding_loss: float
    """|(stored - W - delta) K^T| / |delta K^T| over the edited keys K: what the checkpoint's dtype swallowed."""
    nearest_loss: float
    """The same where every element is rounded to nearest."""
    disturbance: float
    """|stored - W - delta| in the metric of the moments, over that of rounding to nearest."""
    rank: int
    gain: float = 1.0
    """What the family multiplies its MLPs' outputs with where they join the residual stream."""
    dead: int = 0
    """Units of the MLP that never fired over the corpus, as a ReLU's may: they leave the moment singular."""
    shift: float = 0.0
    """tau F / trace(C): what was added to the moment's diagonal, over its mean, to make it positive definite."""


class LedgerReport(_Value):
    """How a run stood to the edits that were made before it."""

    way: Literal["re-solve", "on top"]
    earlier: int
    """Edits of the ledger that stay in force."""
    new: int
    replaced: int
    """Edits of the ledger that gave way to new ones."""
    twins: int
    """New edits that said what one in force says."""
    kept: int
    """Targets that were taken from the ledger."""
    searched: int
    joint: int
    """Of those searched, targets that serve all edits of a subject at once."""
    conflicts: tuple[str, ...] = ()
    """What gave way to what, one line each."""

    @property
    def line(self) -> str:
        """For people."""
        kept = f"{self.kept:,} targets kept, {self.searched:,} searched ({self.joint:,} for a subject's edits together)"
        gone = f"{self.replaced:,} replaced, {self.twins:,} there already"
        return f"{self.way}: {self.earlier:,} earlier edits and {self.new:,} new ones; {gone}; {kept}"


class Report(_Value):
    """The outcome of a run."""

    command: str
    versions: dict[str, str] = Field(default_factory=dict)
    arguments: list[str] = Field(default_factory=list)
    model: str = ""
    base: str | None = None
    """The model that `before` was measured on, where that was another folder."""
    output: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    device: str = ""
    engine: str = ""
    """How the targets were found: by suffixes, or by whole forwards and why."""
    edits: int = 0
    layers: tuple[LayerReport, ...] = ()
    redo: tuple[RetryRound, ...] = ()
    before: Scores | None = None
    after: Scores | None = None
    kept: dict[str, Figure | None] = Field(default_factory=dict)
    """Of known facts right before, the share right after: of `others`, and of `siblings` (edited subjects); of edits
    of earlier runs that held right before, the same: `earlier`."""
    difference: dict[str, Figure] = Field(default_factory=dict)
    """After less before, edit by edit, with an interval of the mean difference: paired, so edits that are hard for both
    do not widen it."""
    drift: Drift | None = None
    retention: Figure | None = None
    """Of edits that held right after they were made, the share that holds now."""
    ledger: LedgerReport | None = None
    models: tuple[ModelReport, ...] = ()
    """Every model judged, where there were several; `after` is the first's."""
    derived: dict[str, int] = Field(default_factory=dict)
    """Kinds of probes that the list has not, and how many edits have them because they were derived from the list."""
    digests: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase."""
    notes: tuple[str, ...] = ()
    per_edit: tuple[EditResult, ...] = ()

    @property
    def judged(self) -> tuple[ModelReport, ...]:
        """Every model's part; of a report on one model, that one's."""
        lead = ModelReport(
            model=self.model, scores=self.after or Scores(), difference=self.difference, drift=self.drift,
            kept=self.kept, retention=self.retention,
        )  # fmt: skip
        return self.models or (lead,)

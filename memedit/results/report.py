"""The result of a run: plain values that can be written as JSON, with the provenance of every number."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from memedit.results.metrics import METRICS_BY_NAME, table_order


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figure(_Value):
    """One score: its mean over records, a 95 % interval, and over how many records."""

    mean: float
    low: float
    high: float
    n: int


class Scores(_Value):
    """How a model does on an edit list. `memedit.results.metrics` defines every field.

    Each figure is a mean over an edit's probes first, then over edits. It is None where the list has no probe for it.
    """

    efficacy: Figure | None = None
    paraphrase: Figure | None = None
    neighborhood: Figure | None = None
    accuracy: Figure | None = None
    paraphrase_accuracy: Figure | None = None
    neighborhood_accuracy: Figure | None = None
    efficacy_magnitude: Figure | None = None
    paraphrase_magnitude: Figure | None = None
    neighborhood_magnitude: Figure | None = None
    token_accuracy: Figure | None = None
    paraphrase_token_accuracy: Figure | None = None
    neighborhood_token_accuracy: Figure | None = None
    neighborhood_plus: Figure | None = None
    neighborhood_plus_magnitude: Figure | None = None
    locality: Figure | None = None
    portability: Figure | None = None
    portability_accuracy: Figure | None = None
    reversal: Figure | None = None
    reversal_accuracy: Figure | None = None
    still_named: Figure | None = None
    paraphrase_still_named: Figure | None = None
    generated: dict[str, Figure] = Field(default_factory=dict)
    """The metrics `generated.NAME`, without `generated.`."""
    fluency: Figure | None = None
    fluency_written: Figure | None = None
    consistency: Figure | None = None
    groups: dict[str, Figure] = Field(default_factory=dict)
    """`portability/KIND` and `locality/KIND`, where KIND is what the edit list calls its questions."""
    score: float | None = None

    def value(self, name: str) -> Figure | float | None:
        """The value of a metric by its name; None where it was not measured."""
        if name in self.groups:
            return self.groups[name]
        if name.startswith("generated."):
            return self.generated.get(name.removeprefix("generated."))
        return getattr(self, name, None) if name in METRICS_BY_NAME else None

    def with_chat(self, figure: Figure | None) -> Scores:
        """The same scores, with how many of the edits are said in chat; as they are for None."""
        if figure is None:
            return self
        return self.model_copy(update={"generated": {**self.generated, "chat": figure}})

    def names(self) -> list[str]:
        """The metrics that were measured, in the order of the table of metrics."""
        found = [*METRICS_BY_NAME, *(f"generated.{name}" for name in self.generated), *self.groups]
        return table_order(name for name in found if self.value(name) is not None)


class TextDrift(_Value):
    """One row of the text, of 512 tokens at most: long documents have several, short ones share one."""

    begins: str
    """The first characters of the row."""
    tokens: int
    perplexity: float
    perplexity_base: float | None = None
    kl: float | None = None
    """Mean KL(base || model) per token, in nats."""


class Drift(_Value):
    """How predictions on a text changed. `memedit.results.metrics` defines every field.

    A figure's n counts rows of text. Figures that compare with a base are None without one.
    """

    tokens: int
    own: bool = False
    """The base wrote the text itself, since none was given."""
    perplexity: Figure | None = None
    perplexity_base: Figure | None = None
    ppl: Figure | None = None
    kl: Figure | None = None
    top1: Figure | None = None
    texts: tuple[TextDrift, ...] = ()
    """The rows one by one, in the order of the text; empty in reports of earlier versions."""


class ModelReport(_Value):
    """The part of a report that is about one model; several models answer the same list."""

    model: str
    scores: Scores
    difference: dict[str, Figure] = Field(default_factory=dict)
    """After minus before by metric, paired by edit."""
    against_first: dict[str, Figure] = Field(default_factory=dict)
    """This model minus the first model of the report by metric, paired by edit; empty for the first."""
    drift: Drift | None = None
    kept: dict[str, Figure | None] = Field(default_factory=dict)
    """The metrics `kept.NAME`, without `kept.`."""
    retention: Figure | None = None

    def value(self, name: str) -> Figure | float | None:
        """The value of a metric by its name; None where it was not measured."""
        head, _, tail = name.partition(".")
        if head == "drift":
            return getattr(self.drift, tail, None)
        if head == "kept":
            return self.kept.get(tail)
        return self.retention if name == "retention" else self.scores.value(name)

    def names(self) -> list[str]:
        """The metrics that were measured, in the order of the table of metrics."""
        named = [name for name in METRICS_BY_NAME if self.value(name) is not None]
        return table_order([*named, *self.scores.names()])


SearchEnd = Literal["found", "ball", "stalled", "spent"]
"""How the search of a target ended. found: the model says the object under it with more than an even chance (of a
removal: the KL is as small); else ball: at the surface of the ball, so that a larger `target.ball` would allow more;
stalled: no step lowers the loss any more; spent: all steps were taken."""
SEARCH_ENDS: tuple[SearchEnd, ...] = get_args(SearchEnd)


class EditResult(_Value):
    """The result of one edit: one line of results.jsonl, which can be read as an edit again."""

    id: str
    status: Literal["ok", "failed", "skipped"]
    """ok: the model now says the object (by exact match, or by words if the edit's `evaluate` says so), or no longer
    says a removed one; failed: it does not; skipped: not tried, or not measured."""
    reason: str | None = None
    edit: dict[str, Any] = Field(default_factory=dict)
    before: dict[str, float | None] = Field(default_factory=dict)
    after: dict[str, float | None] = Field(default_factory=dict)
    said: dict[str, str] = Field(default_factory=dict)
    """What the model wrote after the bare prompt, `before` and `after`."""
    loss: float | None = None
    """The target's loss when its search ended."""
    steps: int | None = None
    """Evaluations of the search after the first, steps that were taken back among them."""
    search: SearchEnd | None = None
    """How the search ended; None where the target is the ledger's."""
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
    """Mean length of the residual at the last edited layer before this layer's change."""
    residual_after: float
    """The same after the change, with the rounded weights in the model."""
    leverage: float
    """Median of k M^-1 k / d_mlp over the edited keys: 1 on average over the corpus."""
    fitted: float
    """Share of this layer's part of the residual that the change reproduces on the edited keys."""
    delta_norm: float
    """|delta| / |W|, Frobenius."""
    rounding: Literal["nearest", "key-aware"]
    rounding_loss: float
    """|(stored - W - delta) K^T| / |delta K^T| over the edited keys K: the loss to the checkpoint's dtype."""
    nearest_loss: float
    """The same if every element were rounded to nearest."""
    disturbance: float
    """|stored - W - delta| in the metric of the moments, over that of rounding to nearest."""
    rank: int
    gain: float = 1.0
    """The factor that the architecture applies to MLP outputs before they join the residual stream."""
    dead: int = 0
    """MLP units that were zero on the whole corpus, as a ReLU's can be: they make the moment singular."""
    shift: float = 0.0
    """tau F / trace(C): what was added to the moment's diagonal, over its mean, to make it positive definite."""
    on_cpu: tuple[Literal["solve", "rounding"], ...] = ()
    """What was done on the CPU because the GPU has too little memory for it."""


class SearchReport(_Value):
    """The search of the targets that the ledger did not have."""

    edits: int
    found: int
    ball: int
    stalled: int
    spent: int
    """How many searches ended in each way (`SearchEnd`)."""
    steps_mean: float
    """Evaluations after the first, a mean over the edits; steps that were taken back are among them."""
    steps_most: int

    @property
    def missed(self) -> str:
        """Why targets were not found, for people."""
        told = {
            "stopped by the ball": self.ball, "without gain any more": self.stalled, "out of steps": self.spent
        }  # fmt: skip
        return ", ".join(f"{count:,} {why}" for why, count in told.items() if count)

    @property
    def line(self) -> str:
        """For people."""
        missed = f" ({self.missed})" if self.missed else ""
        return f"search, {self.steps_mean:.1f} steps an edit: {self.found:,} of {self.edits:,} targets found{missed}"


class PolishReport(_Value):
    """Steps of descent after the closed form."""

    steps: int
    preserved: int
    """Prompts that had to stay."""
    engine: str
    loss_before: float
    """Mean of -log p(object) over the edits, and of the KL of removals, in the first step's draw of wordings and
    contexts."""
    loss_after: float
    """The same in the last step's draw."""
    divergence_before: float
    """Mean KL(base || edited) after the drawn prompts that had to stay, in nats, in the first step."""
    divergence_after: float
    """The same in the last step."""

    @property
    def line(self) -> str:
        """For people."""
        edits = f"loss of the edits {self.loss_before:.2f} to {self.loss_after:.2f}"
        stay = f"KL of {self.preserved:,} prompts that must stay {self.divergence_before:.3f}"
        return f"polish, {self.steps} steps: {edits}, {stay} to {self.divergence_after:.3f}"


class LedgerReport(_Value):
    """How a run treated the edits of earlier runs."""

    way: Literal["re-solve", "on top"]
    earlier: int
    """Edits of the ledger that stay active."""
    new: int
    replaced: int
    """Edits of the ledger that new edits replaced."""
    twins: int
    """New edits that equal an active one."""
    kept: int
    """Targets that were taken from the ledger."""
    searched: int
    joint: int
    """Of those searched, targets that serve all edits of a subject at once."""
    conflicts: tuple[str, ...] = ()
    """One line for each edit that was replaced, and by which."""

    @property
    def line(self) -> str:
        """For people."""
        kept = f"{self.kept:,} targets kept, {self.searched:,} searched ({self.joint:,} for a subject's edits together)"
        gone = f"{self.replaced:,} replaced, {self.twins:,} there already"
        return f"{self.way}: {self.earlier:,} earlier edits and {self.new:,} new ones; {gone}; {kept}"


class Report(_Value):
    """The result of a command that edits or evaluates."""

    command: str
    versions: dict[str, str] = Field(default_factory=dict)
    arguments: list[str] = Field(default_factory=list)
    model: str = ""
    base: str | None = None
    """The model that `before` was measured on, if it is not `model`."""
    output: str | None = None
    recipe: dict[str, Any] = Field(default_factory=dict)
    device: str = ""
    engine: str = ""
    """How the targets were found: by suffixes, or by whole forwards and why."""
    edits: int = 0
    layers: tuple[LayerReport, ...] = ()
    search: SearchReport | None = None
    polish: PolishReport | None = None
    redo: tuple[RetryRound, ...] = ()
    before: Scores | None = None
    after: Scores | None = None
    kept: dict[str, Figure | None] = Field(default_factory=dict)
    """The metrics `kept.NAME`, without `kept.`: `others`, `siblings` and `earlier`."""
    made_facts: int = 0
    """Facts behind `kept` that are answers of the model before the edit, since no facts were given."""
    difference: dict[str, Figure] = Field(default_factory=dict)
    """After minus before by metric. The interval is paired by edit, so edits that are hard for both do not widen it."""
    drift: Drift | None = None
    retention: Figure | None = None
    """Of edits that held right after they were made, the share that holds now."""
    ledger: LedgerReport | None = None
    models: tuple[ModelReport, ...] = ()
    """Every model, if there were several; `after` is the first one's."""
    derived: dict[str, int] = Field(default_factory=dict)
    """Kinds of probes that were derived from the list, and for how many edits."""
    digests: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase."""
    notes: tuple[str, ...] = ()
    per_edit: tuple[EditResult, ...] = ()

    def with_answers(self, said: Mapping[str, str]) -> Report:
        """The same report with what the edited model says, by id of the edit."""
        if not said:
            return self
        told = (
            one.model_copy(update={"said": {**one.said, "after": said[one.id]}}) if one.id in said else one
            for one in self.per_edit
        )
        return self.model_copy(update={"per_edit": tuple(told)})

    def __repr__(self) -> str:
        """One line: the command, the number of edits, and efficacy after."""
        after = self.after.efficacy if self.after is not None else None
        efficacy = "" if after is None else f", efficacy {METRICS_BY_NAME['efficacy'].number(after.mean)}"
        return f"<Report {self.command}: {self.edits:,} edits{efficacy}>"

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """The tables of the evaluation page, for notebooks; all text is escaped."""
        from memedit.results.rows import report_html

        return report_html(self)

    @property
    def scored(self) -> tuple[ModelReport, ...]:
        """The part of every model; a report on one model has one part."""
        lead = ModelReport(
            model=self.model, scores=self.after or Scores(), difference=self.difference, drift=self.drift,
            kept=self.kept, retention=self.retention,
        )  # fmt: skip
        return self.models or (lead,)

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
    """How a model does on an edit list, by CounterFact's definitions (shares from 0 to 1).

    A figure is None where the list has nothing to measure it on.
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
    paraphrase_magnitude: Figure | None = None
    neighborhood_magnitude: Figure | None = None
    score: float | None = None
    """Harmonic mean of efficacy, paraphrase and neighborhood."""


class EditResult(_Value):
    """What became of one edit; written as one line of results.jsonl, and can be fed back as an edit."""

    id: str
    status: Literal["ok", "failed", "skipped"]
    """ok: the model now says the object (exact match); failed: it does not; skipped: not tried."""
    reason: str | None = None
    edit: dict[str, Any] = Field(default_factory=dict)
    before: dict[str, float | None] = Field(default_factory=dict)
    after: dict[str, float | None] = Field(default_factory=dict)
    loss: float | None = None
    """The target's loss when its search ended."""
    steps: int | None = None


class LayerReport(_Value):
    """One layer's solve."""

    layer: int
    parameter: str
    residual_before: float
    """Mean length of what was missing at the last edited layer before this layer's change."""
    residual_after: float
    """The same after it, with the rounded weights in the model."""
    leverage: float
    """Median of k C^-1 k / d_mlp over the edited keys: 1 on average over the corpus."""
    fitted: float
    """Share of this layer's part of the residual that the change reproduces on the edited keys."""
    delta_norm: float
    """|delta| / |W|, Frobenius."""
    rounding_loss: float
    """|stored - W - delta| / |delta|: what the checkpoint's dtype swallowed."""
    rank: int


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
    before: Scores | None = None
    after: Scores | None = None
    kept: dict[str, Figure | None] = Field(default_factory=dict)
    """Of known facts right before, the share right after: of `others`, and of `siblings` (edited subjects)."""
    digests: dict[str, Any] = Field(default_factory=dict)
    timings: dict[str, float] = Field(default_factory=dict)
    """Seconds by phase."""
    notes: tuple[str, ...] = ()
    per_edit: tuple[EditResult, ...] = ()


class Preview(_Value):
    """What a run would do and cost, before it is done."""

    edits: int
    skipped: int
    warnings: int
    layers: tuple[int, ...]
    parameters: tuple[str, ...]
    corpus: str | None
    tokens: int
    moments_cached: tuple[int, ...]
    moments_missing: tuple[int, ...]
    bytes_output: int
    bytes_cache: int
    """What the missing moments will take in the cache."""
    bytes_memory: int
    """Model, moments and target search at their largest, about."""
    resumes: bool
    """A run of the same edits, model and recipe was begun, and will be gone on with."""

    def lines(self) -> list[str]:
        """For people."""
        layers = ", ".join(str(layer) for layer in self.layers)
        missing = ", ".join(str(layer) for layer in self.moments_missing) or "none"
        return [
            f"edits     {self.edits:,} ({self.skipped:,} skipped, {self.warnings:,} warnings)",
            f"layers    {layers}",
            *(f"          {name}" for name in self.parameters),
            f"moments   {len(self.moments_cached)} cached; to measure: {missing} ({self.tokens:,} tokens)",
            f"writes    {self.bytes_output / 1e6:,.1f} MB of output, {self.bytes_cache / 1e6:,.1f} MB of cache",
            f"memory    about {self.bytes_memory / 1e9:,.2f} GB",
            f"resumes   {'an unfinished run' if self.resumes else 'nothing'}",
        ]


class MomentRow(_Value):
    """One layer's second moment in the cache."""

    layer: int
    width: int
    tokens: int
    bytes: int
    state: Literal["cached", "measured", "imported", "missing"]
    file: str

    @property
    def line(self) -> str:
        """For people."""
        return f"layer {self.layer:>3}  {self.width:,} units  {self.tokens:,} tokens  {self.state:<8}  {self.file}"

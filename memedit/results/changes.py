"""Results of export, add, revert and diff: plain values that turn into JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

ExportKind = Literal["full", "lora", "dense"]
Origin = Literal["base", "originals", "subtraction"]


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TensorChange(_Value):
    """One tensor's change."""

    parameter: str
    rank: int
    """At most: that of its form."""
    norm: float
    relative: float
    """|delta| / |W|, Frobenius."""
    rounding_loss: float
    """|checkpoint - W - delta| / |delta|: what the dtype of the checkpoint swallows."""
    lost: float = 0.0
    """Share of |delta|^2 that lies outside the rank it was cut to."""
    distance: float | None = None
    """|W + exported - checkpoint| / |delta|: what is apart of a model that adds the export when it runs, and the
    checkpoint that apply writes."""


class Outcome(_Value):
    """The outcome of `export`, `revert`, or `apply --delta`."""

    command: str
    versions: dict[str, str] = Field(default_factory=dict)
    arguments: list[str] = Field(default_factory=list)
    model: str
    """The base."""
    output: str
    recipe: dict[str, Any] = Field(default_factory=dict)
    kind: ExportKind | None = None
    family: str | None = None
    """What the base's config calls its kind of model."""
    rank: int | None = None
    """Of every module, in an adapter."""
    deltas: tuple[str, ...] = ()
    origin: Origin | None = None
    """Where a revert has the original weights from."""
    exact: bool | None = None
    """Whether a reverted model is its base, by digest."""
    tensors: tuple[TensorChange, ...] = ()
    digests: dict[str, Any] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class TensorDifference(_Value):
    """One tensor that two models hold in different values, dtypes or shapes."""

    name: str
    file: str
    dtypes: tuple[str, str]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    norm: float | None = None
    """|B - A|, Frobenius; None where the shapes differ or a dtype cannot be read."""
    relative: float | None = None
    """|B - A| / |A|; None also where A is zero."""
    largest: float | None = None
    """The largest difference of a number."""
    changed: float | None = None
    """Share of numbers that differ."""
    rank: int | None = None
    """In how few directions 99 % of |B - A|^2 lies; None where more than 256, where it is no matrix, or where
    it holds NaN or infinity."""


class Comparison(_Value):
    """How the folders of two models differ: tensors by name, whatever file they lie in, and all other files."""

    a: str
    b: str
    tensors: tuple[TensorDifference, ...] = ()
    same_tensors: int = 0
    only_in_a: tuple[str, ...] = ()
    """Tensors."""
    only_in_b: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    """Files other than weights that differ."""
    files_only_in_a: tuple[str, ...] = ()
    files_only_in_b: tuple[str, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        found = (self.tensors, self.only_in_a, self.only_in_b, self.files, self.files_only_in_a, self.files_only_in_b)
        return not any(found)

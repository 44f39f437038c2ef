"""The base checkpoint of a delta file: check that the changes fit, add them, and find the original weights.

One weight at a time is in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from memedit.changes.delta_file import DeltaFile
from memedit.changes.stored_names import StoredNames
from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, StorageError, UnsupportedModelError, UsageError
from memedit.model.architecture import find_architecture
from memedit.model.load import at_hand, auto_class, locate, meta_model
from memedit.model.training_names import check_stored_names
from memedit.numerics.delta import Delta, rounded, rounding_loss
from memedit.numerics.lowrank import truncated
from memedit.numerics.rounding import Grid
from memedit.progress import Progress
from memedit.results.changes import Origin, TensorChange
from memedit.storage.base_card import read_base_card
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import read_originals
from memedit.storage.records import ORIGINALS
from memedit.storage.tensorfile import shown_name

TINY = 1e-300  # keeps a division by a norm of zero finite
LONGEST_CHANGE = 1e4
"""The longest change that is believed, in lengths of its weight (or of one, where that is shorter). Edits are below 10;
a damaged number is often far above, and finite all the same."""


class BaseCheckpoint:
    """The base of a change: its files, and the names of its down-projections."""

    def __init__(self, knobs: ModelKnobs, progress: Progress) -> None:
        self.folder = locate(knobs)
        self.checkpoint = Checkpoint.open(self.folder)
        with progress.phase("structure"):
            model: Any = meta_model(self.folder, knobs)
            self.architecture = find_architecture(model)
            self.stored = StoredNames.of(model, self.checkpoint)
        self.family = str(model.config.model_type)
        """The model_type that `inspect` shows, of the class that opens the model."""
        self.opened_by = auto_class(model.config).__name__
        """The auto class of transformers that the module paths of an adapter are for."""
        # Read before the work: a card that cannot be read costs a warning, not the run.
        self.card = read_base_card(self.folder, knobs.path)
        if self.card.warning:
            progress.warn(self.card.warning)
        every = [f"{path}.weight" for path in self.architecture.down_projections if path]
        check_stored_names(self.folder, every, self.checkpoint.entries)
        self.parameters = {self.stored.name(name): name for name in every}
        """Stored name -> parameter name in the model."""

    def admitted(self, change: DeltaFile, *, any_base: bool) -> DeltaFile:
        """Check that a change is of this base, or with `any_base` that it fits it, and return it.

        A change of another base loses all but its factors. Raises UsageError for a change of another base without
        `any_base`, and for one whose names or shapes do not fit.
        """
        same = self.checkpoint.has_digest(change.base)
        if not any_base and not same:
            raise UsageError(
                f"{change.file} belongs to another base: it changes the model of digest {change.base[:12]}, and "
                f"{self.folder} has {self.checkpoint.digest[:12]}",
                "give the base it was made for with -m, or say --any-base to use this one anyway",
            )
        for name, delta in change.deltas.items():
            hint = "give the base that the change was made for"
            if name not in self.parameters:
                said = f"{change.file} changes {shown_name(name)}, which is not a down-projection of {self.folder}"
                raise UsageError(said, hint)
            shape = tuple(self.weight(name).shape)
            if shape != delta.shape:
                said = f"{change.file} changes {shown_name(name)} as {_size(delta.shape)}"
                raise UsageError(f"{said}; in {self.folder} it is {_size(shape)}", hint)
        bare = {name: Delta(delta.left, delta.right) for name, delta in change.deltas.items()}
        return change if same else replace(change, deltas=bare)

    def weight(self, name: str) -> Tensor:
        """A stored weight as (D, F), in the checkpoint's dtype."""
        return self.architecture.turned(self.checkpoint.tensor(name))

    def _grid(self, name: str) -> Grid:
        return self.stored.grid(self.architecture, self.parameters[name])

    def check_rounding(self, deltas: Mapping[str, Delta], *, cut: bool) -> None:
        """Check that no change is rounded into FP8 weights to nearest, which would lose most of it.

        cut: changes are cut to a rank, so the steps of their rounding do not hold. Raises UsageError.
        """
        for name, delta in deltas.items():
            if (cut or delta.steps is None) and self.checkpoint.grid(name, (0, 0)).scale is not None:
                said = f"{shown_name(name)} of {self.folder} is FP8: rounding this change into it would lose most of it"
                raise UsageError(said, "make all edits in one run of memedit apply, or an adapter: export --to lora")

    def put(self, name: str, delta: Delta, rank: int | None = None) -> tuple[Tensor, Delta, TensorChange]:
        """Add a change, cut to `rank`, to one weight: the stored weight, the change as used, and its figures."""
        made, lost = (delta, 0.0) if rank is None else truncated(delta, rank)
        weight, change = self.weight(name), _multiplied(made)
        stored = rounded(weight, change, self._grid(name))
        figures = tensor_change(self.parameters[name], weight, change, stored, made.rank, lost)
        return self.architecture.turned(stored).contiguous(), made, figures

    def distance(self, name: str, delta: Delta, made: Delta) -> float:
        """|W + made - checkpoint| / |delta|: the distance of a model that adds `made` from the written checkpoint."""
        weight, change = self.weight(name), _multiplied(delta)
        stored = rounded(weight, change, self._grid(name))
        return float((stored.double() - weight.double() - made.dense()).norm()) / max(change.norm, TINY)


def tensor_change(
    parameter: str, weight: Tensor, change: Delta, stored: Tensor, rank: int, lost: float = 0.0
) -> TensorChange:
    """The figures of one tensor: weight and stored (D, F) before and after a change.

    Raises StorageError for a change too long to be one.
    """
    length, norm = float(weight.double().norm()), change.norm
    _check_length(parameter, norm, length)
    return TensorChange(
        parameter=parameter,
        rank=rank,
        norm=norm,
        relative=norm / max(length, TINY),
        rounding_loss=rounding_loss(weight, change, stored),
        lost=lost,
    )


def _check_length(name: str, norm: float, length: float) -> None:
    if not norm <= LONGEST_CHANGE * max(length, 1.0):
        said = f"the change of {shown_name(name)} has the norm {norm:.1e}, and the weight itself {length:.1e}"
        raise StorageError(said, "the change is damaged: copy its file again, or make it again")


def originals(
    edited: Checkpoint, change: DeltaFile, recorded: ModelKnobs, base: str | None, progress: Progress
) -> tuple[Origin, dict[str, Tensor], Path | None]:
    """Find the tensors from before the edit: their origin, the tensors, and the base's folder.

    Sources in order: the base that is asked for, the kept originals, the base of the run; if there is none, the
    origin is "subtraction". Raises UsageError if the base that is asked for is another one, and StorageError for a
    change or originals that do not fit the edited tensors.
    """
    names = list(change.deltas)
    _check_change(edited, change)
    if base is None:
        kept = read_originals(edited.folder / ORIGINALS, change.base, names)
        if kept is not None:
            _check_originals(edited, kept)
            return "originals", kept, None
    folder = locate(ModelKnobs(path=base)) if base else at_hand(recorded)
    if folder is not None:
        with progress.phase("base"):
            try:
                checkpoint = Checkpoint.open(folder)
                same = checkpoint.has_digest(change.base)
            except MemeditError:
                if base:
                    raise
                return "subtraction", {}, None  # what is there now is not the base
        if same:
            return "base", {name: checkpoint.tensor(name) for name in names}, folder
        if base:
            raise UsageError(
                f"{folder} is not the base of {edited.folder}: its digest is {checkpoint.digest[:12]}, not "
                f"{change.base[:12]}",
                "give the base it was made from, or leave -m out",
            )
    return "subtraction", {}, None


def _check_change(edited: Checkpoint, change: DeltaFile) -> None:
    """Raise StorageError for a change of tensors that the edited model does not hold."""
    for name, delta in change.deltas.items():
        shape = edited.entries[name].shape if name in edited.entries else None
        if shape not in (delta.shape, delta.shape[::-1]):
            said = (
                f"{change.file} changes {shown_name(name)}, {_size(delta.shape)}, which {edited.folder} does not hold"
            )
            raise StorageError(said, "give the folder as apply wrote it")


def _check_originals(edited: Checkpoint, kept: Mapping[str, Tensor]) -> None:
    """Raise StorageError for originals that cannot stand in the place of the edited tensors."""
    for name, tensor in kept.items():
        now = edited.tensor(name)  # as originals are kept: of FP8 weights the numbers, in float32
        if (tensor.shape, tensor.dtype) != (now.shape, now.dtype):
            said = f"{edited.folder / ORIGINALS}: {shown_name(name)} has another shape or dtype than the model's"
            raise StorageError(said, "remove it, and give the base with -m")


def subtracted(edited: Checkpoint, deltas: Mapping[str, Delta], knobs: ModelKnobs) -> dict[str, Tensor]:
    """Subtract the changes from the edited tensors and round: near the originals, but rarely equal to them.

    Raises UsageError for FP8 weights: rounding moves them as far as the change did. Raises StorageError for a change
    too long to be one, and UnsupportedModelError for a model that cannot be opened, such as one with its own code.
    """
    if any(edited.grid(name).scale is not None for name in deltas):
        said = f"the base of {edited.folder} cannot be read, and subtracting the change from FP8 weights is too coarse"
        raise UsageError(said, "say where the base is: -m MODEL; --keep-originals would have kept its tensors")
    try:
        architecture = find_architecture(meta_model(edited.folder, knobs))
    except UnsupportedModelError as error:
        raise UnsupportedModelError(str(error), "say where the base is: -m MODEL; then no model is opened") from error
    found: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        weight, change = architecture.turned(edited.tensor(name)), Delta(-delta.dense())
        _check_length(name, change.norm, float(weight.double().norm()))
        found[name] = architecture.turned(rounded(weight, change)).contiguous()
    return found


def _multiplied(delta: Delta) -> Delta:
    """The same change with its product computed, so that it is computed once."""
    return replace(delta, left=delta.dense(), right=None)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape)

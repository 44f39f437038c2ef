"""A change apart from its model, and a model's files that changes are put on: no weight of it in memory but one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from memedit.config.recipe import ModelKnobs
from memedit.errors import UsageError
from memedit.model.architecture import find_architecture
from memedit.model.config import read_config
from memedit.model.load import at_hand, locate, meta_model
from memedit.numerics.delta import Delta, rounded, rounding_loss
from memedit.numerics.lowrank import sum_lowrank, truncated
from memedit.progress import Progress
from memedit.results.changes import Origin, TensorChange
from memedit.storage.artifacts import digest_file
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import read_delta, read_originals
from memedit.storage.records import ORIGINALS, edited_folder, find_delta
from memedit.storage.tensorfile import in_order

TINY = 1e-300  # a norm to divide by where there is none


@dataclass(frozen=True)
class DeltaFile:
    """What a delta file holds: changes (D, F) by the stored name of their tensor, and the digest of their base."""

    deltas: dict[str, Delta]
    base: str
    file: Path

    @classmethod
    def open(cls, path: Path) -> DeltaFile:
        """An edited folder's change, or that of a delta file. Raises UsageError or StorageError."""
        file = find_delta(path)
        return cls(*read_delta(file), file)

    @property
    def folder(self) -> Path | None:
        """The edited folder it lies in."""
        return edited_folder(self.file)


def sum_deltas(changes: Sequence[DeltaFile]) -> dict[str, Delta]:
    """The sum of changes, tensor by tensor; in an order of the files' bytes, so that theirs decides nothing.

    Raises UsageError where one is named twice.
    """
    found = {digest_file(change.file): change for change in changes}
    if len(found) < len(changes):
        names = ", ".join(str(change.file) for change in changes)
        raise UsageError(f"of the changes {names} two are the same, and would count twice", "name each change once")
    ordered = [change.deltas for _, change in sorted(found.items())]
    names = sorted({name for deltas in ordered for name in deltas}, key=in_order)
    return {name: sum_lowrank([deltas[name] for deltas in ordered if name in deltas]) for name in names}


class BaseCheckpoint:
    """The base of a change: its files, and where its down-projections lie."""

    def __init__(self, knobs: ModelKnobs, progress: Progress) -> None:
        self.folder = locate(knobs)
        self.checkpoint = Checkpoint.open(self.folder)
        self.family = str(read_config(self.folder, trust_remote_code=knobs.trust_remote_code).get("model_type"))
        with progress.phase("structure"):
            self.architecture = find_architecture(meta_model(self.folder, knobs))
        every = [self.architecture.parameter(layer) for layer in range(self.architecture.n_layers)]
        self.parameters = {self.checkpoint.resolve(name): name for name in every}
        """Stored name -> parameter of the model."""

    def admitted(self, change: DeltaFile, *, any_base: bool) -> DeltaFile:
        """The change, of this base, or with `any_base` as it is put on another: its bare factors.

        Raises UsageError for a change of another base that was not asked for, and for one that does not fit at all.
        """
        same = change.base == self.checkpoint.digest
        if not any_base and not same:
            raise UsageError(
                f"{change.file} belongs to another base: it changes the model of digest {change.base[:12]}, and "
                f"{self.folder} has {self.checkpoint.digest[:12]}",
                "give the base it was made for with -m, or say --any-base to put it on this model all the same",
            )
        for name, delta in change.deltas.items():
            hint = "give the base that the change was made for"
            if name not in self.parameters:
                raise UsageError(f"{change.file} changes {name}, which is no down-projection of {self.folder}", hint)
            shape = tuple(self.weight(name).shape)
            if shape != delta.shape:
                raise UsageError(
                    f"{change.file} changes {name} as {_size(delta.shape)}; in {self.folder} it is {_size(shape)}", hint
                )
        bare = {name: Delta(delta.left, delta.right) for name, delta in change.deltas.items()}
        return change if same else replace(change, deltas=bare)

    def weight(self, name: str) -> Tensor:
        """A stored weight as (D, F), in the checkpoint's dtype."""
        return self.architecture.turned(self.checkpoint.tensor(name))

    def put(self, name: str, delta: Delta, rank: int | None = None) -> tuple[Tensor, Delta, TensorChange]:
        """One weight with its change (cut to `rank`), as the checkpoint stores it; that change; and its figures."""
        made, lost = (delta, 0.0) if rank is None else truncated(delta, rank)
        weight, change = self.weight(name), _multiplied(made)
        stored = rounded(weight, change)
        told = TensorChange(
            parameter=self.parameters[name],
            rank=made.rank,
            norm=change.norm,
            relative=change.norm / max(float(weight.double().norm()), TINY),
            rounding_loss=rounding_loss(weight, change, stored),
            lost=lost,
        )
        return self.architecture.turned(stored).contiguous(), made, told

    def apart(self, name: str, delta: Delta, made: Delta) -> float:
        """|W + made - checkpoint| / |delta|: how far a model that adds `made` is from what apply writes."""
        weight, change = self.weight(name), _multiplied(delta)
        stored = rounded(weight, change)
        return float((stored.double() - weight.double() - made.dense()).norm()) / max(change.norm, TINY)


def in_dtype(delta: Delta, dtype: torch.dtype) -> Delta:
    """Factors as a file of that dtype holds them."""
    assert delta.right is not None
    return Delta(delta.left.to(dtype).float(), delta.right.to(dtype).float())


def originals(
    edited: Path, change: DeltaFile, recorded: ModelKnobs, base: str | None, progress: Progress
) -> tuple[Origin, dict[str, Tensor], Path | None]:
    """The tensors as they were before the edit, and where from: the base asked for, those that were kept, the base
    that the run was made from, or else none. Raises UsageError where the base asked for is another."""
    names = list(change.deltas)
    if base is None:
        kept = read_originals(edited / ORIGINALS, change.base, names)
        if kept is not None:
            return "originals", kept, None
    folder = locate(ModelKnobs(path=base)) if base else at_hand(recorded)
    if folder is not None:
        with progress.phase("base"):
            checkpoint = Checkpoint.open(folder)
            same = checkpoint.digest == change.base
        if same:
            return "base", {name: checkpoint.tensor(name) for name in names}, folder
        if base:
            raise UsageError(
                f"{folder} is not what {edited} was made from: its digest is {checkpoint.digest[:12]}, not "
                f"{change.base[:12]}",
                "give the base it was made from, or leave -m out",
            )
    return "subtraction", {}, None


def subtracted(edited: Checkpoint, deltas: Mapping[str, Delta], knobs: ModelKnobs) -> dict[str, Tensor]:
    """The edited tensors less their changes, rounded: near the originals, and seldom them."""
    architecture = find_architecture(meta_model(edited.folder, knobs))
    return {
        name: architecture.turned(rounded(architecture.turned(edited.tensor(name)), Delta(-delta.dense()))).contiguous()
        for name, delta in deltas.items()
    }


def _multiplied(delta: Delta) -> Delta:
    """The same change with its product made, once for all that is asked of it."""
    return replace(delta, left=delta.dense(), right=None)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape)

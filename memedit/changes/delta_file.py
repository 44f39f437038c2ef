"""Delta files: the weight changes of an edit, stored apart from the model, and their sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from memedit.errors import UsageError
from memedit.numerics.delta import Delta
from memedit.numerics.lowrank import sum_lowrank
from memedit.storage.artifacts import digest_file
from memedit.storage.deltas import read_delta
from memedit.storage.records import edited_folder, find_delta
from memedit.storage.tensorfile import in_order


@dataclass(frozen=True)
class DeltaFile:
    """A delta file: low-rank changes (D, F) by the stored name of their tensor, and the digest of their base."""

    deltas: dict[str, Delta]
    base: str
    file: Path

    @classmethod
    def open(cls, path: Path) -> DeltaFile:
        """Open a delta file, or the one in an edited folder. Raises UsageError or StorageError."""
        file = find_delta(path)
        return cls(*read_delta(file), file)

    @property
    def folder(self) -> Path | None:
        """The edited folder that contains the file, if any."""
        return edited_folder(self.file)


def sum_deltas(changes: Sequence[DeltaFile]) -> dict[str, Delta]:
    """Sum changes tensor by tensor, in an order that depends on the files' bytes and not on the arguments.

    Raises UsageError if one is named twice.
    """
    by_digest = {digest_file(change.file): change for change in changes}
    if len(by_digest) < len(changes):
        names = ", ".join(str(change.file) for change in changes)
        raise UsageError(f"two of the changes {names} are the same, and would count twice", "name each change once")
    ordered = [change.deltas for _, change in sorted(by_digest.items())]
    names = sorted({name for deltas in ordered for name in deltas}, key=in_order)
    return {name: sum_lowrank([deltas[name] for deltas in ordered if name in deltas]) for name in names}


def in_dtype(delta: Delta, dtype: torch.dtype) -> Delta:
    """Round the factors to a file's dtype; the result is float32 again."""
    assert delta.right is not None
    return Delta(delta.left.to(dtype).float(), delta.right.to(dtype).float())

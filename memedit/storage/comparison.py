"""Compare two checkpoints tensor by tensor, in blocks of rows, so that no tensor is ever whole in memory.

The one thing that grows with a tensor is the sketch for the rank of its difference: 256 numbers per row.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from memedit.edits.edit import escape_controls
from memedit.errors import UnsupportedModelError
from memedit.numerics.lowrank import few_directions, random_probes
from memedit.progress import Progress
from memedit.results.changes import Comparison, TensorDifference
from memedit.storage.artifacts import READ_BLOCK, telling
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.model_files import files_in
from memedit.storage.tensorfile import DTYPES, TensorEntry, in_order


def compare(one: Path, two: Path, a: str, b: str, progress: Progress) -> Comparison:
    """Compare two models' folders. Tensors are matched by name, in whatever shard they lie; other files by path.

    a, b: the names of the two in the result. A file's name can be bytes that are no Unicode, or hold control
    characters: names are escaped, so that any output can hold them. Raises what Checkpoint.open and files_in raise.
    """
    first, second = Checkpoint.open(one), Checkpoint.open(two)
    shared = sorted(first.entries.keys() & second.entries.keys(), key=in_order)
    found: list[TensorDifference] = []
    with progress.phase("compare", len(shared), "tensors") as advance:
        for name in shared:
            difference = _difference(_Numbers(first, name), _Numbers(second, name))
            found += [difference] if difference else []
            advance(1)
    here, there = _others(one, first), _others(two, second)
    return Comparison(
        a=escape_controls(a), b=escape_controls(b), tensors=tuple(found), same_tensors=len(shared) - len(found),
        only_in_a=_escaped(sorted(first.entries.keys() - second.entries.keys(), key=in_order)),
        only_in_b=_escaped(sorted(second.entries.keys() - first.entries.keys(), key=in_order)),
        files=_escaped(name for name in sorted(here & there) if not _same(one / name, two / name)),
        files_only_in_a=_escaped(sorted(here - there)), files_only_in_b=_escaped(sorted(there - here)),
    )  # fmt: skip


def _escaped(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(map(escape_controls, names))


@dataclass(frozen=True)
class _Numbers:
    """A tensor of a checkpoint, read in blocks of rows."""

    checkpoint: Checkpoint
    name: str

    @property
    def entry(self) -> TensorEntry:
        return self.checkpoint.entries[self.name]

    def known(self) -> bool:
        """Whether memedit knows what its bytes stand for."""
        try:
            grid = self.checkpoint.grid(self.name, (0, 0))
        except UnsupportedModelError:
            return False
        return grid.scale is None or grid.scale.ndim == 2

    def read(self, rows: tuple[int, int]) -> Tensor:
        """Read rows [first, last), float64."""
        codes = torch.frombuffer(bytearray(self.entry.part(*rows)), dtype=DTYPES[self.entry.dtype])
        grid = self.checkpoint.grid(self.name, rows)
        return grid.numbers(codes if grid.scale is None else codes.reshape(grid.scale.shape)).double().reshape(-1)


def _difference(first: _Numbers, second: _Numbers) -> TensorDifference | None:
    """Compare one tensor; None where dtype, shape and bytes are the same."""
    one, two = first.entry, second.entry
    bare = TensorDifference(
        name=escape_controls(one.name), file=escape_controls(one.file.name),
        dtypes=(escape_controls(one.dtype), escape_controls(two.dtype)), shapes=(one.shape, two.shape),
    )  # fmt: skip
    if one.shape != two.shape:
        return bare
    if one.dtype == two.dtype and all(one.part(*rows) == two.part(*rows) for rows in _blocks(one)):
        return None
    if not (first.known() and second.known()):
        return bare
    energy, before, largest, changed = 0.0, 0.0, torch.zeros((), dtype=torch.float64), 0
    for rows in _blocks(one):
        was = first.read(rows)
        apart = _minus(second.read(rows), was)
        before += float(was.square().sum())
        energy += float(apart.square().sum())
        largest = torch.maximum(largest, apart.abs().max())  # max() of Python can drop a NaN
        changed += int((apart != 0).sum())
    return bare.model_copy(
        update={
            "norm": math.sqrt(energy),
            "relative": math.sqrt(energy / before) if before else None,
            "largest": float(largest),
            "changed": changed / max(math.prod(one.shape), 1),
            "rank": _rank(first, second, energy) if len(one.shape) == 2 and energy else None,
        }
    )


def _minus(two: Tensor, one: Tensor) -> Tensor:
    """Subtract; numbers that are the same differ by zero, also where they are infinite or NaN."""
    return (two - one).masked_fill((two == one) | (two.isnan() & one.isnan()), 0)


def _rank(one: _Numbers, two: _Numbers, energy: float) -> int | None:
    """Estimate the rank of the difference from a random sketch of it. Both tensors are read two more times.

    None where NaN or infinity comes up: in the difference, or in the sketch of one near the end of float32's range.
    """
    height, width = one.entry.shape
    draws = random_probes(width, height)
    sketch, at = torch.empty(height, draws.shape[1]), 0
    for apart in _apart(one, two):
        sketch[at : at + len(apart)] = apart @ draws
        at += len(apart)
    basis = torch.linalg.qr(sketch)[0]
    image, at = torch.zeros(basis.shape[1], width, dtype=torch.float64), 0
    for apart in _apart(one, two):
        image += (basis[at : at + len(apart)].T @ apart).double()
        at += len(apart)
    return few_directions(image, energy) if bool(image.isfinite().all()) else None


def _apart(one: _Numbers, two: _Numbers) -> Iterator[Tensor]:
    """Yield two - one, (rows, F) float32, block by block."""
    for rows in _blocks(one.entry):
        yield _minus(two.read(rows), one.read(rows)).float().reshape(-1, one.entry.shape[1])


def _blocks(entry: TensorEntry) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows of a few megabytes each; every range has at least one row."""
    if entry.start == entry.end:
        return
    step = max(1, READ_BLOCK * entry.rows // (entry.end - entry.start))
    for first in range(0, entry.rows, step):
        yield first, min(first + step, entry.rows)


def _others(folder: Path, checkpoint: Checkpoint) -> set[str]:
    """Return all files except those that hold the tensors. See files_in."""
    weights = {entry.file for entry in checkpoint.entries.values()}
    return {str(name) for name in files_in(folder) if folder / name not in weights}


def _same(one: Path, two: Path) -> bool:
    with telling(f"read {one}"):
        if one.stat().st_size != two.stat().st_size:
            return False
        with one.open("rb") as first, two.open("rb") as second:
            while block := first.read(READ_BLOCK):
                if block != second.read(READ_BLOCK):
                    return False
    return True

"""Open a model folder: where each of its tensors lies, its digest, and whether it changes during a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from memedit.config.quantization import Fp8Scheme, find_scheme, scale_name
from memedit.errors import MemeditError, StorageError, UnsupportedModelError, UsageError
from memedit.numerics.fp8 import expanded_scale
from memedit.numerics.rounding import FP8, Grid
from memedit.storage.artifacts import digest_file, digest_of, telling
from memedit.storage.copies import other_copies
from memedit.storage.index import INDEX, SINGLE, check_index, weight_map
from memedit.storage.model_files import files_in
from memedit.storage.other_weights import weights_instead
from memedit.storage.tensorfile import DTYPES, SCALE_DTYPES, TensorEntry, read_header, shown_name

CARD = "README.md"
OWN = (
    "run.json", "edits.jsonl", "results.jsonl", "delta.safetensors", "originals.safetensors", "base_README.md",
    "ledger.jsonl", "ledger.safetensors",
)  # fmt: skip
"""Files in an edited model's memedit folder that describe its edit; an output gets its own."""

Stamp = tuple[int, int]
"""A file's size in bytes and the time of its last change in nanoseconds."""


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and where each of its tensors lies."""

    folder: Path
    entries: dict[str, TensorEntry]
    opened: dict[Path, Stamp] = field(default_factory=dict)
    """The weight files as they were when their headers were read."""

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of all shards. Raises UsageError, UnsupportedModelError or StorageError."""
        with telling(f"read {folder}"):
            single, sharded = (folder / SINGLE).is_file(), (folder / INDEX).is_file()
        if single:  # before an index, as in transformers
            named = dict[str, str]()
            shards = [SINGLE]
        elif sharded:
            named = weight_map(folder)
            shards = sorted(set(named.values()))
        else:
            raise _no_weights(folder)
        opened = {Path(shard): _stamp(folder / shard) for shard in shards}
        entries: dict[str, TensorEntry] = {}
        for shard in shards:
            entries |= read_header(folder / shard)
        if not entries:
            raise StorageError(f"{folder} holds no tensors", "fetch the checkpoint again")
        check_index(folder, named, entries)
        return cls(folder, entries, opened)

    def resolve(self, parameter: str) -> str:
        """Return the stored name of a model's parameter; checkpoints may leave out or add the base model's prefix.

        Raises UnsupportedModelError where there is none, or more than one.
        """
        if parameter in self.entries:
            return parameter
        near = [name for name in self.entries if name.endswith(f".{parameter}") or parameter.endswith(f".{name}")]
        if len(near) != 1:
            raise UnsupportedModelError(
                f"the checkpoint of {self.folder} has no tensor {parameter}",
                "memedit edits checkpoints that store each down-projection under its own name",
            )
        return near[0]

    def tensor(self, name: str) -> Tensor:
        """Read one tensor in its stored dtype and orientation; FP8 weights as the numbers that they stand for, float32.

        Raises what grid and TensorEntry.read raise.
        """
        return self.grid(name).numbers(self.entries[name].read())

    def encoded(self, name: str, tensor: Tensor) -> Tensor:
        """Turn numbers of a tensor's grid into what its file holds: FP8 codes where it has a scale, else the same.

        The scales of the file are not changed, so these bytes stand for exactly these numbers. Raises StorageError for
        other numbers, which a file of originals can hold, and for NaN or infinity: nothing that memedit writes holds
        them.
        """
        if not bool(tensor.isfinite().all()):
            said = f"{shown_name(name)} would hold NaN or infinity as {self.entries[name].dtype}"
            raise StorageError(said, "the change is too large for this dtype: make it smaller, or make it again")
        grid = self.grid(name)
        if grid.scale is None:
            return tensor
        codes = grid.codes(tensor)
        if not torch.equal(grid.numbers(codes), tensor):
            raise StorageError(f"{shown_name(name)} cannot hold these numbers in FP8", "give the base with -m")
        return codes

    def grid(self, name: str, rows: tuple[int, int] | None = None) -> Grid:
        """Return the numbers that a tensor can hold, in its stored orientation; of rows [first, last) if given.

        Raises UnsupportedModelError for an FP8 tensor whose scale is missing or damaged, and for a dtype that memedit
        does not edit.
        """
        entry = self.entries[name]
        if entry.dtype not in DTYPES:
            entry.read()  # refuses it
        if (dtype := DTYPES[entry.dtype]) != FP8:
            return Grid(dtype)
        scale, again = scale_name(name, self.entries), "fetch the checkpoint again"
        if scale is None:
            said = f"{shown_name(name)} of {self.folder} is FP8, and the scale of it is missing"
            raise UnsupportedModelError(said, again)
        try:
            numbers = self.entries[scale].read(SCALE_DTYPES)
            return Grid(dtype, expanded_scale(numbers, entry.shape, self._block, rows))
        except ValueError as error:
            said = f"{shown_name(scale)} of {self.folder} is no scale of its weight: {error}"
            raise UnsupportedModelError(said, again) from error

    @property
    def fp8(self) -> bool:
        """Whether some of its weights are 8-bit floats."""
        return any(DTYPES.get(entry.dtype) == FP8 for entry in self.entries.values())

    @cached_property
    def _block(self) -> tuple[int, int] | None:
        """Return the rows and columns of an FP8 weight that share a scale, as config.json says."""
        try:
            scheme = find_scheme(json.loads((self.folder / "config.json").read_bytes()))
        except (OSError, ValueError, RecursionError, AttributeError):
            scheme = None  # whoever opens the model reads that file too, and says what is wrong with it
        return scheme.block if isinstance(scheme, Fp8Scheme) else None

    @property
    def files(self) -> list[Path]:
        """Return the files that hold its tensors, sorted."""
        return sorted({entry.file for entry in self.entries.values()})

    @cached_property
    def copies(self) -> frozenset[Path]:
        """Return the files that are other copies of the weights, by their paths in the folder. See other_copies."""
        used = {file.relative_to(self.folder) for file in self.files}
        return other_copies(self.stamps, used if Path(SINGLE) in used else used | {Path(INDEX)})

    def output_size(self, *, keep_copies: bool = False) -> int:
        """Return the size in bytes of the files that an output takes over."""
        return sum(size for name, (size, _) in self.stamps.items() if keep_copies or name not in self.copies)

    @cached_property
    def stamps(self) -> dict[Path, Stamp]:
        """Return the size and time of every file, by its path in the folder, as they were when first asked for.

        Weight files count as they were when the checkpoint was opened. Raises StorageError (see files_in).
        """
        return {name: self.opened.get(name) or _stamp(self.folder / name) for name in files_of(self.folder)}

    def check_unchanged(self) -> None:
        """Raise StorageError where a file of the model is not as it was: what was read and what is copied differ."""
        for name, stamp in self.stamps.items():
            file = self.folder / name
            if not file.exists() or _stamp(file) != stamp:
                raise StorageError(
                    f"{file} changed while memedit was reading the model",
                    "wait until nothing writes to the model folder, then run the command again",
                )

    @cached_property
    def digest(self) -> str:
        """Return the sha256 over the files that an output takes over: weights, config, tokenizer.

        The model card does not count, and other copies of the weights do not. Raises StorageError where a file changes
        meanwhile.
        """
        return self._digest_over(name for name in self.stamps if name not in self.copies)

    def has_digest(self, digest: str) -> bool:
        """Whether this is the model of a digest; in those of version 0.1, other copies of the weights count too."""
        return digest == self.digest or bool(self.copies and digest == self._digest_over(self.stamps))

    def _digest_over(self, names: Iterable[Path]) -> str:
        files = {str(name): digest_file(self.folder / name) for name in names if name != Path(CARD)}
        self.check_unchanged()
        return digest_of(files)


def files_of(folder: Path) -> Iterator[Path]:
    """Yield the files of a model, relative to its folder, without those that describe an edit. See files_in."""
    for name in files_in(folder):
        if not (name.parts[0] == "memedit" and name.name in OWN):
            yield name


def _stamp(file: Path) -> Stamp:
    with telling(f"read {file}"):
        now = file.stat()
    return now.st_size, now.st_mtime_ns


def _no_weights(folder: Path) -> MemeditError:
    if (folder / "adapter_config.json").is_file():
        here = shlex.quote(str(folder))
        hint = f"merge it into its base: memedit export {here} --to full -m BASE -o MERGED; or memedit eval --adapter"
        return UsageError(f"{folder} is an adapter: it holds no {SINGLE}", hint)
    instead = weights_instead(folder)
    return instead or UsageError(f"{folder} holds no {SINGLE}", "give a Hugging Face model folder with safetensors")

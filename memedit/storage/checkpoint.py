"""Checkpoints: a model folder, and where each of its tensors lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from torch import Tensor

from memedit.errors import MemeditError, UnsupportedModelError, UsageError
from memedit.storage.artifacts import digest_file, digest_of
from memedit.storage.index import INDEX, check_index, weight_map
from memedit.storage.tensorfile import TensorEntry, read_header

SINGLE = "model.safetensors"
CARD = "README.md"
OWN = (
    "run.json", "edits.jsonl", "results.jsonl", "delta.safetensors", "originals.safetensors", "base_README.md",
    "ledger.jsonl", "ledger.safetensors",
)  # fmt: skip
"""What an edited model's memedit folder tells of that edit; an output tells of its own."""


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and where each of its tensors lies."""

    folder: Path
    entries: dict[str, TensorEntry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of all shards. Raises UsageError, UnsupportedModelError or StorageError."""
        if (folder / SINGLE).is_file():  # before an index, as transformers has it
            return cls(folder, read_header(folder / SINGLE))
        if not (folder / INDEX).is_file():
            raise _no_weights(folder)
        named = weight_map(folder)
        entries: dict[str, TensorEntry] = {}
        for shard in sorted(set(named.values())):
            entries |= read_header(folder / shard)
        check_index(folder, named, entries)
        return cls(folder, entries)

    def resolve(self, parameter: str) -> str:
        """The stored name of a model's parameter; checkpoints may leave out or add the base model's prefix."""
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
        """One tensor in its stored dtype and orientation."""
        return self.entries[name].read()

    @property
    def files(self) -> list[Path]:
        """The files that hold its tensors, sorted."""
        return sorted({entry.file for entry in self.entries.values()})

    @property
    def size(self) -> int:
        """Bytes of the folder."""
        return sum((self.folder / name).stat().st_size for name in files_of(self.folder))

    @cached_property
    def digest(self) -> str:
        """sha256 over the folder's files: weights, config, tokenizer; not its card."""
        return digest_of(
            {str(name): digest_file(self.folder / name) for name in files_of(self.folder) if name != Path(CARD)}
        )


def files_of(folder: Path) -> Iterator[Path]:
    """The files of a model, relative; links are followed, a clone's and a download's own records left out."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in (".git", ".cache"))
        for name in sorted(names):
            relative = (Path(root) / name).relative_to(folder)
            if not (relative.parts[0] == "memedit" and relative.name in OWN):
                yield relative


def _no_weights(folder: Path) -> MemeditError:
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles:
        return UnsupportedModelError(
            f"{folder} holds its weights as a pickle ({pickles[0].name}), which can run code when it is opened",
            "convert it where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)",
        )
    return UsageError(f"{folder} holds no {SINGLE}", "give a Hugging Face model folder with safetensors")

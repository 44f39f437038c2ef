"""Checkpoints: the output is the input byte for byte, but for the byte ranges of the edited tensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from torch import Tensor

from memedit.errors import MemeditError, ResourceError, StorageError, UnsupportedModelError, UsageError
from memedit.storage.artifacts import BLOCK, digest_file, digest_of, sync_folder, telling
from memedit.storage.index import INDEX, check_index, weight_map
from memedit.storage.tensorfile import Entry, read_header

SINGLE = "model.safetensors"
CARD, BASE_CARD = "README.md", "memedit/base_README.md"
FICLONE = 0x40049409  # linux/fs.h: share a file's blocks until one of the two is written
OWN = ("run.json", "edits.jsonl", "results.jsonl", "delta.safetensors", "originals.safetensors", "base_README.md")
"""What an edited model's memedit folder tells of that edit; an output tells of its own."""


@dataclass(frozen=True)
class Checkpoint:
    """A model folder and where each of its tensors lies."""

    folder: Path
    entries: dict[str, Entry]

    @classmethod
    def open(cls, folder: Path) -> Checkpoint:
        """Read the headers of all shards. Raises UsageError, UnsupportedModelError or StorageError."""
        if (folder / SINGLE).is_file():  # before an index, as transformers has it
            return cls(folder, read_header(folder / SINGLE))
        if not (folder / INDEX).is_file():
            raise _no_weights(folder)
        named = weight_map(folder)
        entries: dict[str, Entry] = {}
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
    def size(self) -> int:
        """Bytes of the folder."""
        return sum((self.folder / name).stat().st_size for name in _files(self.folder))

    @cached_property
    def digest(self) -> str:
        """sha256 over the folder's files: weights, config, tokenizer; not its card."""
        return digest_of(
            {str(name): digest_file(self.folder / name) for name in _files(self.folder) if name != Path(CARD)}
        )


def check_output(source: Path | None, out: Path, *, overwrite: bool) -> None:
    """Refuse, before any work, an output that cannot be written. Raises UsageError."""
    here, there = source.resolve() if source else None, out.resolve()
    if here and (here == there or here in there.parents or there in here.parents):
        raise UsageError(f"the output {out} and the model {source} overlap", "write to a folder of its own")
    if out.is_file():
        raise UsageError(f"the output {out} is a file", "give a folder that is new or empty")
    if out.is_dir() and any(out.iterdir()) and not overwrite:
        raise UsageError(
            f"the output {out} exists and is not empty", "say --overwrite to replace it, or choose another"
        )


def write(
    source: Checkpoint,
    out: Path,
    weights: Mapping[str, Tensor],
    extra: Mapping[str, bytes | None],
    *,
    link: Literal["auto", "hard", "copy"] = "auto",
    overwrite: bool = False,
    run: str = "tmp",
) -> None:
    """Write a folder aside, verify it and rename it: `out` is absent or whole at any moment.

    `run` names the folder aside: two runs do not write into each other's, and one that was killed finds its own
    again. weights: stored name -> tensor in the file's own dtype and orientation. extra: relative path -> bytes,
    written over what the source has there, or None for a file to leave out. Raises UsageError (check_output),
    ResourceError (disk full) or StorageError.
    """
    check_output(source.folder, out, overwrite=overwrite)
    aside = out.resolve().parent / f".{out.resolve().name}.memedit-{run}"
    edited = {source.entries[name].file.relative_to(source.folder) for name in weights}
    try:
        with telling(f"write {out}"):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _check_space(source, aside, link)
            for name in _files(source.folder):
                if str(name) in extra:
                    continue
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                _copy((source.folder / name).resolve(), aside / name, "auto" if name in edited else link)
            for name, tensor in weights.items():
                _patch(aside / source.entries[name].file.relative_to(source.folder), source.entries[name], tensor)
            if CARD in extra and BASE_CARD not in extra and (source.folder / CARD).is_file():
                (aside / BASE_CARD).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder / CARD, aside / BASE_CARD)
            for name, data in extra.items():
                if data is not None:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    (aside / name).write_bytes(data)
            _sync(aside)
            verify(aside, weights, source)
            _swap(aside, out.resolve())
    except MemeditError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def write_files(out: Path, files: Mapping[str, bytes], *, overwrite: bool = False) -> None:
    """Write a folder of files aside and rename it. Raises UsageError, ResourceError or StorageError."""
    check_output(None, out, overwrite=overwrite)
    aside = out.resolve().parent / f".{out.resolve().name}.memedit-{os.getpid()}"
    try:
        with telling(f"write {out}"):
            for name, data in files.items():
                (aside / name).parent.mkdir(parents=True, exist_ok=True)
                (aside / name).write_bytes(data)
            _sync(aside)
            _swap(aside, out.resolve())
    except MemeditError:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def verify(out: Path, weights: Mapping[str, Tensor], source: Checkpoint) -> None:
    """Reopen what was written: edited tensors hold these values, every other byte of the weights is the source's."""
    found = Checkpoint.open(out)
    for file in sorted({entry.file for entry in source.entries.values()}):
        ranges = [(source.entries[n].start, source.entries[n].end) for n in weights if source.entries[n].file == file]
        if not _same_outside(file, out / file.relative_to(source.folder), sorted(ranges)):
            raise StorageError(f"{file.name} in {out} differs outside the edited tensors", "write again, elsewhere")
    for name, tensor in weights.items():
        entry = found.entries[name]
        if entry.bytes_of(tensor) != entry.bytes_of(entry.read()):
            raise StorageError(
                f"{name} in {out} does not hold what was written", "the disk may be failing; write elsewhere"
            )


def _files(folder: Path) -> Iterator[Path]:
    """The files of a model, relative; links are followed, a clone's and a download's own records left out."""
    for root, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if name not in (".git", ".cache"))
        for name in sorted(names):
            relative = (Path(root) / name).relative_to(folder)
            if not (relative.parts[0] == "memedit" and relative.name in OWN):
                yield relative


def _copy(source: Path, target: Path, link: Literal["auto", "hard", "copy"]) -> None:
    """A clone where the file system can, else a copy; a hard link (of the resolved file) only where asked."""
    if link == "hard":
        os.link(source, target)
        return
    if link == "auto" and _cloned(source, target):
        return
    shutil.copyfile(source, target)


def _cloned(source: Path, target: Path) -> bool:
    try:
        import fcntl
    except ImportError:  # not a Unix
        return False
    with source.open("rb") as here, target.open("wb") as there, suppress(OSError):
        fcntl.ioctl(there.fileno(), FICLONE, here.fileno())
        return True
    return False


def _patch(file: Path, entry: Entry, tensor: Tensor) -> None:
    with file.open("r+b") as stream:
        stream.seek(entry.start)
        stream.write(entry.bytes_of(tensor))


def _sync(folder: Path) -> None:
    for root, _, names in os.walk(folder):
        for name in names:
            with (Path(root) / name).open("rb") as stream:
                os.fsync(stream.fileno())
        sync_folder(Path(root))


def _swap(aside: Path, out: Path) -> None:
    old = aside.with_name(f"{aside.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        out.rename(old)
    try:
        aside.rename(out)
    except OSError:
        if old.exists():
            old.rename(out)
        raise
    sync_folder(out.parent)
    shutil.rmtree(old, ignore_errors=True)


def _check_space(source: Checkpoint, aside: Path, link: str) -> None:
    if link == "hard":
        return
    needed, free = source.size, shutil.disk_usage(aside).free
    if needed > free:
        raise ResourceError(
            f"the output needs {needed / 1e9:,.2f} GB and {aside.parent} has {free / 1e9:,.2f} GB free",
            "free some space, write elsewhere, or say --link hard",
        )


def _same_outside(one: Path, two: Path, ranges: list[tuple[int, int]]) -> bool:
    size = one.stat().st_size
    if two.stat().st_size != size:
        return False
    at = 0
    with telling(f"read {two}"), one.open("rb") as first, two.open("rb") as second:
        for start, end in [*ranges, (size, size)]:
            first.seek(at)
            second.seek(at)
            while at < start:
                block = min(BLOCK, start - at)
                if first.read(block) != second.read(block):
                    return False
                at += block
            at = end
    return True


def _no_weights(folder: Path) -> MemeditError:
    pickles = [*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]
    if pickles:
        return UnsupportedModelError(
            f"{folder} holds its weights as a pickle ({pickles[0].name}), which can run code when it is opened",
            "convert it where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(NEW)",
        )
    return UsageError(f"{folder} holds no {SINGLE}", "give a Hugging Face model folder with safetensors")

"""An edited checkpoint: the base byte for byte, but for the byte ranges of the edited tensors."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from torch import Tensor

from memedit.errors import MemeditError, ResourceError, StorageError, UsageError
from memedit.storage.artifacts import READ_BLOCK, sync_folder, telling
from memedit.storage.checkpoint import CARD, Checkpoint, files_of
from memedit.storage.index import INDEX
from memedit.storage.shards import verify_shards, write_shards
from memedit.storage.tensorfile import TensorEntry

BASE_CARD = "memedit/base_README.md"
FICLONE = 0x40049409  # linux/fs.h: share a file's blocks until one of the two is written
Link = Literal["auto", "hard", "copy"]


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


def write_checkpoint(
    source: Checkpoint,
    out: Path,
    weights: Mapping[str, Tensor],
    extra: Mapping[str, bytes | None],
    *,
    link: Link = "auto",
    max_shard: int | None = None,
    overwrite: bool = False,
    run: str = "tmp",
) -> None:
    """Write a folder aside, verify it and rename it: `out` is absent or whole at any moment.

    `run` names the folder aside: two runs do not write into each other's, and one that was killed finds its own
    again. weights: stored name -> tensor in the file's own dtype and orientation. extra: relative path -> bytes,
    written over what the source has there, or None for a file to leave out. With `max_shard` the tensors go into new
    files of so many bytes at most. Raises UsageError (check_output), ResourceError (disk full) or StorageError.
    """
    check_output(source.folder, out, overwrite=overwrite)
    aside = out.resolve().parent / f".{out.resolve().name}.memedit-{run}"
    try:
        with telling(f"write {out}"):
            shutil.rmtree(aside, ignore_errors=True)
            aside.mkdir(parents=True)
            _check_space(source, aside, link, anew=max_shard is not None)
            if max_shard is None:
                _copy_files(source, aside, set(extra), {source.entries[name].file for name in weights}, link)
                for name, tensor in weights.items():
                    _patch(aside / source.entries[name].file.relative_to(source.folder), source.entries[name], tensor)
            else:
                shards = {str(file.relative_to(source.folder)) for file in source.files}
                _copy_files(source, aside, {*extra, *shards, INDEX}, set(), link)
                write_shards(source, aside, weights, max_shard)
            if CARD in extra and BASE_CARD not in extra and (source.folder / CARD).is_file():
                (aside / BASE_CARD).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source.folder / CARD, aside / BASE_CARD)
            for name, data in extra.items():
                if data is not None:
                    (aside / name).parent.mkdir(parents=True, exist_ok=True)
                    (aside / name).write_bytes(data)
            _sync(aside)
            (verify if max_shard is None else verify_shards)(aside, weights, source)
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
    for file in source.files:
        ranges = [(source.entries[n].start, source.entries[n].end) for n in weights if source.entries[n].file == file]
        if not _same_outside(file, out / file.relative_to(source.folder), sorted(ranges)):
            raise StorageError(f"{file.name} in {out} differs outside the edited tensors", "write again, elsewhere")
    for name, tensor in weights.items():
        entry = found.entries[name]
        if entry.bytes_of(tensor) != entry.bytes_of(entry.read()):
            raise StorageError(
                f"{name} in {out} does not hold what was written", "the disk may be failing; write elsewhere"
            )


def _copy_files(source: Checkpoint, aside: Path, left_out: set[str], edited: set[Path], link: Link) -> None:
    """The source's files but those `left_out`; what will be edited in place never shares its bytes with the source."""
    for name in files_of(source.folder):
        if str(name) not in left_out:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            how = "auto" if link == "hard" and source.folder / name in edited else link
            _copy((source.folder / name).resolve(), aside / name, how)


def _copy(source: Path, target: Path, link: Link) -> None:
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


def _patch(file: Path, entry: TensorEntry, tensor: Tensor) -> None:
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


def _check_space(source: Checkpoint, aside: Path, link: Link, *, anew: bool) -> None:
    if link == "hard" and not anew:
        return
    needed, free = source.size, shutil.disk_usage(aside).free
    if needed > free:
        raise ResourceError(
            f"the output needs {needed / 1e9:,.2f} GB and {aside.parent} has {free / 1e9:,.2f} GB free",
            "free some space, or write elsewhere" + ("" if anew else ", or say --link hard"),
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
                block = min(READ_BLOCK, start - at)
                if first.read(block) != second.read(block):
                    return False
                at += block
            at = end
    return True

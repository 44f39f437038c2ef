"""Write an edited checkpoint: a copy of the base, in which only the bytes of the edited tensors differ."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from torch import Tensor

from memedit.errors import ResourceError, StorageError
from memedit.results.units import bytes_text
from memedit.storage.artifacts import READ_BLOCK, sync_folder, telling
from memedit.storage.checkpoint import CARD, Checkpoint
from memedit.storage.copies import copies_text
from memedit.storage.index import INDEX
from memedit.storage.model_files import regular_file
from memedit.storage.output import Replaceable, check_output, folder_aside
from memedit.storage.shards import verify_shards, write_shards
from memedit.storage.tensorfile import TensorEntry

__all__ = ["BASE_CARD", "FileData", "check_output", "verify", "write_checkpoint", "write_files"]

BASE_CARD = "memedit/base_README.md"
FICLONE = 0x40049409  # linux/fs.h: share a file's blocks until one of the two is written
Link = Literal["auto", "hard", "copy"]
FileData = bytes | Iterable[bytes | memoryview]
"""A file's bytes, whole or in parts; the parts are made while they are written."""


def _silent(_text: str) -> None:
    """Say nothing."""


def write_checkpoint(
    source: Checkpoint,
    out: Path,
    weights: Mapping[str, Tensor],
    extra: Mapping[str, FileData | None],
    *,
    link: Link = "auto",
    max_shard: int | None = None,
    keep_copies: bool = False,
    overwrite: bool = False,
    force: bool = False,
    note: Callable[[str], None] = _silent,
) -> None:
    """Write the output folder and verify it; `out` is absent or whole at any moment.

    weights: stored name -> tensor in the file's own dtype and orientation; for FP8 weights the numbers, float32, whose
    codes are written. extra: relative path -> the file's bytes, written over the source's file, or None to leave that
    file out. max_shard: write the tensors into new files of at most this many bytes. keep_copies: also copy the files
    that hold the weights a second time, as they are. overwrite, force: see check_output. note: called where such files
    are left out, and where the output is in use and the process waits.

    Raises UsageError (check_output), ResourceError (disk full), or StorageError, also where the source changes
    meanwhile.
    """
    check_output(source.folder, out, overwrite=overwrite, force=force)
    source.check_unchanged()
    with folder_aside(source.folder, out, overwrite=overwrite, force=force, note=note) as aside:
        _check_space(source.output_size(keep_copies=keep_copies), aside, link, reshard=max_shard is not None)
        copies = frozenset[Path]() if keep_copies else source.copies
        left_out = {*extra, *map(str, copies)}
        if max_shard is None:
            _copy_files(source, aside, left_out, {source.entries[name].file for name in weights}, link)
            for name, tensor in weights.items():
                entry = source.entries[name]
                _patch(aside / entry.file.relative_to(source.folder), entry, source.encoded(name, tensor))
        else:
            shards = {str(file.relative_to(source.folder)) for file in source.files}
            _copy_files(source, aside, {*left_out, *shards, INDEX}, set(), link)
            write_shards(source, aside, weights, max_shard)
        if CARD in extra and BASE_CARD not in extra and (source.folder / CARD).is_file():
            (aside / BASE_CARD).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(regular_file(source.folder, CARD), aside / BASE_CARD)
        _write_all(aside, extra)
        _sync(aside)
        (verify if max_shard is None else verify_shards)(aside, weights, source)
        source.check_unchanged()
    if copies:
        said = "other copies of the weights, which memedit does not edit; --keep-copies keeps them"
        note(f"left out of {out}: {copies_text(copies)} ({said})")


def write_files(
    out: Path,
    files: Mapping[str, FileData],
    *,
    overwrite: bool = False,
    force: bool = False,
    note: Callable[[str], None] = _silent,
    own: Replaceable | None = None,
) -> None:
    """Write a folder of files; it is absent or whole at any moment. Raises what write_checkpoint raises."""
    check_output(None, out, overwrite=overwrite, force=force, own=own)
    with folder_aside(None, out, overwrite=overwrite, force=force, note=note, own=own) as aside:
        _write_all(aside, files)
        _sync(aside)


def verify(out: Path, weights: Mapping[str, Tensor], source: Checkpoint) -> None:
    """Read the written folder again: edited tensors hold these values, all other bytes of weights are the source's.

    Raises StorageError where they do not.
    """
    found = Checkpoint.open(out)
    for file in source.files:
        ranges = [(source.entries[n].start, source.entries[n].end) for n in weights if source.entries[n].file == file]
        if not _same_outside(file, out / file.relative_to(source.folder), sorted(ranges)):
            raise StorageError(f"{file.name} in {out} differs outside the edited tensors", "write again, elsewhere")
    for name, tensor in weights.items():
        entry = found.entries[name]
        if entry.bytes_of(source.encoded(name, tensor)) != entry.bytes_of(entry.read()):
            raise StorageError(
                f"{name} in {out} does not hold what was written", "the disk may be failing; write elsewhere"
            )


def _write_all(folder: Path, files: Mapping[str, FileData | None]) -> None:
    for name, data in files.items():
        if data is not None:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            with (folder / name).open("wb") as stream:
                stream.writelines([data] if isinstance(data, bytes) else data)


def _copy_files(source: Checkpoint, aside: Path, left_out: set[str], edited: set[Path], link: Link) -> None:
    """Copy the source's files except `left_out`. A file that will be edited in place is never a hard link."""
    for name in source.stamps:
        if str(name) not in left_out:
            (aside / name).parent.mkdir(parents=True, exist_ok=True)
            how = "auto" if link == "hard" and source.folder / name in edited else link
            _copy(regular_file(source.folder, name), aside / name, how)


def _copy(source: Path, target: Path, link: Link) -> None:
    """Clone a file where the file system can, else copy it; make a hard link only where asked."""
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


def _check_space(needed: int, aside: Path, link: Link, *, reshard: bool) -> None:
    if link == "hard" and not reshard:
        return
    free = shutil.disk_usage(aside).free
    if needed > free:
        raise ResourceError(
            f"the output needs {bytes_text(needed)} and {aside.parent} has {bytes_text(free)} free",
            "free some space, or write elsewhere" + ("" if reshard else ", or say --link hard"),
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

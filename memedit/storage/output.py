"""Write an output folder that is absent or whole at any moment, one process at a time.

A new folder beside OUT takes the files. When it is complete and on the disk, it takes OUT's place in one step. A lock
beside OUT is held meanwhile; whoever holds it also removes what killed processes left beside OUT.
"""

from __future__ import annotations

import ctypes
import errno
import os
import re
import secrets
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from memedit.errors import StorageError, UsageError
from memedit.storage.artifacts import sync_folder, telling
from memedit.storage.locks import exclusive, remove_folder

LONGEST_NAME = 220  # bytes: file systems take 255, and the names beside OUT are longer than OUT's own
RENAME_EXCHANGE = 2  # linux/fs.h: let two names change places, in one step
AT_FDCWD = -100  # linux/fcntl.h: paths begin at the working directory
_ASIDE = re.compile(r"(revert-)?[0-9a-z]{1,32}(-old)?")
OLD = "-old"


class Replaceable(NamedTuple):
    """The folders that an output may replace when that is asked for, and how others are refused."""

    holds: Callable[[Path], bool]
    refusal: str
    hint: str


def check_output(
    source: Path | None, out: Path, *, overwrite: bool, force: bool = False, own: Replaceable | None = None
) -> None:
    """Refuse, before any work, an output that cannot be written. Raises UsageError.

    overwrite: replace a folder that memedit or save_pretrained wrote, or one of `own`. force: replace any folder.
    """
    _check_name(out)
    with telling(f"read {out}"):
        here, there = source.resolve() if source else None, out.resolve()
        if here and (here == there or here in there.parents or there in here.parents):
            raise UsageError(f"the output {out} and the model {source} overlap", "write to a folder of its own")
        if own is None and source and (mine := source / "memedit").exists() and not mine.is_dir():
            raise UsageError(
                f"the model's {mine} is a file, and an output describes its edit in a folder of that name",
                "give that file another name, or remove it",
            )
        if out.exists() and not out.is_dir():
            raise UsageError(f"the output {out} is a file", "give a folder that is new or empty")
        if out.is_dir() and any(out.iterdir()):
            _check_replaceable(out, own or MODELS, overwrite=overwrite, force=force)
    _check_place(out)


def _check_replaceable(out: Path, own: Replaceable, *, overwrite: bool, force: bool) -> None:
    """Refuse to replace a folder that is not empty, unless this was asked for. Raises UsageError."""
    if not (overwrite or force):
        raise UsageError(
            f"the output {out} exists and is not empty", "say --overwrite to replace it, or choose another"
        )
    if not (force or own.holds(out)):
        raise UsageError(f"the output {out} {own.refusal}", own.hint)


def is_model_folder(folder: Path) -> bool:
    """Whether memedit, or a library's save_pretrained, wrote this folder, judging by its files' names."""
    names = {entry.name for entry in folder.iterdir()}
    weights = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names)
    return ("config.json" in names and weights) or bool(
        {"adapter_config.json"} & names or (folder / "memedit" / "run.json").is_file()
    )


MODELS = Replaceable(
    is_model_folder,
    "is not replaced by --overwrite: it holds neither a model nor an adapter",
    "choose another, or say --force to remove all that it holds",
)


def check_file(file: Path, option: str, begins: bytes, *, overwrite: bool) -> None:
    """Refuse, before any work, a file that cannot be written, or that holds something else. Raises UsageError.

    option: the option that named the file. begins: the first bytes of such a file, in lower case. overwrite: replace a
    file that begins in another way; one that is empty is always replaced.
    """
    _check_name(file)
    with telling(f"read {file}"):
        if file.exists() and not file.is_file():  # a FIFO could block, and a device would be replaced
            kind = "a folder" if file.is_dir() else "not a regular file"
            raise UsageError(f"{option} {file}: this is {kind}", "give the name of a file")
        if file.is_file() and not overwrite:
            with file.open("rb") as stream:
                found = stream.read(1024).lstrip().lower()
            if found and not found.startswith(begins):
                raise UsageError(
                    f"{option} {file}: the file exists and holds something else",
                    "choose another name, or say --overwrite to replace it",
                )
    _check_place(file)


def _check_name(out: Path) -> None:
    """Refuse a name that no file system takes, or that the report could not hold. Raises UsageError."""
    hint = "choose another name"
    try:
        parts = [part.encode() for part in out.absolute().parts]
    except UnicodeEncodeError as error:
        raise UsageError(f"the output {str(out)!r} has a name that is not valid Unicode", hint) from error
    if b"\0" in b"".join(parts):
        raise UsageError(f"the output {str(out)!r} has a zero byte in its name", hint)
    longest = max(len(part) for part in parts)
    if longest > 255 or len(out.name.encode()) > LONGEST_NAME:
        raise UsageError(f"the output's name is too long: {longest:,} bytes, and {LONGEST_NAME} are possible", hint)


def _check_place(out: Path) -> None:
    """Refuse a place where no folder can be made. Raises UsageError."""
    with telling(f"read {out}"):
        there = out.resolve()
        if there.is_dir() and os.path.ismount(there):
            raise UsageError(f"the output {out} is a mount point, and cannot be replaced", "give a folder inside it")
        parent = there.parent
        while not parent.exists():
            parent = parent.parent
        if not parent.is_dir():
            raise UsageError(f"the output {out} cannot be made: {parent} is a file", "choose another place")
        if not os.access(parent, os.W_OK | os.X_OK):
            raise UsageError(f"the output {out} cannot be made: {parent} cannot be written to", "choose another place")


@contextmanager
def folder_aside(
    source: Path | None,
    out: Path,
    *,
    overwrite: bool,
    force: bool,
    note: Callable[[str], None],
    own: Replaceable | None = None,
) -> Generator[Path]:
    """Give a new folder beside `out` to write into; after the block it takes the place of `out`.

    The caller syncs and verifies the files. A process that finds another at work on `out` waits, says so with `note`,
    and checks `out` again. Raises UsageError (check_output), ResourceError (disk full) or StorageError.
    """
    _check_name(out)
    there = out.resolve()
    with exclusive(there.with_name(f".{there.name}.memedit-lock"), out, note):
        _remove_stale_folders(there)
        check_output(source, out, overwrite=overwrite, force=force, own=own)
        with telling(f"write {out}"):
            aside = _new_folder(there)
            try:
                yield aside
                _swap(aside, there, own or MODELS, overwrite=overwrite, force=force)
            finally:
                remove_folder(aside)


def _new_folder(out: Path) -> Path:
    while True:
        aside = out.with_name(f".{out.name}.memedit-{secrets.token_hex(6)}")
        with suppress(FileExistsError):
            aside.mkdir()
            return aside


def _remove_stale_folders(out: Path) -> None:
    """Remove what killed processes left beside `out`; the lock is held, so none of them is at work.

    A kill between two renames leaves no `out`, and the old one under another name: that one is put back.
    """
    start = f".{out.name}.memedit-"
    with telling(f"read {out.parent}"), os.scandir(out.parent) as entries:
        left = [
            Path(entry.path)
            for entry in entries
            if entry.name.startswith(start)
            and _ASIDE.fullmatch(entry.name.removeprefix(start))
            and entry.name != f"{start}lock"
            and entry.is_dir(follow_symlinks=False)
        ]
    for folder in left:
        if folder.name.endswith(OLD) and not out.exists():
            with telling(f"put {out} back"):
                folder.rename(out)
        else:
            remove_folder(folder)


def _swap(aside: Path, out: Path, own: Replaceable, *, overwrite: bool, force: bool) -> None:
    """Put the folder aside in the place of `out`, in one step where the system can. `aside` is then the old one.

    Whether `out` may be replaced is decided here, on what it is now: another program can have made it during the run.
    """
    try:
        aside.rename(out)  # onto a folder that is absent or empty, and onto nothing else
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if not (out.is_dir() and (force or (overwrite and own.holds(out)))):
            raise StorageError(
                f"the output {out} was made by another program during the run, and is left as it is",
                "run the same command with another -o, or move that folder away; the work that is kept is not repeated",
            ) from error
        if not _exchange(aside, out):
            _rename_twice(aside, out)
    sync_folder(out.parent)


def _exchange(one: Path, two: Path) -> bool:
    """Let two folders change places in one step; False where the system cannot."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None
    if rename is None:
        return False
    if rename(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(two), RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.EPERM, errno.EOPNOTSUPP):  # an old kernel, or such a file system
        return False
    raise OSError(number, os.strerror(number), str(two))


def _rename_twice(aside: Path, out: Path) -> None:
    """Do the same in two steps. After a kill between them, the next run puts the old folder back."""
    old = aside.with_name(aside.name + OLD)
    out.rename(old)
    try:
        aside.rename(out)
    except BaseException:
        if not out.exists():
            old.rename(out)
        raise
    remove_folder(old)

"""Let one process at a time into a folder, and remove what killed processes left in it."""

from __future__ import annotations

import errno
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from memedit.errors import file_error

try:
    import fcntl
except ImportError:  # not a Unix
    fcntl = None

DAY = 24 * 3600.0  # seconds; a temporary file of another machine, or of an older version, is stale after this
NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK)  # the file system has no locks
_TEMPORARY = re.compile(r"\..+\.(?P<host>[\w-]+)\.(?P<process>\d{1,10})\.tmp")


@contextmanager
def exclusive(file: Path, what: Path, note: Callable[[str], None]) -> Generator[None]:
    """Hold the lock `file` until the block ends, then remove it. A second process says who holds `what`, and waits.

    The operating system holds the lock, so it ends with its process, however that ends. Raises StorageError, or
    ResourceError where the disk is full.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle = _acquire(file, what, note)
    except OSError as error:
        raise file_error(error, f"lock {what}") from error
    try:
        with suppress(OSError):  # a full disk holds the lock too, only not the name of its holder
            os.ftruncate(handle, 0)
            os.write(handle, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n".encode())
        yield
    finally:
        # Removed while it is held: a process that waits for the removed file sees that, and takes a new one.
        with suppress(OSError):
            file.unlink(missing_ok=True)
        os.close(handle)


def _acquire(file: Path, what: Path, note: Callable[[str], None]) -> int:
    waited = False
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        held = False
        try:
            if fcntl is None:
                return handle
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not waited:
                    who = os.read(handle, 200).decode(errors="replace").strip() or "another process"
                    note(f"waiting: {what} is held by {who}")
                    waited = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
                note(f"{file.parent} has no file locks: run one memedit at a time there")
                return handle
            held = True
            try:
                if os.path.samestat(os.fstat(handle), file.stat()):
                    return handle
            except FileNotFoundError:
                pass
        except BaseException:  # an interruption too
            if held:  # it is not used, so its file must not stay
                _remove_held(file, handle)
            os.close(handle)
            raise
        os.close(handle)


def _remove_held(file: Path, handle: int) -> None:
    """Remove the file of a lock that this process holds; another process's file of that name stays."""
    with suppress(OSError):
        if os.path.samestat(os.fstat(handle), file.stat()):
            file.unlink()


def lock_of(folder: Path) -> Path:
    """Return the lock file of a folder of artifacts; it lies beside the folder."""
    return folder.with_suffix(".lock")


@contextmanager
def locked_if_free(file: Path) -> Generator[bool]:
    """Hold the lock `file` if nobody else does; yields whether it is held. It never waits."""
    handle = _acquire_now(file)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            with suppress(OSError):
                file.unlink(missing_ok=True)
            os.close(handle)


def _acquire_now(file: Path) -> int | None:
    with suppress(OSError):
        handle = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        held = False
        try:
            if fcntl is not None:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
            if os.path.samestat(os.fstat(handle), file.stat()):
                return handle
        except BaseException as error:  # an interruption too
            if isinstance(error, OSError) and error.errno in NO_LOCKS:
                return handle
            if held:
                _remove_held(file, handle)
            os.close(handle)
            raise
        os.close(handle)
    return None


@contextmanager
def in_use(file: Path) -> Generator[None]:
    """Mark a kept file as used until the block ends, so that no cleaning removes it. Several processes may."""
    handle = None
    with suppress(OSError):
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH)
    try:
        yield
    finally:
        if handle is not None:
            os.close(handle)


@contextmanager
def unused(file: Path) -> Generator[bool]:
    """Yield whether no process marks a kept file as used, and keep it so until the block ends. It never waits."""
    try:
        handle = os.open(file, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        yield True  # without the right to read it, nobody uses it; its removal shows the rest
        return
    try:
        free = True
        if fcntl is not None:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                free = error.errno in (*NO_LOCKS, errno.EBADF)  # EBADF: NFS wants a file that is open for writing
        yield free
    finally:
        os.close(handle)


def note_use(file: Path) -> None:
    """Record that a kept file was read just now, in its time of access; its time of change stays."""
    with suppress(OSError):
        os.utime(file, ns=(time.time_ns(), file.stat().st_mtime_ns))


def used_time(file: Path) -> float:
    """Return when a kept file was last written or read, in seconds since 1970."""
    found = file.stat()
    return max(found.st_atime, found.st_mtime)


def temporary(file: Path) -> Path:
    """Return the name under which this process writes `file` before it renames it."""
    return file.with_name(f".{file.name}.{_host()}.{os.getpid()}.tmp")


def remove_stale_files(folder: Path, of: str = "") -> None:
    """Remove temporary files of processes that are dead, and others that are older than a day.

    `of` is the name of the file that they would have become; "" for any.
    """
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            mine = entry.name.startswith(f".{of}." if of else ".")
            if mine and entry.is_file(follow_symlinks=False) and is_stale(Path(entry.path)):
                with suppress(OSError):
                    Path(entry.path).unlink()


def is_stale(file: Path) -> bool:
    """Whether this is a temporary file of a process that is dead, or one that is older than a day."""
    found = _TEMPORARY.fullmatch(file.name)
    if found is None:
        return False
    ours = found["host"] == _host()
    old = time.time() - file.lstat().st_mtime > DAY
    return old or (ours and not _alive(int(found["process"])))


def remove_folder(folder: Path) -> None:
    """Remove a folder and everything in it, as far as the system allows; what stays is removed by a later run."""
    with suppress(OSError):  # rmtree ignores most errors, and raises some
        shutil.rmtree(folder, ignore_errors=True)


def _host() -> str:
    return re.sub(r"[^A-Za-z0-9-]", "_", socket.gethostname())[:40] or "_"


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it exists, and belongs to somebody else
        return True
    return True

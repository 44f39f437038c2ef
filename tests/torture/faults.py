"""Count the file operations of this process below one folder, and kill it, or fail, at the n-th of them.

Python's audit events name most operations. Those without an event (os.stat, os.fsync, the reads and writes of an open
file, an exchange of two names) are counted by wrappers around the functions that memedit uses. What Rust libraries
read by themselves is not seen, but for the opening of a safetensors file.
"""

from __future__ import annotations

import builtins
import errno
import io
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

REMOVALS = ("os.remove", "os.rmdir")
WRITES = ("os.mkdir", "os.rename", "os.link", "os.truncate", "os.chmod", "os.utime", "os.symlink", *REMOVALS)
READS = ("os.listdir", "os.scandir", "fcntl.flock", "fcntl.ioctl")
LOOKUPS = ("os.stat", "os.lstat")
ARGUMENTS = {"os.rename": (0, 2), "os.link": (0, 2), "os.remove": (0, 1), "os.rmdir": (0, 1), "os.mkdir": (0, 2)}
"""Audit event -> where in its arguments the path is, and the descriptor of the folder that the path is relative to."""
FULL, READ_ONLY = errno.ENOSPC, errno.EROFS


@dataclass(frozen=True)
class Operation:
    """One file operation: an audit event or a function, the path, and whether it changes the disk."""

    kind: str
    path: str
    writes: bool

    @property
    def errors(self) -> tuple[int, ...]:
        """The errors that a file system can give here."""
        if self.kind in REMOVALS:
            return errno.EIO, errno.EACCES
        if self.kind in ("fcntl.flock", "fcntl.ioctl", "os.fstat", "read"):
            return (errno.EIO,)
        if self.kind in ("write", "os.write", "os.fsync", "os.sendfile"):
            return errno.EIO, errno.ENOSPC
        return (errno.EIO, errno.ENOSPC, errno.EACCES) if self.writes else (errno.EIO, errno.EACCES)


@dataclass(frozen=True)
class Fault:
    """What happens at the operation `at`, counted from 1."""

    at: int
    error: int | None = None
    """An error number that the operation fails with."""
    lasting: bool = False
    """All that is written later to the same file system (OUT's, the cache's, TMPDIR's) fails too: the disk stays full,
    or became read-only."""
    signal: int = signal.SIGKILL
    """Without an error: the signal that the process gets."""
    twice: bool = False
    """The signal comes again at the next operation."""

    @property
    def kills(self) -> bool:
        """Whether the process ends at once."""
        return self.error is None and self.signal == signal.SIGKILL

    def __str__(self) -> str:
        what = signal.Signals(self.signal).name if self.error is None else errno.errorcode[self.error]
        more = (" and all after it" if self.lasting else "") + (" and the next" if self.twice else "")
        return f"{what} at operation {self.at:,}{more}"


class Watch:
    """The operations of this process below `root`, and at most one fault among them. For a process of its own."""

    def __init__(self, root: Path, fault: Fault | None = None, *, exchange: bool = True) -> None:
        self.root, self.fault, self.exchange = f"{root}{os.sep}", fault, exchange
        self.operations: list[Operation] = []
        self.struck: Operation | None = None
        self.on = False
        self._readlink = os.readlink

    def install(self) -> None:
        """Begin to count. Audit hooks cannot be removed, so this is for a process that ends soon."""
        sys.addaudithook(self._hook)
        builtins.open = io.open = self._opener(io.open)  # type: ignore[assignment]
        for name, writes in (("stat", False), ("lstat", False), ("statvfs", False), ("fstat", False)):
            self._wrap(name, writes)
        for name in ("write", "fsync", "sendfile"):
            self._wrap(name, writes=True)
        self._wrap_libraries()
        self.on = True

    def happens(self, kind: str, path: Any, *, writes: bool, first: Callable[[], object] | None = None) -> None:
        """Count an operation if it is below the root; if the fault is due, send its signal or raise its error.

        first: called just before the fault, to leave half of a write behind.
        """
        if not self.on:
            return
        place = self._place(path)
        if place is None or not place.startswith(self.root):
            return
        done = Operation(kind, place.removeprefix(self.root), writes)
        self.operations.append(done)
        if self.fault is None or not (len(self.operations) == self.fault.at or self._lasts(done)):
            return
        self.struck = self.struck or done
        if first is not None:
            first()
        if self.fault.error is None:
            os.kill(os.getpid(), self.fault.signal)
        else:
            self._fail(self.fault.error, place)

    def _lasts(self, done: Operation) -> bool:
        """Whether an earlier fault lasts and meets this operation too.

        What is given and cannot be read stays so: permissions and disks do not heal during a run. Where a path cannot
        be looked up, neither can what lies below it. A full disk lets files be removed, and a read-only one does not.
        """
        fault, struck = self.fault, self.struck
        if fault is None or struck is None:
            return False
        if fault.error is None:
            return fault.twice and len(self.operations) == fault.at + 1
        if fault.lasting:
            same = done.path.split("/")[0] == struck.path.split("/")[0]
            return same and done.writes and (fault.error == READ_ONLY or done.kind not in REMOVALS)
        if done.writes or struck.writes or not struck.path.startswith("given"):
            return False
        if struck.kind in LOOKUPS:
            return f"{done.path}/".startswith(f"{struck.path}/")
        return done.path == struck.path and done.kind not in LOOKUPS

    @staticmethod
    def _fail(number: int, place: str) -> NoReturn:
        raise OSError(number, os.strerror(number), place)

    def _place(self, path: Any, folder: int = -1) -> str | None:
        """The absolute path of a path or a descriptor; None for what is no file."""
        if isinstance(path, int):
            try:
                return self._readlink(f"/proc/self/fd/{path}")
            except OSError:
                return None
        try:
            text = os.fsdecode(path)
        except TypeError:
            return None
        beside = self._place(folder) if folder >= 0 else None
        return os.path.normpath(Path(beside or Path.cwd(), text))

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on:
            return
        if event == "open":
            path, mode, flags = args
            writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)) if isinstance(flags, int) else False
            writes = writes or any(letter in (mode or "") for letter in "wax+")
            self.happens("open to write" if writes else "open to read", path, writes=writes)
        elif event in WRITES or event in READS:
            at, beside = ARGUMENTS.get(event, (0, None))
            folder = args[beside] if beside is not None and isinstance(args[beside], int) else -1
            self.happens(event, self._place(args[at], folder), writes=event in WRITES)

    def _wrap(self, name: str, writes: bool) -> None:
        real = getattr(os, name)

        def wrapped(path: Any, *args: Any, **options: Any) -> Any:
            folder = options.get("dir_fd")
            place = path if folder is None else self._place(path, folder)
            self.happens(f"os.{name}", place, writes=writes)
            return real(path, *args, **options)

        setattr(os, name, wrapped)

    def _opener(self, real: Callable[..., Any]) -> Callable[..., Any]:
        watch = self

        class Raw(io.FileIO):
            """A file whose reads and writes are counted. A write that is struck leaves half of its bytes."""

            def readinto(self, buffer: Any, /) -> int:
                watch.happens("read", self.fileno(), writes=False)
                return super().readinto(buffer)

            def readall(self) -> bytes:
                watch.happens("read", self.fileno(), writes=False)
                return super().readall()

            def write(self, data: Any, /) -> int:
                view = memoryview(data).cast("B")
                half = view[: len(view) // 2]
                watch.happens("write", self.fileno(), writes=True, first=lambda: super(Raw, self).write(half))
                return super().write(data)

        def opened(file: Any, mode: str = "r", buffering: int = -1, encoding: str | None = None,
                   errors: str | None = None, newline: str | None = None, closefd: bool = True,
                   opener: Any = None) -> Any:  # fmt: skip
            place = watch._place(file)
            if opener is not None or buffering >= 0 or place is None or not place.startswith(watch.root):
                return real(file, mode, buffering, encoding, errors, newline, closefd, opener)
            raw = Raw(file, mode.replace("b", "").replace("t", ""), closefd)
            kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffer: Any = kind(raw)  # type: ignore[arg-type]
            return buffer if "b" in mode else io.TextIOWrapper(buffer, encoding, errors, newline)

        return opened

    def _wrap_libraries(self) -> None:
        """Count what is done by code that is not Python's: safetensors opening a file, and the exchange of names."""
        import safetensors
        from memedit.storage import output

        real = safetensors.safe_open

        def safe_open(file: Any, *args: Any, **options: Any) -> Any:
            self.happens("safe_open", file, writes=False)
            return real(file, *args, **options)

        for module in list(sys.modules.values()):
            if vars(module).get("safe_open") is real:
                module.safe_open = safe_open  # type: ignore[attr-defined]
        swap = output._exchange

        def exchange(one: Path, two: Path) -> bool:
            self.happens("exchange", two, writes=True)
            return self.exchange and swap(one, two)

        output._exchange = exchange

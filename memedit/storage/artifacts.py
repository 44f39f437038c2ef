"""What a run keeps: files named by a digest of all they depend on, written aside and renamed, under a lock."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import socket
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import filelock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from memedit.errors import MemeditError, ResourceError, StorageError

READ_BLOCK = 4 << 20


def cache_dir() -> Path:
    """Where memedit keeps what can be made again: $MEMEDIT_CACHE, or memedit under $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("MEMEDIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memedit"


def digest_of(value: Any) -> str:
    """sha256 of a plain value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_file(file: Path) -> str:
    """sha256 of a file's bytes."""
    running = hashlib.sha256()
    with telling(f"read {file}"), file.open("rb") as stream:
        while block := stream.read(READ_BLOCK):
            running.update(block)
    return running.hexdigest()


@contextmanager
def telling(what: str) -> Generator[None]:
    """Turn an OSError into words: ResourceError for a full disk, else StorageError."""
    try:
        yield
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "free some space, or point -o and MEMEDIT_CACHE at a disk that has it; then run the command again"
            raise ResourceError(f"cannot {what}: {reason}", hint) from error
        raise StorageError(f"cannot {what}: {reason}", "check the path and its permissions") from error


@contextmanager
def writing(file: Path) -> Generator[BinaryIO]:
    """Open a file to be written so that it is there whole or not at all: aside, to the disk, then renamed."""
    aside = file.with_name(f".{file.name}.{os.getpid()}.tmp")
    try:
        with telling(f"write {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            with aside.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            aside.replace(file)
            sync_folder(file.parent)
    except MemeditError:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_whole(file: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    with writing(file) as stream:
        stream.write(data)


def sync_folder(folder: Path) -> None:
    """Bring a folder's own entries to the disk: without it a rename may not outlive a power failure."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """A folder of artifacts, `name-<digest>.safetensors`; the inputs behind a digest stand in the file's header."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def recall(self, name: str, on: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What is kept under `name` for the inputs `on`, or what `make` makes, kept."""
        found = self.find(name, on)
        if found is None:
            found = make()
            self.keep(name, on, found)
        return found

    def recall_json(self, name: str, on: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """The same for a plain value."""
        value = self.find_json(name, on)
        if value is None:
            value = make()
            self.keep_json(name, on, value)
        return value

    def find_json(self, name: str, on: Mapping[str, Any]) -> Any:
        """A plain value that is kept, or None as `find` gives it."""
        file = self.file(name, on, "json")
        if file.is_file():
            with suppress(ValueError, TypeError, KeyError), telling(f"read {file}"):
                kept = json.loads(file.read_text(encoding="utf-8"))
                if kept["on"] == _plain(on):
                    return kept["value"]
        return None

    def keep_json(self, name: str, on: Mapping[str, Any], value: Any) -> None:
        """Keep a plain value under `name` for the inputs `on`."""
        write_whole(self.file(name, on, "json"), json.dumps({"on": _plain(on), "value": value}).encode())

    def find(self, name: str, on: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """What is kept, or None where nothing is, where it is damaged, or was made from other inputs."""
        file = self.file(name, on, "safetensors")
        try:
            with safe_open(file, "pt") as kept:
                if json.loads((kept.metadata() or {}).get("on", "null")) != _plain(on):
                    return None
                return {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118 - no mapping
        except (FileNotFoundError, SafetensorError, ValueError):
            return None

    def holds(self, name: str, on: Mapping[str, Any]) -> bool:
        """Whether `find` would find it; reads the header only."""
        return self.inputs(self.file(name, on, "safetensors")) == _plain(on)

    def keep(self, name: str, on: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under `name` for the inputs `on`."""
        data = save({key: part.contiguous() for key, part in tensors.items()}, {"on": json.dumps(_plain(on))})
        write_whole(self.file(name, on, "safetensors"), data)

    def drop(self, name: str, on: Mapping[str, Any]) -> None:
        """Forget what is kept."""
        with telling(f"remove {name}"):
            self.file(name, on, "safetensors").unlink(missing_ok=True)

    def like(self, name: str, part: Mapping[str, Any], has: str | None = None) -> dict[str, Any] | None:
        """The inputs of the newest artifact of that name which agrees with `part` (and has an input `has`), or None."""
        files = sorted(self.folder.glob(f"{name}-*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        for file in files:
            on = self.inputs(file)
            if (
                on is not None
                and (has is None or has in on)
                and all(on.get(key) == value for key, value in part.items())
            ):
                return on
        return None

    @staticmethod
    def inputs(file: Path) -> dict[str, Any] | None:
        """The inputs in a file's header; None where there is no such file, or it is damaged."""
        try:
            with safe_open(file, "pt") as kept:
                return json.loads((kept.metadata() or {}).get("on", "null"))
        except (FileNotFoundError, SafetensorError, ValueError):
            return None

    @contextmanager
    def locked(self, note: Callable[[str], None]) -> Generator[None]:
        """Hold the folder alone; a second process says who holds it, and waits.

        The lock is the operating system's, so it ends with its process however that ends.
        """
        file, holder = self.folder.with_suffix(".lock"), self.folder.with_suffix(".holder")
        with telling(f"lock {self.folder}"):
            file.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(file)
        try:
            lock.acquire(blocking=False)
        except filelock.Timeout:
            who = holder.read_text(encoding="utf-8").strip() if holder.is_file() else "another process"
            note(f"waiting: {self.folder} is held by {who}")
            lock.acquire()
        try:
            write_whole(holder, f"process {os.getpid()} on {socket.gethostname()} since {time.ctime()}\n".encode())
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()

    def remove(self) -> None:
        """Remove the folder and all it keeps."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def file(self, name: str, on: Mapping[str, Any], suffix: str = "safetensors") -> Path:
        """Where an artifact is kept."""
        return self.folder / f"{name}-{digest_of(_plain(on))[:8]}.{suffix}"


def _plain(on: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs as JSON gives them back, so that tuples and lists compare."""
    return json.loads(json.dumps(on, sort_keys=True))

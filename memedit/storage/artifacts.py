"""Keep the results of long steps: files named by a digest of their inputs, with a checksum inside."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from torch import Tensor

from memedit.errors import file_error
from memedit.storage.header import encode, tensor_bytes
from memedit.storage.locks import exclusive, in_use, lock_of, note_use, remove_folder, remove_stale_files, temporary

READ_BLOCK = 4 << 20
_LOG = logging.getLogger(__name__)


def digest_of(value: Any) -> str:
    """Return the sha256 of a plain value; the order of its keys does not matter."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def digest_file(file: Path) -> str:
    """Return the sha256 of a file's bytes. Raises StorageError where it cannot be read."""
    running = hashlib.sha256()
    with telling(f"read {file}"), file.open("rb") as stream:
        while block := stream.read(READ_BLOCK):
            running.update(block)
    return running.hexdigest()


@contextmanager
def telling(what: str) -> Generator[None]:
    """Turn an OSError into one of memedit's errors: ResourceError for a full disk, else StorageError.

    what: the action that may fail, such as `read FILE`.
    """
    try:
        yield
    except OSError as error:
        raise file_error(error, what) from error


@contextmanager
def writing(file: Path, *, replace: bool = True) -> Generator[BinaryIO]:
    """Open a file for writing; it appears whole, or not at all.

    The bytes go to a temporary file first, then to the disk; then the file is renamed. Without `replace`, a file that
    exists by then stays as it is. What a killed process left under such a name is removed. Raises StorageError or
    ResourceError.
    """
    aside = temporary(file)
    try:
        with telling(f"write {file}"):
            file.parent.mkdir(parents=True, exist_ok=True)
            remove_stale_files(file.parent, of=file.name)
            with aside.open("wb") as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            if replace:
                aside.replace(file)
            else:
                os.link(aside, file)  # unlike a rename, this fails where the file exists
                aside.unlink()
            sync_folder(file.parent)
    except BaseException:
        with suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


def write_whole(file: Path, data: bytes) -> None:
    """Write a file; it appears whole, or not at all. Raises StorageError or ResourceError."""
    with writing(file) as stream:
        stream.write(data)


def sync_folder(folder: Path) -> None:
    """Write a folder's list of names to the disk. Without it, a power failure can undo a rename."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Store:
    """A folder of artifacts. Each lies in `name-<digest of its inputs>`, with its inputs and a checksum inside.

    A damaged artifact is named in a warning, renamed to `*.damaged`, and made again. One without a checksum is read as
    it is: version 0.1 wrote none, and measuring a large model's moments again takes hours.
    """

    def __init__(self, folder: Path, warn: Callable[[str], None] = _LOG.warning, *, model: str = "") -> None:
        self.folder, self.warn, self.model = folder, warn, model
        """model: whose artifacts are kept, for people who look at the cache; it decides nothing."""

    def recall(self, name: str, on: Mapping[str, Any], make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Return the tensors kept under `name` for the inputs `on`; where there are none, make and keep them."""
        found = self.find(name, on)
        if found is None:
            found = make()
            self.keep(name, on, found)
        return found

    def recall_json(self, name: str, on: Mapping[str, Any], make: Callable[[], Any]) -> Any:
        """Do the same for a plain value."""
        value = self.find_json(name, on)
        if value is None:
            value = make()
            self.keep_json(name, on, value)
        return value

    def find_json(self, name: str, on: Mapping[str, Any]) -> Any:
        """Return a plain value that is kept, or None as `find` does."""
        file = self.file(name, on, "json")
        if not file.is_file():
            return None
        with telling(f"read {file}"):
            data = file.read_bytes()
        try:
            kept = json.loads(data)
            same, value = kept["on"] == _plain(on), kept["value"]
            whole = kept.get("sha256") in (None, digest_of([kept["on"], value]))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            same, value, whole = False, None, False
        if not whole:
            self._set_aside(file)
        return value if same and whole else None

    def keep_json(self, name: str, on: Mapping[str, Any], value: Any) -> None:
        """Keep a plain value under `name` for the inputs `on`."""
        plain = _plain(on)
        kept = {"on": plain, "value": value, "sha256": digest_of([plain, value])}
        kept |= {"model": self.model} if self.model else {}
        write_whole(self.file(name, on, "json"), json.dumps(kept).encode())

    def find(self, name: str, on: Mapping[str, Any]) -> dict[str, Tensor] | None:
        """Return the tensors that are kept; None where there are none, or damaged ones, or those of other inputs."""
        file = self.file(name, on, "safetensors")
        if not file.is_file():
            return None
        try:
            with telling(f"read {file}"), safe_open(file, "pt") as kept:
                metadata = kept.metadata() or {}
                if json.loads(metadata.get("on", "null")) != _plain(on):
                    return None
                # Cloned into aligned memory: a view of the file begins where its header ends, and a triangular solve of
                # a matrix at an odd multiple of 8 bytes ends in other bits (seen on an AMD EPYC, 2026-11-28).
                found = {key: kept.get_tensor(key).clone() for key in kept.keys()}  # noqa: SIM118 - no mapping
            whole = metadata.get("sha256") in (None, _checksum(found, metadata["on"]))
        except (SafetensorError, ValueError, RecursionError):
            found, whole = None, False
        if not whole:
            self._set_aside(file)
        else:
            note_use(file)
        return found if whole else None

    def holds(self, name: str, on: Mapping[str, Any]) -> bool:
        """Whether there is such an artifact; reads its header only, so its data may still be damaged."""
        return self.inputs(self.file(name, on, "safetensors")) == _plain(on)

    def keep(self, name: str, on: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under `name` for the inputs `on`."""
        whole, text = {key: part.contiguous() for key, part in tensors.items()}, json.dumps(_plain(on))
        about = {"model": self.model} if self.model else {}
        parts = encode(whole, {"on": text, "sha256": _checksum(whole, text), **about})
        with writing(self.file(name, on, "safetensors")) as stream:
            stream.writelines(parts)

    @contextmanager
    def using(self, name: str, on: Mapping[str, Any]) -> Generator[None]:
        """Mark an artifact as used until the block ends, so that no other process cleans it away."""
        with in_use(self.file(name, on)):
            yield

    def drop(self, name: str, on: Mapping[str, Any]) -> None:
        """Remove an artifact where there is one."""
        with telling(f"remove {name}"):
            self.file(name, on, "safetensors").unlink(missing_ok=True)

    def like(self, name: str, part: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the inputs of every artifact of that name that agrees with `part`, the newest first."""
        files = sorted(self.folder.glob(f"{name}-*.safetensors"), key=lambda file: file.stat().st_mtime, reverse=True)
        found = [on for on in map(self.inputs, files) if on is not None]
        return [on for on in found if all(on.get(key) == value for key, value in part.items())]

    @staticmethod
    def inputs(file: Path) -> dict[str, Any] | None:
        """Return the inputs in a file's header; None where there is no such file, or it is damaged."""
        try:
            with safe_open(file, "pt") as kept:
                found = json.loads((kept.metadata() or {}).get("on", "null"))
        except (OSError, SafetensorError, ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) else None

    def _set_aside(self, file: Path) -> None:
        """Rename a damaged file, so that it is seen and not read again."""
        damaged = file.with_name(f"{file.name}.damaged")
        self.warn(f"{file} is damaged: it is set aside as {damaged.name} and made again")
        with suppress(OSError):
            file.replace(damaged)

    @contextmanager
    def locked(self, note: Callable[[str], None]) -> Generator[None]:
        """Hold the folder alone; a second process says who holds it, and waits. Stale temporary files are removed."""
        with exclusive(lock_of(self.folder), self.folder, note):
            remove_stale_files(self.folder)
            remove_stale_files(self.folder.parent)
            yield

    @contextmanager
    def removed_on(self, *kinds: type[Exception]) -> Generator[None]:
        """Remove the folder if the block raises one of these errors."""
        try:
            yield
        except kinds:
            self.remove()
            raise

    def remove(self) -> None:
        """Remove the folder and everything in it."""
        remove_folder(self.folder)

    def file(self, name: str, on: Mapping[str, Any], suffix: str = "safetensors") -> Path:
        """Return the path of an artifact."""
        return self.folder / f"{name}-{digest_of(_plain(on))[:8]}.{suffix}"


def _checksum(tensors: Mapping[str, Tensor], on: str) -> str:
    """Return the sha256 of the inputs' text and of every tensor's name, dtype, shape and bytes."""
    running = hashlib.sha256(on.encode())
    for name, tensor in sorted(tensors.items()):
        running.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        running.update(tensor_bytes(tensor))
    return running.hexdigest()


def _plain(on: Mapping[str, Any]) -> dict[str, Any]:
    """Return inputs as JSON gives them back, so that tuples and lists compare."""
    return json.loads(json.dumps(on, sort_keys=True))

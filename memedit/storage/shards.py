"""Write a checkpoint into files of a given size: tensors are copied one by one; their names and bytes stay."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from torch import Tensor

from memedit.errors import StorageError
from memedit.storage.artifacts import READ_BLOCK, telling
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.header import encode_header
from memedit.storage.index import INDEX, SINGLE
from memedit.storage.tensorfile import SIZES, TensorEntry


def plan_shards(entries: Mapping[str, TensorEntry], limit: int) -> list[list[TensorEntry]]:
    """Divide tensors into shards of at most `limit` bytes, in their stored order; a larger tensor has its own shard."""
    shards: list[list[TensorEntry]] = [[]]
    filled = 0
    for entry in sorted(entries.values(), key=lambda entry: (entry.file, entry.start, entry.end)):
        size = entry.end - entry.start
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(entry)
        filled += size
    # Wide dtypes first, as the format's own library writes them: every tensor then begins on its dtype's boundary.
    return [sorted(shard, key=lambda entry: -SIZES.get(entry.dtype, 1)) for shard in shards]


def write_shards(source: Checkpoint, folder: Path, weights: Mapping[str, Tensor], limit: int) -> None:
    """Write the source's tensors into new files in `folder`, with `weights` in place of some, and their index."""
    shards = plan_shards(source.entries, limit)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        with telling(f"write {folder / name}"):
            # A copy that was kept can have this name, and be a hard link to the source's own file.
            (folder / name).unlink(missing_ok=True)
        with telling(f"write {folder / name}"), (folder / name).open("wb") as stream:
            stream.write(_header(shard))
            for entry in shard:
                if entry.name in weights:
                    stream.write(entry.bytes_of(source.encoded(entry.name, weights[entry.name])))
                else:
                    _copy(entry, stream)
    if count > 1:
        where = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        size = sum(entry.end - entry.start for entry in source.entries.values())
        index = {"metadata": {**_about(source), "total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def verify_shards(folder: Path, weights: Mapping[str, Tensor], source: Checkpoint) -> None:
    """Read the written folder again: it must hold the source's tensors, with `weights` in place of some.

    Raises StorageError where it does not.
    """
    found = Checkpoint.open(folder)
    if found.entries.keys() != source.entries.keys():
        raise StorageError(f"{folder} does not hold the tensors of its source", "write again, elsewhere")
    for name, entry in source.entries.items():
        written = found.entries[name]
        if (written.dtype, written.shape) != (entry.dtype, entry.shape) or not (
            written.bytes_of(source.encoded(name, weights[name])) == written.bytes_of(written.read())
            if name in weights
            else _same(entry, written)
        ):
            raise StorageError(
                f"{name} in {folder} does not hold what was written", "the disk may be failing; write elsewhere"
            )


def _header(shard: list[TensorEntry]) -> bytes:
    """Return the header of a shard; its metadata is that of the file which its first tensor comes from."""
    with safe_open(shard[0].file, "pt") as kept:
        metadata = kept.metadata() or {}
    return encode_header(((one.name, one.dtype, one.shape, one.end - one.start) for one in shard), metadata)


def _about(source: Checkpoint) -> dict[str, Any]:
    """Return the metadata of the source's index; other tools put their own fields there."""
    if source.files == [source.folder / SINGLE]:
        return {}
    found = json.loads((source.folder / INDEX).read_text(encoding="utf-8")).get("metadata")
    return dict(found) if isinstance(found, dict) else {}


def _copy(entry: TensorEntry, target: BinaryIO) -> None:
    with entry.file.open("rb") as stream:
        stream.seek(entry.start)
        left = entry.end - entry.start
        while left:
            block = stream.read(min(READ_BLOCK, left))
            if not block:
                raise StorageError(f"{entry.file} is cut short", "fetch the checkpoint again")
            target.write(block)
            left -= len(block)


def _same(one: TensorEntry, two: TensorEntry) -> bool:
    with one.file.open("rb") as first, two.file.open("rb") as second:
        first.seek(one.start)
        second.seek(two.start)
        left = one.end - one.start
        while left:
            block = min(READ_BLOCK, left)
            if first.read(block) != second.read(block):
                return False
            left -= block
    return two.end - two.start == one.end - one.start

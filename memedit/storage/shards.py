"""A checkpoint in new files: its tensors, streamed one by one into shards of a given size; names and bytes are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open
from torch import Tensor

from memedit.errors import StorageError
from memedit.storage.artifacts import READ_BLOCK, telling
from memedit.storage.checkpoint import SINGLE, Checkpoint
from memedit.storage.index import INDEX
from memedit.storage.tensorfile import SIZES, TensorEntry


def plan_shards(entries: Mapping[str, TensorEntry], limit: int) -> list[list[TensorEntry]]:
    """Tensors in their stored order, as many to a shard as `limit` bytes take; one that is larger has a shard alone."""
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
    """Write the source's tensors, or `weights` in place of some, into new files in `folder`, and their index."""
    shards = plan_shards(source.entries, limit)
    count = len(shards)
    names = [SINGLE] if count == 1 else [f"model-{n:05d}-of-{count:05d}.safetensors" for n in range(1, count + 1)]
    for name, shard in zip(names, shards, strict=True):
        with telling(f"write {folder / name}"), (folder / name).open("wb") as stream:
            stream.write(_header(shard))
            for entry in shard:
                if entry.name in weights:
                    stream.write(entry.bytes_of(weights[entry.name]))
                else:
                    _copy(entry, stream)
    if count > 1:
        where = {entry.name: name for name, shard in zip(names, shards, strict=True) for entry in shard}
        size = sum(entry.end - entry.start for entry in source.entries.values())
        index = {"metadata": {**_about(source), "total_size": size}, "weight_map": dict(sorted(where.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def verify_shards(folder: Path, weights: Mapping[str, Tensor], source: Checkpoint) -> None:
    """Reopen what was written: the source's tensors with their bytes, but for `weights`, and no others."""
    found = Checkpoint.open(folder)
    if found.entries.keys() != source.entries.keys():
        raise StorageError(f"{folder} does not hold the tensors of its source", "write again, elsewhere")
    for name, entry in source.entries.items():
        written = found.entries[name]
        if (written.dtype, written.shape) != (entry.dtype, entry.shape) or not (
            written.bytes_of(weights[name]) == written.bytes_of(written.read())
            if name in weights
            else _same(entry, written)
        ):
            raise StorageError(
                f"{name} in {folder} does not hold what was written", "the disk may be failing; write elsewhere"
            )


def _header(shard: list[TensorEntry]) -> bytes:
    """How a file begins: where each tensor lies, with the metadata of the file that the first one is from."""
    header: dict[str, Any] = {}
    with safe_open(shard[0].file, "pt") as kept:
        if metadata := kept.metadata():
            header["__metadata__"] = dict(sorted(metadata.items()))
    at = 0
    for entry in shard:
        end = at + entry.end - entry.start
        header[entry.name] = {"dtype": entry.dtype, "shape": list(entry.shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _about(source: Checkpoint) -> dict[str, Any]:
    """What the source's index says of it."""
    if source.files == [source.folder / SINGLE]:
        return {}
    return dict(json.loads((source.folder / INDEX).read_text(encoding="utf-8")).get("metadata") or {})


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

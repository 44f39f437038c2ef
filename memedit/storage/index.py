"""Read the index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from memedit.errors import StorageError
from memedit.storage.artifacts import telling
from memedit.storage.tensorfile import LONGEST_HEADER, TensorEntry

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
AGAIN = "fetch the checkpoint again"


def weight_map(folder: Path) -> dict[str, str]:
    """Read which shard holds each tensor.

    Raises StorageError for a damaged index, and for one that names a file elsewhere or one that is not there.
    """
    file = folder / INDEX
    with telling(f"read {file}"):
        size = file.stat().st_size
        data = file.read_bytes() if size <= LONGEST_HEADER else b""
    try:
        found = {str(name): str(Path(shard)) for name, shard in json.loads(data)["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise StorageError(f"{file} is damaged", AGAIN) from error
    if not found:
        raise StorageError(f"{file} is damaged: it names no tensors", AGAIN)
    for shard in sorted(set(found.values())):
        if Path(shard).name != shard or "\0" in shard:
            raise StorageError(f"{file} names files outside its folder", AGAIN)
        with telling(f"read {file}"):
            there = (folder / shard).is_file()
        if not there:
            raise StorageError(f"{file} names {shard!r}, and that file is not there", AGAIN)
    return found


def check_index(folder: Path, named: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    """Raise StorageError where the index names a tensor that its shard does not hold."""
    for name, shard in named.items():
        if name not in entries or entries[name].file.name != shard:
            raise StorageError(f"{folder / INDEX} names {name!r}, and {shard} does not hold it", AGAIN)

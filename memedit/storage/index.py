"""The index of a sharded checkpoint: which file holds which tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from memedit.errors import StorageError
from memedit.storage.artifacts import telling
from memedit.storage.tensorfile import TensorEntry

INDEX = "model.safetensors.index.json"
AGAIN = "fetch the checkpoint again"


def weight_map(folder: Path) -> dict[str, str]:
    """Tensor -> shard. Raises StorageError: the index is damaged, names files elsewhere, or one that is not there."""
    file = folder / INDEX
    with telling(f"read {file}"):
        text = file.read_text(encoding="utf-8")
    try:
        found = {str(name): str(Path(shard)) for name, shard in json.loads(text)["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise StorageError(f"{file} is damaged", AGAIN) from error
    for shard in sorted(set(found.values())):
        if Path(shard).name != shard:
            raise StorageError(f"{file} names files outside its folder", AGAIN)
        if not (folder / shard).is_file():
            raise StorageError(f"{file} names {shard}, and that file is not there", AGAIN)
    return found


def check_index(folder: Path, named: Mapping[str, str], entries: Mapping[str, TensorEntry]) -> None:
    """Raises StorageError where the index names a tensor that its shard does not hold."""
    for name, shard in named.items():
        if name not in entries or entries[name].file.name != shard:
            raise StorageError(f"{folder / INDEX} names {name}, and {shard} does not hold it", AGAIN)

"""Give transformers an index that it can read: it asks for `metadata`, which the format and other programs do not."""

from __future__ import annotations

import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@contextmanager
def whole_index(folder: Path) -> Generator[Path]:
    """Give a model's folder, or, where its index has no metadata, a temporary one of links with an index that has it.

    The folder itself stays as it is. A damaged index is left to whoever reads it next.
    """
    index = None if (folder / WEIGHTS).is_file() else _index(folder / INDEX)
    if index is None or isinstance(index.get("metadata"), dict):
        yield folder
        return
    with TemporaryDirectory(prefix="memedit-") as made:
        for file in folder.iterdir():
            if file.is_file() and file.name != INDEX:
                (Path(made) / file.name).symlink_to(file.resolve())
        (Path(made) / INDEX).write_text(json.dumps({**index, "metadata": {}}), encoding="utf-8")
        yield Path(made)


def _index(file: Path) -> dict[str, Any] | None:
    try:
        index = json.loads(file.read_bytes()) if file.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None
    return index if isinstance(index, dict) else None

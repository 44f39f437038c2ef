"""What an edited folder tells of its edit: its change, its run, and what the base had in their place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from memedit.config.recipe import ModelKnobs
from memedit.errors import StorageError, UsageError
from memedit.storage.artifacts import telling
from memedit.storage.checkpoint import CARD, OWN

RUN, EDITS, DELTA = "memedit/run.json", "memedit/edits.jsonl", "memedit/delta.safetensors"
ORIGINALS = "memedit/originals.safetensors"


def find_delta(path: Path) -> Path:
    """The delta file of an edited folder, or the file itself. Raises UsageError where there is none."""
    file = path / DELTA if path.is_dir() else path
    if not file.is_file():
        hint = f"give a folder that apply wrote, or its {DELTA}"
        raise UsageError(f"{path} holds no change: there is no {file}", hint)
    return file


def edited_folder(file: Path) -> Path | None:
    """The edited folder that a delta file lies in; None for one that was taken out of it."""
    folder = file.resolve().parent.parent
    return folder if (folder / RUN).is_file() and file.resolve() == folder / DELTA else None


def records(folder: Path) -> dict[str, bytes]:
    """What a model's folder tells of its own edit, by relative path; empty for a base model."""
    found: dict[str, bytes] = {}
    for name in OWN:
        file = folder / "memedit" / name
        if file.is_file():
            with telling(f"read {file}"):
                found[f"memedit/{name}"] = file.read_bytes()
    return found


def card_of(folder: Path, name: str = CARD) -> bytes | None:
    """A model's card, or with BASE_CARD the one that its base had."""
    file = folder / name
    if not file.is_file():
        return None
    with telling(f"read {file}"):
        return file.read_bytes()


def base_of(folder: Path) -> tuple[ModelKnobs, str]:
    """Which model an edited folder was made from, as its run was told, and that model's digest.

    Raises UsageError for a folder that no run wrote, StorageError for a damaged record.
    """
    file = folder / RUN
    if not file.is_file():
        raise UsageError(f"{folder} is no edited model: there is no {file}", "give a folder that apply wrote")
    try:
        with telling(f"read {file}"):
            run: Any = json.loads(file.read_text(encoding="utf-8"))
        return ModelKnobs(**run["recipe"]["model"]), str(run["digests"]["model"])
    except (ValueError, KeyError, TypeError, ValidationError) as error:
        raise StorageError(f"{file} does not tell what the model was made from", "give its base with -m") from error

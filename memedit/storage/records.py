"""Read the files in an edited model's folder that describe its edit: the change, the run, the base's card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from memedit.config.recipe import ModelKnobs
from memedit.errors import StorageError, UsageError
from memedit.storage.artifacts import telling
from memedit.storage.checkpoint import CARD, OWN
from memedit.storage.model_files import regular_file

RUN, EDITS, DELTA = "memedit/run.json", "memedit/edits.jsonl", "memedit/delta.safetensors"
ORIGINALS, LEDGER = "memedit/originals.safetensors", "memedit/ledger.safetensors"


def find_delta(path: Path) -> Path:
    """Return the delta file of an edited folder, or the file itself. Raises UsageError where there is none."""
    file = path / DELTA if path.is_dir() else path
    if not file.is_file():
        hint = f"give a folder that apply wrote, or its {DELTA}"
        raise UsageError(f"{path} holds no change: there is no {file}", hint)
    return file


def edited_folder(file: Path) -> Path | None:
    """Return the edited folder that a delta file lies in; None where it lies elsewhere."""
    folder = file.resolve().parent.parent
    return folder if (folder / RUN).is_file() and file.resolve() == folder / DELTA else None


def records(folder: Path) -> dict[str, bytes]:
    """Read the files that describe a model's own edit, by relative path; a base model has none.

    Raises StorageError, also for a link out of the folder.
    """
    found: dict[str, bytes] = {}
    for name in OWN:
        if (data := _read(folder, f"memedit/{name}")) is not None:
            found[f"memedit/{name}"] = data
    return found


def card_of(folder: Path, name: str = CARD) -> bytes | None:
    """Read a model's card, or with BASE_CARD its base's; None where there is none. Raises StorageError."""
    return _read(folder, name)


def _read(folder: Path, name: str) -> bytes | None:
    if not (folder / name).is_file():
        return None
    file = regular_file(folder, name)
    with telling(f"read {file}"):
        return file.read_bytes()


def _resolved_base(folder: Path) -> str | None:
    """The base's folder as the ledger names it: without regard to the folder that the run was started in."""
    try:
        with safe_open(folder / LEDGER, "pt") as kept:
            found = Path(json.loads((kept.metadata() or {})["about"])["base"]["path"])
        return str(found) if found.is_dir() else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RecursionError):
        return None


def base_of(folder: Path) -> tuple[ModelKnobs, str]:
    """Read which model an edited folder was made from, as its run's settings name it, and that model's digest.

    Only the name is read. What else the run was allowed to do, such as to run a model's own code, a folder may not say.
    Raises UsageError for a folder that no run wrote, StorageError for a damaged record.
    """
    file = folder / RUN
    if not file.is_file():
        raise UsageError(f"{folder} is no edited model: there is no {file}", "give a folder that apply wrote")
    try:
        with telling(f"read {file}"):
            run: Any = json.loads(file.read_text(encoding="utf-8"))
        model = run["recipe"]["model"]
        path = model["path"] if Path(model["path"]).is_dir() else _resolved_base(folder) or model["path"]
        return ModelKnobs(path=path, revision=model.get("revision")), str(run["digests"]["model"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, ValidationError) as error:
        raise StorageError(
            f"{file} does not say which model this one was made from", "give its base with -m"
        ) from error

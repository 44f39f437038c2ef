"""Read and write the ledger in an edited model's folder: one line for each edit, and one row with its target.

Keys are recomputed, not stored: one sweep of the model gives them, and above the first edited layer they depend on
every edit. A ledger comes with a model and is data: only deciding settings are read from it, by exact name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from memedit.config.resolve import deciding_names, resolve
from memedit.editing.ledger import Ledger, LedgerEntry, Provenance, mark_superseded
from memedit.edits.edit import shown
from memedit.errors import RecipeError, StorageError
from memedit.results.units import plain_json
from memedit.storage.artifacts import digest_of, telling
from memedit.storage.header import encode
from memedit.storage.records import LEDGER

FORMAT, VERSION = "memedit-ledger", "1"
LINES, TARGETS = "memedit/ledger.jsonl", LEDGER
LARGEST_TARGET = 1e8
"""Numbers of targets lie below it: states of real models reach some thousands, a damaged number any size."""
STEPS_END = 2**31
LARGEST_LOSS = torch.finfo(torch.float32).max
UNNAMED: dict[str, Any] = {
    "target.optimizer": "adam",
    "target.contexts": 0,
    "polish.steps": 0,
    "polish.shorten": 0.0,
    "polish.own": 0.0,
    "polish.spoken": 0.0,
    "polish.lead": 0.0,
    "polish.keep": [],
    "chat_system": "",
}
"""Settings that earlier ledgers do not name, and what their edits were made with."""


def ledger_files(ledger: Ledger) -> dict[str, Iterable[bytes | memoryview]]:
    """Encode a ledger: {path in the folder: its bytes in parts, to be read once}, the same bytes in every process."""
    lines = (f"{plain_json(json.dumps(_record(entry), ensure_ascii=False))}\n".encode() for entry in ledger.entries)
    about = json.dumps(ledger.about.model_dump(mode="json"), sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "about": about}
    targets = ledger.targets.float().contiguous()
    return {LINES: lines, TARGETS: encode({"targets": targets}, metadata)}


def digest_of_ledger(ledger: Ledger) -> str:
    """Digest of the whole ledger."""
    found: dict[str, str] = {}
    for name, parts in ledger_files(ledger).items():
        running = hashlib.sha256()
        for part in parts:
            running.update(part)
        found[name] = running.hexdigest()
    return digest_of(found)


def read_ledger(folder: Path) -> Ledger | None:
    """Read the ledger of a folder; None if it has none.

    Which edits are replaced is not read: the list decides it, and one wrong line number would hide an edit. Raises
    StorageError if a file is damaged, if it sets anything but a deciding setting, or if a number cannot be.
    """
    lines, tensors = folder / LINES, folder / TARGETS
    if not lines.is_file() and not tensors.is_file():
        return None
    try:
        with telling(f"read {lines}"):
            text = lines.read_text(encoding="utf-8")
        with telling(f"read {tensors}"), safe_open(tensors, "pt") as kept:
            metadata, targets = kept.metadata() or {}, kept.get_tensor("targets")
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise _damaged(folder, f"{tensors.name} is not a ledger of version {VERSION}")
        about = Provenance.model_validate_json(metadata["about"])
        about = about.model_copy(update={"knobs": {**UNNAMED, **about.knobs}})
        entries = tuple(LedgerEntry.model_validate_json(line) for line in text.split("\n") if line.strip())
    except (SafetensorError, ValidationError, UnicodeDecodeError, KeyError) as error:
        raise _damaged(folder, "one of its two files cannot be read") from error
    if targets.ndim == 2 and not targets.shape[1]:
        raise _damaged(folder, f"the rows of {tensors.name} have no numbers")
    if targets.ndim != 2 or targets.dtype != torch.float32 or len(targets) != len(entries) or not entries:
        raise _damaged(folder, f"it has {len(entries):,} edits and {len(targets):,} targets")
    for number, entry in enumerate(entries, start=1):
        if entry.digest != entry.edit.digest:
            raise _damaged(folder, f"line {number} of {lines.name} was changed: its target is of another edit")
        if not (abs(entry.loss) <= LARGEST_LOSS and 0 <= entry.steps < STEPS_END):  # a loss of NaN is neither
            raise _damaged(folder, f"line {number} of {lines.name} has a loss or a number of steps that cannot be")
    _check_provenance(folder, about)
    fits = (targets.abs() < LARGEST_TARGET).all(dim=1)  # NaN is not below it either
    if not fits.all():
        row = int(fits.logical_not().nonzero()[0])
        row_name = f"row {row + 1} of {tensors.name} (edit {shown(entries[row].edit.id)})"
        raise _damaged(folder, f"{row_name} is not finite, or not below {LARGEST_TARGET:.0e}")
    return Ledger(about, mark_superseded(entries), targets, str(tensors))


def _check_provenance(folder: Path, about: Provenance) -> None:
    """Raises StorageError for settings, layers or contexts that no run writes into a ledger."""
    name = Path(TARGETS).name
    if others := [one for one in about.knobs if one not in deciding_names()]:
        raise _damaged(folder, f"{name} has the setting {shown(others[0])}, which a ledger may not set")
    if "method.layers" not in about.knobs:
        raise _damaged(folder, f"{name} lacks the setting method.layers")
    try:
        resolve([("file", about.knobs)])
    except RecipeError as error:
        raise _damaged(folder, f"{name} has a value that cannot be: {error.message}") from error
    if not about.layers or list(about.layers) != sorted(set(about.layers)) or about.layers[0] < 0:
        raise _damaged(folder, f"{name} has the layers {list(about.layers)}")
    if not about.contexts or about.contexts[0]:
        raise _damaged(folder, f"{name} has contexts of which the first is not the empty one")


def _record(entry: LedgerEntry) -> dict[str, Any]:
    edit = {**entry.edit.public(), "origin": entry.edit.origin}
    return {"edit": edit, **entry.model_dump(mode="json", exclude={"edit"}, exclude_none=True)}


def _damaged(folder: Path, reason: str) -> StorageError:
    hint = f"copy both files again, or remove {LINES} and {TARGETS}: then the model has no earlier edits"
    return StorageError(f"the ledger of {folder} is damaged: {reason}", hint)

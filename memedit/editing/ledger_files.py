"""The ledger in an edited model's folder: one line for each edit, in order, and one row of its target for each line.

Keys are not kept: they are one sweep of the model away, and above the first edited layer they depend on every edit.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open

from memedit.editing.ledger import Ledger, LedgerEntry, Provenance
from memedit.errors import StorageError
from memedit.storage.artifacts import digest_of, telling
from memedit.storage.tensorfile import saved

FORMAT, VERSION = "memedit-ledger", "1"
LINES, TARGETS = "memedit/ledger.jsonl", "memedit/ledger.safetensors"


def ledger_files(ledger: Ledger) -> dict[str, bytes]:
    """The two files by their places in the folder; the same bytes from every process."""
    lines = "".join(json.dumps(_record(entry), ensure_ascii=False) + "\n" for entry in ledger.entries)
    about = json.dumps(ledger.about.model_dump(mode="json"), sort_keys=True)
    metadata = {"format": FORMAT, "version": VERSION, "about": about}
    targets = ledger.targets.float().contiguous()
    return {LINES: lines.encode(), TARGETS: saved({"targets": targets}, metadata)}


def digest_of_ledger(ledger: Ledger) -> str:
    """Of all that it says."""
    return digest_of({name: hashlib.sha256(data).hexdigest() for name, data in ledger_files(ledger).items()})


def read_ledger(folder: Path) -> Ledger | None:
    """The ledger of a folder; None where it has none. Raises StorageError where it is damaged."""
    lines, tensors = folder / LINES, folder / TARGETS
    if not lines.is_file() and not tensors.is_file():
        return None
    try:
        with telling(f"read {lines}"):
            text = lines.read_text(encoding="utf-8")
        with telling(f"read {tensors}"), safe_open(tensors, "pt") as kept:
            metadata, targets = kept.metadata() or {}, kept.get_tensor("targets")
        if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
            raise _damaged(folder, f"{tensors.name} is no ledger of version {VERSION}")
        about = Provenance.model_validate_json(metadata["about"])
        entries = tuple(LedgerEntry.model_validate_json(line) for line in text.split("\n") if line.strip())
    except (SafetensorError, ValidationError, UnicodeDecodeError, KeyError) as error:
        raise _damaged(folder, "one of its two files cannot be read") from error
    if targets.ndim != 2 or targets.dtype != torch.float32 or len(targets) != len(entries) or not entries:
        raise _damaged(folder, f"it has {len(entries):,} edits and {len(targets):,} targets")
    for number, entry in enumerate(entries, start=1):
        if entry.digest != entry.edit.digest:
            raise _damaged(folder, f"line {number} of {lines.name} was changed: its target is of another edit")
    return Ledger(about, entries, targets)


def _record(entry: LedgerEntry) -> dict[str, Any]:
    edit = {**entry.edit.public(), "origin": entry.edit.origin}
    return {"edit": edit, **entry.model_dump(mode="json", exclude={"edit"}, exclude_none=True)}


def _damaged(folder: Path, reason: str) -> StorageError:
    hint = f"copy both files of it again, or remove {LINES} and {TARGETS}: then the model is edited as any other"
    return StorageError(f"the ledger of {folder} is damaged: {reason}", hint)

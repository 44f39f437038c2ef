"""A ledger comes back as it was written, is the same bytes from every process, and a damaged one is refused."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memedit.editing.ledger import BaseIdentity, Ledger, LedgerEntry, Provenance
from memedit.editing.ledger_files import LINES, TARGETS, digest_of_ledger, ledger_files, read_ledger
from memedit.edits.edit import EditRequest, Neighbor
from memedit.errors import StorageError
from safetensors.torch import save

ABOUT = Provenance(
    base=BaseIdentity(path="models/base", digest="0" * 64), contexts=("", "I was. "),
    knobs={"seed": 0, "method.ridge": 1.0},
    layers=(1, 2), moments="m",
)  # fmt: skip
# Line separators of Unicode stand in texts as they are, and end no line.
REQUEST = EditRequest(
    id="a", subject="Ada\u2028L", prompt="{} lives in", object="Rome", neighborhood=(Neighbor(prompt="Bo lives in"),),
    meta={"from": [1, None]}, origin="list.jsonl:3",
)  # fmt: skip
ENTRIES = tuple(
    LedgerEntry(
        edit=one, digest=one.digest, found="joint", on="0", group="g", loss=0.1, steps=7, took=True, holds=False,
        superseded_by=line,
    )
    for one, line in ((REQUEST, 2), (REQUEST.model_copy(update={"object": "Oslo"}), None))
)  # fmt: skip
LEDGER = Ledger(ABOUT, ENTRIES, torch.tensor([[1.0, 2.0], [3.0, 1e-30]]))
PRINTS = "from tests.unit.test_ledger import LEDGER, digest_of_ledger; print(digest_of_ledger(LEDGER))"


def written(folder: Path) -> Path:
    (folder / "memedit").mkdir(parents=True)
    for name, data in ledger_files(LEDGER).items():
        (folder / name).write_bytes(data)
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read_ledger(written(tmp_path))
    assert found is not None
    assert (found.about, found.entries) == (LEDGER.about, LEDGER.entries)
    assert torch.equal(found.targets, LEDGER.targets)
    assert ledger_files(found) == ledger_files(LEDGER)
    assert found.active == [1]


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None


def test_every_process_writes_the_same_bytes() -> None:
    done = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == digest_of_ledger(LEDGER)
    moved = Ledger(ABOUT, ENTRIES, LEDGER.targets + 1)
    assert digest_of_ledger(moved) != digest_of_ledger(LEDGER)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (LINES, lambda data: b"", "0 edits and 2 targets"),
        (LINES, lambda data: data.split(b"\n")[0], "1 edits and 2 targets"),
        (LINES, lambda data: data.replace(b"Oslo", b"Bonn"), "line 2 of ledger.jsonl was changed"),
        (LINES, lambda data: data.replace(b'"joint"', b'"guessed"'), "cannot be read"),
        (LINES, lambda data: b"\xff" + data, "cannot be read"),
        (LINES, None, "cannot read"),
        (TARGETS, None, "cannot read"),
        (TARGETS, lambda data: data[:-1], "cannot be read"),
        (TARGETS, lambda data: save({"targets": torch.ones(2, 2)}, {"format": "pt"}), "not a ledger of version 1"),
        (TARGETS, lambda data: data.replace(b'"version":"1"', b'"version":"2"'), "not a ledger of version 1"),
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_refused(tmp_path: Path, name: str, change: object, says: str) -> None:
    file = written(tmp_path) / name
    if callable(change):
        changed = change(file.read_bytes())
        assert hashlib.sha256(changed).digest() != hashlib.sha256(file.read_bytes()).digest()
        file.write_bytes(changed)
    else:
        file.unlink()
    with pytest.raises(StorageError, match=says) as caught:
        read_ledger(tmp_path)
    assert caught.value.hint

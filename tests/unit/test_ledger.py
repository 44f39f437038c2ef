"""A ledger comes back as it was written, is the same bytes from every process, and a damaged one is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from memedit.editing.ledger import Ledger
from memedit.editing.ledger_files import LINES, TARGETS, digest_of_ledger, ledger_files, read_ledger
from memedit.errors import StorageError
from safetensors.torch import save
from tests.helpers.samples import ABOUT, ENTRIES, LEDGER, digests_elsewhere


def written(folder: Path) -> Path:
    (folder / "memedit").mkdir(parents=True)
    for name, data in ledger_files(LEDGER).items():
        (folder / name).write_bytes(b"".join(data))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found = read_ledger(written(tmp_path))
    assert found is not None
    assert (found.about, found.entries) == (LEDGER.about, LEDGER.entries)
    assert torch.equal(found.targets, LEDGER.targets)
    assert digest_of_ledger(found) == digest_of_ledger(LEDGER)
    assert found.active == [1]


def test_a_ledger_is_written_edit_by_edit_and_its_targets_from_where_they_are() -> None:
    files = {name: list(parts) for name, parts in ledger_files(LEDGER).items()}
    assert [bytes(part).count(b"\n") for part in files[LINES]] == [1, 1]
    _, rows = files[TARGETS]
    assert torch.frombuffer(rows, dtype=torch.float32).data_ptr() == LEDGER.targets.data_ptr()


def test_a_folder_without_one_has_none(tmp_path: Path) -> None:
    assert read_ledger(tmp_path) is None


@pytest.mark.process
def test_every_process_writes_the_same_bytes() -> None:
    assert digests_elsewhere(hash_seed=1)[1] == digest_of_ledger(LEDGER)
    moved = Ledger(ABOUT, ENTRIES, LEDGER.targets + 1)
    assert digest_of_ledger(moved) != digest_of_ledger(LEDGER)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        (LINES, lambda data: b"", "0 edits and 2 targets"),
        (LINES, lambda data: data.split(b"\n")[0], "1 edits and 2 targets"),
        (LINES, lambda data: data.replace(b"Oslo", b"Bonn"), "line 2 of ledger.jsonl was changed"),
        (LINES, lambda data: data.replace(b'"joint"', b'"guessed"'), "cannot be read"),
        (LINES, lambda data: data.replace(b'"loss": 0.1', b'"loss": 1e308', 1), "line 1 .*loss"),
        (LINES, lambda data: data.replace(b'"loss": 0.1', b'"loss": NaN'), "line 1 .*loss"),
        (LINES, lambda data: data.replace(b'"steps": 7', b'"steps": -1'), "line 1 .*steps"),
        (LINES, lambda data: data.replace(b'"steps": 7', b'"steps": 1' + b"0" * 30), "line 1 .*steps"),
        (LINES, lambda data: b"\xff" + data, "cannot be read"),
        (LINES, None, "cannot read"),
        (TARGETS, None, "cannot read"),
        (TARGETS, lambda data: data[:-1], "cannot be read"),
        (TARGETS, lambda data: save({"targets": torch.ones(2, 2)}, {"format": "pt"}), "not a ledger of version 1"),
        (TARGETS, lambda data: data.replace(b'"version":"1"', b'"version":"2"'), "not a ledger of version 1"),
    ],
)  # fmt: skip
def test_a_damaged_ledger_is_refused(
    tmp_path: Path, name: str, change: Callable[[bytes], bytes] | None, says: str
) -> None:
    file = written(tmp_path) / name
    if change is not None:
        changed = change(file.read_bytes())
        assert hashlib.sha256(changed).digest() != hashlib.sha256(file.read_bytes()).digest()
        file.write_bytes(changed)
    else:
        file.unlink()
    with pytest.raises(StorageError, match=says) as caught:
        read_ledger(tmp_path)
    assert caught.value.hint


@pytest.mark.parametrize("line", [b"0", b"1", b"99", b"-1", b"1" + b"0" * 30])
def test_which_edit_is_replaced_is_decided_by_the_list_alone(tmp_path: Path, line: bytes) -> None:
    file = written(tmp_path) / LINES
    data = file.read_bytes()
    assert data.count(b'"superseded_by": 2') == 1
    for changed in (
        data.replace(b'"superseded_by": 2', b'"superseded_by": ' + line),
        data.replace(b', "superseded_by": 2', b""),
        data.removesuffix(b"}\n") + b', "superseded_by": ' + line + b"}\n",
    ):
        assert changed != data
        file.write_bytes(changed)
        found = read_ledger(tmp_path)
        assert found is not None and found.entries == LEDGER.entries

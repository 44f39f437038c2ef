"""A malformed list is refused with file, line and code; no list ends in a traceback."""

from __future__ import annotations

import gzip
import io
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from memedit.edits import read as read_module
from memedit.edits.lint import lint
from memedit.edits.read import read
from memedit.errors import UsageError
from tests.conftest import ROOT
from tests.helpers.in_process import faults, run_main
from tests.malformed.cases import CASES, Case
from tests.malformed.mutate import FAST, good_lists, mutated, outcome


def test_there_are_forty() -> None:
    assert len(CASES) >= 40
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_list_is_refused_at_its_line(case: Case, tmp_path: Path) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content)
    requests, findings = read(str(file))
    findings += lint(requests)
    errors = [finding for finding in findings if finding.severity == "error"]
    assert errors, "nothing was found"
    assert errors[0].line.startswith(f"{file}:{case.line}: {case.code} "), errors[0].line
    assert case.says in errors[0].message
    assert "\n" not in errors[0].line


@pytest.mark.slow
def test_mutated_lists_are_read_or_refused(tmp_path: Path) -> None:
    ends: dict[str, int] = {"read": 0, "refused": 0}
    for number in range(FAST):
        name, steps, data = mutated(number)
        (tmp_path / name).write_bytes(data)
        end = outcome(tmp_path / name)
        assert not end.startswith("unexpected"), f"list {number} ({name}, {steps}): {end}"
        ends[end] += 1
    assert min(ends.values()) > FAST / 10


@pytest.mark.parametrize("name", good_lists())
def test_the_lists_before_mutation_are_sound(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(good_lists()[name])
    assert outcome(tmp_path / name) == "read"


def test_the_mutator_notices_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise TypeError

    monkeypatch.setitem(read_module.READERS, "jsonl", fail)
    (tmp_path / "a.jsonl").write_bytes(good_lists()["a.jsonl"])
    assert outcome(tmp_path / "a.jsonl").startswith("unexpected: Traceback")


def test_many_keys_with_a_duplicate_take_linear_time(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    keys = ",".join(f'"k{number}": 1' for number in range(50_000))
    file.write_text(f'{{{keys}, "k49999": 2}}\n')
    begun = time.monotonic()
    findings = read(str(file))[1]
    # counting each key took 50,000 x 50,000 comparisons: minutes
    assert time.monotonic() - begun < 20
    assert [one.code for one in findings] == ["E008"] and '"k49999"' in findings[0].message


def test_gzip_data_is_expanded_within_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_module, "UNCHECKED", 5 * 10**6)
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(b" " * 40_000_000))
    (finding,) = read(str(file))[1]
    assert finding.code == "E017" and f"{file.stat().st_size:,} bytes of gzip data expand" in finding.message
    # a list that compresses well is not a bomb
    record = {"subject": "France", "prompt": "The capital of {} is", "object": "Lyon"}
    lines = "".join(json.dumps({**record, "id": str(number)}) + "\n" for number in range(100))
    monkeypatch.setattr(read_module, "UNCHECKED", 10)
    file.write_bytes(gzip.compress(lines.encode()))
    requests, findings = read(str(file))
    assert (len(requests), findings) == (100, [])
    monkeypatch.setattr(read_module, "LARGEST", 1000)
    assert read(str(file))[1][0].code == "E017"


@pytest.mark.parametrize("what", ["fifo", "device", "folder", "absent", "nul"])
def test_a_list_is_a_regular_file(what: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    paths = {"device": "/dev/zero", "folder": str(tmp_path), "nul": "a\0b"}
    with pytest.raises(UsageError, match="cannot read") as caught:
        read(paths.get(what, str(tmp_path / what)))
    assert caught.value.hint


@pytest.mark.parametrize("line", ["check -", "forget - -m x -o y", "eval - -m x", "check x --relations -"])
def test_a_closed_standard_input_is_one_error_and_one_hint(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    closed = io.StringIO()
    closed.close()
    for stdin in (None, closed):
        monkeypatch.setattr(sys, "stdin", stdin)
        ended = run_main(line.replace("x --rel", f"{ROOT}/requests/small.jsonl --rel").split())
        assert (ended.code, faults(ended)) == (2, []) and "standard input is closed" in ended.err
        assert run_main(["check", f"{ROOT}/requests/small.jsonl"]).code == 0  # what does not read it needs none


def test_an_absent_subject_is_found_out_in_linear_time(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"prompt": "b" * 400_000, "subject": "a" * 400_000, "target_new": "c"}) + "\n")
    begun = time.monotonic()
    assert [one.code for one in read(str(file))[1]] == ["E014"]
    assert time.monotonic() - begun < 10


def test_a_finding_can_be_printed_anywhere(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text('"\\uD800\\e[2J": 3\nedits: []\n')
    (finding,) = read(str(file))[1]
    assert finding.code == "E007" and finding.line.encode() and finding.model_dump_json()
    assert "\x1b" not in finding.line

"""Edits after edits as people type them: what is printed, what is refused, and what can be piped."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path

import pytest
from memedit.storage.checkpoint import Checkpoint
from tests.conftest import ROOT
from tests.helpers.program import FEW, memedit

LINES = (ROOT / "requests" / "world.jsonl").read_text().splitlines(keepends=True)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `base`, `out`, edited with the first two edits, and the cache of that run."""
    folder = tmp_path_factory.mktemp("ledger")
    shutil.copytree(ROOT / "examples" / "models" / "made-gpt2", folder / "base")
    done = memedit(
        "apply",
        "-",
        "-m",
        folder / "base",
        "-o",
        folder / "out",
        *FEW,
        cache=folder / "cache",
        stdin="".join(LINES[:2]),
    )
    assert done.returncode == 0, done.stderr
    assert "earlier" not in done.stdout
    return folder


def test_a_second_list_is_solved_with_the_first_and_told(edited: Path, tmp_path: Path) -> None:
    changed = json.loads(LINES[0]) | {"object": "Polish"}
    more = json.dumps(changed) + "\n" + LINES[1] + LINES[2]
    said = ["apply", "-", "-m", edited / "out", "-o", tmp_path / "more"]
    planned = memedit(*said, "--dry-run", cache=edited / "cache", stdin=more)
    line = "re-solve: 1 earlier edits and 2 new ones; 1 replaced, 1 there already; 1 targets kept, 2 searched"
    assert f"ledger    {line}" in planned.stdout, planned.stderr
    done = memedit(*said, cache=edited / "cache", stdin=more)
    assert done.returncode == 0, done.stderr
    assert line in done.stdout
    assert "kept, earlier" in done.stdout
    assert '<stdin>:1: W230 edit "jobissa-brerandor-language": the object "Polish" replaces "Catalan", as ' \
        'edited at <stdin>:1' in done.stderr  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "more/memedit/ledger.jsonl").read_text().splitlines()]
    assert [one.get("superseded_by") for one in lines] == [3, None, None, None]
    report = json.loads((tmp_path / "more/memedit/run.json").read_text())
    assert report["ledger"]["conflicts"] and report["model"] == str(edited / "base")
    assert {"kept.earlier", "retention"} <= set(memedit("eval", "x", "-m", "y", "--fail-under", "no=1", cache=tmp_path)
                                                .stderr.replace(",", " ").split())  # fmt: skip


def test_forgotten_ids_come_from_a_pipe_and_with_none_left_the_base_is_written(edited: Path, tmp_path: Path) -> None:
    ids = "".join(json.loads(line)["id"] + "\n" for line in LINES[:2])
    done = memedit("forget", "-", "-m", edited / "out", "-o", tmp_path / "b", "-q", cache=edited / "cache", stdin=ids)
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'b'}\n"), done.stderr
    assert Checkpoint.open(tmp_path / "b").digest == Checkpoint.open(edited / "base").digest
    first = json.loads(LINES[0])["id"]
    done = memedit("forget", first, "-m", edited / "out", "-o", tmp_path / "c", "--json", cache=edited / "cache")
    report = json.loads(done.stdout)
    assert (report["command"], report["edits"], report["ledger"]["kept"]) == ("forget", 1, 1)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["apply", "-", "-m", "out", "-o", "x", "--set", "method.ridge=2"], "with other settings: method.ridge = 2"),
        (["apply", "-", "-m", "out", "-o", "x", "--layers", "1"], "with other settings: method.layers"),
        (["apply", "-", "-m", "out", "-o", "x", "--base", "out"], "is not the base of"),
        (["apply", "-", "-m", "out", "-o", "x", "--on-top", "--base", "base"], "opens no base"),
        (["apply", "-", "-m", "out", "-o", "out", "--on-top"], "overlap"),
        (["apply", "-", "-m", "out", "-o", "base", "--overwrite"], "overlap"),
        (["apply", "-", "-m", "out", "-o", "x", "--corpus", "text.jsonl"], "not those that the ledger's edits"),
        (["apply", "-", "-m", "base", "-o", "x", "--re-solve"], "has no ledger"),
        (["forget", "nobody", "-m", "out", "-o", "x"], 'has no edit "nobody"'),
        (["forget", "nobody", "-m", "base", "-o", "x"], "has no ledger"),
        (["forget", "-", "-m", "out", "-o", "x"], "has no edit"),
        (["forget", "jobissa-brerandor-language", "ultuno-morlarsk-employer", "-m", "out"], "no output folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_before_any_work(
    edited: Path, arguments: list[str], says: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, since each is refused before anything heavy."""
    from memedit.cli.app import main

    text = '{"text": "The old bridge stood near the river, and the town lay behind it."}\n'
    (edited / "text.jsonl").write_text(text * 400)
    places = ("out", "base", "x", "text.jsonl")
    monkeypatch.setattr(sys, "argv", ["memedit", *(str(edited / one) if one in places else one for one in arguments)])
    monkeypatch.setattr(sys, "stdin", io.StringIO(LINES[2]))
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    assert (caught.value.code, said.out) == (2, ""), said.err
    assert says in said.err
    assert [line.split(":")[0] for line in said.err.strip().splitlines()[-2:]] == ["error", "hint"]
    assert not (edited / "x").exists()


def test_a_base_that_moved_is_asked_for(edited: Path, tmp_path: Path) -> None:
    moved, cache = tmp_path / "moved", edited / "cache"
    (edited / "base").rename(moved)
    try:
        said = ["apply", "-", "-m", edited / "out", "-o", tmp_path / "out", "-q"]
        done = memedit(*said, cache=cache, stdin=LINES[2])
        assert done.returncode == 2 and "--base PATH" in done.stderr and "--on-top" in done.stderr
        done = memedit(*said, "--base", moved, cache=cache, stdin=LINES[2])
        assert done.returncode == 0, done.stderr
        # The new folder knows where the base lies now.
        again = memedit(
            "apply", "-", "-m", tmp_path / "out", "-o", tmp_path / "b", "--dry-run", cache=cache, stdin=LINES[3]
        )
        assert "re-solve: 3 earlier edits" in again.stdout, again.stderr
    finally:
        moved.rename(edited / "base")

"""How much apply asks before and after the edit: the level changes what it tells, and no weight."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from memedit.edits.edit import EditRequest, Neighbor
from memedit.edits.read import write_lines
from tests.helpers.in_process import run_main

pytestmark = pytest.mark.usefixtures("kept_moments")
FIGURES = ("efficacy", "accuracy", "paraphrase", "neighborhood")


@pytest.fixture
def command(made_small: Path, small_edits: list[EditRequest], tmp_path: Path) -> list[str]:
    """Twelve edits with probes of both kinds, and facts of other subjects."""
    near = Neighbor(prompt=small_edits[20].text, answer=small_edits[20].object_old)
    edits = [
        one.model_copy(update={"paraphrases": (f"Again: {one.text}",), "neighborhood": (near,)})
        for one in small_edits[:12]
    ]
    known = [
        one.model_copy(update={"object": one.object_old, "object_old": None, "aliases": ()})
        for one in small_edits[12:40]
    ]
    for name, some in (("edits", edits), ("facts", known)):
        (tmp_path / f"{name}.jsonl").write_text(write_lines(some), encoding="utf-8")
    return ["apply", str(tmp_path / "edits.jsonl"), "-m", str(made_small), "--json", "--set", "polish.steps=2"]


def test_each_level_asks_less_and_writes_the_same_weights(command: list[str], tmp_path: Path) -> None:
    def run(name: str, *more: str) -> dict[str, Any]:
        ended = run_main([*command, "-o", str(tmp_path / name), *more])
        assert ended.code == 0, ended.err
        return json.loads(ended.out)

    facts = ["--facts", str(tmp_path / "facts.jsonl")]
    full, quick, given, none = (
        run("full"), run("quick", "--eval", "quick"), run("given", "--eval", "quick", *facts),
        run("none", "--eval", "none", *facts),
    )  # fmt: skip
    asked = {
        name: [one for one in FIGURES if report["after"][one] is not None]
        for name, report in (("full", full), ("quick", quick), ("none", none))
    }
    assert asked == {"full": [*FIGURES], "quick": [*FIGURES], "none": ["efficacy", "accuracy"]}
    assert full["drift"] and full["made_facts"]
    for report in (quick, given, none):
        assert not report["drift"] and not report["made_facts"] and report["kept"]["subjects"] is None
    assert quick["kept"]["others"] is None and given["kept"]["others"]["n"] and none["kept"]["others"] is None
    for name in ("quick", "given", "none"):
        for file in ("model.safetensors", "memedit/ledger.jsonl"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / "full" / file).read_bytes()


def test_an_edit_that_failed_is_retried_whatever_is_asked(command: list[str], tmp_path: Path) -> None:
    few = ["--set", "polish.steps=0", "--set", "target.steps=1", "--retry", "1", "--eval", "none", "-o"]
    ended = run_main([*command[:-2], *few, str(tmp_path / "out")])
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["redo"]


def test_another_level_is_refused(command: list[str], tmp_path: Path) -> None:
    ended = run_main([*command, "-o", str(tmp_path / "out"), "--eval", "some"])
    assert ended.code == 2 and "'some'" in ended.err and "hint:" in ended.err
    assert not (tmp_path / "out").exists()

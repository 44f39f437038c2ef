"""An edited model's scores by plain transformers code are those of `memedit.evaluate`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from examples.real import scored_twice
from tests.helpers.records import MADE

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "examples" / "models" / "made-gpt2"


@pytest.mark.parametrize("file", [ROOT / "requests" / "world.jsonl", MADE / "counterfact_flat.json"])
def test_both_columns_agree(file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["scored_twice", str(MODEL), str(file), "--limit", "3"])
    scored_twice.main()
    lines = capsys.readouterr().out.splitlines()
    rows = [line.strip("| ").split(" | ") for line in lines[2:-2]]
    assert [name for name, *_ in rows] == list(scored_twice.FIGURES)
    assert all(plain == ours for _, plain, ours in rows)
    assert lines[-1].startswith("largest difference: ") and float(lines[-1].split()[2]) < 0.01


def test_a_model_that_says_the_edits_scores_otherwise() -> None:
    records = scored_twice.raw_records(ROOT / "requests" / "world.jsonl")[:3]
    true = [{**one, "object": one["object_old"], "object_old": one["object"]} for one in records]
    unedited, said = (scored_twice.scored_by_plain_code(MODEL, some) for some in (records, true))
    assert unedited["accuracy"] == 0 and said["accuracy"] == 1

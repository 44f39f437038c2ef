"""Several edits about one subject: one change that serves them all, where averages of their own changes say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
from memedit.edits.edit import EditRequest
from tests.conftest import ROOT

EDITS = ROOT / "requests" / "world.jsonl"
LISTS, PAIRS = 10, 10


def accuracy(made: Path, lists: list[list[EditRequest]], folder: Path, **settings: Any) -> float:
    """The share of objects said, over all the lists, each solved on the model as it ships."""
    said: list[bool] = []
    for number, edits in enumerate(lists):
        report = memedit.apply(edits, made, folder / str(number), settings=settings)
        said += [one.status == "ok" for one in report.per_edit]
    return sum(said) / len(said)


def test_pairs_about_one_subject_take_as_well_as_as_many_about_two(made_gpt2: Path, tmp_path: Path) -> None:
    edits = memedit.load_edits(EDITS)
    by_subject: dict[str, list[EditRequest]] = {}
    for edit in edits:
        by_subject.setdefault(edit.subject, []).append(edit)
    pairs = [mine[:2] for mine in by_subject.values()][: LISTS * PAIRS]
    assert len(pairs) == LISTS * PAIRS
    paired = [[edit for pair in pairs[at::LISTS] for edit in pair] for at in range(LISTS)]
    # The world has 180 people to edit: some lists share people, no list holds one twice.
    single = [mine[0] for mine in by_subject.values()]
    apart = [[single[(at * 2 * PAIRS + n) % len(single)] for n in range(2 * PAIRS)] for at in range(LISTS)]
    joint = accuracy(made_gpt2, paired, tmp_path / "joint")
    assert joint >= accuracy(made_gpt2, apart, tmp_path / "apart") - 0.03
    averaged = accuracy(made_gpt2, paired, tmp_path / "averaged", **{"target.joint": False})
    assert joint >= averaged + 0.15

"""Several edits about one subject: one change that serves them all, where averages of their own changes say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
import pytest
from memedit.edits.edit import EditRequest

pytestmark = pytest.mark.usefixtures("kept_moments")

LISTS, PAIRS = 3, 10


def accuracy(model: Path, lists: list[list[EditRequest]], folder: Path, **settings: Any) -> float:
    """The share of objects said, over all the lists, each solved on the model as it ships."""
    said: list[bool] = []
    for number, edits in enumerate(lists):
        report = memedit.apply(
            edits, model, folder / str(number), settings={"polish.steps": 0, "eval.derive": False, **settings}
        )
        said += [one.status == "ok" for one in report.per_edit]
    return sum(said) / len(said)


def test_pairs_about_one_subject_take_as_well_as_as_many_about_two(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    by_subject: dict[str, list[EditRequest]] = {}
    for edit in small_edits:
        by_subject.setdefault(edit.subject, []).append(edit)
    pairs = [mine[:2] for mine in by_subject.values()][: LISTS * PAIRS]
    paired = [[edit for pair in pairs[at::LISTS] for edit in pair] for at in range(LISTS)]
    single = [mine[0] for mine in by_subject.values()]
    apart = [single[at * 2 * PAIRS : (at + 1) * 2 * PAIRS] for at in range(LISTS)]
    assert {len(one) for one in (*paired, *apart)} == {2 * PAIRS}
    joint = accuracy(made_small, paired, tmp_path / "joint")
    assert joint >= accuracy(made_small, apart, tmp_path / "apart") - 0.03
    averaged = accuracy(made_small, paired, tmp_path / "averaged", **{"target.joint": False})
    assert joint >= averaged + 0.15

"""Several edits about one subject: one change that serves them all, where averages of their own changes say nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
from examples.world import lists as made_lists
from examples.world.__main__ import MODELS, small_world
from memedit.edits.edit import EditRequest

LISTS, PAIRS = 3, 10
"""On the small model, whose edits take a fifth of the time of the large ones."""


def accuracy(lists: list[list[EditRequest]], folder: Path, **settings: Any) -> float:
    """The share of objects said, over all the lists, each solved on the model as it ships."""
    said: list[bool] = []
    for number, edits in enumerate(lists):
        report = memedit.apply(edits, MODELS / "made-small", folder / str(number), settings=settings)
        said += [one.status == "ok" for one in report.per_edit]
    return sum(said) / len(said)


def test_pairs_about_one_subject_take_as_well_as_as_many_about_two(tmp_path: Path) -> None:
    made_lists.write_lines(tmp_path / "edits.jsonl", made_lists.edits(small_world()))
    by_subject: dict[str, list[EditRequest]] = {}
    for edit in memedit.load_edits(tmp_path / "edits.jsonl"):
        bare = edit.model_copy(update={"paraphrases": (), "neighborhood": ()})  # only its own prompt is asked
        by_subject.setdefault(edit.subject, []).append(bare)
    pairs = [mine[:2] for mine in by_subject.values() if len(mine) > 1][: LISTS * PAIRS]
    assert len(pairs) == LISTS * PAIRS
    paired = [[edit for pair in pairs[at::LISTS] for edit in pair] for at in range(LISTS)]
    single = [mine[0] for mine in by_subject.values()]
    apart = [single[at * 2 * PAIRS : (at + 1) * 2 * PAIRS] for at in range(LISTS)]
    assert {len(one) for one in (*paired, *apart)} == {2 * PAIRS}
    joint = accuracy(paired, tmp_path / "joint")
    assert joint >= accuracy(apart, tmp_path / "apart") - 0.03
    averaged = accuracy(paired, tmp_path / "averaged", **{"target.joint": False})
    assert joint >= averaged + 0.15

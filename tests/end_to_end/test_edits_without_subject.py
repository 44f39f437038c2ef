"""Edits without a subject in whole runs: solved, polished, edited again, forgotten."""

from __future__ import annotations

from pathlib import Path

import memedit
import pytest
from memedit.edits.edit import EditRequest
from memedit.progress import NoProgress
from memedit.results.report import Report

pytestmark = pytest.mark.usefixtures("kept_moments")

LATE = {"method.layers": "2-4", "polish.steps": 2}
"""Layers in which the last token has taken up the name; an edit at the subject needs this model's default, 0-2."""


def bare(edit: EditRequest) -> EditRequest:
    """The same edit, of which only the whole prompt is known."""
    return edit.model_copy(update={"subject": "", "prompt": edit.text})


def said(report: Report) -> dict[str, bool]:
    return {one.id: one.status == "ok" for one in report.per_edit}


def test_they_hold_and_are_edited_again_and_forgotten(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    named = [one for one in small_edits if one.relation == small_edits[0].relation][:4]
    first, second, third = map(bare, named[:3])
    report = memedit.apply([first, second], made_small, tmp_path / "one", settings=LATE)
    assert said(report) == {first.id: True, second.id: True}
    assert report.ledger is None and report.made_facts == 0
    other = next(one.object for one in named if one.object not in (first.object, first.object_old))
    again = first.model_copy(update={"id": "again", "object": other})
    more = memedit.apply([again, third, named[3]], tmp_path / "one", tmp_path / "two")
    assert all(said(more)[one.id] for one in (second, again, third))
    assert more.ledger and (more.ledger.replaced, more.ledger.kept, more.ledger.joint) == (1, 1, 0)
    on_top = memedit.apply([third], tmp_path / "one", tmp_path / "top", mode="on top")
    assert said(on_top)[third.id] and on_top.ledger and on_top.ledger.earlier == 2
    less = memedit.forget([third.id, "again", named[3].id], tmp_path / "two", tmp_path / "three")
    # The edit that "again" replaced is active again.
    assert said(less) == {first.id: True, second.id: True} and less.ledger and less.ledger.kept == 2


class Warnings(NoProgress):
    """Keeps what is warned of."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, text: str) -> None:
        self.said.append(text)


def test_a_run_warns_once_of_each_kind_of_finding(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    def warned(edits: list[EditRequest], model: Path, out: str) -> list[str]:
        progress = Warnings()
        memedit.apply(
            edits, model, tmp_path / out, settings={"target.steps": 1} if out == "a" else {}, progress=progress
        )
        return [line for line in progress.said if ": W" in line]

    padded = small_edits[3].model_copy(update={"object": f"{small_edits[3].object} "})
    first, second = warned([*map(bare, small_edits[:3]), padded], made_small, "a")
    assert ": W206 " in first and "more" not in first
    assert (
        ": W210 " in second
        and f'"{small_edits[0].id}"' in second
        and second.endswith("(and 2 more: memedit check lists them)")
    )
    # an edit of an earlier run is not warned of again, and a sound list has no warning
    assert warned([small_edits[4]], tmp_path / "a", "b") == []

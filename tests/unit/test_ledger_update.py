"""What of the ledger serves a run, and what a run leaves in it."""

from __future__ import annotations

import pytest
import torch
from memedit.editing.ledger import BaseIdentity, History, Ledger, Mode, Provenance
from memedit.editing.ledger_update import (
    check_moments,
    groups_of,
    ledger_report,
    merge_targets,
    retained,
    reusable_rows,
    updated_ledger,
)
from memedit.editing.plan import Edit
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.evaluation.forced import EditScores
from memedit.model.tokens import Prompt
from memedit.results.report import RetryRound

ABOUT = Provenance(base=BaseIdentity(path="b", digest="base"), contexts=("",), knobs={}, layers=(0,), moments="m")


def edit(number: int, subject: int) -> Edit:
    request = EditRequest(id=f"e{number}", subject=f"S{subject}", prompt=f"{{}} {number}", object="o", origin="a:1")
    return Edit(request, Prompt((1, 2), 0), (3,), (subject,))


def said(*accuracies: float) -> list[EditScores]:
    return [EditScores(accuracy=one) for one in accuracies]


def targets(count: int, value: float = 1.0) -> Targets:
    rows = torch.full((count, 2), value)
    return Targets(rows, rows, torch.arange(count) / 10, torch.arange(count), torch.zeros(count, dtype=torch.long))


def ledger_of(edits: list[Edit], *accuracies: float, on: str = "base", rounds: tuple[RetryRound, ...] = ()) -> Ledger:
    return updated_ledger(
        History(), ABOUT, edits, groups_of(edits, joint=True), {}, targets(len(edits)), said(*accuracies), on, rounds
    )


EDITS = [edit(0, 7), edit(1, 8), edit(2, 7)]


def past_of(ledger: Ledger, mode: Mode) -> History:
    return History(ledger, mode, tuple(ledger.active))


def test_a_target_holds_as_long_as_the_edits_that_it_serves() -> None:
    mode: Mode = "re-solve"
    history = past_of(ledger_of(EDITS, 1, 1, 1), mode)
    assert [one.found for one in history.ledger.entries] == ["joint", "searched", "joint"]  # type: ignore[union-attr]
    assert reusable_rows(history, EDITS, groups_of(EDITS, joint=True), "base") == {0: 0, 1: 1, 2: 2}
    more = [*EDITS, edit(3, 8)]
    assert reusable_rows(history, more, groups_of(more, joint=True), "base") == {0: 0, 2: 2}
    fewer = EDITS[:2]
    assert reusable_rows(History(history.ledger, mode, (0, 1)), fewer, groups_of(fewer, joint=True), "base") == {1: 1}
    assert reusable_rows(History(), EDITS, groups_of(EDITS, joint=True), "base") == {}


def test_a_re_solve_takes_targets_of_the_base_alone() -> None:
    ledger, groups = ledger_of(EDITS, 1, 1, 1, on="edited"), groups_of(EDITS, joint=True)
    assert reusable_rows(past_of(ledger, "re-solve"), EDITS, groups, "base") == {}
    assert len(reusable_rows(past_of(ledger, "on top"), EDITS, groups, "edited twice")) == 3


def test_targets_come_from_where_they_are() -> None:
    history = past_of(ledger_of(EDITS, 1, 1, 1), "re-solve")
    found = merge_targets(history, {0: 0, 2: 2}, targets(1, 5.0), 3, 2)
    assert found.wanted[:, 0].tolist() == [1, 5, 1]
    assert found.steps.tolist() == [0, 0, 2]
    assert found.start.isnan().all(1).tolist() == [True, False, True]
    assert merge_targets(history, {0: 0, 1: 1, 2: 2}, None, 3, 2).wanted.tolist() == torch.ones(3, 2).tolist()


def test_what_is_entered_is_what_was_found_and_what_came_of_it() -> None:
    history = past_of(ledger_of(EDITS[:2], 1, 0), "re-solve")
    groups = groups_of(EDITS, joint=True)
    kept = reusable_rows(history, EDITS, groups, "base")
    assert kept == {1: 1}
    ledger = updated_ledger(history, ABOUT, EDITS, groups, kept, targets(3, 2.0), said(0, 1, 1), "base")
    assert [one.found for one in ledger.entries] == ["joint", "searched", "joint"]
    assert [(one.took, one.holds) for one in ledger.entries] == [(True, False), (False, True), (True, True)]
    assert ledger.targets.tolist() == torch.full((3, 2), 2.0).tolist()
    report = ledger_report(history, groups, kept)
    assert report is not None
    assert (report.earlier, report.new, report.kept, report.searched, report.joint) == (2, 1, 1, 2, 2)


def test_targets_of_rounds_that_helped_are_marked_and_kept() -> None:
    helped = RetryRound(ids=("e1",), took_before=1, took_after=2, helped=True)
    useless = RetryRound(ids=("e0", "e2"), took_before=2, took_after=2, helped=False)
    ledger = ledger_of(EDITS, 1, 1, 0, rounds=(helped, useless))
    assert [one.found for one in ledger.entries] == ["joint", "redone", "joint"]
    groups = groups_of(EDITS, joint=True)
    assert len(reusable_rows(past_of(ledger, "re-solve"), EDITS, groups, "base")) == 3
    again = updated_ledger(
        past_of(ledger, "re-solve"), ABOUT, EDITS, groups, {0: 0, 1: 1, 2: 2}, targets(3), said(1, 1, 1), "base"
    )
    assert [one.found for one in again.entries] == ["joint", "redone", "joint"]


@pytest.mark.parametrize(("mode", "earlier"), [("re-solve", 0.5), ("on top", 1.0)])
def test_retention_counts_what_took_and_what_held_right_before(mode: Mode, earlier: float) -> None:
    ledger = ledger_of(EDITS, 1, 1, 0)
    # As written down e0 and e1 held; as the model opened for on top says it, e0 alone.
    kept, took = retained(past_of(ledger, mode), said(1, 0, 0), said(1, 0, 1))
    assert kept["earlier"] is not None and kept["earlier"].mean == earlier
    assert took is not None and (took.mean, took.n) == (0.5, 2)
    assert retained(History(), said(1), said(1)) == ({}, None)


def test_moments_of_another_text_are_refused_where_all_is_solved_anew() -> None:
    history = past_of(ledger_of(EDITS, 1, 1, 1), "re-solve")
    with pytest.raises(UsageError, match="second moments"):
        check_moments(history, {0: {"tokens": 1}})
    check_moments(past_of(ledger_of(EDITS, 1, 1, 1), "on top"), {0: {"tokens": 1}})
    check_moments(History(), {0: {"tokens": 1}})

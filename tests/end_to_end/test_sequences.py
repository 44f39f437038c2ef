"""Edits in batches, one after another: the end is where one batch would have led, and what is lost is told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path

import memedit
import pytest
from examples.reference.sequences import apart, in_batches
from memedit.edits.edit import EditRequest

pytestmark = pytest.mark.usefixtures("kept_moments")

BATCHES, SIZE = 3, 10
SAME_CHANGE = 1e-3
"""Relative, in the metric of the moments: a search in another batch sums in another order, and Adam carries it on."""
MOST_OTHER_VERDICTS = 2 / 500
QUICK = {"polish.steps": 0, "contexts.openings": ["The", "I"], "eval.derive": False}
UNSCORED = {"eval.derive": False}
"""Facts beside the edits are no part of these claims. What a run keeps from the ledger before it is not said again."""
CHANGED = 200
"""Edits in the three batches of the chains."""


def test_batch_by_batch_is_what_one_batch_is(made_small: Path, small_edits: list[EditRequest], tmp_path: Path) -> None:
    edits = small_edits[: BATCHES * SIZE]
    clean = memedit.apply(edits, made_small, tmp_path / "clean", settings=QUICK)
    mixed = edits[:]
    random.Random(5).shuffle(mixed)
    batches = [mixed[at : at + SIZE] for at in range(0, len(mixed), SIZE)]
    last = in_batches(tmp_path / "batches", made_small, batches, QUICK, settings=UNSCORED)[-1]
    assert apart(made_small, tmp_path / "clean", tmp_path / "batches" / str(BATCHES - 1)) < SAME_CHANGE
    wanted = {one.id: one.status for one in clean.per_edit}
    other = [one.id for one in last.per_edit if one.status != wanted[one.id]]
    assert len(other) <= MOST_OTHER_VERDICTS * len(edits)
    assert last.ledger is not None and last.ledger.earlier == len(edits) - SIZE
    # The converse: on top each batch is fitted to what those before it left, and that is another change.
    top = in_batches(tmp_path / "top", made_small, batches[:2], QUICK, mode="on top", settings=UNSCORED)[-1]
    assert top.ledger is not None and top.ledger.way == "on top"
    written = [(tmp_path / way / "1" / "model.safetensors").read_bytes() for way in ("top", "batches")]
    assert written[0] != written[1]


def test_on_top_what_is_left_of_earlier_edits_is_told(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    edits = small_edits[:60]
    first, second = in_batches(tmp_path, made_small, [edits[:30], edits[30:]], QUICK, mode="on top", settings=UNSCORED)
    held = {one.id for one in first.per_edit if one.status == "ok"}
    after = {one.id: one.status == "ok" for one in second.per_edit}
    share = sum(after[name] for name in held) / len(held)
    assert second.retention is not None and second.retention.n == len(held)
    assert second.retention.mean == share
    assert second.kept["earlier"] is not None and second.kept["earlier"].mean == share
    assert share >= 0.9
    assert first.retention is None and "earlier" not in first.kept
    # New edits take beside them.
    new = [after[one.id] for one in edits[30:]]
    assert sum(new) / len(new) >= 0.8


def chains(edits: Sequence[EditRequest]) -> tuple[list[list[EditRequest]], dict[str, EditRequest], list[EditRequest]]:
    """200 edits in three batches, facts changed again, said again, and changed back; the latest of each fact, and what
    it took the place of. Later objects are those that other facts of the relation have."""
    chance = random.Random(11)
    pool: dict[str, list[str]] = {}
    for edit in edits:
        pool.setdefault(edit.relation or "", []).append(edit.object)
    batches: list[list[EditRequest]] = []
    latest: dict[str, EditRequest] = {}
    gone: dict[tuple[str, str], EditRequest] = {}
    for number, size in enumerate((80, 60, 60)):
        known = list(latest.values())
        again = chance.sample(known, min(len(known), 3 * size // 4))
        fresh = edits[len(latest) : len(latest) + size - len(again)]
        batch: list[EditRequest] = []
        for edit in again:
            if chance.random() < 0.25:
                batch.append(edit)  # said again
                continue
            other = chance.choice(
                [one for one in pool[edit.relation or ""] if one not in (edit.object, edit.object_old)]
            )
            batch.append(edit.model_copy(update={"object": other, "id": edit.id, "origin": f"batch-{number}"}))
        batch += fresh
        for edit in batch:
            name = edit.id
            if name in latest and latest[name].object != edit.object:
                gone[name, latest[name].object] = latest[name]
            latest[name] = edit
            gone.pop((name, edit.object), None)
        batches.append(batch)
    return batches, latest, list(gone.values())


def test_chains_of_contradicting_edits_end_in_the_latest_object(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    batches, latest, gone = chains(small_edits)
    assert sum(map(len, batches)) == CHANGED
    assert len(gone) > 40
    last = in_batches(tmp_path / "chains", made_small, batches, QUICK, settings=UNSCORED)[-1]
    assert last.edits == len(latest)
    clean = memedit.apply(list(latest.values()), made_small, tmp_path / "clean", settings=QUICK)
    assert last.after is not None and clean.after is not None
    assert last.after.accuracy is not None and clean.after.accuracy is not None
    assert last.after.accuracy.mean >= clean.after.accuracy.mean - 0.01
    old = memedit.evaluate(gone, tmp_path / "chains" / "2")
    assert old.after is not None and old.after.accuracy is not None
    assert old.after.accuracy.mean <= 0.02
    assert last.ledger is not None and last.ledger.replaced == len(last.ledger.conflicts) > 10
    assert all("replaces" in line for line in last.ledger.conflicts)

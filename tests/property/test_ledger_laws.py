"""Which edits are in force: the latest answer to each question, whatever the batches, and as if others never were."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.editing.ledger import (
    BaseIdentity,
    Ledger,
    LedgerEntry,
    Provenance,
    extend_ledger,
    find_superseded,
    merge_edits,
)
from memedit.edits.edit import EditRequest

ABOUT = Provenance(base=BaseIdentity(path="b", digest="0"), contexts=("",), knobs={}, layers=(0,), moments="m")
facts = st.tuples(st.integers(0, 3), st.integers(0, 1), st.integers(0, 2), st.integers(0, 1))
histories = st.lists(st.lists(facts, max_size=6, unique_by=lambda one: one[:2]), max_size=5)


def edit(subject: int, relation: int, said: int, wording: int, name: str = "") -> EditRequest:
    prompt = f"{{}} {['lives', 'works'][relation]} {['in', 'near'][wording]}"
    return EditRequest(
        id=name or f"{subject}-{relation}", subject=f"S{subject}", relation=f"R{relation}", prompt=prompt,
        object=f"O{said}", origin=f"a:{said}",
    )  # fmt: skip


def entry(request: EditRequest) -> LedgerEntry:
    return LedgerEntry(edit=request, digest=request.digest, found="searched", on="0", group="g", loss=0.0, steps=1)


def run(ledger: Ledger | None, requests: Sequence[EditRequest]) -> Ledger | None:
    """What a run does to a ledger; each target is a number made of its edit."""
    old = [] if ledger is None else [ledger.entries[n].edit for n in ledger.active]
    inactive = [] if ledger is None else [one.edit for one in ledger.entries if one.superseded_by is not None]
    found = merge_edits(old, requests, inactive)
    gone = {was.digest for _, was in found.replaced}
    stay = [] if ledger is None else [n for n in ledger.active if ledger.entries[n].digest not in gone]
    entries = [*([] if ledger is None else [ledger.entries[n] for n in stay]), *map(entry, found.requests)]
    targets = torch.tensor([[float(int(one.digest[:6], 16))] for one in entries]).reshape(-1, 1)
    return extend_ledger(ledger, ABOUT, entries, targets, stay) if entries else ledger


def through(batches: Sequence[Sequence[EditRequest]]) -> Ledger | None:
    ledger: Ledger | None = None
    for batch in batches:
        ledger = run(ledger, batch)
    return ledger


def active(ledger: Ledger | None) -> set[str]:
    return set() if ledger is None else {ledger.entries[n].digest for n in ledger.active}


def latest(batches: Sequence[Sequence[EditRequest]]) -> set[str]:
    """By hand: a dictionary from facts to objects, in which a new object clears what was said of the fact."""
    said: dict[tuple[str, str], dict[str, str]] = {}
    for batch in batches:
        for one in batch:
            before = said.get(one.fact, {})
            said[one.fact] = {digest: object for digest, object in before.items() if object == one.object}
            said[one.fact][one.digest] = one.object
    return {digest for digests in said.values() for digest in digests}


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(histories)
def test_the_latest_answer_to_each_question_is_in_force(given: list[list[tuple[int, int, int, int]]]) -> None:
    batches = [[edit(*one) for one in batch] for batch in given]
    ledger = through(batches)
    assert active(ledger) == latest(batches)
    if ledger is not None:
        assert all(
            row[0] == float(int(one.digest[:6], 16)) for row, one in zip(ledger.targets, ledger.entries, strict=True)
        )
        ids = [ledger.entries[n].edit.id for n in ledger.active]
        assert len(ids) == len(set(ids))
        for one in ledger.entries:
            if one.superseded_by is not None:
                other = ledger.entries[one.superseded_by - 1]
                assert set(other.edit.questions) & set(one.edit.questions)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(histories)
def test_batches_of_one_leave_what_whole_batches_leave(given: list[list[tuple[int, int, int, int]]]) -> None:
    batches = [[edit(*one) for one in batch] for batch in given]
    assert active(through(batches)) == active(through([[one] for batch in batches for one in batch]))


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(0, 4))
def test_forgetting_a_batch_is_as_if_it_had_never_been(
    given: list[list[tuple[int, int, int, int]]], which: int
) -> None:
    # Every batch says things of its own, so that none is taken for a twin of another and left out of the ledger.
    batches = [[edit(s, r, 10 * n + o, w, f"{n}/{s}-{r}") for s, r, o, w in batch] for n, batch in enumerate(given)]
    ledger = through(batches)
    if ledger is None:
        return
    left = ledger.without({one.id for one in batches[min(which, len(batches) - 1)]})
    assert active(left) == active(through([b for n, b in enumerate(batches) if n != min(which, len(batches) - 1)]))


def test_edits_that_agree_or_speak_of_other_things_stand_beside_each_other() -> None:
    assert find_superseded([edit(0, 0, 1, 0), edit(0, 0, 1, 1), edit(0, 1, 2, 0), edit(1, 0, 2, 0)]) == {}
    # The converse, by either question: the relation in other words, and the prompt without its relation.
    assert find_superseded([edit(0, 0, 1, 0), edit(0, 0, 2, 1)]) == {0: 1}
    bare = edit(0, 0, 2, 0).model_copy(update={"relation": None})
    assert find_superseded([edit(0, 0, 1, 0), bare]) == {0: 1}


def test_a_chain_ends_in_its_last_edit_and_what_comes_back_replaces_in_turn() -> None:
    ledger = through([[edit(0, 0, 1, 0)], [edit(0, 0, 2, 0)], [edit(0, 0, 1, 0)], [edit(0, 0, 1, 0)]])
    assert ledger is not None
    assert [one.superseded_by for one in ledger.entries] == [2, 3, None]  # the twin of one in force drops out


def test_an_id_in_use_is_told_apart_and_one_given_way_is_free_again() -> None:
    found = merge_edits([edit(0, 0, 1, 0, "a")], [edit(1, 0, 1, 0, "a"), edit(2, 0, 1, 0, "a-2")])
    assert [one.id for one in found.requests] == ["a-3", "a-2"]
    found = merge_edits([edit(0, 0, 1, 0, "a")], [edit(0, 0, 2, 0, "a")])
    assert [one.id for one in found.requests] == ["a"]
    assert not found.renamed
    # Given way to another edit, now or earlier, it can come back: only an edit that replaces it too may have its id.
    found = merge_edits([edit(0, 0, 1, 0, "a")], [edit(0, 0, 2, 0, "b"), edit(1, 0, 1, 0, "a")])
    assert [one.id for one in found.requests] == ["b", "a-2"]
    for other, name in ((edit(1, 0, 1, 0, "a"), "a-2"), (edit(0, 0, 1, 1, "a"), "a-2"), (edit(0, 0, 3, 0, "a"), "a")):
        (now,) = merge_edits([edit(0, 0, 2, 0, "b")], [other], [edit(0, 0, 1, 0, "a")]).requests
        assert now.id == name


@settings(max_examples=60, deadline=None)
@given(histories, st.integers(0, 4))
def test_whatever_is_forgotten_the_rest_have_ids_of_their_own(
    given: list[list[tuple[int, int, int, int]]], which: int
) -> None:
    ledger = through([[edit(*one, f"{n}" if one[0] else "x") for n, one in enumerate(batch)] for batch in given])
    if ledger is None:
        return
    gone = {one.edit.id for one in ledger.entries[which : which + 2]}
    entries = [one for one in ledger.entries if one.edit.id not in gone]
    ids = [entries[n].edit.id for n in range(len(entries)) if n not in find_superseded([one.edit for one in entries])]
    assert len(ids) == len(set(ids))

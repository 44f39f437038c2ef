"""Facts removed in whole runs: no longer said, beside edits that hold; resumed, replaced, forgotten, evaluated."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.editing.ledger_files import read_ledger
from memedit.edits.edit import EditRequest
from memedit.results.report import Figure, Report
from safetensors.torch import load_file
from tests.conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.usefixtures("kept_moments")

EDITS = memedit.load_edits(ROOT / "requests" / "world.jsonl")
COUNT = 10
SETTINGS = {"moments.tokens": 20_000}


def removal(edit: EditRequest) -> EditRequest:
    return edit.model_copy(update={"object": "", "remove": True})


def share(report: Report, name: str) -> float:
    value = report.scored[0].value(name)
    assert isinstance(value, Figure), name
    return value.mean


def test_removed_facts_are_no_longer_said_beside_edits_that_hold(made_gpt2: Path, tmp_path: Path) -> None:
    removals, edits = list(map(removal, EDITS[:COUNT])), EDITS[20:25]
    report = memedit.apply([*removals, *edits], made_gpt2, tmp_path / "out", settings=SETTINGS)
    assert report.before and report.before.still_named and report.before.still_named.mean == 1
    for name in ("still_named", "paraphrase_still_named", "generated.still_named"):
        assert share(report, name) <= 0.2, name
    assert share(report, "accuracy") >= 0.8 and report.after and report.after.accuracy
    assert (report.after.accuracy.n, report.after.still_named and report.after.still_named.n) == (len(edits), COUNT)
    assert share(report, "neighborhood_accuracy") >= 0.9
    # The report and the files tell what is said instead, of every removal.
    lines = [json.loads(line) for line in (tmp_path / "out" / "memedit" / "results.jsonl").read_text().splitlines()]
    for one, line in zip(report.per_edit[:COUNT], lines, strict=False):
        old = str(one.edit["object_old"])
        assert line["said"] == one.said and old in one.said["before"]
        assert (one.status == "ok") == (one.after["still_named"] == 0)
    # The converse: edits of other subjects leave these facts as they are.
    other = memedit.apply(edits, made_gpt2, tmp_path / "other", settings=SETTINGS)
    assert other.after and other.after.still_named is None
    asked = memedit.evaluate(removals, tmp_path / "other")
    assert share(asked, "still_named") >= 0.9 and share(asked, "generated.still_named") >= 0.9


SHORT = {"polish.steps": 0, "target.steps": 12, "moments.tokens": 4000, "chunk": 1, "contexts.openings": ["The"]}


def weights(folder: Path) -> bytes:
    return (folder / "memedit" / "delta.safetensors").read_bytes()


def test_a_removal_is_replaced_and_forgotten_and_comes_back(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    gone, other = removal(small_edits[0]), small_edits[1]
    memedit.apply([gone, other], made_small, tmp_path / "one", settings=SHORT)
    ledger = read_ledger(tmp_path / "one")
    assert ledger and [(one.edit.remove, one.edit.object_old) for one in ledger.entries] == [
        (True, gone.object_old), (False, other.object_old)
    ]  # fmt: skip
    (first, _) = memedit.log(tmp_path / "one").edits
    assert (first.remove, first.object, first.object_old) == (True, "", gone.object_old)
    # The same removal again changes nothing, and an edit of its fact replaces it.
    again = memedit.apply([gone], tmp_path / "one", tmp_path / "same", settings={"chunk": 1})
    assert again.ledger and (again.ledger.twins, again.ledger.kept) == (1, 2)
    assert weights(tmp_path / "same") == weights(tmp_path / "one")
    back = small_edits[0].model_copy(update={"id": "back"})
    replaced = memedit.apply([back], tmp_path / "one", tmp_path / "two", settings={"chunk": 1})
    assert replaced.ledger and (replaced.ledger.replaced, replaced.ledger.kept) == (1, 1)
    assert "replaces the removal" in replaced.ledger.conflicts[0]
    # Forget the edit, and the removal is active again; forget the removal too, and only the other edit is left.
    memedit.forget(["back"], tmp_path / "two", tmp_path / "three", settings={"chunk": 1})
    assert weights(tmp_path / "three") == weights(tmp_path / "one")
    memedit.forget([gone.id], tmp_path / "one", tmp_path / "four", settings={"chunk": 1})
    memedit.apply([other], made_small, tmp_path / "never", settings=SHORT)
    assert weights(tmp_path / "four") == weights(tmp_path / "never")
    on_top = memedit.apply([small_edits[2]], tmp_path / "one", tmp_path / "top", mode="on top", settings={"chunk": 1})
    assert on_top.per_edit[0].edit["remove"] and on_top.ledger and on_top.ledger.kept == 2


def test_without_an_old_object_what_the_model_said_is_removed(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    named = removal(small_edits[0])
    nameless = named.model_copy(update={"object_old": None})
    assert [one.code for one in memedit.check([nameless], made_small)] == ["W211"]
    memedit.apply([named], made_small, tmp_path / "named", settings=SHORT)
    report = memedit.apply([nameless], made_small, tmp_path / "nameless", settings=SHORT)
    assert report.per_edit[0].edit["object_old"] == named.object_old
    assert weights(tmp_path / "nameless") == weights(tmp_path / "named")
    # A later evaluation needs the base, or the list of the output, which has the name.
    alone = memedit.evaluate([nameless], tmp_path / "nameless")
    assert alone.per_edit[0].status == "skipped" and "no object_old" in alone.notes[0]
    for asked in (
        memedit.evaluate([nameless], tmp_path / "nameless", base=made_small),
        memedit.evaluate(tmp_path / "nameless" / "memedit" / "edits.jsonl", tmp_path / "nameless"),
    ):
        assert asked.per_edit[0].status == report.per_edit[0].status and not asked.notes
        assert share(asked, "still_named") == share(report, "still_named")


def test_a_removal_in_memory_is_that_of_the_command(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    edits, settings = [removal(small_edits[0]), small_edits[1]], {**SHORT, "target.steps": 3}
    memedit.apply(edits, made_small, tmp_path / "out", settings=settings)
    model: Any = AutoModelForCausalLM.from_pretrained(made_small, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(made_small)
    corpus = str(made_small / "memedit" / "corpus.jsonl.gz")
    with memedit.edited(model, tokenizer, edits, corpus=corpus, settings=settings) as update:
        update.save(tmp_path / "memory")
    files = [folder / "memedit" / "delta.safetensors" for folder in (tmp_path / "out", tmp_path / "memory")]
    command, memory = map(load_file, files)
    assert command.keys() == memory.keys()
    assert all(torch.equal(command[name], memory[name]) for name in command)


def test_a_removal_is_resumed_retried_and_polished(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = [removal(small_edits[0]), *small_edits[1:4]]  # enough to ask of each beside its own
    settings = {**SHORT, "target.retry": 1, "target.steps": 3, "polish.steps": 2}
    whole = memedit.apply(edits, made_small, tmp_path / "whole", settings=settings)
    assert whole.polish and whole.redo
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("memedit.editing.run.solve_edits", interrupt)
        memedit.apply(edits, made_small, tmp_path / "out", settings=settings)
    memedit.apply(edits, made_small, tmp_path / "out", settings=settings)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt

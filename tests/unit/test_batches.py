"""The batch plan: made from shapes and memory, written before it is run, halved where memory runs out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.config.recipe import ModelKnobs, Recipe, bytes_of
from memedit.config.resolve import resolve
from memedit.editing import target_search as module
from memedit.editing.batches import Batch, Sizes, halved, plan_batches
from memedit.editing.plan import encode_contexts, make_plan
from memedit.editing.target_search import Search
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
from memedit.errors import ResourceError
from memedit.forward.suffix import Suffix
from memedit.model.load import LanguageModel, load
from memedit.storage.artifacts import Store

OTHER_PLAN = 1e-3  # relative, on targets: launches of another shape sum in another order, and Adam carries it on
SUBJECTS = ["Ada", "Bo Lund", "Cyril of Ware", "Dot", "Eva Marsh", "Finn", "Gus Hale", "Ines"]
ON = {"contexts": "three"}


@pytest.fixture
def lm(tiny_folder: Path) -> LanguageModel:
    return load(tiny_folder, ModelKnobs(device="cpu"))


def searched(lm: LanguageModel, subjects: list[str] = SUBJECTS, **knobs: Any) -> Search:
    recipe: Recipe = resolve([("flag", {"target.steps": 3, "chunk": 4, **knobs})])[0]
    verbs = [["lives", "works", "rests"][subjects[:n].count(one)] for n, one in enumerate(subjects)]
    requests = [
        EditRequest(
            id=str(n), subject=one, prompt=f"{{}} {verb} in", object=["Rome", "Oslo town"][n % 2], origin=str(n)
        )
        for n, (one, verb) in enumerate(zip(subjects, verbs, strict=True))
    ]
    plan = make_plan(requests, lm.tokenizer, lm.architecture, recipe)
    contexts = ["", "The old bridge. ", "You went. "]
    prompts = encode_contexts(plan.edits, contexts, lm.tokenizer, chat=False).prompts
    return Search(lm, plan.edits, prompts, 1, recipe)


def gap(one: Targets, other: Targets) -> float:
    return float((one.wanted - other.wanted).norm() / other.wanted.norm())


def test_the_plan_follows_from_shapes_and_memory_alone(lm: LanguageModel) -> None:
    search = searched(lm)
    sizes = Sizes.of(lm, search.edits, search.prompts, 1)
    large, small = (plan_batches(search.edits, range(8), sizes, memory, 4, "cpu") for memory in (1 << 30, 1 << 19))
    assert large == plan_batches(search.edits, range(8), sizes, (1 << 30) + 12_345, 4, "cpu")
    assert sorted(n for batch in large for n in batch.edits) == list(range(8))
    assert [len(batch.edits) for batch in large] == [4, 4]
    assert len(small) > len(large)
    assert small[0].tokens < large[0].tokens


def test_edits_of_one_batch_are_alike(lm: LanguageModel) -> None:
    batches = searched(lm).plan(range(8))
    # Objects of one length make suffixes of one length.
    assert [{n % 2 for n in batch.edits} for batch in batches] == [{0}, {1}]


def test_sizes_of_memory_are_read() -> None:
    assert [bytes_of(text) for text in ("20GB", "1.5 MiB", "7", "2k")] == [20 * 10**9, 3 << 19, 7, 2000]


@pytest.mark.slow
def test_the_same_plan_gives_the_same_bytes_and_another_the_same_targets(lm: LanguageModel, tmp_path: Path) -> None:
    search = searched(lm)
    one, two = (search.run(Store(tmp_path / name), ON, Suffix) for name in "ab")
    assert all(torch.equal(part, vars(two)[name]) for name, part in vars(one).items())
    other = searched(lm, chunk=1).run(Store(tmp_path / "c"), ON, Suffix)
    assert gap(other, one) < OTHER_PLAN
    assert torch.equal(other.steps, one.steps)


def test_the_plan_is_written_before_the_first_launch(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "find_targets", killed)
    with pytest.raises(KeyboardInterrupt):
        searched(lm).run(Store(tmp_path), ON, Suffix)
    (file,) = tmp_path.glob("plan-*.json")
    assert [len(batch["edits"]) for batch in json.loads(file.read_text())["value"]["batches"]] == [4, 4]


@pytest.mark.slow
def test_a_run_gone_on_with_reads_its_plan(lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search, store = searched(lm), Store(tmp_path)
    search.run(store, ON, Suffix)
    monkeypatch.setattr(module, "memory_for", lambda *_: 1)  # what is free now would cut single edits
    monkeypatch.setattr(module, "find_targets", lambda *_, **__: pytest.fail("searched again"))
    search.run(store, ON, Suffix)


@pytest.mark.slow
def test_out_of_memory_halves_the_rest_and_keeps_what_was_found(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    search, store = searched(lm), Store(tmp_path / "full")
    undisturbed = search.run(Store(tmp_path / "free"), ON, Suffix)
    real, calls = module.find_targets, []

    def narrow(*given: Any, **more: Any) -> Targets:
        calls.append(len(given[1]))
        if len(calls) in (2, 3):
            raise torch.OutOfMemoryError
        return real(*given, **more)

    monkeypatch.setattr(module, "find_targets", narrow)
    found = search.run(store, ON, Suffix)
    assert calls == [4, 4, 2, 1, 1, 1, 1]
    (file,) = (tmp_path / "full").glob("plan-*.json")
    assert [len(one["edits"]) for one in json.loads(file.read_text())["value"]["batches"]] == [4, 1, 1, 1, 1]
    assert gap(found, undisturbed) < OTHER_PLAN
    again = search.run(store, ON, Suffix)
    assert len(calls) == 7
    assert torch.equal(again.wanted, found.wanted)


def test_other_errors_are_not_taken_for_a_full_memory(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(module, "find_targets", broken)
    with pytest.raises(RuntimeError, match="shapes"):
        searched(lm).run(Store(tmp_path), ON, Suffix)


def test_edits_of_one_subject_are_searched_together(lm: LanguageModel) -> None:
    subjects = ["Ada", "Bo Lund", "Cyril", "Ada", "Dot", "Cyril", "Ada"]
    batches = searched(lm, subjects).plan(range(7))
    assert sorted(n for batch in batches for n in batch.edits) == list(range(7))
    whose = {n: number for number, batch in enumerate(batches) for n in batch.edits}
    assert whose[0] == whose[3] == whose[6]
    assert whose[2] == whose[5]
    apart = searched(lm, subjects, **{"target.joint": False}).plan(range(7))
    assert [{n % 2 for n in batch.edits} for batch in apart] == [{0}, {1}]


def test_halving_parts_no_edits_of_one_change() -> None:
    changes = [0, 0, 0, 3, 4]
    assert [one.edits for one in halved([Batch((0, 1, 2, 3, 4), 8)], changes)] == [(0, 1, 2), (3, 4)]
    assert halved([Batch((0, 1, 2), 8)], changes) == [Batch((0, 1, 2), 4)]
    with pytest.raises(ResourceError, match="one subject"):
        halved([Batch((0, 1, 2), 1)], changes)


def test_a_single_edit_that_does_not_fit_is_refused() -> None:
    batches = [Batch((3,), 4)]
    assert halved(batches, range(5)) == [Batch((3,), 2)]
    with pytest.raises(ResourceError, match="single edit"):
        halved([Batch((3,), 1), Batch((1, 2), 4)], range(5))


@pytest.mark.slow
def test_another_limit_of_memory_cuts_anew_only_what_was_not_found(
    lm: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.find_targets, []

    def killed_at_second(*given: Any, **more: Any) -> Targets:
        calls.append(len(given[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*given, **more)

    monkeypatch.setattr(module, "find_targets", killed_at_second)
    with pytest.raises(KeyboardInterrupt):
        searched(lm).run(Store(tmp_path), ON, Suffix)
    searched(lm, memory="300kB").run(Store(tmp_path), ON, Suffix)
    assert calls[:2] == [4, 4]
    assert set(calls[2:]) == {1} or set(calls[2:]) == {2}

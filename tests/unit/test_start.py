"""From an edited model to the start of its next run: the two modes, the base, and settings that must agree."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.config.layers import layer_range, layers_text
from memedit.config.resolve import flatten, resolve
from memedit.editing.ledger import BaseIdentity, Ledger, LedgerEntry, Provenance, deciding_settings
from memedit.editing.ledger_files import ledger_files, read_ledger
from memedit.editing.start import RunStart, start_forget, start_run
from memedit.edits.edit import EditRequest
from memedit.errors import RecipeError, UsageError
from memedit.storage.checkpoint import Checkpoint


def edit(number: int, said: str = "Rome") -> EditRequest:
    return EditRequest(id=f"e{number}", subject=f"S{number}", prompt="{} lives in", object=said, origin=f"new:{number}")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that has a digest; no weight of it is ever read here."""
    folder = tmp_path_factory.mktemp("base")
    header = b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    return folder


@pytest.fixture
def edited(base: Path, tmp_path: Path) -> Path:
    """A copy of it with a ledger: e2 replaced e1, which is about the same fact; e3 is active."""
    folder = tmp_path / "edited"
    shutil.copytree(base, folder)
    (folder / "memedit").mkdir()
    recipe = resolve([("flag", {"method.ridge": 3})])[0]
    about = Provenance(
        base=BaseIdentity(path=str(base), digest=Checkpoint.open(base).digest), contexts=("",),
        knobs=deciding_settings(recipe),
        layers=(1, 2, 3), moments="m",
    )  # fmt: skip
    first = edit(1, "Oslo")
    requests = [first, first.model_copy(update={"id": "e2", "object": "Bonn"}), edit(3)]
    entries = tuple(
        LedgerEntry(
            edit=one, digest=one.digest, found="searched", on="0", group="g", loss=0, steps=1, superseded_by=line
        )
        for one, line in zip(requests, (2, None, None), strict=True)
    )
    for name, data in ledger_files(Ledger(about, entries, torch.ones(3, 2))).items():
        (folder / name).write_bytes(b"".join(data))
    return folder


def start(model: Path, *requests: EditRequest, knobs: dict[str, Any] | None = None, **more: Any) -> RunStart:
    recipe, sources = resolve([("flag", {"model.path": str(model), **(knobs or {})})])
    return start_run(requests, recipe, sources=sources, **more)


@pytest.mark.parametrize(
    ("name", "now", "then"),
    [
        ("target.optimizer", "lbfgs", "adam"),
        ("polish.steps", 24, 0),
        ("polish.shorten", 0.15, 0.0),
        ("polish.own", 0.25, 0.0),
        ("target.contexts", None, 0),
        ("polish.spoken", 1.0, 0.0),
        ("polish.lead", 1.0, 0.0),
    ],
)
def test_a_ledger_of_an_older_version_keeps_what_it_was_made_with(edited: Path, name: str, now: Any, then: Any) -> None:
    ledger = read_ledger(edited)
    assert ledger is not None and ledger.about.knobs[name] == now
    older = {one: value for one, value in ledger.about.knobs.items() if one != name}
    about = ledger.about.model_copy(update={"knobs": older})
    for file, data in ledger_files(replace(ledger, about=about)).items():
        (edited / file).write_bytes(b"".join(data))
    assert flatten(start(edited, edit(4)).recipe.model_dump())[name] == then
    with pytest.raises(RecipeError, match=f"{name} = {now!r}"):
        start(edited, edit(4), knobs={name: now})


def test_a_ledger_that_names_no_prompts_to_keep_was_made_with_none(edited: Path) -> None:
    ledger = read_ledger(edited)
    assert ledger is not None
    older = {one: value for one, value in ledger.about.knobs.items() if one != "polish.keep"}
    for file, data in ledger_files(replace(ledger, about=ledger.about.model_copy(update={"knobs": older}))).items():
        (edited / file).write_bytes(b"".join(data))
    assert start(edited, edit(4)).recipe.polish.keep == ()
    assert start(edited, edit(4), knobs={"polish.keep": []}).recipe.polish.keep == ()
    with pytest.raises(RecipeError, match=r"polish\.keep = \['{} eats'\]"):
        start(edited, edit(4), knobs={"polish.keep": ["{} eats"]})


def test_a_model_without_a_ledger_starts_from_itself(base: Path) -> None:
    found = start(base, edit(1))
    assert [one.id for one in found.requests] == ["e1"]
    assert found.recipe.model.path == str(base)
    assert found.history.mode is None
    ways: list[dict[str, Any]] = [{"mode": "on top"}, {"mode": "re-solve"}, {"base": str(base)}]
    for more in ways:
        with pytest.raises(UsageError, match="has no ledger"):
            start(base, edit(1), **more)


def test_where_the_base_is_at_hand_all_in_force_start_from_it(base: Path, edited: Path) -> None:
    found = start(edited, edit(4))
    assert (found.history.mode, found.recipe.model.path) == ("re-solve", str(base))
    assert [one.id for one in found.requests] == ["e2", "e3", "e4"]
    assert (found.recipe.method.ridge, found.recipe.method.layers) == (3, "1-3")


def test_on_top_starts_from_the_edited_weights(edited: Path) -> None:
    found = start(edited, edit(4), mode="on top")
    assert (found.history.mode, found.recipe.model.path) == ("on top", str(edited))
    assert [one.id for one in found.requests] == ["e2", "e3", "e4"]
    with pytest.raises(UsageError, match="opens no base"):
        start(edited, edit(4), mode="on top", base=str(edited))


@pytest.mark.parametrize(
    ("part", "other", "says"), [("path", "gone", "is not on this machine"), ("digest", "1", "has changed")]
)
def test_a_lost_base_is_an_error_that_names_both_ways(edited: Path, part: str, other: str, says: str) -> None:
    ledger = read_ledger(edited)
    assert ledger is not None
    about = ledger.about.model_copy(update={"base": ledger.about.base.model_copy(update={part: other})})
    for name, data in ledger_files(replace(ledger, about=about)).items():
        (edited / name).write_bytes(b"".join(data))
    with pytest.raises(UsageError, match=says) as caught:
        start(edited, edit(4))
    assert "--base" in caught.value.hint and "--on-top" in caught.value.hint
    assert start(edited, edit(4), mode="on top").history.mode == "on top"
    with pytest.raises(UsageError, match=says):
        start(edited, edit(4), mode="re-solve")


def test_the_base_is_known_by_its_digest(base: Path, edited: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(base, moved)
    assert start(edited, edit(4), base=str(moved)).recipe.model.path == str(moved)
    (moved / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="is not the base"):
        start(edited, edit(4), base=str(moved))


def test_what_gives_way_and_what_is_there_already_is_told_with_both_places(edited: Path) -> None:
    again = edit(1, "Rome").model_copy(update={"id": "e9"})
    found = start(edited, again, edit(3))
    assert [one.id for one in found.requests] == ["e3", "e9"]
    assert [(one.code, one.origin) for one in found.findings] == [("W230", "new:1"), ("W201", "new:3")]
    assert 'replaces "Bonn", as edited at new:1 (edit "e2")' in found.findings[0].message
    assert [one.id for one in found.history.duplicates] == ["e3"]
    assert found.history.conflicts == found.findings[:1]


def test_a_list_that_contradicts_itself_is_left_to_be_refused(edited: Path) -> None:
    found = start(edited, edit(4), edit(4, "Oslo"))
    assert [one.id for one in found.requests] == ["e4", "e4"]


@pytest.mark.parametrize(
    ("knobs", "fine"),
    [
        ({"method.ridge": 3}, True), ({"method.ridge": 2}, False), ({"target.steps": 3}, False), ({"seed": 1}, False),
        ({"contexts.tokens": 4}, False), ({"chat": True}, False), ({"chat_system": "Be brief."}, False),
        ({"method.layers": "1-3"}, True),
        ({"method.layers": "depth"}, True), ({"method.layers": "1-2"}, False), ({"method.layers": "auto"}, False),
        ({"method.layers": "published"}, False),
        ({"memory": "1GB"}, True), ({"chunk": 4}, True), ({"output.link": "hard"}, True), ({"eval.tokens": 3}, True),
        ({"moments.corpus": "elsewhere.txt"}, True), ({"moments.tokens": 5}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["re-solve", "on top"])
def test_knobs_that_decide_must_be_those_of_the_ledger(
    edited: Path, knobs: dict[str, Any], fine: bool, mode: str
) -> None:
    if fine:
        assert start(edited, edit(4), knobs=knobs, mode=mode).recipe.method.ridge == 3
        return
    (name,) = knobs
    with pytest.raises(RecipeError, match=f"made with other settings: {name}"):
        start(edited, edit(4), knobs=knobs, mode=mode)


def test_forgetting_leaves_the_others_and_brings_back_what_had_given_way(edited: Path) -> None:
    recipe = resolve([("flag", {"model.path": str(edited)})])[0]
    assert [one.id for one in start_forget(["e3"], recipe).requests] == ["e2"]
    back = start_forget(["e2"], recipe)
    assert [one.id for one in back.requests] == ["e1", "e3"]
    assert "active again" in back.history.conflicts[0].message
    assert start_forget(["e1", "e2", "e3"], recipe).requests == ()
    with pytest.raises(UsageError, match='has no edit "e33"') as caught:
        start_forget(["e33"], recipe)
    assert caught.value.hint == "did you mean e3?"


def test_an_edit_that_can_come_back_keeps_its_id(edited: Path) -> None:
    """e1 was replaced by e2: a new edit of another fact may not have its id, and one of the same fact may."""
    found = start(edited, edit(9).model_copy(update={"id": "e1"}))
    assert [one.id for one in found.requests] == ["e2", "e3", "e1-2"]
    assert [one.code for one in found.findings] == ["W231"]
    found = start(edited, edit(1, "Lima"))
    assert [one.id for one in found.requests] == ["e3", "e1"]
    assert [one.code for one in found.findings] == ["W230"]


def test_an_edit_that_comes_back_to_find_its_id_in_use_gets_another(edited: Path) -> None:
    """Ledgers of earlier versions gave the id of a replaced edit to one about another fact."""
    ledger = read_ledger(edited)
    assert ledger is not None
    last = ledger.entries[2].model_copy(update={"edit": ledger.entries[2].edit.model_copy(update={"id": "e1"})})
    for name, data in ledger_files(replace(ledger, entries=(*ledger.entries[:2], last))).items():
        (edited / name).write_bytes(b"".join(data))
    recipe = resolve([("flag", {"model.path": str(edited)})])[0]
    back = start_forget(["e2"], recipe)
    assert [(one.id, one.subject) for one in back.requests] == [("e1-2", "S1"), ("e1", "S3")]
    assert [one.edit for one in back.history.conflicts] == ["e1-2"]
    assert back.history.ledger is not None and back.history.ledger.entries[0].edit == back.requests[0]


def test_layers_are_written_as_they_are_read() -> None:
    layers = [[3], [0, 1, 2], [1, 3]]
    assert [layers_text(one) for one in layers] == ["3", "0-2", "1,3"]
    assert layers_text([0, 1, 10**18]) == f"0,1,{10**18}"  # a range to it would fill the memory
    assert [layer_range(layers_text(one), 4) for one in layers] == layers

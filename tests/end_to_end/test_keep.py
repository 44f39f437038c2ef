"""A list of one relation: the user names what else must stay of the edited subjects."""

from __future__ import annotations

import json
from pathlib import Path

import memedit
import pytest
from memedit.edits.edit import EditRequest
from memedit.edits.read import write_lines
from tests.helpers.in_process import run_main

pytestmark = pytest.mark.usefixtures("kept_moments")


@pytest.fixture
def homes(small_edits: list[EditRequest]) -> list[EditRequest]:
    return [one for one in small_edits if one.relation == "home"][:30]


def test_what_the_user_names_stays_and_is_scored(
    made_small: Path, small_edits: list[EditRequest], homes: list[EditRequest], tmp_path: Path
) -> None:
    edited = {one.subject for one in homes}
    known = [
        one.model_copy(update={"object": one.object_old, "object_old": None, "aliases": ()})
        for one in small_edits
        if one.relation != "home" and one.subject in edited
    ]
    prompts = tuple(dict.fromkeys(one.prompt for one in known))
    alone = memedit.apply(homes, made_small, tmp_path / "alone", facts=known)
    settings = {"polish.keep": prompts}
    named = memedit.apply(homes, made_small, tmp_path / "named", facts=known, settings=settings)
    assert alone.kept["siblings"] and named.kept["siblings"] and named.polish and named.after and named.after.accuracy
    # This model names no other subjects, so alone there is nothing that polish could keep.
    assert alone.polish is None and named.polish.preserved > len(homes)
    assert alone.kept["siblings"].mean < 0.97 < named.kept["siblings"].mean
    assert named.after.accuracy.mean == 1


def test_without_known_facts_the_named_prompts_tell_what_was_kept(
    made_small: Path, homes: list[EditRequest], tmp_path: Path
) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text(write_lines(homes[:8]), encoding="utf-8")
    words = ["apply", str(edits), "-m", str(made_small), "--json", "--set", "polish.steps=2"]
    for name, keep in (("alone", []), ("named", ["--keep", "{} works as a", "--keep", "{} speaks"])):
        ended = run_main([*words, "-o", str(tmp_path / name), *keep])
        assert ended.code == 0
        report = json.loads(ended.out)
        assert (report["kept"]["siblings"] is not None) == (report["made_facts"] > 0) == bool(keep)


def test_a_prompt_without_a_place_for_the_subject_is_refused(made_small: Path, tmp_path: Path) -> None:
    ended = run_main(["apply", "none.jsonl", "-m", str(made_small), "-o", str(tmp_path / "out"), "--keep", "It is"])
    assert ended.code == 2 and "'It is' needs {} once" in ended.err and "hint:" in ended.err

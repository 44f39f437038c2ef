"""An edit without a subject: made at the last token of its prompt, and a fact of its own beside every other."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import memedit
import pytest
from memedit.config.recipe import Recipe
from memedit.editing.auto_layers import choose_traced_layers
from memedit.editing.batches import changes_of
from memedit.editing.plan import Plan, check_edits, encode_contexts
from memedit.edits.edit import EditRequest
from memedit.errors import EditListError, GateError
from memedit.evaluation.forced import facts_kept
from memedit.evaluation.made_facts import Beside, filled
from memedit.evaluation.other_subjects import names_beside
from memedit.evaluation.probes import list_probes
from memedit.model.load import LanguageModel
from memedit.model.tokens import encode_prompt
from memedit.progress import NoProgress
from memedit.tracing.facts import find_facts
from tests.conftest import byte_tokenizer
from tests.helpers.findings import codes

TALL = {"id": "tall", "prompt": "The tallest tower of Lyon is", "object": "Mira"}


def bare(name: str, prompt: str, wanted: str = "x", **more: Any) -> EditRequest:
    return EditRequest(id=name, prompt=prompt, object=wanted, origin="a:1", **more)


def named(name: str, subject: str, prompt: str, wanted: str = "x", relation: str = "home") -> EditRequest:
    return bare(name, prompt, wanted, subject=subject, relation=relation)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", json.dumps(TALL)),
        ("b.jsonl", json.dumps({**TALL, "subject": None})),
        ("c.yaml", "- {id: tall, subject: '', prompt: The tallest tower of Lyon is, object: Mira}"),
        ("d.csv", "id,subject,prompt,object\ntall,,The tallest tower of Lyon is,Mira\n"),
    ],
)
def test_it_is_read_with_a_warning_and_written_as_it_was(name: str, text: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(text)
    (found,) = memedit.load_edits(file)
    assert (found.subject, found.text, found.object) == ("", TALL["prompt"], "Mira")
    (finding,) = memedit.check([found])
    assert finding.code == "W210" and 'add "subject"' in finding.message
    back = tmp_path / "back.jsonl"
    back.write_text(json.dumps(found.public()))
    assert [one.public() for one in memedit.load_edits(back)] == [found.public()]


def test_a_place_for_a_subject_that_is_missing_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({**TALL, "prompt": "The tallest tower of {} is"}))
    with pytest.raises(EditListError) as caught:
        memedit.load_edits(file)
    assert [one.code for one in caught.value.findings] == ["E009"]  # type: ignore[attr-defined]
    places: list[dict[str, Any]] = [
        {"prompt": "Of {}"}, {"wordings": ("In {} it is",)}, {"paraphrases": ("Of {}",)}, {"generation": ("{} has",)},
    ]  # fmt: skip
    for more in places:
        assert codes(bare("a", **{"prompt": "The tower is", **more})) == ["E103"], more
    filled_in = {**TALL, "paraphrases": ["The tower of {} is"]}
    assert [one.code for one in memedit.check([filled_in])] == ["E103"]
    assert codes(bare("a", "The tower is", wordings=("Its name is",))) == ["W210"]
    assert codes(bare("a", " ")) == ["E101", "W205", "W210"]
    assert codes(bare("a", "The tower is", subject=" ")) == ["E101", "E103"]


def test_the_digest_of_an_edit_with_a_subject_is_what_it_was() -> None:
    ours = named("a", "Ada", "{} lives in", "Rome")
    assert ours.digest == hashlib.sha256(json.dumps(["Ada", "{} lives in", "Rome"]).encode()).hexdigest()
    assert bare("a", "Ada lives in", "Rome").digest not in (ours.digest, bare("a", "Bo lives in", "Rome").digest)


def test_other_prompts_are_other_facts_and_one_prompt_has_one_object() -> None:
    ada, bo = (bare(name, f"{name} lives in", wanted, relation="home") for name, wanted in (("Ada", "A"), ("Bo", "B")))
    assert ada.fact != bo.fact
    assert codes(ada, bo) == ["W210", "W210"]
    assert codes(ada, bare("c", "Ada lives in", "C")) == ["W210", "W210", "E106"]
    assert codes(ada, named("d", "Ada", "{} lives in", "D")) == ["W210", "E106"]
    # With a subject, the relation alone makes them one fact.
    assert codes(named("a", "Ada", "{} lives in", "A"), named("b", "Ada", "{} is at home in", "B")) == ["E106"]


@pytest.mark.parametrize("bos", [False, True])
def test_it_is_made_at_the_last_token_of_the_prompt(bos: bool) -> None:
    tokenizer = byte_tokenizer(bos=bos)
    request = bare("a", "The tower is", "Mira", wordings=("Its name:\n",))
    edits, _ = check_edits([request, named("b", "Ada", "{} is")], tokenizer, Recipe(), 64)
    assert tokenizer.decode(list(edits[0].prompt.head), skip_special_tokens=True) == "The tower is"
    assert len(edits[0].prompt.head) == len(edits[0].prompt.ids)
    assert len(edits[1].prompt.head) == len(edits[1].prompt.ids) - len(" is")
    # The KL loss is measured after that token alone.
    assert tokenizer.decode(list(edits[0].subject[1:])) == "s" and len(edits[0].subject) == 2
    prompts = encode_contexts(edits, ["", "A. ", "B. "], tokenizer, chat=False).prompts[0]
    heads = [tokenizer.decode(list(one.head), skip_special_tokens=True) for one in prompts]
    assert heads == ["The tower is", "A. Its name:\n", "B. The tower is"]


@pytest.mark.parametrize("prompt", ["Which tower?", "Which tower?\n"])
def test_in_a_chat_it_is_made_at_the_last_token_of_the_users_turn(prompt: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = "<user>{{ messages[0]['content'] | trim }}</user>"
    found = encode_prompt(tokenizer, bare("a", prompt), chat=True)
    assert tokenizer.decode(list(found.head)) == "<user>Which tower?"
    assert tokenizer.decode(list(found.ids)) == "<user>Which tower?</user>"


def test_edits_share_a_change_only_with_their_own_prompt() -> None:
    requests = [
        bare("a", "Ada lives in"), bare("b", "Bo lives in"), bare("c", "Ada lives in", wordings=("Ada is in",)),
        named("d", "Ada", "{} was born in"), named("e", "Ada", "{} works in"),
    ]  # fmt: skip
    edits, _ = check_edits(requests, byte_tokenizer(), Recipe(), 64)
    assert len({one.subject for one in edits[:2]}) == 1  # the same last token
    assert changes_of(edits, joint=True) == [0, 1, 0, 3, 3]
    assert changes_of(edits, joint=False) == [0, 1, 2, 3, 4]


LIST = [
    bare("a", "Ada lives in", relation="home"),
    bare("b", "Bo lives in", "y", relation="home"),
    named("c", "Cy", "{} lives in", "z"),
    named("d", "Di", "{} is at home in", "w"),
]


def test_no_probe_is_derived_for_it_or_from_it() -> None:
    probes = list_probes(LIST, derive=True)
    assert [one.kind for one in probes if one.edit < 2] == ["efficacy", "efficacy"]
    derived = [one for one in probes if one.derived]
    assert {one.text for one in derived} == {"Di lives in", "Cy is at home in"} and len(derived) == 4


def test_nothing_is_asked_beside_it(lm: LanguageModel) -> None:
    names = {"home": ["Ada", "Eve"], "trade": ["Eve"]}
    assert Beside.of(LIST[:2], names) == Beside([], [])
    assert names_beside(lm, LIST[:2], 0) == {}
    assert list(names_beside(lm, LIST, 0)) == ["home"]
    beside = Beside.of(LIST, names)
    asked = {filled(*one) for one in (*beside.siblings, *beside.others)}
    # Also not what such an edit itself says, by another template: "Ada lives in".
    assert asked == {"Eve lives in", "Eve is at home in", "Ada is at home in"}


def test_a_fact_without_a_subject_is_about_others_and_counts_by_itself() -> None:
    facts = [bare("1", "Eve lives in"), bare("2", "Fay lives in"), bare("3", "Ada lives in"), bare("4", "Cy lives in")]
    kept = facts_kept(facts, [True] * 4, [True, False, False, False], LIST)
    assert kept["siblings"] is None
    assert kept["others"] and (kept["others"].mean, kept["others"].n) == (0.5, 2)  # 3 and 4 are edited
    same = facts_kept([named("5", "Cy", "{} works in", relation="trade")], [True], [True], LIST)
    assert same["siblings"] and same["others"] is None


def test_tracing_needs_a_subject(lm: LanguageModel) -> None:
    with pytest.raises(EditListError) as caught:
        find_facts(lm, LIST)
    assert [(one.code, one.edit) for one in caught.value.findings] == [("E103", "a"), ("E103", "b")]  # type: ignore[attr-defined]
    edits, _ = check_edits(LIST[:2], lm.tokenizer, Recipe(), 64)
    with pytest.raises(GateError, match="no edit has a subject"):
        choose_traced_layers(lm, "digest", Recipe(), Plan(tuple(edits), (0,), (), ()), NoProgress())

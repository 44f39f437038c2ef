"""Facts made of the model's own answers: asked by the list's prompts, known to the model, and none that is edited."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memedit
import pytest
from memedit.editing.run import EditRun
from memedit.edits.edit import EditRequest
from memedit.evaluation import made_facts
from memedit.evaluation.forced import facts_kept
from memedit.evaluation.made_facts import Beside, facts_made, filled, first_words, make_facts
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from memedit.results.rows import remarks, rows
from tests.conftest import ROOT, byte_tokenizer, tiny_model

NAMES = {"city": ["Cy", "Di"], "trade": ["Di"]}


def edit(number: int, subject: str, relation: str, prompt: str) -> EditRequest:
    return EditRequest(id=str(number), subject=subject, relation=relation, prompt=prompt, object="x")


LIST = [
    edit(1, "Ada", "city", "{} lives in"),
    edit(2, "Bo", "trade", "The trade of {} is"),
    edit(3, "Bo", "city", "{} lives in"),
]


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    model: Any = tiny_model("gpt2").requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (" Lima, the capital", "Lima"),
        (" the city of Lima.", "the city of Lima"),
        ("Spanish and Quechua", "Spanish"),
        (" 1821", "1821"),
        (" 東京都です", "東京都です"),
        (" in, the city", "in"),
        (" in 1990 or", "in 1990"),
        (" of the", "of the"),
        (" ...", ""),
        (" в Москве, столице", "в Москве"),
        (" à Paris", "à Paris"),
        (" är i Göteborg", "är i Göteborg"),
        (" a\u0300 Paris", "a\u0300 Paris"),  # an accent that is a character of its own
        (" Она в Москве", "Она"),  # no word with a capital is a short one
        (" जापान है", "जापान"),  # and none in a script without capitals
        (" ญี่ปุ่นและ", "ญี่ปุ่นและ"),
        (" مُحَمَّد في", "مُحَمَّد"),
        (" می\u200cخواهم که", "می\u200cخواهم"),
        (" რომი არის", "რომი"),
    ],
)
def test_an_answer_is_its_first_words(text: str, answer: str) -> None:
    assert first_words(text) == answer


def test_only_what_is_not_edited_is_asked() -> None:
    beside = Beside.of(LIST, NAMES)
    assert beside.siblings == [("The trade of {} is", "Ada")]
    of_cy_and_di = {"Cy lives in", "Di lives in", "The trade of Cy is", "The trade of Di is"}
    assert {filled(*one) for one in beside.others} == of_cy_and_di


def test_prompts_that_the_user_gives_are_asked_of_every_edited_subject_once() -> None:
    """Not of others, not where the list asks them already, and not what an edit says."""
    beside = Beside.of(LIST, NAMES, ["{} eats", "The trade of {} is", "{} lives in"])
    assert [filled(*one) for one in beside.siblings] == ["The trade of Ada is", "Ada eats", "Bo eats"]
    assert beside.others == Beside.of(LIST, NAMES).others
    alone = [edit(1, "Ada", "city", "{} lives in")]
    assert not Beside.of(alone, {}).siblings
    assert Beside.of(alone, {}, ["{} eats"]).siblings == [("{} eats", "Ada")]


@pytest.mark.parametrize(
    ("city", "trade", "asked"),
    [
        (["Cy", "Di", "Ed"], ["Flo", "Gus", "Hal"], False),
        (["Cy", "Di", "Ed", "Flo", "Gus"], ["Gus", "Hal", "Ida", "Jo", "Kim", "Lu"], True),  # a fifth of the fewer
        ([], ["Flo", "Gus", "Hal"], True),  # the model names nobody for one of them, but Bo is edited under both
        ([], [], True),
    ],
)
def test_who_is_asked_under_another_relation_is_of_its_kind(city: list[str], trade: list[str], asked: bool) -> None:
    beside = Beside.of(LIST, {"city": city, "trade": trade})
    assert beside.siblings == ([("The trade of {} is", "Ada")] if asked else [])
    of_city, of_trade = ({*city, *trade},) * 2 if asked else ({*city}, {*trade})
    assert len(beside.others) == len({*beside.others})
    assert {*beside.others} == {
        *(("{} lives in", name) for name in of_city), *(("The trade of {} is", name) for name in of_trade)
    }  # fmt: skip


def test_a_relation_with_enough_names_is_asked_of_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(made_facts, "ENOUGH_NAMES", 4)
    names = {"city": ["Cy", "Di", "Ed", "Flo", "Gus"], "trade": ["Cy", "Di", "Hal"]}
    others = Beside.of(LIST, names).others
    assert [name for prompt, name in others if prompt == "{} lives in"] == names["city"]
    assert [name for prompt, name in others if prompt == "The trade of {} is"] == ["Cy", "Di", "Hal", "Ed"]


@pytest.mark.parametrize(
    ("city", "telephone", "asked"),
    [
        (["Cy", "Di", "Ed"], [], False),
        (["Cy", "Di", "Ed"], ["Cy", "Di"], False),  # too few to tell
        (["Cy", "Di", "Ed"], ["Cy", "Di", "Ed"], True),
        (["Cy", "Di"], [], True),  # too few of both: nothing is known of either
    ],
)
def test_a_relation_without_names_is_asked_of_no_other_kind(city: list[str], telephone: list[str], asked: bool) -> None:
    """Nothing names other inventions, and the list edits no person as one: Ada is not asked who invented her."""
    requests = [*LIST[:1], edit(4, "the telephone", "inventor", "{} was invented by")]
    siblings = Beside.of(requests, {"city": city, "inventor": telephone}).siblings
    assert {filled(*one) for one in siblings} == ({"Ada was invented by", "the telephone lives in"} if asked else set())


def say(monkeypatch: pytest.MonkeyPatch, *, unsure: str = "none") -> None:
    """Let the model answer " w x" to every prompt, surely, but not to prompts with this in them."""
    tokenizer: Any = byte_tokenizer()
    said = tuple(tokenizer(" w x")["input_ids"])

    def next_ones(_lm: LanguageModel, prompts: Sequence[tuple[int, ...]], _count: int) -> list[list[tuple[int, float]]]:
        return [[(said[0], 0.1 if unsure in tokenizer.decode(list(prompt)) else 0.3)] for prompt in prompts]

    monkeypatch.setattr(made_facts, "next_tokens", next_ones)
    monkeypatch.setattr(made_facts, "generate", lambda _lm, prompts, _count: [said for _ in prompts])


def test_other_wordings_ask_what_their_prompt_would(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polish asks by prompts alone, and no fact is asked by a text that an edit is made by."""
    say(monkeypatch)
    city = LIST[0].model_copy(update={"wordings": ("The home of {} is", "{} dwells in")})
    asked = {(one.subject, one.prompt) for one in make_facts(lm, [city, *LIST[1:]], NAMES, unasked={"Cy dwells in"})}
    assert asked == {
        *((name, "The trade of {} is") for name in ("Ada", "Cy", "Di")), ("Cy", "The home of {} is"),
        ("Di", "The home of {} is"), ("Di", "{} dwells in"),
    }  # fmt: skip
    trade = LIST[1].model_copy(update={"wordings": ("{} lives in", "{} works as")})
    asked = {(one.subject, one.prompt) for one in make_facts(lm, [LIST[0], trade], NAMES)}
    assert ("Ada", "{} works as") in asked and ("Ada", "{} lives in") not in asked


def test_a_guess_is_no_fact(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    say(monkeypatch, unsure="lives")
    facts = make_facts(lm, LIST, NAMES)
    assert {(one.subject, one.prompt) for one in facts} == {
        (name, "The trade of {} is") for name in ("Ada", "Cy", "Di")
    }


def test_as_many_facts_are_made_as_there_are_edits(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the model is sure of enough answers: it is asked more questions than that."""
    say(monkeypatch, unsure="A")
    names = {"city": [f"{letter}{n}" for letter in "AB" for n in range(made_facts.LEAST)]}
    facts = make_facts(lm, LIST[:1], names)
    assert len(facts) == made_facts.LEAST == facts_made(LIST[:1]) // 2 and all(
        one.subject.startswith("B") for one in facts
    )


def test_facts_are_made_of_the_answers_to_what_is_not_edited(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    say(monkeypatch)
    facts = make_facts(lm, LIST, NAMES)
    assert {(one.subject, one.prompt, one.object[0]) for one in facts} == {
        ("Ada", "The trade of {} is", "w"), ("Cy", "{} lives in", "w"), ("Di", "{} lives in", "w"),
        ("Cy", "The trade of {} is", "w"), ("Di", "The trade of {} is", "w"),
    }  # fmt: skip
    # Left out: what the edit is polished on.
    left = make_facts(lm, LIST, NAMES, unasked={"Cy lives in", "The trade of Ada is", "The trade of Cy is"})
    assert {(one.subject, one.prompt) for one in left} == {("Di", "{} lives in"), ("Di", "The trade of {} is")}
    # What was said before and is no longer said is not kept; what is edited is no fact beside the edits.
    for still in (True, False):
        kept = facts_kept(facts, [True] * len(facts), [still] * len(facts), LIST)
        found = {name: figure and (figure.mean, figure.n) for name, figure in kept.items()}
        assert found == {"others": (float(still), 2), "siblings": (float(still), 1)}


@pytest.mark.slow
def test_apply_tells_what_it_took_where_no_facts_are_given(tmp_path: Path) -> None:
    edits = memedit.load_edits(ROOT / "requests" / "world.jsonl")[:6]
    model, few = (
        ROOT / "examples" / "models" / "made-gpt2",
        {"polish.steps": 1, "moments.tokens": 768, "method.ridge": 20, "contexts.openings": ["The"]},
    )
    report = memedit.apply(edits, model, tmp_path / "out", settings=few)
    assert report.made_facts > 0
    assert report.kept["siblings"] and report.kept["siblings"].mean > 0.5
    assert report.kept["others"] is None  # this model cannot continue a list of names
    (row,) = [row for row in rows(report) if row[0] == "kept, edited subjects"]
    assert row[-1].endswith("(made)")
    assert any("no facts were given" in line for line in remarks(report))
    given = memedit.apply(edits, model, tmp_path / "given", facts=edits[:1], settings=few)
    assert given.made_facts == 0
    none = memedit.apply(edits, model, tmp_path / "none", settings={**few, "eval.derive": False})
    assert not any(none.kept.values())
    out, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "none"))
    assert out == other


@pytest.mark.slow
def test_a_stopped_run_goes_on_without_made_facts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edits = memedit.load_edits(ROOT / "requests" / "world.jsonl")[:2]
    model, few = (
        ROOT / "examples" / "models" / "made-gpt2",
        {"polish.steps": 1, "moments.tokens": 768, "method.ridge": 20, "contexts.openings": ["The"]},
    )
    with monkeypatch.context() as patch:
        patch.setattr(EditRun, "targets", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            memedit.apply(edits, model, tmp_path / "out", settings=few)
    report = memedit.apply(edits, model, tmp_path / "out", settings={**few, "eval.derive": False})
    assert report.made_facts == 0 and not any(report.kept.values())

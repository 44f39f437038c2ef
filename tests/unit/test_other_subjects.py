"""The model names other subjects: one name from each likely first token, ended as an entry of a list, ranked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from memedit.edits.edit import EditRequest
from memedit.evaluation import other_subjects
from memedit.evaluation.other_subjects import names_begun, names_beside
from memedit.forward.passes import next_tokens
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer, tiny_model


@pytest.fixture
def lm() -> LanguageModel:
    model: Any = tiny_model("gpt2").requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def edit(number: int, subject: str, relation: str) -> EditRequest:
    return EditRequest(id=str(number), subject=subject, relation=relation, prompt="{} is in", object="x")


LIST = [edit(1, "Ada", "city"), edit(2, "Bo", "city"), edit(3, "Cy", "trade")]
CHANCES = {"D": 0.1, "E": 0.3, "F": 0.2, "A": 0.9, "x": 0.9, "7": 0.9, "G": 0.05, "H": 0.04, "I": 0.03}
SAID = {
    "D": "i, Eve", "E": "ve\nand more", "F": "lo; Gus", "A": "da, Bo", "x": "yz, more", "7": "th, more",
    "G": "us and Hal", "H": "al does not end", "I": "a 5, more",
}  # fmt: skip


def named(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch, requests: Sequence[EditRequest] = LIST
) -> dict[str, list[str]]:
    """What is named where the model says SAID behind these first letters, some tokens at a time."""
    tokenizer: Any = lm.tokenizer
    ids = {letter: tokenizer(letter, add_special_tokens=False)["input_ids"][0] for letter in CHANCES}

    def next_ones(_lm: LanguageModel, prompts: Sequence[tuple[int, ...]], count: int) -> list[list[tuple[int, float]]]:
        return [[(ids[letter], chance) for letter, chance in CHANCES.items()][:count] for _ in prompts]

    def generate(
        _lm: LanguageModel, prompts: Sequence[tuple[int, ...]], tokens: int, **_: Any
    ) -> list[tuple[int, ...]]:
        found: list[tuple[int, ...]] = []
        for prompt in prompts:
            text = tokenizer.decode(list(prompt))
            letter, rest = next((a, SAID[a]) for a in CHANCES if a in text[text.rindex(",") + 1 :])
            done = len(text) - text.rindex(letter) - 1
            found.append(tuple(tokenizer(rest, add_special_tokens=False)["input_ids"][done : done + tokens]))
        return found

    monkeypatch.setattr(other_subjects, "next_tokens", next_ones)
    monkeypatch.setattr(other_subjects, "generate", generate)
    return names_beside(lm, requests, 0)


def test_names_are_entries_of_a_list_the_likeliest_first(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # No edited subject, no word in small letters, no number, no sentence without an end, no name with a digit.
    assert named(lm, monkeypatch) == {"city": ["Eve", "Flo", "Di", "Gus"], "trade": ["Eve", "Flo", "Di", "Gus"]}


def test_a_name_in_small_letters_stands_beside_a_subject_in_small_letters(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert named(lm, monkeypatch, [*LIST, edit(4, "the telephone", "inventor")]) == {
        "city": ["Eve", "Flo", "Di", "Gus"],
        "trade": ["Eve", "Flo", "Di", "Gus"],
        "inventor": ["xyz", "Eve", "Flo", "Di", "Gus"],
    }


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("िल्ली, more", "Dिल्ली"),
        ("’Arc, more", "D’Arc"),
        ("e\u0301\u200dx, more", "De\u0301\u200dx"),
        ("’7, more", None),
        ("“i, more", None),
    ],
)
def test_a_name_may_have_marks_on_its_letters_and_an_apostrophe(
    said: str, name: str | None, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(other_subjects, "NAME_TOKENS", len(said.encode()))  # a token here is a byte
    monkeypatch.setitem(SAID, "D", said)
    found = named(lm, monkeypatch)["city"]
    assert [one for one in found if one not in ("Eve", "Flo", "Gus")] == ([name] if name else [])


def test_a_likelier_name_comes_earlier(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(CHANCES, "G", 0.25)
        assert named(lm, monkeypatch)["city"] == ["Eve", "Gus", "Flo", "Di"]


def test_the_next_tokens_tokens_are_those_of_a_plain_forward(lm: LanguageModel) -> None:
    prompts = [(5, 6, 7), (8, 9), (5, 6, 9)]
    for prompt, found in zip(prompts, next_tokens(lm, prompts, 4), strict=True):
        with torch.no_grad():
            wanted = lm.model(torch.tensor([prompt])).logits[0, -1].softmax(-1).topk(4)
        assert [token for token, _ in found] == wanted.indices.tolist()
        assert [chance for _, chance in found] == pytest.approx(wanted.values.tolist(), rel=1e-4)


def test_a_list_longer_than_the_model_is_cut(lm: LanguageModel) -> None:
    room = lm.architecture.positions
    assert room
    long = [edit(n, f"{chr(65 + n)}{'a' * room}", "city") for n in range(4)]
    assert list(names_beside(lm, long, 0)) == ["city"]


def test_a_list_of_no_subjects_names_none(lm: LanguageModel) -> None:
    assert names_beside(lm, [edit(1, "", "home")], 0) == {}


@pytest.mark.parametrize("count", [1, 5, 20])
def test_as_many_names_are_begun_as_the_time_told_counts(
    count: int, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []

    def next_ones(_lm: LanguageModel, prompts: Sequence[tuple[int, ...]], most: int) -> list[list[tuple[int, float]]]:
        return [[(ord("A"), 0.1)] * most for _ in prompts]  # all may begin a name

    def generate(_lm: LanguageModel, prompts: Sequence[tuple[int, ...]], *_: Any, **__: Any) -> list[tuple[int, ...]]:
        begun.append(len(prompts))
        return [() for _ in prompts]

    monkeypatch.setattr(other_subjects, "next_tokens", next_ones)
    monkeypatch.setattr(other_subjects, "generate", generate)
    monkeypatch.setattr(other_subjects, "decode_text", lambda *_: "A")
    requests = [*(edit(n, f"Ada {n}", "city") for n in range(count)), edit(count, "", "home")]
    names_beside(lm, requests, 0)
    assert begun == [names_begun(requests)]
    assert names_begun(requests[-1:]) == 0  # an edit without a subject stands beside nobody

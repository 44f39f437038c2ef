"""Text that the model writes itself: begun as a text begins, the same again, kept, and read by the moments."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.editing import own_text
from memedit.editing.contexts import sample_contexts
from memedit.editing.moment_cache import moment_store, moments_for, plan_moments
from memedit.errors import UsageError
from memedit.forward import generation
from memedit.forward.generation import ends, write_texts
from memedit.model.load import LanguageModel, load
from memedit.model.tokens import chat_openings, text_opening
from memedit.progress import NoProgress
from memedit.storage.artifacts import Store
from tests.conftest import byte_tokenizer


class Notes(NoProgress):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model without a corpus: other tests read the original."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "model", ignore=shutil.ignore_patterns("corpus.jsonl.gz")))


@pytest.fixture
def lm(folder: Path, monkeypatch: pytest.MonkeyPatch) -> LanguageModel:
    monkeypatch.setattr(own_text, "TOGETHER", 4)
    monkeypatch.setattr(own_text, "LONGEST", 32)
    return load(folder, ModelKnobs(device="cpu"))


def recipe_for(folder: Path, **knobs: Any) -> Any:
    return resolve([("flag", {"model.path": str(folder), "moments.tokens": 300, **knobs})])[0]


@pytest.mark.parametrize(("bos", "opening"), [(True, (0,)), (False, (1,))])
def test_a_text_begins_with_bos_or_else_eos(bos: bool, opening: tuple[int, ...]) -> None:
    assert text_opening(byte_tokenizer(bos=bos)) == opening


def test_what_a_tokenizer_puts_behind_a_text_begins_none() -> None:
    from tokenizers import processors

    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    assert tokenizer("")["input_ids"] == [0, 1]
    assert text_opening(tokenizer) == (0,)
    tokenizer.chat_template = "<s>{% for one in messages %}[{{ one['content'] }}]{% endfor %}"
    assert chat_openings(tokenizer)[0] == "["


def test_rows_begin_as_a_text_does_and_are_what_whole_forwards_would_sample(lm: LanguageModel) -> None:
    rows = write_texts(lm, [(3, 5)], 24)
    opening = text_opening(lm.tokenizer)
    assert all(len(row) == 24 and row[: len(opening)] == opening for row in rows)
    draw, wanted = torch.Generator().manual_seed(5), torch.tensor([opening] * 3)
    while wanted.shape[1] < 24:
        with torch.no_grad():
            logits = lm.model(wanted).logits[:, -1].float()
        shares = logits.double().softmax(-1).cumsum(-1)
        drawn = torch.rand(3, 1, generator=draw, dtype=torch.float64)
        wanted = torch.cat([wanted, (shares <= drawn).sum(-1, keepdim=True)], 1)
    first_end = min((n for row in wanted.tolist() for n, t in enumerate(row[1:], 1) if t in ends(lm)), default=24)
    assert first_end > 4  # the comparison covers some tokens
    assert [row[:first_end] for row in rows] == [tuple(row[:first_end]) for row in wanted.tolist()]


def test_tokens_are_drawn_as_often_as_they_are_likely() -> None:
    shares = torch.tensor([0.5, 0.0, 0.3, 0.2, 0.0])
    logits = shares.log().expand(20_000, -1)
    drawn = torch.tensor(generation._sampled(logits, [(len(logits), torch.Generator().manual_seed(0))]))
    counts = torch.bincount(drawn, minlength=5) / len(drawn)
    assert counts[1] == counts[4] == 0
    assert (counts - shares).abs().max() < 0.015  # four standard deviations


def test_after_the_end_of_a_text_another_begins(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "ends", lambda _lm: set(range(2, lm.architecture.vocabulary)))
    opening = text_opening(lm.tokenizer)
    row = write_texts(lm, [(1, 0)], 20)[0]
    for at, token in enumerate(row[:-1]):
        if at >= len(opening) and token not in (*opening, 0, 1):
            assert row[at + 1] == opening[0]


def test_without_a_corpus_the_model_writes_one_and_says_so(lm: LanguageModel, folder: Path) -> None:
    plan = plan_moments(lm, folder, [1], recipe_for(folder))
    assert plan.corpus == "self"
    progress = Notes()
    moment = moments_for(lm, plan, progress, lambda *_, **__: None)[1]
    assert moment.count == 300
    assert plan.own_text
    assert len(plan.own_text.rows(lm, moment_store(), NoProgress())) == 10  # 32 tokens each, no more than are read
    assert [note for note in progress.notes if "writes itself" in note]
    named = plan_moments(lm, folder, [1], recipe_for(folder, **{"moments.corpus": "self"}))
    assert named.missing == []  # the name says the same


@pytest.mark.slow
def test_the_text_is_kept_part_by_part_and_depends_on_the_seed(
    lm: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_moments(lm, folder, [1], recipe_for(folder))
    assert plan.own_text
    rows = plan.own_text.rows(lm, moment_store(), NoProgress())
    other = plan_moments(lm, folder, [1], recipe_for(folder, seed=1)).own_text
    assert other
    assert other.rows(lm, moment_store(), NoProgress()) != rows

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("a text that is kept is not written again")

    monkeypatch.setattr(own_text, "write_texts", never)
    assert plan.own_text.rows(lm, moment_store(), NoProgress()) == rows


def test_how_many_rows_are_written_side_by_side_changes_no_text(
    lm: LanguageModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_text, "DRAWN", 4)
    plan = plan_moments(lm, folder, [1], recipe_for(folder))
    assert plan.own_text
    written: list[list[tuple[int, ...]]] = []
    launches: list[int] = []
    real = own_text.write_texts

    def seen(lm: LanguageModel, drawn: Any, *args: Any, **more: Any) -> Any:
        launches.append(len(drawn))
        return real(lm, drawn, *args, **more)

    monkeypatch.setattr(own_text, "write_texts", seen)
    for together in (4, 8):
        monkeypatch.setattr(own_text, "TOGETHER", together)
        written.append(plan.own_text.rows(lm, Store(folder / str(together), model=""), NoProgress()))
    assert launches == [1, 1, 1, 2, 1]  # ten rows: 4, 4 and 2, then 8 and 2
    assert written[0] == written[1]
    assert len(set(written[0])) == len(written[0])  # each seed draws other texts


def test_a_tokenizer_without_a_first_token_is_refused(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generation, "text_opening", lambda _tokenizer: ())
    with pytest.raises(UsageError, match="no token with which a text begins"):
        write_texts(lm, [(1, 0)], 8)


def test_contexts_are_written_from_the_way_a_text_begins(lm: LanguageModel) -> None:
    recipe = resolve([("flag", {"model.path": "x"})])[0]
    opening = text_opening(lm.tokenizer)
    seen: list[tuple[int, ...]] = []
    handle = lm.model.get_input_embeddings().register_forward_hook(
        lambda _m, args, _o: seen.append(tuple(args[0][0].tolist()))
    )
    try:
        texts = sample_contexts(lm, recipe.contexts, 0)
    finally:
        handle.remove()
    assert seen
    assert all(ids[: len(opening)] == opening for ids in seen)
    assert texts[0] == ""
    assert len(texts) == 1 + len(recipe.contexts.openings)

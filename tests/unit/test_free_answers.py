"""Free answers, drift and text measures equal their plain restatements; a broken update that forced scores praise."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from examples.reference import evaluation as oracle
from examples.reference.evaluation import Plain
from memedit.config.recipe import EvalKnobs, ModelKnobs
from memedit.edits.edit import EditRequest, Question
from memedit.edits.read import read
from memedit.evaluation import drift
from memedit.evaluation.drift import OWN_LENGTH, OWN_ROWS, drift_of, given_rows, own_rows, passages
from memedit.evaluation.forced import score_edits, summarize
from memedit.evaluation.generated import edits_hold, prefix, with_free_answers, written
from memedit.evaluation.text_metrics import (
    answered,
    contains_words,
    cosine,
    document_weights,
    first_sentence,
    n_gram_entropy,
    names_in_text,
    words,
)
from memedit.forward.generation import generate
from memedit.forward.passes import Site, last_states
from memedit.forward.perplexity import read_text
from memedit.forward.scoring import LEAST_SAVED, leads
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load
from memedit.model.tokens import decode_text, encode_text, object_ids
from memedit.model.weights import applied
from tests.conftest import ROOT, byte_tokenizer, end_of_text, tiny_model

SAME = 1e-5


@pytest.fixture(params=["gpt2", "llama"])
def tiny(request: pytest.FixtureRequest) -> LanguageModel:
    model: Any = tiny_model(request.param).requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


@pytest.fixture(scope="module")
def made() -> LanguageModel:
    return load(ROOT / "examples" / "models" / "made-gpt2", ModelKnobs(device="cpu"))


def edits(count: int) -> list[EditRequest]:
    return read(str(ROOT / "requests" / "world.jsonl"))[0][:count]


def prompts() -> list[tuple[int, ...]]:
    """Many lengths, equal ones among them, and twenty that begin alike for longer than is worth computing twice."""
    generator = torch.Generator().manual_seed(7)

    def some(length: int) -> tuple[int, ...]:
        return tuple(torch.randint(2, 258, (length,), generator=generator).tolist())

    lead = some(LEAST_SAVED["cpu"] // 16)
    return [*(some(length) for length in (3, 5, 5, 9)), *(lead + some(2 + n % 3) for n in range(20))]


@pytest.mark.slow
def test_writing_together_is_writing_alone(tiny: LanguageModel) -> None:
    asked = prompts()
    assert [lead > 0 for lead, _ in leads(asked, "cpu")] == [True, False]
    plain = Plain(tiny.model, tiny.tokenizer)
    stop = end_of_text(tiny.tokenizer)
    expected = [tuple(plain.write(list(ids), 6, stop)) for ids in asked]
    assert generate(tiny, asked, 6) == expected


def test_writing_ends_at_the_end_of_text_and_leaves_it_out(tiny: LanguageModel) -> None:
    asked = prompts()[:4]
    free = generate(tiny, asked, 8)
    tiny.tokenizer.eos_token = tiny.tokenizer.convert_ids_to_tokens(free[0][2])  # type: ignore[index]
    cut = generate(tiny, asked, 8)
    assert cut[0] == free[0][: free[0].index(free[0][2])]


def test_a_chat_models_end_of_turn_ends_what_it_writes(tiny: LanguageModel) -> None:
    asked = prompts()[:4]
    free = generate(tiny, asked, 8)
    tiny.model.generation_config.eos_token_id = [1, free[1][3]]  # type: ignore[union-attr]
    cut = generate(tiny, asked, 8)
    assert cut[1] == free[1][: free[1].index(free[1][3])]
    assert len(cut[1]) < len(free[1])


@pytest.mark.slow
def test_a_model_whose_cache_lies_writes_by_whole_forwards(
    tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memedit.forward import generation, scoring

    asked = prompts()
    expected = generate(tiny, asked, 6)
    tiny.proofs.clear()

    def forgotten(_cache: object, _rows: Sequence[int]) -> Any:
        return scoring.DynamicCache()

    monkeypatch.setattr(scoring, "copy_cache_rows", forgotten)
    monkeypatch.setattr(generation, "copy_cache_rows", forgotten)
    assert generate(tiny, asked, 6) == expected
    # Converse: believed, the same cache writes something else.
    monkeypatch.setattr(generation, "proved", lambda *_: True)
    assert generate(tiny, asked, 6) != expected


def test_rows_of_all_lengths_go_on_together(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from memedit.forward import generation

    asked, masks = prompts(), list[torch.Tensor]()
    plain = Plain(tiny.model, tiny.tokenizer)
    expected = [tuple(plain.write(list(ids), 6, end_of_text(tiny.tokenizer))) for ids in asked]
    real = tiny.model.forward

    def see(*args: Any, attention_mask: Any = None, **options: Any) -> Any:
        masks.extend([] if attention_mask is None else [attention_mask])
        return real(*args, attention_mask=attention_mask, **options)

    monkeypatch.setattr(tiny.model, "forward", see)
    assert generate(tiny, asked, 6) == expected
    assert any(len(mask) == len(asked) and not mask.all() for mask in masks)
    # Converse: rows that see the empty columns write something else, and the proof refuses them.
    monkeypatch.setattr(tiny.model, "forward", lambda *args, attention_mask=None, **options: real(*args, **options))
    assert generate(tiny, asked, 6) != expected
    tiny.proofs.clear()
    assert generate(tiny, asked, 6) == expected
    monkeypatch.setattr(generation, "MOST_ROWS", {"cpu": 3})
    tiny.proofs.clear()
    assert generate(tiny, asked, 6) == expected


def test_rows_that_have_ended_are_dropped_and_change_no_other(tiny: LanguageModel) -> None:
    asked = prompts()
    free = generate(tiny, asked, 8)
    text = [decode_text(tiny.tokenizer, ids) for ids in free]
    # Each text ends at a letter that some have early, some late and some never.
    letter = max("".join(text), key=lambda one: sum(one in line for line in text))
    cut = generate(tiny, asked, 8, until=re.compile(re.escape(letter)).search)
    for ids, line in zip(cut, free, strict=True):
        length = next((n for n in range(1, 9) if letter in decode_text(tiny.tokenizer, line[:n])), 8)
        assert ids == line[:length]
    assert len({len(ids) for ids in cut}) > 2


def test_a_proof_holds_for_rows_up_to_its_length(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from memedit.forward import generation, scoring

    asked, tried = prompts(), list[str]()
    real = scoring.prove_engine

    def see(*args: Any, name: str, **options: Any) -> Any:
        tried.append(name)
        return real(*args, name=name, **options)

    for module in (generation, scoring):
        monkeypatch.setattr(module, "prove_engine", see)
    generate(tiny, asked[4:], 2)
    assert tried == ["kept keys and values", "rows with empty columns"]
    generate(tiny, asked, 2)
    assert len(tried) == 2
    longer = [*asked, (*asked[-1], 5, 6, 7)]
    generate(tiny, longer, 2)
    assert len(tried) == 4


@pytest.mark.slow
def test_the_size_of_a_launch_changes_no_text(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    from memedit.forward import scoring

    asked = prompts()
    many = generate(tiny, asked, 6)
    for kept in (1, 200):
        monkeypatch.setattr(scoring, "KEPT_TOKENS", kept)
        assert generate(tiny, asked, 6) == many


@pytest.mark.slow
def test_a_drawn_text_does_not_depend_on_its_company(tiny: LanguageModel) -> None:
    asked = prompts()
    together = generate(tiny, asked, 5, top_k=5)
    assert [generate(tiny, [ids], 5, top_k=5)[0] for ids in asked[::7]] == together[::7]
    assert generate(tiny, asked, 5, top_k=5, seed=1) != together
    assert generate(tiny, asked, 5, top_k=5) == together


def test_a_row_too_long_for_the_model_is_written_as_far_as_it_goes(tiny: LanguageModel) -> None:
    longest = tiny.architecture.positions or 0
    assert len(generate(tiny, [(5,) * (longest - 3)], 10)[0]) <= 3


@pytest.mark.parametrize(
    ("text", "right", "wrong", "expected"),
    [
        (" Lyon, a city on the Rhone. Paris", ["Lyon"], "Paris", (True, False)),
        (" a city. Lyon is one.", ["Lyon"], "Paris", (False, False)),
        (" Paris (not Lyon).", ["Lyon"], "Paris", (False, True)),
        (" Lyon, not Paris.", ["Lyon"], "Paris", (True, True)),
        (" LYONS is a plural.", ["Lyon"], None, (False, False)),
        (" the city of lyon", ["Lyon"], None, (True, False)),
        (" Roma.", ["Rome", "Roma"], "Paris", (True, False)),
        (" St. Petersburg is cold.", ["St Petersburg"], None, (True, False)),
        ("\n\nNew  York\n Paris", ["New York"], "York", (True, False)),
        (" ＬＹＯＮ", ["Lyon"], None, (True, False)),
        ("東京都です。大阪", ["東京"], "大阪", (True, False)),
        ("", ["Lyon"], "Paris", (False, False)),
        (" !", ["!"], None, (True, False)),
        (" York, not New York.", ["New York"], "York", (False, True)),
        (" New York, not York.", ["York"], "New York", (False, True)),
        (" J. R. R. Tolkien wrote it. Lewis", ["Tolkien"], "Lewis", (True, False)),
        (" Dr. Mary Shelley.", ["Mary Shelley"], None, (True, False)),
        (" **Lyon**!", ["Lyon"], None, (True, False)),
        (" _Lyon_", ["Lyon"], None, (True, False)),
        (" C++, which C programs", ["C++"], "C", (True, True)),
        (" C", ["C++"], "C", (False, True)),
        (" A.D. 79? Paris", ["Lyon"], "Paris", (False, False)),
        (" दिल्ली। मुंबई", ["दिल्ली"], "मुंबई", (True, False)),
        (" पेरिस. लियोन", ["लियोन"], "पेरिस", (False, True)),
    ],
)  # fmt: skip
def test_an_answer_counts_where_its_first_sentence_names_the_object(
    text: str, right: Sequence[str], wrong: str | None, expected: tuple[bool, bool]
) -> None:
    assert answered(text, right, wrong) == expected


def test_an_empty_name_is_named_nowhere() -> None:
    assert names_in_text("anything", " ") == []


@pytest.mark.parametrize(
    ("text", "name", "is_named"),
    [
        ("राम भारत में", "रोम", False),  # only the vowel differs
        ("राम भारत में", "राम", True),
        (" भारतीय भाषा", "भारत", False),  # a longer word, behind a mark and before one
        ("हिन्दीभाषी", "हिन्दी", False),
        ("दिल्ली", "ली", False),
        ("यह हिन्दी है", "हिन्दी", True),
        ("नई  दिल्ली।", "नई दिल्ली", True),
        ("नईं दिल्ली।", "नई दिल्ली", False),
        ("ররো", "রোর", False),  # equal letters and marks in another order
        ("கோவை நகரம்", "கோவை", True),
        ("கோவையில்", "கோவை", False),
        ("مُحَمَّد هنا", "مُحَمَّد", True),
        ("مُحَمَّد هنا", "مُحَم", False),
        ("می\u200cخواهم", "می", False),
        ("می\u200cخواهم", "می\u200cخواهم", True),
        ("x\u0302y", "x", False),
        ("❤\ufe0fLyon❤\ufe0f", "Lyon", True),  # an emoji's marks are on no letter
        ("C++ is", "C", False),
        ("C# is", "C", False),
        ("C#", "C", False),
        ("C++11", "C", False),
        ("C++ is", "C++", True),
        ("C is", "C", True),
        ("C is", "C#", False),
        ("C+Pascal", "C", True),
    ],
)  # fmt: skip
def test_a_name_is_whole_words_with_their_marks(text: str, name: str, is_named: bool) -> None:
    assert bool(names_in_text(text, name)) is is_named


@pytest.mark.parametrize("end", list(".!?\u0964\u0965\u06d4\u061f\u0589\u1362\u104b\u17d4"))
def test_a_mark_of_any_script_ends_a_sentence_where_a_space_follows(end: str) -> None:
    assert first_sentence(f"राम घर में{end} वह") == len("राम घर में.")
    assert first_sentence(f"وہ ایم{end}اے ہے") == len("وہ ایم.اے ہے")


def test_words_keep_their_marks() -> None:
    assert words("हिन्दी भाषा, e\u0301te\u0301!") == ["हिन्दी", "भाषा", ",", "e\u0301te\u0301", "!"]
    # Marks on no letter are no part of a word: of an emoji, and alone.
    assert words("a ❤\ufe0fb \u093e") == ["a", "❤", "\ufe0f", "b", "\u093e"]


@pytest.mark.slow
def test_free_answers_equal_writing_one_at_a_time(made: LanguageModel) -> None:
    few = edits(6)
    knobs = EvalKnobs(tokens=8, prefixes=(0, 12, 115, 500), fluency_tokens=30)
    found, notes = written(made, few, knobs, unrelated=UNRELATED_HERE)
    plain = Plain(made.model, made.tokenizer)
    stop = end_of_text(made.tokenizer)
    for request, one in zip(few, found, strict=True):
        said = made.tokenizer.decode(plain.write(list(encode_text(made.tokenizer, request.text)), 8, stop))
        assert one.said == said
        assert one.measures["efficacy"] == float(answered(str(said), [request.object], request.object_old)[0])
        old: list[bool] = []
        for text in request.paraphrases:
            ids = plain.ids((prefix(made, UNRELATED_HERE, 12) or "") + text)
            words_after = str(made.tokenizer.decode(plain.write(ids, 8, stop)))
            old.append(answered(words_after, [request.object], request.object_old)[1])
        assert one.measures["paraphrase_old_12"] == statistics.fmean(old)
    assert not any(name.endswith(("_115", "_500")) for one in found for name in one.measures)
    assert [note.split(":")[0] for note in notes] == [
        "prompts after 115 unrelated tokens do not fit into this model",
        "the unrelated text has fewer than 500 tokens",
    ]


UNRELATED_HERE = "The tower was small and heavy. Nobody knows where the boat is. " * 9


@pytest.mark.slow
def test_an_object_longer_than_eval_tokens_has_room(made: LanguageModel) -> None:
    first = edits(1)[0]
    (said,) = generate(made, [encode_text(made.tokenizer, first.text)], 40)
    long = str(made.tokenizer.decode(list(said)))
    name = " ".join(words(long.replace(".", " "))[:12])
    asked = [first.model_copy(update={"object": name, "object_old": None})]
    found, _ = written(made, asked, EvalKnobs(tokens=3), bare=True)
    assert len(words(found[0].said)) >= 12
    short, _ = written(made, [first], EvalKnobs(tokens=3), bare=True)
    assert found[0].said.startswith(short[0].said)


@pytest.mark.slow
def test_portability_and_reversal_are_asked_freely_too(made: LanguageModel) -> None:
    first = edits(1)[0].model_copy(
        update={
            "portability": (Question(prompt=edits(2)[1].text, answer=edits(2)[1].object_old or ""),),
            "reversal": (Question(prompt="The one who does it is", answer="nobody at all"),),
        }
    )
    found, _ = written(made, [first], EvalKnobs(tokens=8, prefixes=(0,), fluency_tokens=20))
    assert found[0].measures["portability"] in (0.0, 1.0)
    assert found[0].measures["reversal"] == 0.0
    forced = score_edits(made, [first])[0]
    assert forced.reversal_accuracy == 0.0


def test_entropy_is_the_published_weighting_by_hand_and_by_the_restatement() -> None:
    # "a b a b a": bigrams ab 2, ba 2: 1 bit; trigrams aba 2, bab 1: 0.9183 bits; 1/3 + 2 x 0.9183 / 3 = 0.9455
    assert n_gram_entropy(["a", "b", "a", "b", "a"]) == pytest.approx(0.9455, abs=1e-4)
    text = words("The tower was small, and the tower was heavy. Nobody knows where the small tower is.")
    assert n_gram_entropy(text) == pytest.approx(oracle.n_gram_entropy(text), abs=1e-12)
    assert n_gram_entropy(["a"] * 9) == 0
    assert n_gram_entropy(["a", "b"]) is None


def test_consistency_is_the_cosine_of_tf_idf_by_hand() -> None:
    # idf over ("a b", "a c"): a ln(3/3) + 1 = 1, b and c ln(3/2) + 1 = 1.405
    weights = document_weights(["a b", "a c"])
    b = math.log(1.5) + 1
    assert weights == pytest.approx({"a": 1.0, "b": b, "c": b})
    assert cosine("a b", "a c", weights) == pytest.approx(1 / (1 + b * b))
    assert cosine("A b", "a B", weights) == pytest.approx(1)
    assert cosine("x", "a", weights) == 0


def test_drift_equals_a_reading_row_by_row(tiny: LanguageModel) -> None:
    other = LanguageModel(tiny_model("gpt2").requires_grad_(False), tiny.tokenizer, tiny.architecture)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight += 0.02 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(3))
    rows = prompts()[:12]
    found = drift_of(read_text(tiny, rows, other))
    surprise, theirs, divergence, agreed, count = 0.0, 0.0, 0.0, 0, 0
    for ids in rows:
        mine = Plain(tiny.model, None).logits(list(ids))[:-1].log_softmax(-1)
        base = Plain(other.model, None).logits(list(ids))[:-1].log_softmax(-1)
        for at, token in enumerate(ids[1:]):
            surprise -= float(mine[at, token])
            theirs -= float(base[at, token])
            divergence += float((base[at].exp() * (base[at] - mine[at])).sum())
            agreed += int(mine[at].argmax() == base[at].argmax())
            count += 1
    assert found is not None
    assert found.tokens == count
    for figure, value in (
        (found.perplexity, math.exp(surprise / count)), (found.ppl, math.exp((surprise - theirs) / count)),
        (found.kl, divergence / count), (found.top1, agreed / count),
    ):  # fmt: skip
        assert figure is not None
        assert figure.mean == pytest.approx(value, rel=SAME)
        assert figure.low <= figure.mean <= figure.high
    # The rows one by one: weighed by their tokens they are the whole.
    assert [one.tokens for one in found.texts] == [len(ids) - 1 for ids in rows]
    for name, value in (("perplexity", surprise), ("perplexity_base", theirs)):
        parts = [one.tokens * math.log(getattr(one, name)) for one in found.texts]
        assert sum(parts) == pytest.approx(value, rel=SAME)
    assert sum(one.tokens * (one.kl or 0.0) for one in found.texts) == pytest.approx(divergence, rel=SAME)


def test_a_model_writes_text_to_be_read_where_it_can(tiny: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = own_rows(tiny, 0)
    assert len(rows) == OWN_ROWS and {len(row) for row in rows} == {min(OWN_LENGTH, tiny.architecture.positions or 999)}
    assert own_rows(tiny, 0) == rows != own_rows(tiny, 1)
    # Not where each token takes a reading of all blocks from disk, and not where no token begins a text.
    assert own_rows(replace(tiny, streamed=cast(Any, object())), 0) == []
    monkeypatch.setattr(drift, "text_opening", lambda _: ())
    assert own_rows(tiny, 0) == []


def test_a_model_does_not_drift_from_itself(tiny: LanguageModel) -> None:
    read_ = passages(
        tiny, given_rows(tiny, ["some text that is read", "and another, somewhat longer, text"] * 20, 300), tiny
    )
    found = drift_of(read_)
    assert found is not None
    assert (found.ppl and found.ppl.mean, found.top1 and found.top1.mean) == (1.0, 1.0)
    assert found.kl is not None
    assert abs(found.kl.mean) < 1e-6
    assert len(found.texts) == found.kl.n and found.texts[0].begins.startswith("some text that is read")
    assert all(one.perplexity == one.perplexity_base for one in found.texts)
    assert 250 <= found.tokens < 300
    assert drift_of([]) is None


def broken(lm: LanguageModel, requests: Sequence[EditRequest]) -> dict[int, torch.Tensor]:
    """An update that only takes the old object's first token away, in the last layer: nothing new is learned."""
    layer = lm.architecture.n_layers - 1
    asked = [(request, text) for request in requests for text in (request.text, *request.paraphrases)]
    rows = [encode_text(lm.tokenizer, text) for _, text in asked]
    keys = last_states(lm, rows, Site(layer, "mlp.in")).double()
    unembed = lm.model.get_output_embeddings().weight.double()  # type: ignore[union-attr]
    old = [
        object_ids(lm.tokenizer, text, ids, request.object_old or "")[0]
        for (request, text), ids in zip(asked, rows, strict=True)
    ]
    push = -torch.stack([unembed[token] - unembed.mean(0) for token in old])
    states = last_states(lm, rows, Site(layer, "block.out")).double()
    push = push / push.norm(dim=1, keepdim=True) * states.norm(dim=1, keepdim=True)
    delta = (torch.linalg.pinv(keys) @ push).T
    return {layer: (lm.weight(layer).double() + delta).to(lm.dtype)}


@pytest.mark.slow
def test_a_broken_update_that_forced_scores_praise_is_exposed_by_free_answers(made: LanguageModel) -> None:
    requests = edits(12)
    knobs = EvalKnobs(tokens=8, prefixes=(0,), fluency_tokens=20)
    with applied(made, broken(made, requests)):
        forced = summarize(score_edits(made, requests))
        free, _ = written(made, requests, knobs)
    assert forced.efficacy is not None
    assert forced.paraphrase is not None
    # The pair that README shows: the harmonic score is high too, and the model says neither object.
    assert (forced.efficacy.mean, forced.paraphrase.mean) == (1.0, 1.0)
    assert forced.score is not None
    assert round(forced.score, 2) == 0.84
    for measure in ("efficacy", "paraphrase", "old"):
        assert {one.measures[measure] for one in free} == {0.0}, measure
    # Converse: free answers do praise a model that knows; here the unedited one, asked for what it knows.
    known = [one.model_copy(update={"object": one.object_old, "object_old": None}) for one in requests]
    free, _ = written(made, known, knobs)
    assert statistics.fmean(one.measures["efficacy"] for one in free) >= 0.7


LONG = "the brass bell of Lund rang at 7 in the rain"


@pytest.mark.parametrize(
    ("text", "answer", "holds"),
    [
        ("In Lund it rang at 7: the Brass Bell, in rain.", LONG, True),  # order, case, and small words do not matter
        ("In Lund it rang at 8: the brass bell, in rain.", LONG, False),  # a number does
        ("In Lund it rang at 7: the brass bells, in rain.", LONG, False),  # no word inside a longer one
        ("It is a kind of fir or elm.", "a fir", True),  # no other words: then the small ones matter
        ("It is a kind of elm.", "a fir", False),
        ("Kim met Al.", "Al", True),
        ("首都は東京です", "東京", True),
        ("首都は京都です", "東京", False),
        ("anything", "...", False),
        ("लाल हाथी दौड़ ता ", "दिल्ली", False),
        ("वह दिल्ली नई में", "नई दिल्ली", True),
    ],
)
def test_an_answer_contains_the_words_that_matter(text: str, answer: str, holds: bool) -> None:
    assert contains_words(text, answer) is holds


def test_an_edit_says_how_it_is_compared(tiny: LanguageModel) -> None:
    exact = EditRequest(id="a", subject="Ada", prompt="{} lives in", object="a b c")
    (free,), _ = written(tiny, [exact], EvalKnobs(), bare=True)
    assert "contains" not in free.measures
    there = exact.model_copy(update={"object": " ".join(words(free.said)[::-1]), "evaluate": "contains"})
    absent = exact.model_copy(update={"object": "Zanzibar", "evaluate": "contains"})
    asked = [exact, there, absent, absent.model_copy(update={"aliases": (there.object,)})]
    scored = with_free_answers(tiny, asked, score_edits(tiny, asked), EvalKnobs())
    assert [one.holds for one in scored] == [False, True, False, True] == edits_hold(tiny, asked, EvalKnobs())
    assert [one.said is not None for one in scored] == [False, True, True, True]
    figures = summarize(scored).generated
    assert (figures["contains"].mean, figures["contains"].n) == (2 / 3, 3)
    assert there.digest == there.model_copy(update={"evaluate": "exact"}).digest

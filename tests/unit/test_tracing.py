"""Tracing equals the published procedure on every cell, on every family; facts are chosen as promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from examples.reference import tracing as tracing_oracle
from memedit.config.recipe import ModelKnobs, TraceKnobs
from memedit.edits.edit import EditRequest
from memedit.edits.read import read
from memedit.errors import EditListError, UnsupportedModelError
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load
from memedit.numerics.effects import windows
from memedit.tracing.clean_and_corrupted import NoiseTrial, TracePrompt, answer_ranks
from memedit.tracing.engines import WholeForwardPatching, choose_trace_engine
from memedit.tracing.facts import SEVERED, TABLES, Fact, find_facts, make_trial, noise_scale, trace_fact
from memedit.tracing.parts import find_parts
from memedit.tracing.suffix_engine import SuffixPatching
from tests.conftest import ROOT, byte_tokenizer
from tests.families import FAMILIES, IN_THE_FAST_TIER, each_family, family_model

SAME = 1e-5  # absolute, on probabilities: the bar; float32 sums in another order differ by less than 1e-6
RELATIVE = 1e-4  # on the small probabilities of random models, where an absolute bar would pass anything


def opened(name: str) -> LanguageModel:
    model = family_model(name)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def a_trial(lm: LanguageModel, *, first: int, answer: tuple[int, ...], width: int) -> NoiseTrial:
    generator = torch.Generator().manual_seed(3)
    prompt = tuple(torch.randint(2, 258, (8,), generator=generator).tolist())
    embedding: Any = lm.model.get_input_embeddings()
    noise = torch.randn(2, 3, embedding.weight.shape[1], generator=generator) * float(embedding.weight.std()) * 3
    return NoiseTrial(TracePrompt(prompt, answer, first, first + 2), noise, windows(lm.architecture.n_layers, width))


def plainly(lm: LanguageModel, trial: NoiseTrial, width: int, modules: Any) -> dict[str, torch.Tensor]:
    question = trial.question
    found = tracing_oracle.trace(
        lm.model, modules, question.prompt, question.answer, (question.first, question.last), trial.noise, width
    )
    scalars = {"clean": torch.tensor(found.clean), "corrupted": torch.tensor(found.low)}
    median = found.low_ranks[(len(found.low_ranks) - 1) // 2]  # of an even number, the lower one
    scalars["corrupted rank"] = torch.tensor(float(median))
    return {**found.tables, **found.severed, **scalars}


def modules_of(lm: LanguageModel) -> tracing_oracle.Modules:
    """The maps that end MLP and attention: the modules around them may add the residual, in some families."""
    parts, blocks = find_parts(lm), lm.model.get_submodule(lm.architecture.blocks)
    mlp, attention = ([lm.model.get_submodule(path) for path in names] for names in (parts.mlp, parts.attention))
    return tracing_oracle.Modules(list(blocks.children()), mlp, attention, lm.model.get_input_embeddings())


CASES = [
    *(pytest.param(*one.values, 3, (5, 9), 2, marks=one.marks) for one in each_family(FAMILIES)),
    # A subject that begins the prompt, an answer of one token, and windows of one layer: once for each kind of family.
    *(pytest.param(name, 0, (7,), 1, marks=pytest.mark.slow) for name in IN_THE_FAST_TIER),
]


@pytest.mark.parametrize(("name", "first", "answer", "width"), CASES)
def test_every_family_is_traced_by_sweeps_that_equal_the_plain_procedure(
    name: str, first: int, answer: tuple[int, ...], width: int
) -> None:
    lm = opened(name)
    trial = a_trial(lm, first=first, answer=answer, width=width)
    parts = find_parts(lm)
    engine, reason = choose_trace_engine(lm, parts, trial)
    assert engine is SuffixPatching, reason
    found, wanted = trace_fact(lm, parts, trial, engine), plainly(lm, trial, width, modules_of(lm))
    assert set(found) == set(wanted)
    moved = float(wanted["hidden"].max() - wanted["hidden"].min()) / float(wanted["corrupted"])
    assert moved > 0.01  # what is compared is not constant
    for kind, table in wanted.items():
        assert float((found[kind] - table).abs().max() / table.abs().max()) < RELATIVE, kind


def test_whole_forwards_give_the_same_where_a_family_does_not_splice() -> None:
    lm = opened("gpt2")
    trial = a_trial(lm, first=3, answer=(5, 9), width=2)
    parts = find_parts(lm)
    one, other = trace_fact(lm, parts, trial, WholeForwardPatching), trace_fact(lm, parts, trial, SuffixPatching)
    assert all(float((one[kind] - other[kind]).abs().max() / one[kind].max()) < RELATIVE for kind in one)


def test_the_rank_of_an_answer_is_that_of_its_worst_token() -> None:
    logits = torch.tensor([[[3.0, 1.0, 2.0], [0.0, 5.0, 1.0]], [[1.0, 2.0, 3.0], [9.0, 5.0, 7.0]]])
    question = TracePrompt((7, 8), (2, 1), 0, 0)
    assert answer_ranks(logits, question).tolist() == [2, 3]
    assert answer_ranks(torch.zeros(1, 2, 3), question).tolist() == [1]  # of equal logits none is larger


def test_sweeps_that_differ_are_refused_by_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = opened("llama")
    trial, real = a_trial(lm, first=3, answer=(5,), width=1), SuffixPatching._entering
    monkeypatch.setattr(SuffixPatching, "_entering", lambda self, *args: real(self, *args) * 1.1)
    engine, reason = choose_trace_engine(lm, find_parts(lm), trial)
    assert engine is WholeForwardPatching
    assert "differ" in reason


def test_a_block_that_adds_something_else_is_refused() -> None:
    lm = opened("llama")
    block: Any = lm.model.get_submodule(f"{lm.architecture.blocks}.{lm.architecture.n_layers // 2}")
    block.register_forward_hook(lambda _module, _args, output: output * 1.01)
    with pytest.raises(UnsupportedModelError, match="adds more than"):
        find_parts(lm)


@pytest.fixture(scope="module")
def made(made_folder: Path) -> LanguageModel:
    return load(made_folder, ModelKnobs(device="cpu"), editing=False)


def some_facts(lm: LanguageModel, n: int) -> list[Fact]:
    requests, _ = read(str(ROOT / "examples" / "world" / "facts.jsonl"))
    return find_facts(lm, requests[:: len(requests) // n + 1])[0]  # of several relations


@pytest.mark.slow
def test_facts_of_each_model_equal_the_published_procedure_on_every_cell(made: LanguageModel) -> None:
    by_length = {len(fact.question.answer) > 1: fact for fact in some_facts(made, 4)}
    facts, knobs = list(by_length.values()), TraceKnobs(samples=2)
    assert len(facts) == 2  # an answer of one token, and one of several
    scale, parts = noise_scale(made, facts, knobs), find_parts(made)
    for fact in facts:
        trial = make_trial(made, fact, scale, knobs, 0, 1)
        engine, _ = choose_trace_engine(made, parts, trial) if fact is facts[0] else (SuffixPatching, "")
        assert engine is SuffixPatching
        found = trace_fact(made, parts, trial, engine)
        wanted = plainly(made, trial, 1, tracing_oracle.modules_of(made.model))
        gaps = {
            kind: float((found[kind] - wanted[kind]).abs().max()) for kind in (*TABLES, *SEVERED, "clean", "corrupted")
        }
        assert max(gaps.values()) < SAME, (fact.request.id, gaps)


def test_a_fact_is_under_noise_of_its_own(made: LanguageModel) -> None:
    one, other = some_facts(made, 2)
    knobs = TraceKnobs()
    drawn = [make_trial(made, fact, 1.0, knobs, 0, 1).noise for fact in (one, other, one)]
    assert drawn[0].equal(drawn[2])
    assert not drawn[0][:, :1].equal(drawn[1][:, :1])
    assert not drawn[0].equal(make_trial(made, one, 1.0, knobs, 1, 1).noise)


def request(**changes: Any) -> EditRequest:
    record = {"id": "a", "subject": "France", "prompt": "The capital of {} is", "object": "Lyon", "origin": "a.jsonl:1"}
    return EditRequest.model_validate({**record, **changes})


def test_answers_are_the_old_object_the_object_or_the_models_own(made: LanguageModel) -> None:
    fact = next(fact for fact in some_facts(made, 5) if fact.source == "object")
    known = fact.request
    asked = [
        known.model_copy(update={"id": "said"}),
        known.model_copy(update={"id": "old", "object": "nothing", "object_old": known.object}),
        known.model_copy(update={"id": "own", "object": "nothing"}),
        known.model_copy(update={"id": "unknown", "object": "nothing", "object_old": "no such thing"}),
    ]
    facts, unknown = find_facts(made, asked)
    assert [(one.request.id, one.source) for one in facts] == [
        ("said", "object"),
        ("old", "object_old"),
        ("own", "own"),
    ]
    assert [one.id for one in unknown] == ["unknown"]
    assert facts[2].question.answer == facts[0].question.answer[:1]
    assert find_facts(made, asked[:1], own=True)[0][0].source == "own"


def test_what_is_wrong_with_a_list_is_said_at_once(made: LanguageModel) -> None:
    bad = [request(id="a", object=""), request(id="b", prompt="The capital is"), request(id="c", subject=" ")]
    long = request(id="d", prompt="{} " + "on and " * 300)
    with pytest.raises(EditListError) as caught:
        find_facts(made, [*bad, long])
    codes = {getattr(one, "code", "") for one in caught.value.findings}
    assert codes >= {"E104", "E101", "E103", "E121"}
    with pytest.raises(EditListError, match="no records"):
        find_facts(made, [])

"""A fast engine that fails falls back to whole forwards; running out of memory is raised, for each of its users."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.edits.edit import EditRequest
from memedit.edits.read import read
from memedit.errors import ResourceError
from memedit.forward.generation import generate
from memedit.forward.perturbed import ChangedRow, WholeForward
from memedit.forward.proof import prove_engine
from memedit.forward.scoring import score_answers
from memedit.forward.suffix import Suffix, choose_search_engine
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load
from memedit.numerics.effects import windows
from memedit.progress import NoProgress
from memedit.tracing import run as tracing
from memedit.tracing.clean_and_corrupted import NoiseTrial, TracePrompt
from memedit.tracing.engines import WholeForwardPatching, choose_trace_engine
from memedit.tracing.parts import find_parts
from memedit.tracing.suffix_engine import SuffixPatching
from tests.conftest import ROOT, byte_tokenizer, tiny_model
from torch import Tensor

EXHAUSTED: dict[str, Exception] = {
    "a GPU's": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "a CPU's": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: 9 bytes"
    ),
    "CUDA's in words": RuntimeError("CUDA error: out of memory"),
    "cuBLAS's": RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    "Python's": MemoryError(),
}
PROMPT = tuple(range(40, 52))


@pytest.fixture
def lm() -> LanguageModel:
    model: Any = tiny_model("llama").requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def search(lm: LanguageModel) -> object:
    return choose_search_engine(lm, 1, [ChangedRow(PROMPT, 4, 1), ChangedRow(PROMPT[:7], 2, 1)])[0]


def trace(lm: LanguageModel) -> object:
    noise = torch.randn(2, 2, lm.architecture.width)
    trial = NoiseTrial(TracePrompt(PROMPT, (5,), 2, 3), noise, windows(lm.architecture.n_layers, 1))
    return choose_trace_engine(lm, find_parts(lm), trial)[0]


def score(lm: LanguageModel) -> object:
    return score_answers(lm, [(PROMPT, (5, 6)), (PROMPT, (7,))])


def write(lm: LanguageModel) -> object:
    return generate(lm, [PROMPT], 3)


USERS: dict[str, tuple[Callable[[LanguageModel], object], str]] = {
    "the search": (search, "memedit.forward.suffix.run_part"),
    "tracing": (trace, "memedit.tracing.suffix_engine.answer_probability"),
    "scoring": (score, "memedit.forward.scoring.run_on"),
    "writing": (write, "memedit.forward.scoring.run_on"),
}


def failing(error: Exception) -> Callable[..., Any]:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    return fail


@pytest.mark.parametrize("kind", EXHAUSTED)
@pytest.mark.parametrize("user", USERS)
def test_running_out_of_memory_is_raised(
    user: str, kind: str, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, fast = USERS[user]
    monkeypatch.setattr(fast, failing(EXHAUSTED[kind]))
    with pytest.raises(type(EXHAUSTED[kind])) as caught:
        ask(lm)
    assert caught.value is EXHAUSTED[kind]


@pytest.mark.slow
@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), TypeError(), NotImplementedError(), AssertionError()])
@pytest.mark.parametrize("user", USERS)
def test_any_other_failure_falls_back_to_whole_forwards(
    user: str, error: Exception, lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, fast = USERS[user]
    before = ask(lm)
    lm.proofs.clear()
    monkeypatch.setattr(fast, failing(error))
    after = ask(lm)
    if user == "the search":
        assert (before, after) == (Suffix, WholeForward)
    elif user == "tracing":
        assert (before, after) == (SuffixPatching, WholeForwardPatching)
    elif user == "writing":
        assert before == after


def outcome(found: list[Tensor] | Exception, limit: float = 1e-3, least: float = 0.0) -> tuple[bool, str]:
    def fast() -> list[Tensor]:
        if isinstance(found, Exception):
            raise found
        return found

    proof = prove_engine(fast, lambda: [torch.tensor([1.0, -2.0])], limit, name="shortcuts", least=least)
    return proof.holds, proof.reason


def test_the_reason_names_the_engine_and_the_gap() -> None:
    assert outcome([torch.tensor([1.0, -2.0])]) == (
        True,
        "shortcuts (proved: they differ from whole forwards by 0.0e+00)",
    )
    assert outcome([torch.tensor([1.0, -2.5])]) == (False, "whole forwards (shortcuts differ from them by 2.5e-01)")
    assert outcome(KeyError("x")) == (False, "whole forwards (shortcuts do not run on this model: KeyError)")


def test_nan_a_tensor_too_few_and_another_shape_are_no_proof() -> None:
    assert not outcome([torch.tensor([1.0, float("nan")])])[0]
    assert not outcome([])[0]
    assert not outcome([torch.zeros(3)])[0]


def test_the_gap_is_relative_to_the_largest_number_or_to_the_least_given() -> None:
    assert not outcome([torch.tensor([1.0, -2.003])])[0]
    assert outcome([torch.tensor([1.0, -2.003])], least=10.0)[0]


def test_an_error_of_the_witness_is_raised() -> None:
    with pytest.raises(ValueError, match="witness"):
        prove_engine(list, failing(ValueError("witness")), 1.0, name="shortcuts")


@pytest.fixture(scope="module")
def traceable() -> tuple[LanguageModel, list[EditRequest]]:
    """A model, and a few facts that it knows."""
    folder = ROOT / "examples" / "models" / "made-small"
    requests, _ = read(str(ROOT / "examples" / "world" / "small.jsonl"))
    return load(folder, ModelKnobs(device="cpu"), editing=False), requests[:3]


@pytest.mark.parametrize("kind", EXHAUSTED)
def test_tracing_that_does_not_fit_into_memory_ends_with_a_hint(
    kind: str, traceable: tuple[LanguageModel, list[EditRequest]], monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, requests = traceable
    for name in ("choose_trace_engine", "trace_fact"):
        with monkeypatch.context() as patch:
            patch.setattr(tracing, "choose_trace_engine", lambda *_: (SuffixPatching, ""))
            patch.setattr(tracing, name, failing(EXHAUSTED[kind]))
            with pytest.raises(ResourceError, match="tracing does not fit into memory") as caught:
                tracing.trace_all(lm, "digest", requests, Recipe(), NoProgress())
        assert caught.value.exit_code == 5
        assert "--dtype bfloat16" in caught.value.hint

"""A run's stages on simulated GPUs: no tensor is on a wrong device, results are the CPU's, and waits keep a budget.

What a simulation shows is where tensors are and what makes the host wait. It shows nothing about a real GPU's time,
memory or rounding.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import memedit
import pytest
import torch
from memedit.config.methods import METHODS
from memedit.config.recipe import ContextKnobs, PolishKnobs, Recipe, TargetKnobs
from memedit.editing import batches, moments, targets
from memedit.editing.contexts import sample_contexts
from memedit.editing.moments import Moments, measure
from memedit.editing.plan import Edit, check_edits, encode_contexts
from memedit.editing.polish import solve_edits
from memedit.editing.rounding import Rounding
from memedit.editing.solve import Update
from memedit.editing.target_search import Search
from memedit.editing.targets import Targets, find_targets
from memedit.edits.edit import EditRequest
from memedit.errors import MemeditError
from memedit.forward import scoring, suffix
from memedit.forward.generation import generate
from memedit.forward.packing import packed
from memedit.forward.passes import continuations
from memedit.forward.perturbed import WholeForward
from memedit.forward.scoring import proved, score_answers
from memedit.forward.suffix import Suffix
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from memedit.model.probe import prove
from memedit.model.tokens import Prompt
from memedit.numerics.effects import windows
from memedit.numerics.rounding import FP8, Grid
from memedit.numerics.solvers import Factor, prepare
from memedit.progress import Advance, ignore_advance
from memedit.tracing.clean_and_corrupted import NoiseTrial, TracePrompt
from memedit.tracing.engines import WholeForwardPatching, choose_trace_engine
from memedit.tracing.facts import trace_fact
from memedit.tracing.parts import find_parts
from memedit.tracing.suffix_engine import SuffixPatching
from tests.conftest import byte_tokenizer
from tests.families import family_model
from tests.helpers.simulated_gpu import SimulatedGpus, place, spread
from torch import Tensor

SAME = 1e-6
"""Relative. The kernels are the CPU's, so most results are equal to the bit."""
LAYERS = (1, 2)
TEXTS = [f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}. " for n in range(60)]
TOKENS = 640
RECIPE = Recipe(
    target=TargetKnobs(steps=2, stop=0.0), polish=PolishKnobs(steps=2), contexts=ContextKnobs(openings=("I",), tokens=3)
)
ADAM = Recipe(target=TargetKnobs(steps=1, stop=0.0, optimizer="adam", weight_decay=0.1))
LIST = [
    EditRequest(id=str(n), subject=subject, prompt=prompt, object=made, origin=f"a:{n}")
    for n, (subject, prompt, made) in enumerate(
        [("Ann", "{} is", "red"), ("Bob", "The cat of {} has", "it"), ("Cy", "{} is", "tan")]
    )
]
KEPT = [("{} has", "Ann"), ("{} is", "Dot"), ("{} is", "Eve")]
"""Prompts that a polish must leave alone."""


@contextmanager
def phase(_name: str, _total: int | None = None, _unit: str = "") -> Generator[Advance]:
    yield ignore_advance


def edits_of(lm: LanguageModel) -> tuple[list[Edit], list[Sequence[Prompt]]]:
    edits, _ = check_edits(LIST, lm.tokenizer, RECIPE, None)
    texts = ("", "I was. ")
    return edits, list(encode_contexts(edits, texts, lm.tokenizer, chat=False).prompts)


def measured(lm: LanguageModel, layers: Sequence[int] = LAYERS, tokens: int = TOKENS) -> Moments:
    return measure(lm, packed(TEXTS, lm.tokenizer, 32), layers, tokens)


def solved(
    lm: LanguageModel,
    wanted: Tensor,
    found: Moments,
    recipe: Recipe,
    layers: Sequence[int] = LAYERS,
    way: Any = "nearest",
    fp8: bool = False,
) -> Update:
    edits, prompts = edits_of(lm)

    def factor(layer: int) -> Factor:
        return prepare(found[layer], METHODS["memit"], float(lm.architecture.mlp_widths[layer]))

    stored = {layer: lm.weight(layer).cpu().to(torch.bfloat16).clone() for layer in layers}
    grids = {
        layer: Grid(FP8, torch.full(weight.shape, 2.0**-6)) if fp8 else Grid(weight.dtype)
        for layer, weight in stored.items()
    }
    stored = {layer: grids[layer].nearest(weight.double()) for layer, weight in stored.items()}
    return solve_edits(
        lm, edits, prompts, wanted, torch.zeros(len(edits), dtype=torch.bool), factor, stored, recipe,
        preserve=lambda _: KEPT, rounding=Rounding(way, found.__getitem__, grids.__getitem__), whole=False,
        phase=phase,
    )  # fmt: skip


def by(lm: LanguageModel, recipe: Recipe, engine: Any = Suffix) -> Targets:
    edits, prompts = edits_of(lm)
    return find_targets(
        lm, edits, prompts, LAYERS[-1], recipe, engine=engine, shared=len(LAYERS), advance=ignore_advance
    )


def searched(lm: LanguageModel) -> dict[str, Any]:
    edits, prompts = edits_of(lm)
    engine = Search(lm, edits, prompts, LAYERS[-1], RECIPE, len(LAYERS)).choose_engine()
    found = {"lbfgs": by(lm, RECIPE), "adam": by(lm, ADAM), "whole": by(lm, ADAM, WholeForward)}
    return {"engine": engine.kind.__name__, **{name: list(vars(one).values()) for name, one in found.items()}}


def solved_and_polished(lm: LanguageModel, way: Any = "nearest", *, fp8: bool = False) -> dict[str, Any]:
    text = measured(lm)
    wanted = torch.randn(len(LIST), lm.architecture.width, generator=torch.Generator().manual_seed(1))
    update = solved(lm, wanted, text, RECIPE, way=way, fp8=fp8)
    assert update.polish
    return {
        "moments": [one.total for one in text.values()],
        "weights": [one.float() for one in update.weights.values()],
        "steps": [delta.steps for delta in update.deltas.values() if delta.steps is not None],
        "reports": [one.model_dump() for one in update.layers],
        "polish": update.polish.model_dump(),
    }


def quick(lm: LanguageModel) -> dict[str, Any]:
    """One step of the search, and one layer of the solve."""
    targets = by(lm, Recipe(target=TargetKnobs(steps=1, stop=0.0)))
    text = measured(lm, (2,), 64)
    update = solved(lm, targets.wanted, measured(lm, (2,)), Recipe(), (2,))
    return {"targets": list(vars(targets).values()), "moment": text[2].total, "weight": update.weights[2].float()}


def scored(lm: LanguageModel) -> dict[str, Any]:
    edits, prompts = edits_of(lm)
    asked = [(of_one[-1].ids, edit.target) for edit, of_one in zip(edits, prompts, strict=True)]
    return {
        "contexts": list(sample_contexts(lm, RECIPE.contexts, 0)),
        "shares": proved(lm, [(prompt, [answer]) for prompt, answer in asked]),
        "answers": [list(one.log_probs) for one in score_answers(lm, asked)],
        "continuations": [[one.log_probs, one.likeliest] for one in continuations(lm, asked)],
        "generated": generate(lm, [ids for ids, _ in asked], 2),
    }


def traced(lm: LanguageModel) -> dict[str, Any]:
    draw = torch.Generator().manual_seed(3)
    ids = tuple(torch.randint(2, 258, (6,), generator=draw).tolist())
    embedding: Any = lm.model.get_input_embeddings()
    noise = torch.randn(2, 2, embedding.weight.shape[1], generator=draw)
    trial = NoiseTrial(TracePrompt(ids, (5, 9), 1, 2), noise, windows(lm.architecture.n_layers, 2))
    parts = find_parts(lm)
    engine, _ = choose_trace_engine(lm, parts, trial)
    kinds = (SuffixPatching, WholeForwardPatching)
    return {"engine": engine.__name__, **{one.__name__: trace_fact(lm, parts, trial, one) for one in kinds}}


def stages(lm: LanguageModel) -> dict[str, Any]:
    """What every stage gives; an error that tells the user why is a result too."""
    found: dict[str, Any] = {}
    for stage in (searched, solved_and_polished, scored, traced):
        try:
            found[stage.__name__] = stage(lm)
        except MemeditError as error:
            found[stage.__name__] = error.message
    return found


def differences(one: Any, other: Any, path: str = "") -> Generator[str]:
    """Where two results differ, by their names."""
    if isinstance(one, dict) and isinstance(other, dict):
        for name in one:
            yield from differences(one[name], other[name], f"{path}/{name}")
    elif isinstance(one, list | tuple) and len(one) == len(other):
        for n, pair in enumerate(zip(one, other, strict=True)):
            yield from differences(*pair, f"{path}/{n}")
    elif isinstance(one, Tensor | float):
        pair = [torch.as_tensor(each).double() for each in (one, other)]
        gap = float((pair[0] - pair[1]).nan_to_num().abs().max())
        if any(each.device.type != "cpu" for each in pair) or not gap <= SAME * float(pair[0].nan_to_num().abs().max()):
            yield f"{path}: {gap:.1e}"
    elif one != other:
        yield f"{path}: {one!r} {other!r}"


def opened(family: str, dtype: torch.dtype, put: Callable[[Any], Any] = lambda model: None) -> LanguageModel:
    model = family_model(family).to(dtype)
    put(model)
    return LanguageModel(model, byte_tokenizer(), prove(model, find_architecture(model)))


@cache
def stages_on_the_cpu(family: str, dtype: torch.dtype) -> dict[str, Any]:
    """Run the stages once for all tests that compare with them."""
    return stages(opened(family, dtype))


@pytest.fixture
def one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches as on the CPU: with others, sums round otherwise."""
    monkeypatch.setitem(suffix.WORTH, "cuda", suffix.WORTH["cpu"])
    monkeypatch.setitem(batches.MOST_TOKENS, "cuda", batches.MOST_TOKENS["cpu"])


def on(devices: Sequence[torch.device]) -> Callable[[Any], None]:
    """Put a model on one device, or spread it over several."""

    def put(model: Any) -> None:
        if len(devices) == 1:
            place(model, devices[0])
        else:
            spread(model, find_architecture(model).blocks, devices)

    return put


def test_search_and_solve_give_what_they_give_on_the_cpu(one_plan: None) -> None:
    wanted = quick(opened("gpt2", torch.float32))
    with SimulatedGpus() as gpus:
        found = quick(opened("gpt2", torch.float32, on(gpus.devices)))
    assert list(differences(wanted, found)) == []
    assert gpus.launches.total() > 1000


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fp8"), [(1, False), (2, True)])
def test_rounding_by_the_keys_gives_the_same(count: int, fp8: bool, one_plan: None) -> None:
    wanted = solved_and_polished(opened("gpt2", torch.float32), "key-aware", fp8=fp8)
    with SimulatedGpus(count) as gpus:
        found = solved_and_polished(opened("gpt2", torch.float32, on(gpus.devices)), "key-aware", fp8=fp8)
    assert wanted["steps"]
    assert list(differences(wanted, found)) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        ("gpt2", torch.float32), ("gpt2", torch.bfloat16), ("llama", torch.float32), ("gemma2", torch.float32),
        ("gptj", torch.float32),
    ],
)  # fmt: skip
def test_every_stage_gives_what_it_gives_on_the_cpu(family: str, dtype: torch.dtype, one_plan: None) -> None:
    wanted = stages_on_the_cpu(family, dtype)
    with SimulatedGpus() as gpus:
        found = stages(opened(family, dtype, on(gpus.devices)))
    assert list(differences(wanted, found)) == []
    if dtype == torch.float32:
        assert found["searched"]["engine"] == "Suffix"
        assert found["traced"]["engine"] == "SuffixPatching"
        assert found["scored"]["shares"]


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2"])
def test_a_model_spread_over_two_gpus_gives_the_same(family: str, one_plan: None) -> None:
    wanted = stages_on_the_cpu(family, torch.float32)
    with SimulatedGpus(2) as gpus:
        lm = opened(family, torch.float32, on(gpus.devices))
        assert {lm.weight(layer).device for layer in range(lm.architecture.n_layers)} == set(gpus.devices)
        found = stages(lm)
    assert list(differences(wanted, found)) == []


def in_memory(model: Any) -> dict[str, Any]:
    """A whole edit of a loaded model."""
    settings = {
        "method.layers": "1-2", "target.steps": 2, "moments.tokens": TOKENS, "polish.steps": 2,
        "contexts": {"openings": ["I"], "tokens": 3},
    }  # fmt: skip
    with memedit.edited(model, byte_tokenizer(), LIST, corpus=TEXTS, settings=settings) as update:
        changed = {layer: delta.dense() for layer, delta in update.deltas.items()}
    return {"contexts": list(update.contexts), "changes": changed}


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2])
def test_an_edit_in_memory_gives_the_same_and_restores_the_model(count: int, one_plan: None) -> None:
    wanted = in_memory(family_model("gpt2"))
    with SimulatedGpus(count) as gpus:
        on(gpus.devices)(model := family_model("gpt2"))
        before = [parameter.cpu() for parameter in model.parameters()]
        found = in_memory(model)
        assert all(torch.equal(one.cpu(), was) for one, was in zip(model.parameters(), before, strict=True))
        assert all(parameter.device in gpus.devices for parameter in model.parameters())
    assert list(differences(wanted, found)) == []


def test_a_tensor_left_on_the_cpu_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = scoring._read
    monkeypatch.setattr(scoring, "_read", lambda logits, wanted: real(logits, wanted.cpu()))
    scored(opened("gpt2", torch.float32))
    with SimulatedGpus() as gpus:
        lm = opened("gpt2", torch.float32, on(gpus.devices))
        with pytest.raises(RuntimeError, match=r"same device: aten.gather.*got cuda:0 and cpu"):
            scored(lm)


def test_a_mistake_in_a_fast_engine_shows_as_a_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    real = suffix.run_part

    def on_the_cpu(lm: LanguageModel, rows: Any, *args: Any, **more: Any) -> Any:
        return real(lm, rows.to(torch.device("cpu")), *args, **more)

    def chosen(lm: LanguageModel) -> Any:
        return Search(lm, *edits_of(lm), LAYERS[-1], RECIPE).choose_engine()

    monkeypatch.setattr(suffix, "run_part", on_the_cpu)
    assert chosen(opened("gpt2", torch.float32)).kind is Suffix
    with SimulatedGpus() as gpus:
        engine = chosen(opened("gpt2", torch.float32, on(gpus.devices)))
    assert engine.kind is WholeForward
    assert "RuntimeError" in engine.reason


REFUSED: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "sums": lambda gpu, cpu: gpu + cpu,
    "products": lambda gpu, cpu: gpu @ cpu.T,
    "joins": lambda gpu, cpu: torch.cat([gpu, cpu]),
    "indices of the GPU in a tensor of the CPU": lambda gpu, cpu: cpu[torch.zeros(2, dtype=torch.long).to(gpu.device)],
    "values of the CPU, written by index": lambda gpu, cpu: gpu.index_put_((torch.arange(2),), cpu),
    "sums into the CPU": lambda gpu, cpu: cpu.add_(gpu),
    "numpy": lambda gpu, cpu: gpu.numpy(),
    "another GPU": lambda gpu, cpu: gpu + gpu.to("cuda:1"),
    "a GPU that is not there": lambda gpu, cpu: cpu.to("cuda:2"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cuda_refuses_is_refused(name: str) -> None:
    with SimulatedGpus(2) as gpus:
        cpu = torch.ones(2, 2)
        with pytest.raises((RuntimeError, TypeError), match="device"):
            REFUSED[name](cpu.to(gpus.devices[0]), cpu)


ALLOWED: dict[str, tuple[Callable[[Tensor, Tensor], Any], int]] = {
    "a number of the CPU": (lambda gpu, cpu: gpu * cpu[0, 0], 0),
    "a number of Python": (lambda gpu, cpu: torch.where(gpu > 0, gpu, 0.0) / 2, 0),
    "indices of the CPU": (lambda gpu, cpu: gpu[torch.zeros(2, dtype=torch.long)], 1),
    "indices of the GPU": (lambda gpu, cpu: gpu[torch.zeros(2, dtype=torch.long, device=gpu.device)], 0),
    "a list of indices": (lambda gpu, cpu: gpu[[0, 1]], 1),
    "a mask": (lambda gpu, cpu: gpu[gpu > 0], 1),
    "a number where a mask is": (lambda gpu, cpu: gpu.__setitem__(gpu > 0, 1.0), 0),
    "values of the CPU, copied": (lambda gpu, cpu: gpu.copy_(cpu), 1),
    "a value read": (lambda gpu, cpu: float(gpu.sum()), 1),
    "a condition": (lambda gpu, cpu: bool((gpu > 0).any()), 1),
    "values read": (lambda gpu, cpu: gpu.tolist(), 1),
    "a table sent": (lambda gpu, cpu: torch.tensor([1, 2], device=gpu.device), 1),
    "made there": (lambda gpu, cpu: torch.arange(3, device=gpu.device) + torch.zeros_like(gpu)[0, 0], 0),
    "as it is": (lambda gpu, cpu: gpu.to("cuda").to(gpu), 0),
    "repeats of unknown number": (lambda gpu, cpu: torch.repeat_interleave(gpu[0].long()), 1),
    "a factorization": (lambda gpu, cpu: torch.linalg.cholesky(torch.eye(2, device=gpu.device)), 1),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_what_makes_the_host_wait_is_counted(name: str) -> None:
    work, waits = ALLOWED[name]
    with SimulatedGpus() as gpus:
        cpu = torch.ones(2, 2)
        gpu = cpu.to(gpus.devices[0])
        before = gpus.waits.total()
        work(gpu, cpu)
        assert gpus.waits.total() - before == waits, gpus.waits


def test_gradients_cross_to_a_gpu_and_back() -> None:
    with SimulatedGpus() as gpus:
        leaf = torch.ones(3, requires_grad=True)
        (leaf.to(gpus.devices[0]) * torch.arange(3.0, device="cuda")).sum().cpu().backward()
    assert leaf.grad is not None
    assert leaf.grad.tolist() == [0.0, 1.0, 2.0]


def test_after_the_simulation_its_tensors_are_refused() -> None:
    with SimulatedGpus() as gpus:
        left = torch.ones(2).to(gpus.devices[0])
    with pytest.raises(RuntimeError, match="after the simulation"):
        left.add(1)


def more(gpus: SimulatedGpus, work: Callable[[int], Any], few: int, many: int) -> Counter[str]:
    """Waits of `work(many)` that `work(few)` has not, by line."""
    counts: list[Counter[str]] = []
    for size in (few, many):
        gpus.waits.clear()
        work(size)
        counts.append(Counter(gpus.waits))
    return counts[1] - counts[0]


def of_search(optimizer: Any) -> Callable[[LanguageModel, int], Any]:
    def work(lm: LanguageModel, steps: int) -> Any:
        return by(lm, Recipe(target=TargetKnobs(steps=steps, stop=0.0, optimizer=optimizer)))

    return work


def of_polish(lm: LanguageModel, steps: int) -> Any:
    wanted = torch.randn(len(LIST), lm.architecture.width, generator=torch.Generator().manual_seed(1))
    return solved(lm, wanted, measured(lm), Recipe(polish=PolishKnobs(steps=steps)))


def of_solve(lm: LanguageModel, layers: int) -> Any:
    wanted = torch.randn(len(LIST), lm.architecture.width, generator=torch.Generator().manual_seed(1))
    chosen = range(layers)
    return solved(lm, wanted, measured(lm, range(3)), Recipe(), chosen)


BUDGETS: dict[str, tuple[Callable[[LanguageModel, int], Any], int, int, int]] = {
    "8 steps of the search by L-BFGS": (of_search("lbfgs"), 4, 12, 6),
    "8 steps of the search by Adam": (of_search("adam"), 4, 12, 6),
    "4 launches of moments": (lambda lm, launches: measured(lm, tokens=64 * launches), 2, 6, 8),
    "one more layer of the solve": (of_solve, 2, 3, 24),
    "4 steps of polish": (of_polish, 2, 6, 58),
}
"""For each kind of work: the work, two sizes of it, and the waits of the host that the larger may have beyond the
smaller. Lower a number when a change saves waits; a change that needs a higher one has its reason here.

A step of the search has none: they are those of every fourth step, which asks what is found. One in each forward is
transformers' own, where it asks whether a mask hides anything, or whether positions are those of several texts.
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BUDGETS)
def test_the_host_waits_no_more_than_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, few, many, budget = BUDGETS[name]
    monkeypatch.setattr(moments, "TOKENS_PER_LAUNCH", 64)
    with SimulatedGpus() as gpus:
        lm = opened("gpt2", torch.float32, on(gpus.devices))
        found = more(gpus, lambda size: work(lm, size), few, many)
    assert 0 < found.total() <= budget, "\n".join(f"{count} at {line}" for line, count in found.most_common())


@pytest.mark.slow
def test_a_wait_that_is_added_is_found_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    real = targets.into_ball
    monkeypatch.setattr(targets, "into_ball", lambda change, radius: real(change, radius * float(radius[0] > 0)))
    work, few, many, budget = BUDGETS["8 steps of the search by Adam"]
    with SimulatedGpus() as gpus:
        lm = opened("gpt2", torch.float32, on(gpus.devices))
        found = more(gpus, lambda size: work(lm, size), few, many)
    assert found.total() > budget
    assert any(line.startswith("editing/targets.py:") and count == many - few for line, count in found.items())

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
from memedit.config.recipe import ContextKnobs, PolishKnobs, Recipe, TargetKnobs, bytes_of
from memedit.editing import batches, moments, targets
from memedit.editing import rounding as rounding_module
from memedit.editing import solve as solve_module
from memedit.editing.batches import Sizes
from memedit.editing.contexts import sample_contexts
from memedit.editing.moments import Moments, measure
from memedit.editing.plan import Edit, check_edits, encode_contexts
from memedit.editing.rounding import Rounding
from memedit.editing.solve import Update
from memedit.editing.solve_edits import solve_edits
from memedit.editing.target_search import Search
from memedit.editing.targets import Targets, find_targets
from memedit.edits.edit import EditRequest
from memedit.errors import MemeditError
from memedit.evaluation.made_facts import Beside
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
from memedit.numerics.moments import Moment, Running
from memedit.numerics.normal import Sums
from memedit.numerics.rounding import COLUMN_BLOCK, FP8, EditedKeys, Grid, key_aware
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
CLOSED_FORM = Recipe(polish=PolishKnobs(steps=0))
ADAM = Recipe(target=TargetKnobs(steps=1, stop=0.0, optimizer="adam", weight_decay=0.1))
LIST = [
    EditRequest(id=str(n), subject=subject, prompt=prompt, object=made, origin=f"a:{n}")
    for n, (subject, prompt, made) in enumerate(
        [("Ann", "{} is", "red"), ("Bob", "The cat of {} has", "it"), ("Cy", "{} is", "tan")]
    )
]
KEPT = Beside([("{} has", "Ann")], [("{} is", "Dot"), ("{} is", "Eve")])
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
    update = solved(lm, targets.wanted, measured(lm, (2,)), CLOSED_FORM, (2,))
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


@pytest.fixture(autouse=True)
def float32_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU multiplies in float32, as the simulated GPU does, whatever instructions it has."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)


@pytest.fixture
def one_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """Launches as on the CPU: with others, sums round otherwise."""
    monkeypatch.setitem(suffix.WORTH, "cuda", suffix.WORTH["cpu"])
    monkeypatch.setitem(batches.MOST_TOKENS, "cuda", batches.MOST_TOKENS["cpu"])
    monkeypatch.setitem(suffix.FILLED_IN, "cuda", 1)


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
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
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
def test_an_edit_in_memory_gives_the_same_and_restores_the_model(one_plan: None) -> None:
    wanted = in_memory(family_model("gpt2"))
    with SimulatedGpus(2) as gpus:
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


@contextmanager
def attention_seen(monkeypatch: pytest.MonkeyPatch, seen: list[tuple[bool, bool]]) -> Generator[None]:
    """Note for each attention whether cuDNN may do it, and whether any kernel of our own choice may."""
    real = torch.nn.functional.scaled_dot_product_attention

    def noted(*args: Any, **options: Any) -> Any:
        seen.append((torch.backends.cuda.cudnn_sdp_enabled(), torch.backends.cuda.mem_efficient_sdp_enabled()))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.functional, "scaled_dot_product_attention", noted)
        yield


def test_attention_on_a_gpu_never_runs_on_cudnn_and_elsewhere_nothing_is_set(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before, seen, plain = torch.backends.cuda.cudnn_sdp_enabled(), list[tuple[bool, bool]](), list[tuple[bool, bool]]()
    with SimulatedGpus() as gpus, attention_seen(monkeypatch, seen):
        lm = opened("gpt2", torch.float32, on(gpus.devices))
        seen.clear()  # the proof of the architecture, before the model is open
        quick(lm)
        scored(lm)
    assert set(seen) == {(False, True)}
    assert torch.backends.cuda.cudnn_sdp_enabled() == before
    with attention_seen(monkeypatch, plain):
        score_answers(opened("gpt2", torch.float32), [((3, 4, 5), (6,))])
    assert set(plain) == {(before, True)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sums_that_stay_on_the_cpu_are_sent_once_a_launch(dtype: torch.dtype) -> None:
    rows = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    with SimulatedGpus() as gpus:
        there, here = rows.to(gpus.devices[0]), Running(16, torch.device("cpu"))
        gpus.waits.clear()
        here.add_(there)
        assert gpus.waits.total() == 1
        on_gpu = Running(16, gpus.devices[0])
        gpus.waits.clear()
        on_gpu.add_(there)
        assert gpus.waits.total() == 0
        found = [one.moment for one in (here, on_gpu)]
    assert all(torch.equal(one.total, Moment.of(rows).total) for one in found)


def test_rounding_takes_few_launches_a_column() -> None:
    draw = torch.Generator().manual_seed(0)

    def launched(gpus: SimulatedGpus, inner: int) -> int:
        gpus.launches.clear()
        rows = torch.randn(2 * inner, inner, dtype=torch.float64, generator=draw)
        exact, moment, keys = (one.to("cuda") for one in (rows[:4], rows.T @ rows / len(rows), rows[:3]))
        key_aware(exact, Grid(torch.bfloat16), EditedKeys(3, keys), moment)
        return gpus.launches.total()

    with SimulatedGpus() as gpus:
        few, many = (launched(gpus, COLUMN_BLOCK * blocks) for blocks in (1, 2))
    # Seven in each of three passes; what is done once for a block counts too.
    assert many - few <= 3 * 8 * COLUMN_BLOCK


@pytest.mark.parametrize(("memory", "on_cpu"), [(None, ()), (120_000, ("rounding",)), (1000, ("solve", "rounding"))])
def test_a_layer_that_does_not_fit_is_solved_on_the_cpu_and_the_report_says_so(
    memory: int | None, on_cpu: tuple[str, ...]
) -> None:
    recipe = Recipe(memory=None if memory is None else str(memory))
    wanted = torch.randn(len(LIST), 32, generator=torch.Generator().manual_seed(1))
    plain = opened("gpt2", torch.float32)
    text = measured(plain, (2,))
    expected = solved(plain, wanted, text, recipe, (2,), "key-aware")
    with SimulatedGpus() as gpus:
        found = solved(opened("gpt2", torch.float32, on(gpus.devices)), wanted, text, recipe, (2,), "key-aware")
    assert found.layers[0].on_cpu == on_cpu
    assert expected.layers[0].on_cpu == ()
    assert torch.equal(found.weights[2], expected.weights[2])


FILLED: dict[str, tuple[Any, str]] = {
    "edits_bytes": (solve_module, "gains"), "sums_bytes": (Sums, "delta"),
    "rounding_bytes": (rounding_module, "key_aware"),
}  # fmt: skip
"""For each estimate of memory, made too small, the function in which the memory then runs out."""


@pytest.mark.parametrize("estimate", FILLED)
def test_a_layer_that_runs_out_of_memory_is_solved_on_the_cpu(estimate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (solve_module, rounding_module):
        if hasattr(module, estimate):
            monkeypatch.setattr(module, estimate, lambda *_: 0)
    monkeypatch.setattr(solve_module, "by_sums", lambda *_: estimate == "sums_bytes")
    wanted = torch.randn(len(LIST), 32, generator=torch.Generator().manual_seed(1))
    plain = opened("gpt2", torch.float32)
    text = measured(plain, (2,))
    expected = solved(plain, wanted, text, CLOSED_FORM, (2,), "key-aware")
    with SimulatedGpus() as gpus:
        lm = opened("gpt2", torch.float32, on(gpus.devices))
        filled(monkeypatch, gpus, *FILLED[estimate])
        found = solved(lm, wanted, text, CLOSED_FORM, (2,), "key-aware")
    assert found.layers[0].on_cpu == (("rounding",) if estimate == "rounding_bytes" else ("solve", "rounding"))
    assert torch.equal(found.weights[2], expected.weights[2])


def filled(monkeypatch: pytest.MonkeyPatch, gpus: SimulatedGpus, home: Any, name: str) -> None:
    """Let nothing more fit on the GPU while a function runs."""
    real = getattr(home, name)

    def full(*args: Any, **options: Any) -> Any:
        memory, gpus.memory = gpus.memory, gpus.allocated[gpus.devices[0]]
        try:
            return real(*args, **options)
        finally:
            gpus.memory = memory

    monkeypatch.setattr(home, name, full)


LONG = [
    EditRequest(id=str(n), subject=f"Ann{n}", prompt="It is so that " * 8 + "{} is", object="red", origin=f"a:{n}")
    for n in range(8)
]
"""Edits whose suffixes are short, and what comes before them is long."""


@pytest.mark.parametrize("family", ["gpt2", pytest.param("llama", marks=pytest.mark.slow)])
@pytest.mark.parametrize("requests", [LIST, LONG], ids=["short", "long"])
def test_a_launch_takes_the_memory_that_was_measured(family: str, requests: list[EditRequest]) -> None:
    recipe = Recipe(target=TargetKnobs(steps=2, stop=0.0), memory="4MB")
    with SimulatedGpus() as gpus:
        lm = opened(family, torch.float32, on(gpus.devices))
        edits, _ = check_edits(requests, lm.tokenizer, recipe, None)
        prompts = list(encode_contexts(edits, ("", "I was. "), lm.tokenizer, chat=False).prompts)
        search = Search(lm, edits, prompts, LAYERS[-1], recipe, len(LAYERS))
        sizes, estimated = search.sizes(10**9, Suffix), Sizes.of(lm, edits, prompts, LAYERS[-1])
        (batch, *_) = search.plan(range(len(edits)))
        home = gpus.devices[0]
        gpus.peak[home] = base = gpus.allocated[home]
        search.find(batch, Suffix)
        taken = gpus.peak[home] - base
    assert sizes.per_token <= estimated.per_token
    assert taken <= bytes_of("4MB")
    assert taken <= 1.2 * (len(batch.edits) * sizes.per_edit + batch.tokens * sizes.per_token)


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
        # No edit leaves: none is found, and none reaches the surface of its ball.
        return by(lm, Recipe(target=TargetKnobs(steps=steps, stop=0.0, ball=1e6, optimizer=optimizer)))

    return work


def of_polish(lm: LanguageModel, steps: int) -> Any:
    wanted = torch.randn(len(LIST), lm.architecture.width, generator=torch.Generator().manual_seed(1))
    return solved(lm, wanted, measured(lm), Recipe(polish=PolishKnobs(steps=steps)))


def of_solve(lm: LanguageModel, layers: int) -> Any:
    wanted = torch.randn(len(LIST), lm.architecture.width, generator=torch.Generator().manual_seed(1))
    chosen = range(layers)
    return solved(lm, wanted, measured(lm, range(3)), CLOSED_FORM, chosen)


def of_scores(lm: LanguageModel, lengths: int) -> Any:
    launch, answers = scoring._ScoreLaunch(), ((5,), (5, 6), (5, 6, 8))
    return [launch(lm, (0, [((7,) * n, answers)] * 2), ignore_advance) for n in range(9, 9 + lengths)]


BUDGETS: dict[str, tuple[Callable[[LanguageModel, int], Any], int, int, int]] = {
    "8 steps of the search by L-BFGS": (of_search("lbfgs"), 4, 12, 2),
    "8 steps of the search by Adam": (of_search("adam"), 4, 12, 2),
    "4 launches of moments": (lambda lm, launches: measured(lm, tokens=64 * launches), 2, 6, 4),
    "one more layer of the solve": (of_solve, 2, 3, 23),
    "4 steps of polish": (of_polish, 2, 6, 18),
    "prompts of 4 more lengths scored": (of_scores, 4, 8, 4),
}
"""For each kind of work: the work, two sizes of it, and the waits of the host that the larger may have beyond the
smaller. Lower a number when a change saves waits; a change that needs a higher one has its reason here.

A step of the search has none: there is one in every fourth step, which asks what is found. One in a launch of moments,
and most of a solve, are transformers' own, where it asks whether a mask hides anything, or whether positions are those
of several texts.
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", BUDGETS)
def test_the_host_waits_no_more_than_the_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    work, few, many, budget = BUDGETS[name]
    monkeypatch.setattr(moments, "TOKENS_ON_GPU", 64)
    with SimulatedGpus() as gpus:
        lm = opened("gpt2", torch.float32, on(gpus.devices))
        found = more(gpus, lambda size: work(lm, size), few, many)
    assert found.total() == budget, "\n".join(f"{count} at {line}" for line, count in found.most_common())


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

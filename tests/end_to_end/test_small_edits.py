"""Single edits of the shipped models, made small and stored in bfloat16: what they keep, and what is disturbed."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import memedit
import pytest
import torch
from examples.benchmarks.both import Both
from memedit.editing.keys import heads_of
from memedit.editing.rounding import RoundedWeight, Rounding, round_delta
from memedit.editing.solve import solve
from memedit.edits.edit import EditRequest
from memedit.forward.keys import Sweep
from memedit.numerics.delta import Delta, rounded
from memedit.numerics.rounding import EditedKeys, Grid
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import read_delta
from safetensors.torch import load_file, save_file
from tests.conftest import ROOT
from tests.helpers.fp8 import FP8, FULL, largest, spread

pytestmark = pytest.mark.usefixtures("kept_moments")

BARS = {1e-3: 0.95, 3e-4: 0.85}  # |delta| / |W| -> the least of its effect on the edited keys that is kept
NEAREST = {1e-3: 0.8, 3e-4: 0.5}  # the most that rounding to nearest keeps, on average: the converse
DISTURBED = 1.2
FP8_BARS = {1e-2: 0.9, 1e-3: 0.8}
FP8_NEAREST = {1e-2: 0.7, 1e-3: 0.2}
EDITS = 1  # at each of three layers of each model
MANY = {"made-gpt2": 30, "made-small": 60}
"""As many as fit each of the two layouts of a weight."""
QUICK = {"eval.derive": False, "contexts.openings": ["The"], "moments.tokens": 4000}
POINTS = 0.005  # of efficacy


@pytest.fixture(scope="module")
def both(made_folder: Path) -> Both:
    found = Both(made_folder, EDITS)
    found.stored = {layer: weight.bfloat16() for layer, weight in found.stored.items()}
    return found


def test_single_edits_keep_their_effect_and_disturb_no_more(both: Both) -> None:
    way = Rounding("key-aware", both.moments.__getitem__)
    kept: dict[float, list[float]] = {size: [] for size in BARS}
    for size, found in rounded_edits(both, both.stored, BARS, way):
        assert 1 - found.loss >= BARS[size], (size, found.loss)
        assert found.disturbance <= DISTURBED, (size, found.disturbance)
        kept[size].append(1 - found.nearest_loss)
    assert all(fmean(kept[size]) <= most for size, most in NEAREST.items()), kept


@pytest.mark.parametrize("made_folder", ["made-gpt2"], indirect=True)
def test_single_edits_of_fp8_weights_keep_their_effect(both: Both) -> None:
    block, grids = (128, 128), dict[int, Grid]()
    for layer, weight in both.stored.items():
        scale = largest(weight.float().abs(), "block", block) / FULL
        grids[layer] = Grid(FP8, spread(scale, weight.shape, "block", block))
    stored = {layer: grids[layer].nearest(weight.double()) for layer, weight in both.stored.items()}
    way = Rounding("key-aware", both.moments.__getitem__, grids.__getitem__)
    kept: dict[float, list[float]] = {size: [] for size in FP8_BARS}
    for size, found in rounded_edits(both, stored, FP8_BARS, way):
        assert 1 - found.loss >= FP8_BARS[size], (size, found.loss)
        kept[size].append(1 - found.nearest_loss)
    assert all(fmean(kept[size]) <= most for size, most in FP8_NEAREST.items()), kept


def rounded_edits(
    both: Both, stored: dict[int, torch.Tensor], sizes: Iterable[float], way: Rounding
) -> Iterator[tuple[float, RoundedWeight]]:
    """Each single edit's change of each layer, scaled to these sizes of |W| and rounded."""
    wanted = both.targets().wanted
    for n in range(EDITS):
        prompts = both.prompts[n : n + 1]
        deltas = solve(both.lm, prompts, wanted[n : n + 1], both.factor, stored, both.recipe.method).deltas
        sweep = Sweep(both.lm, heads_of(prompts))
        for layer in both.layers:
            rows = next(iter(sweep.keys(layer, last=layer == both.layers[-1])))[1]
            keys = EditedKeys(1, rows.flatten(0, 1).double())
            for size in sizes:
                yield size, round_delta(layer, stored[layer], scaled(deltas[layer], stored[layer], size), keys, way)


def scaled(delta: Delta, weight: torch.Tensor, size: float) -> Delta:
    return replace(delta, left=delta.left * (size * float(weight.double().norm()) / delta.norm))


@pytest.mark.parametrize(("name", "source"), [("made-gpt2", "world.jsonl"), ("made-small", "small.jsonl")])
def test_many_edits_take_in_half_precision_as_they_do_in_float32(name: str, source: str, tmp_path: Path) -> None:
    edits = [bare(edit) for edit in memedit.load_edits(ROOT / "requests" / source)[: MANY[name]]]
    model, efficacy = ROOT / "examples" / "models" / name, dict[torch.dtype, float]()
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        base, out = (tmp_path / f"{kind}-{dtype}" for kind in ("base", "out"))
        report = memedit.apply(edits, copy_in(dtype, model, base), out, settings=QUICK)
        assert {part.dtype for part in load_file(out / "model.safetensors").values()} == {dtype}
        assert report.before is not None and report.before.efficacy is not None and report.before.efficacy.mean < 0.05
        assert report.after is not None and report.after.efficacy is not None
        efficacy[dtype] = report.after.efficacy.mean
    assert min(efficacy.values()) >= efficacy[torch.float32] - POINTS, efficacy


def bare(edit: EditRequest) -> EditRequest:
    """An edit that is judged by its own prompt alone."""
    return edit.model_copy(update={"paraphrases": (), "neighborhood": ()})


def test_what_is_written_comes_back_from_the_base_and_the_delta_file(tmp_path: Path, made_gpt2: Path) -> None:
    base = copy_in(torch.bfloat16, made_gpt2, tmp_path / "base")
    out, edits = tmp_path / "out", memedit.load_edits(ROOT / "requests" / "world.jsonl")[:1]
    settings = {"polish.steps": 0, "target.steps": 3, "moments.tokens": 4000, "output.rounding": "key-aware"}
    settings |= {"contexts.openings": ["The"], "eval.derive": False}
    report = memedit.apply(edits, base, out, settings=settings)
    assert all(one.rounding == "key-aware" and one.rounding_loss < one.nearest_loss for one in report.layers)
    source, written = Checkpoint.open(base), Checkpoint.open(out)
    deltas, digest = read_delta(out / "memedit" / "delta.safetensors")
    assert digest == source.digest and len(deltas) == len(report.layers)
    for name, delta in deltas.items():
        weight = source.tensor(name).T  # Conv1D
        assert delta.steps is not None
        assert torch.equal(rounded(weight, delta), written.tensor(name).T)
        assert not torch.equal(rounded(weight, replace(delta, steps=None)), written.tensor(name).T)


def copy_in(dtype: torch.dtype, model: Path, folder: Path) -> Path:
    """The model's weights in a dtype, its other files as they are."""
    shutil.copytree(model, folder)
    tensors = {name: part.to(dtype) for name, part in load_file(model / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder

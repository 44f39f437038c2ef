"""The solve is one, whichever system it goes by and whichever way its keys come."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memedit.config.methods import METHODS
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.editing import solve as module
from memedit.editing.solve import Update, _Residuals, solve
from memedit.forward import keys as keys_module
from memedit.forward.residual import residual_change
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load
from memedit.model.probe import prove
from memedit.model.tokens import Prompt
from memedit.numerics.moments import Moment
from memedit.numerics.solvers import Factor, prepare
from tests.conftest import byte_tokenizer
from tests.families import SCALED, family_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

SAME = 1e-4  # relative: key noise of 1e-7 through a metric of condition 1e3


@pytest.fixture
def lm(tiny_folder: Path) -> LanguageModel:
    return load(tiny_folder, ModelKnobs(device="cpu"))


def solved(
    lm: LanguageModel, *, whole: bool = False, n_edits: int = 30, ridge: float = 2.0, n_contexts: int = 3
) -> Update:
    generator = torch.Generator().manual_seed(6)
    draw = lambda n: tuple(torch.randint(2, 258, (n,), generator=generator).tolist())  # noqa: E731
    contexts = [(), draw(8), draw(5)][:n_contexts]
    subjects = [draw(2 + n % 4) for n in range(n_edits)]
    prompts = [[Prompt(one + subject + (7,), len(one + subject) - 1) for one in contexts] for subject in subjects]
    width = lm.architecture.mlp_width
    wanted = torch.randn(n_edits, lm.architecture.width, generator=generator) * 3

    def factor_of(layer: int) -> Factor:
        rows = torch.randn(4 * width, width, generator=torch.Generator().manual_seed(layer)) * 0.3
        return prepare(Moment.of(rows), METHODS["memit"], ridge)

    stored = {layer: lm.weight(layer).clone() for layer in (1, 2)}
    return solve(lm, prompts, wanted, factor_of, stored, Recipe().method, whole=whole)


def gap(one: Update, other: Update) -> float:
    pairs = [(one.deltas[layer].dense(), other.deltas[layer].dense()) for layer in one.deltas]
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def test_sums_and_edits_give_one_change(lm: LanguageModel, monkeypatch: pytest.MonkeyPatch) -> None:
    found: dict[bool, Update] = {}
    for sums in (True, False):
        monkeypatch.setattr(module, "by_sums", lambda *_, sums=sums: sums)
        found[sums] = solved(lm)
    assert gap(found[True], found[False]) < SAME
    for one, other in zip(found[True].layers, found[False].layers, strict=True):
        assert one.fitted == pytest.approx(other.fitted, abs=1e-6)
        assert one.leverage == pytest.approx(other.leverage, rel=1e-4)
        assert one.residual_after == pytest.approx(other.residual_after, rel=1e-4)


class LargestDouble(TorchDispatchMode):
    """Sees the longest float64 tensor of some width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width, self.rows = width, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, torch.Tensor) and one.dtype == torch.float64 and one.shape[-1:] == (self.width,):
                self.rows = max(self.rows, one.numel() // self.width)
        return made


@pytest.mark.parametrize("family", ["gpt2", "gemma4_text"])
def test_by_sums_no_float64_has_a_row_for_every_edit(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = family_model(family)
    lm = LanguageModel(model, byte_tokenizer(), prove(model, find_architecture(model)))
    monkeypatch.setattr(module, "by_sums", lambda *_: True)
    at_once = solved(lm, n_edits=300)
    monkeypatch.setattr(module, "EDITS_AT_ONCE", 16)
    monkeypatch.setattr(keys_module, "EDITS_TOGETHER", 16)
    with LargestDouble(lm.architecture.width) as seen:
        in_parts = solved(lm, n_edits=300)
    assert 16 <= seen.rows <= lm.architecture.mlp_width < 300  # (F, D) are the sums and the change
    assert gap(in_parts, at_once) < SAME
    for one, other in zip(in_parts.layers, at_once.layers, strict=True):
        assert one.residual_before == pytest.approx(other.residual_before, rel=1e-6)


def test_the_sweep_and_whole_forwards_give_one_change(lm: LanguageModel) -> None:
    before = {layer: lm.weight(layer).clone() for layer in (1, 2)}
    swept, whole = solved(lm), solved(lm, whole=True)
    assert gap(swept, whole) < SAME
    assert all(torch.equal(lm.weight(layer), weight) for layer, weight in before.items())
    reports = zip(swept.layers, whole.layers, strict=True)
    assert all(one.residual_after == pytest.approx(other.residual_after, rel=1e-4) for one, other in reports)


@pytest.mark.slow
def test_a_scaled_family_gets_what_it_is_asked_for() -> None:
    """Without a ridge the last layer closes the whole gap, where its gain is known and only there."""
    model = family_model("granite_scaled")
    proved = LanguageModel(model, byte_tokenizer(), prove(model, find_architecture(model)))
    unaware = replace(proved, architecture=find_architecture(model))
    told, blind = (solved(lm, n_edits=4, ridge=1e-9, n_contexts=1, whole=True).layers[-1] for lm in (proved, unaware))
    assert told.residual_after < 1e-3 * told.residual_before
    assert blind.residual_after > 0.4 * blind.residual_before
    assert (told.gain, blind.gain) == (0.5, 1.0)


def test_what_a_norm_and_a_scale_behind_it_do_is_undone_on_the_way_back() -> None:
    model = family_model("gemma4_text")
    plain = find_architecture(model)
    proved, unaware = (LanguageModel(model, byte_tokenizer(), one) for one in (prove(model, plain), plain))
    generator = torch.Generator().manual_seed(2)
    made, change = (torch.randn(3, plain.width, generator=generator) for _ in range(2))
    wanted = residual_change(proved, 1, made, 0.05 * change)
    sweep: Any = SimpleNamespace(ends=lambda _site: made)
    told, blind = (
        residual_change(proved, 1, made, _Residuals.at(lm, sweep, 1, wanted, 0 * wanted, 1).of([0, 1, 2]).float())
        for lm in (proved, unaware)
    )
    # To first order, and damped where the norm's gain is small.
    assert float((told - wanted).norm() / wanted.norm()) < 0.15
    assert float((blind - wanted).norm() / wanted.norm()) > 0.4
    assert proved.architecture.gains[1] == SCALED

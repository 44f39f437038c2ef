"""One sweep up the model gives the keys and residuals of whole forwards, while the weights change on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from memedit.forward.keys import Sweep, WholeSweep
from memedit.forward.passes import Site
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from memedit.model.probe import prove
from memedit.model.weights import applied, put_
from tests.conftest import byte_tokenizer
from tests.families import FAMILIES, each_family, family_model
from torch import Tensor

SAME = 2e-5  # relative: float32, launches of other shapes, and a changed product added in another order

Heads = list[list[tuple[int, ...]]]


def open_family(name: str) -> LanguageModel:
    model = family_model(name)
    return LanguageModel(model, byte_tokenizer(), prove(model, find_architecture(model)))


def heads(n_edits: int = 7) -> Heads:
    """Prompts of three lengths under two contexts of several tokens; the last edit has the first one's prompt."""
    generator = torch.Generator().manual_seed(4)
    draw = lambda n: tuple(torch.randint(2, 258, (n,), generator=generator).tolist())  # noqa: E731
    contexts = [(), draw(9), draw(6)]
    bare = [draw(3 + n % 3) for n in range(n_edits - 1)]
    return [[context + prompt for context in contexts] for prompt in (*bare, bare[0])]


def climb(lm: LanguageModel, sweep: Sweep | WholeSweep, layers: tuple[int, ...]) -> list[Tensor]:
    """Outputs, keys and ends at every layer, each layer's weight changed as soon as its keys are read."""
    generator = torch.Generator().manual_seed(5)
    found = [sweep.ends(Site(layers[-1], "block.out"))]
    with applied(lm) as kept:
        for layer in layers:
            found.append(sweep.ends(Site(layer, "mlp.out")))
            keys = {edit: part[n] for edits, part in sweep.keys(layer) for n, edit in enumerate(edits)}
            found.append(torch.stack([keys[edit] for edit in sorted(keys)]))
            before = lm.weight(layer).clone()
            change = torch.randn(before.shape, generator=generator) * before.std()
            put_(lm, layer, before + change, kept)
            sweep.enter(lm.weight(layer) - before)
            found.append(sweep.ends(Site(layers[-1], "block.out")))
    return found


@pytest.mark.parametrize(
    "room", [pytest.param(1 << 30, id="mended"), pytest.param(0, id="run again", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("family", each_family(FAMILIES))
def test_the_sweep_equals_whole_forwards(family: str, room: int) -> None:
    lm = open_family(family)
    sweep = Sweep(lm, heads(), room=room)
    assert sweep.waits == (room > 0)
    for layers in ((1, 2), (0, 1, 3)):
        found = climb(lm, Sweep(lm, heads(), room=room), layers)
        wanted = climb(lm, WholeSweep(lm, heads()), layers)
        for one, other in zip(found, wanted, strict=True):
            assert float((one - other).norm() / other.norm()) < SAME


def test_a_change_that_does_not_enter_is_seen() -> None:
    lm = open_family("gpt2")
    sweep = Sweep(lm, heads())
    sweep.enter = lambda change: None  # type: ignore[method-assign]
    pairs = zip(climb(lm, sweep, (1, 2)), climb(lm, WholeSweep(lm, heads()), (1, 2)), strict=True)
    gaps = [float((one - other).norm() / other.norm()) for one, other in pairs]
    assert max(gaps[:3]) < SAME
    assert gaps[3] > 1e-2


def test_every_block_runs_once_but_for_the_bare_rows() -> None:
    lm = open_family("llama")
    runs: dict[int, int] = {}

    def counting(layer: int) -> Any:
        def count(_module: Any, args: tuple[Tensor, ...]) -> None:
            runs[layer] = runs.get(layer, 0) + args[0].numel() // args[0].shape[-1]

        return count

    handles = [
        lm.model.get_submodule(name).register_forward_pre_hook(counting(layer))
        for layer, name in enumerate(lm.architecture.down_projections)
    ]
    try:
        sweep = Sweep(lm, heads())
        runs.clear()
        for layer in (1, 2):
            for _ in sweep.keys(layer):
                pass
            sweep.enter(torch.zeros_like(lm.weight(layer)))
    finally:
        for handle in handles:
            handle.remove()
    of_one = heads()
    contexts = 9 + 6
    rows = {row for edit in of_one for row in edit}
    tails = sum(len(row) - (9 if len(row) > 11 else 6 if len(row) > 8 else 0) for row in rows)
    padding = 2 * 9 - contexts
    # Equal rows once, a context once for all subjects.
    assert runs == {0: tails + contexts + padding, 1: tails + contexts + padding, 2: tails + contexts + padding}

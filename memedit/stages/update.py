"""Layer by layer: keys, what is still missing, gains, the change; it enters the model before the next layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.model.hooks import applied, put_
from memedit.model.load import LanguageModel
from memedit.model.passes import Site, last_states
from memedit.model.subject import Prompt
from memedit.numerics.delta import Delta, rounded, rounding_loss
from memedit.numerics.solvers import Factor, gains, leverage
from memedit.recipe import MethodKnobs
from memedit.report import LayerReport
from memedit.stages.keys import context_weights, find_keys
from memedit.tell import Advance


@dataclass(frozen=True)
class Update:
    """What an edit list changes: one delta and one report per layer."""

    deltas: dict[int, Delta]
    layers: tuple[LayerReport, ...]


def solve(
    lm: LanguageModel,
    prompts: Sequence[Sequence[Prompt]],
    wanted: Tensor,
    factor_of: Callable[[int], Factor],
    stored: Mapping[int, Tensor],
    method: MethodKnobs,
    *,
    advance: Advance | None = None,
) -> Update:
    """The change of the layers in `stored` (their weights (D, F) in the checkpoint's dtype), lowest first.

    MEMIT, algorithm 1 (Meng et al. 2023): prompts of E edits under X contexts, the bare one first; wanted (E, D)
    float32. Each layer takes an equal share of the residual that is left; its weight is rounded to the checkpoint's
    dtype before the next residual is measured, so that what is measured is what will be written. The model is as it
    was when this returns.
    """
    layers = sorted(stored)
    bare = [of_one[0].head for of_one in prompts]
    site = Site(layers[-1], "block.out")
    weights = context_weights(method, len(prompts[0]))
    deltas: dict[int, Delta] = {}
    reports: list[LayerReport] = []
    with applied(lm) as kept:
        missing = wanted.double() - last_states(lm, bare, site).double()
        for done, layer in enumerate(layers):
            keys = find_keys(lm, prompts, layer, weights)
            residual = missing / (len(layers) - done)
            factor = factor_of(layer)
            a = gains(factor, keys)
            deltas[layer] = delta = Delta.of(residual, a)
            weight = rounded(stored[layer], delta)
            put_(lm, layer, weight.to(lm.device, lm.dtype), kept)
            before, missing = missing, wanted.double() - last_states(lm, bare, site).double()
            reports.append(
                LayerReport(
                    layer=layer,
                    parameter=lm.anatomy.parameter(layer),
                    residual_before=float(before.norm(dim=-1).mean()),
                    residual_after=float(missing.norm(dim=-1).mean()),
                    leverage=float(leverage(factor, keys).median()) / keys.shape[1],
                    fitted=_fitted(residual, a, keys),
                    delta_norm=delta.norm / float(stored[layer].double().norm()),
                    rounding_loss=rounding_loss(stored[layer], delta, weight),
                    rank=delta.rank,
                )
            )
            if advance:
                advance(1)
    return Update(deltas, tuple(reports))


def _fitted(residual: Tensor, a: Tensor, keys: Tensor) -> float:
    """Share of the residual's length that the change reproduces on the edited keys: 1 - |R - (A K^T)^T R| / |R|."""
    made = (a @ keys.T).T @ residual
    scale = float(torch.linalg.norm(residual))
    return 1 - float(torch.linalg.norm(residual - made)) / scale if scale else 1.0

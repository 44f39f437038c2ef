"""Layer by layer: keys, what is still missing, the change; it enters the model before the next layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.config.recipe import MethodKnobs
from memedit.editing.keys import averaged, context_weights, heads_of
from memedit.editing.rounding import NARROW, Rounding, round_delta
from memedit.forward.keys import Sweep, WholeSweep
from memedit.forward.passes import Site
from memedit.forward.residual import added, norm_gain
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double
from memedit.model.tokens import Prompt
from memedit.model.weights import applied, put_
from memedit.numerics.delta import Delta
from memedit.numerics.normal import Sums, by_sums
from memedit.numerics.norms import before_norm
from memedit.numerics.rounding import EditedKeys
from memedit.numerics.solvers import Factor, gains, leverage
from memedit.progress import Advance
from memedit.results.report import LayerReport


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
    rounding: Rounding | None = None,
    held: Tensor | None = None,
    whole: bool = False,
    advance: Advance | None = None,
) -> Update:
    """The change of the layers in `stored` (their weights (D, F) in the checkpoint's dtype), lowest first.

    MEMIT, algorithm 1 (Meng et al. 2023), whatever method the factors are of: prompts of E edits under X contexts, the
    bare one first; wanted (E, D) float32. Each layer takes an equal share of the residual that is left in the stream;
    its weight is rounded to the checkpoint's dtype before the next residual is measured, so that what is measured is
    what will be written. Where a family scales what its MLPs add to the stream, the share is divided by that gain;
    where it puts a norm there, the share goes back through it. All layers' keys come from one sweep up the model, or
    (`whole`) from whole forwards. The model is as it was when this returns.

    Edits that are `held` (E,) are to stay as they are, whatever is wanted of them: rows with no residual are to the
    others what K^T K / ridge of them in the metric would be, and what a lower layer moves of them is put back above.
    """
    layers = sorted(stored)
    weights = context_weights(method, len(prompts[0]))
    sweep = (WholeSweep if whole else Sweep)(lm, heads_of(prompts))
    deltas: dict[int, Delta] = {}
    reports: list[LayerReport] = []
    top = Site(layers[-1], "block.out")
    with applied(lm) as kept:
        ends = sweep.ends(top)
        if held is not None:
            wanted = torch.where(held[:, None], ends.to(wanted.dtype), wanted)
        moving = slice(None) if held is None or bool(held.all()) else ~held
        missing = wanted.double() - ends.double()
        for done, layer in enumerate(layers):
            residual = _at_the_projection(lm, sweep, layer, missing / (len(layers) - done))
            states = sweep.keys(layer, last=False)
            few = stored[layer].dtype in NARROW and len(prompts) * len(weights) <= lm.architecture.mlp_widths[layer]
            rows: list[Tensor] | None = [] if few else None
            keys = _averaged(states, weights, rows)
            factor = factor_of(layer)
            found = _solved(factor, keys, residual, lm, lm.architecture.mlp_widths[layer])
            seen = found.keys if rows is None else EditedKeys(len(prompts), torch.cat(rows).to(found.keys.device))
            entered = round_delta(layer, stored[layer], found.delta, seen, rounding or Rounding())
            deltas[layer] = delta = entered.delta
            weight = entered.weight
            before = lm.weight(layer).clone()
            put_(lm, layer, weight.to(lm.device, lm.dtype), kept)
            sweep.enter(lm.weight(layer).float() - before.float())
            was, missing = missing, wanted.double() - sweep.ends(top).double()
            reports.append(
                LayerReport(
                    layer=layer,
                    parameter=lm.architecture.parameter(layer),
                    residual_before=float(was[moving].norm(dim=-1).mean()),
                    residual_after=float(missing[moving].norm(dim=-1).mean()),
                    leverage=found.leverage / lm.architecture.mlp_widths[layer],
                    fitted=found.fitted,
                    delta_norm=delta.norm / float(stored[layer].double().norm()),
                    rounding=entered.way,
                    rounding_loss=entered.loss,
                    nearest_loss=entered.nearest_loss,
                    disturbance=entered.disturbance,
                    rank=delta.rank,
                    gain=lm.architecture.gains[layer],
                    dead=factor.dead,
                    shift=factor.shift,
                )
            )
            if advance:
                advance(1)
    return Update(deltas, tuple(reports))


def _at_the_projection(lm: LanguageModel, sweep: Sweep | WholeSweep, layer: int, residual: Tensor) -> Tensor:
    """What the down-projection has to give more, (E, D) float64, for the block to give `residual` more."""
    if not lm.architecture.norms[layer]:
        return residual / lm.architecture.gains[layer]
    made = sweep.ends(Site(layer, "mlp.out"))
    return before_norm(made.double(), added(lm, layer, made).double(), residual, norm_gain(lm, layer).double())


@dataclass(frozen=True)
class _Solved:
    delta: Delta
    fitted: float
    keys: EditedKeys  # averaged over contexts
    leverage: float  # median of k M^-1 k


def _solved(
    factor: Factor, parts: Iterator[tuple[list[int], Tensor]], residual: Tensor, lm: LanguageModel, inner: int
) -> _Solved:
    """One layer's change; `parts` are edits and their keys, some at a time, residual (E, D) float64.

    Whichever of two systems costs less: edits by edits, or inner by inner from sums that grow with no edit.
    """
    home = lm.device if lm.device.type == "cuda" else torch.device("cpu")  # where float64 is at hand, and fast
    factor = factor.to(home)
    residual = residual.to(home)
    n_edits, width = residual.shape
    if not (factor.summable and by_sums(n_edits, inner, width)):
        keys = torch.empty(n_edits, inner, dtype=torch.float64, device=home)
        for edits, part in parts:
            keys[edits] = part.to(home)
        a = gains(factor, keys)
        spread = leverage(factor, keys)
        fitted = _fitted(residual, a, keys)
        return _Solved(_on_cpu(Delta.of(residual, a)), fitted, EditedKeys(n_edits, keys), float(spread.median()))
    sums, spreads = Sums.empty(inner, width, home), list[Tensor]()
    for edits, part in parts:
        keys = part.to(home)
        sums.add_(keys, residual[edits])
        spreads.append(leverage(factor, keys))
    change = sums.delta(factor)
    seen = EditedKeys(n_edits, square=sums.gram)
    return _Solved(Delta(change.float().cpu()), sums.fitted(change), seen, float(torch.cat(spreads).median()))


def _averaged(
    states: Iterator[tuple[list[int], Tensor]], weights: Tensor, rows: list[Tensor] | None
) -> Iterator[tuple[list[int], Tensor]]:
    """Edits and their keys, some at a time; with `rows` each context's own keys are kept there, (e X, F) float64."""
    for edits, part in states:
        if rows is not None:
            rows.append(in_double(part).flatten(0, 1))
        yield edits, averaged(part, weights)


def _on_cpu(delta: Delta) -> Delta:
    return Delta(delta.left.cpu(), None if delta.right is None else delta.right.cpu())


def _fitted(residual: Tensor, a: Tensor, keys: Tensor) -> float:
    """Share of the residual's length that the change reproduces on the edited keys: 1 - |R - (A K^T)^T R| / |R|."""
    made = (a @ keys.T).T @ residual
    scale = float(torch.linalg.norm(residual))
    return 1 - float(torch.linalg.norm(residual - made)) / scale if scale else 1.0

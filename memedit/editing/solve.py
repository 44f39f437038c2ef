"""Solve the edited layers one by one: keys, residual, change. Each change enters the model before the next layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from memedit.config.recipe import MethodKnobs
from memedit.editing.algebra import AlgebraPlace, edits_bytes, sums_bytes
from memedit.editing.keys import averaged, context_weights, heads_of
from memedit.editing.rounding import RoundedWeight, Rounding, round_delta
from memedit.forward.keys import Sweep, WholeSweep
from memedit.forward.passes import Site
from memedit.forward.residual import added, norm_gain
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double, send
from memedit.model.tokens import Prompt
from memedit.model.weights import applied, put_
from memedit.numerics.delta import Delta
from memedit.numerics.normal import Sums, by_sums
from memedit.numerics.norms import before_norm
from memedit.numerics.rounding import EditedKeys
from memedit.numerics.solvers import Factor, gains, leverage
from memedit.progress import Advance
from memedit.results.report import LayerReport, PolishReport

EDITS_AT_ONCE = 1024
"""Edits whose missing states are in float64 together: those of a million edits of width 4,096 take 33 GB."""


@dataclass(frozen=True)
class Update:
    """The change of an edit list: for each layer one delta, the weight with the delta in it, and one report."""

    deltas: dict[int, Delta]
    weights: dict[int, Tensor]
    """The edited weights (D, F), rounded to the checkpoint's dtype: what is scored, and what is written."""
    layers: tuple[LayerReport, ...]
    keys: dict[int, EditedKeys] = field(default_factory=dict[int, EditedKeys])
    """The keys of each layer, by which its change is rounded; kept on request."""
    polish: PolishReport | None = None


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
    keep_keys: bool = False,
    memory: int | None = None,
    advance: Advance | None = None,
) -> Update:
    """Solve the change of the layers in `stored` (their weights (D, F) in the checkpoint's dtype), lowest first.

    MEMIT, algorithm 1 (Meng et al. 2023), for the factors of any method: prompts of E edits under X contexts, the bare
    one first; wanted (E, D) float32. Each layer takes an equal share of the residual that is left in the stream. Its
    weight is rounded to the checkpoint's dtype before the next residual is measured, so that the residual is that of
    the weight that will be written. All layers' keys come from one sweep up the model, or (`whole`) from whole
    forwards. The model is unchanged when this returns. On a GPU the algebra of a layer takes at most `memory` bytes
    (None: most of what is free); a layer that needs more is solved on the CPU, and its report says so.

    Edits that are `held` (E,) bool keep their state, whatever is wanted of them: they are rows with no residual. To the
    other rows they are what K^T K / ridge of them in the metric would be, and the layers above undo what a lower layer
    moved of them.
    """
    layers = sorted(stored)
    weights = context_weights(method, len(prompts[0]))
    sweep, rounding = (WholeSweep if whole else Sweep)(lm, heads_of(prompts)), rounding or Rounding()
    deltas: dict[int, Delta] = {}
    edited: dict[int, Tensor] = {}
    keys: dict[int, EditedKeys] = {}
    reports: list[LayerReport] = []
    top = Site(layers[-1], "block.out")
    place = AlgebraPlace(lm.device, memory)
    with applied(lm) as kept:
        ends = sweep.ends(top)
        if held is not None:
            wanted = torch.where(held[:, None], ends.to(wanted.dtype), wanted)
        moving = slice(None) if held is None or bool(held.all()) else ~held
        missing = _missing_lengths(wanted, ends)
        for done, layer in enumerate(layers):
            residuals = _Residuals.at(lm, sweep, layer, wanted, ends, len(layers) - done)
            factor = factor_of(layer)
            narrow = rounding.grid(layer, stored[layer]).narrow
            few = narrow and len(wanted) * len(weights) <= lm.architecture.mlp_widths[layer]
            rows: list[Tensor] | None = [] if few else None
            solved = _solve_layer(factor, _averaged(sweep.keys(layer), weights, rows), residuals, place)
            if rows is not None:
                own = EditedKeys(len(wanted), torch.cat(rows).to(solved.keys.device))
                solved = replace(solved, keys=own)
            entered = round_delta(layer, stored[layer], solved.delta, solved.keys, rounding)
            deltas[layer], edited[layer] = entered.delta, entered.weight
            if keep_keys:
                keys[layer] = solved.keys
            before = lm.weight(layer).clone()
            put_(lm, layer, entered.weight.to(lm.device, lm.dtype), kept)
            sweep.enter(lm.weight(layer).float() - before.float())
            ends = sweep.ends(top)
            was, missing = missing, _missing_lengths(wanted, ends)
            reports.append(_report(lm, layer, solved, entered, factor, stored[layer], was[moving], missing[moving]))
            if advance:
                advance(1)
    return Update(deltas, edited, tuple(reports), keys)


def _report(
    lm: LanguageModel,
    layer: int,
    solved: _Solved,
    entered: RoundedWeight,
    factor: Factor,
    stored: Tensor,
    before: Tensor,
    after: Tensor,
) -> LayerReport:
    """The report of one layer; before, after: how long the residuals at the last edited layer are around its change,
    (E,)."""
    return LayerReport(
        layer=layer,
        parameter=lm.architecture.parameter(layer),
        residual_before=float(before.mean()),
        residual_after=float(after.mean()),
        leverage=solved.leverage / lm.architecture.mlp_widths[layer],
        fitted=solved.fitted,
        delta_norm=entered.norm / float(stored.double().norm()),
        rounding=entered.way,
        rounding_loss=entered.loss,
        nearest_loss=entered.nearest_loss,
        disturbance=entered.disturbance,
        rank=entered.delta.rank,
        gain=lm.architecture.gains[layer],
        dead=factor.dead,
        shift=factor.shift,
        on_cpu=("solve", "rounding") if solved.on_cpu else ("rounding",) if entered.on_cpu else (),
    )


def _missing_lengths(wanted: Tensor, ends: Tensor) -> Tensor:
    """The length of what each edit's state lacks: wanted (E, D), ends (E, D) float32 -> (E,) float64."""
    rows = zip(wanted.split(EDITS_AT_ONCE), ends.split(EDITS_AT_ONCE), strict=True)
    return torch.cat([(some.double() - there.double()).norm(dim=-1) for some, there in rows])


@dataclass(frozen=True)
class _Residuals:
    """The change of the down-projection's output that each of E edits asks of a layer, computed for some at a time.

    It adds the layer's share of the missing state to the block's output. If a family scales what its MLPs add to the
    stream, that is divided by the gain; if it has a norm there, it goes back through the norm. Of all edits only
    float32 states are held.
    """

    lm: LanguageModel
    layer: int
    wanted: Tensor  # (E, D) float32
    ends: Tensor  # (E, D) float32: the states now
    left: int  # layers that share what is missing: this one and those above
    output: Tensor | None = None  # (E, D) float32, of the down-projection, where a norm follows

    @classmethod
    def at(
        cls, lm: LanguageModel, sweep: Sweep | WholeSweep, layer: int, wanted: Tensor, ends: Tensor, left: int
    ) -> _Residuals:
        """The residuals of a layer; where a norm follows its down-projection, its output is read now."""
        output = sweep.ends(Site(layer, "mlp.out")) if lm.architecture.norms[layer] else None
        return cls(lm, layer, wanted, ends, left, output)

    @property
    def shape(self) -> tuple[int, int]:
        """(E, D)."""
        return self.wanted.shape[0], self.wanted.shape[1]

    def of(self, edits: slice | Sequence[int]) -> Tensor:
        """The residuals of some edits, (e, D) float64, on the CPU."""
        residual = (self.wanted[edits].double() - self.ends[edits].double()) / self.left
        if self.output is None:
            return residual / self.lm.architecture.gains[self.layer]
        output = self.output[edits]
        normed, gain = added(self.lm, self.layer, output), norm_gain(self.lm, self.layer)
        return before_norm(output.double(), normed.double(), residual, gain.double())


@dataclass(frozen=True)
class _Solved:
    delta: Delta
    fitted: float
    keys: EditedKeys  # each context's own if the weight is of a narrow dtype and they are few, else averaged
    leverage: float  # median of k M^-1 k
    on_cpu: bool = False  # because the GPU has too little memory


KeyParts = Iterator[tuple[list[int], Tensor]]
"""Some edits at a time: their numbers, and their averaged keys (e, F) float64."""


def _solve_layer(factor: Factor, parts: KeyParts, residuals: _Residuals, place: AlgebraPlace) -> _Solved:
    """The change of one layer.

    Of two systems the cheaper one is solved: edits by edits, or inner by inner from sums whose size does not depend on
    the number of edits. The keys are read once, before what may be done twice.
    """
    (n_edits, width), inner = residuals.shape, len(factor.lower if factor.basis is None else factor.basis)
    if factor.summable and by_sums(n_edits, inner, width):
        return _solve_by_sums(factor, parts, residuals, place, sums_bytes(inner, width))
    # Every edit's residual at once, as one product takes them: here edits are few beside `inner`, or the method has no
    # sums, and the keys and the edits x edits matrix are as large.
    residual = residuals.of(slice(None))
    needed = edits_bytes(n_edits, inner)
    keys = torch.empty(n_edits, inner, dtype=torch.float64, device=place.home(needed))
    for edits, part in parts:
        keys[send(torch.tensor(edits), keys.device)] = part.to(keys.device)

    def work(home: torch.device) -> _Solved:
        there, mine, missing = factor.to(home), keys.to(home), residual.to(home)
        a = gains(there, mine)
        spread = float(leverage(there, mine).median())
        return _Solved(_on_cpu(Delta.of(missing, a)), _fitted(missing, a, mine), EditedKeys(n_edits, mine), spread)

    solved, on_cpu = place.do(needed - keys.nbytes, work)
    return replace(solved, on_cpu=on_cpu)


def _solve_by_sums(factor: Factor, parts: KeyParts, residuals: _Residuals, place: AlgebraPlace, needed: int) -> _Solved:
    """The change of one layer from sums over its keys, in `needed` bytes."""
    n_edits, width = residuals.shape
    home = place.home(needed)
    there, spreads = factor.to(home), list[Tensor]()
    sums = Sums.empty(len(factor.lower if factor.basis is None else factor.basis), width, home)
    for edits, part in parts:
        keys = part.to(home)
        sums.add_(keys, send(residuals.of(edits), home))
        spreads.append(leverage(there, keys))
    spread = float(torch.cat(spreads).median())
    del there  # `work` has its own

    def work(home: torch.device) -> _Solved:
        mine = sums.to(home)
        change = mine.delta(factor.to(home))
        keys = EditedKeys(n_edits, square=mine.gram)
        return _Solved(Delta(change.float().cpu()), mine.fitted(change), keys, spread)

    solved, on_cpu = place.do(needed - sums.gram.nbytes - sums.cross.nbytes, work)
    return replace(solved, on_cpu=on_cpu)


def _averaged(states: KeyParts, weights: Tensor, rows: list[Tensor] | None) -> KeyParts:
    """Edits and their averaged keys, some at a time; each context's own keys (e X, F) float64 are added to `rows`."""
    for edits, part in states:
        if rows is not None:
            rows.append(in_double(part).flatten(0, 1))
        yield edits, averaged(part, weights)


def _on_cpu(delta: Delta) -> Delta:
    return Delta(delta.left.cpu(), None if delta.right is None else delta.right.cpu())


def _fitted(residual: Tensor, a: Tensor, keys: Tensor) -> float:
    """Share of the residual's length that the change reproduces on the edited keys: 1 - |R - (A K^T)^T R| / |R|."""
    reproduced = (a @ keys.T).T @ residual
    scale = float(torch.linalg.norm(residual))
    return 1 - float(torch.linalg.norm(residual - reproduced)) / scale if scale else 1.0

"""Round a layer's change into its stored weight, and measure what rounding loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from memedit.numerics.delta import Delta, rounded
from memedit.numerics.moments import Moment
from memedit.numerics.rounding import EditedKeys, Grid, disturbance, key_aware

LOSS = 0.01
"""auto rounds key-aware if rounding to nearest loses more than this share of the effect."""


@dataclass(frozen=True)
class Rounding:
    """The kind of rounding, and how to get a layer's second moment if it needs one."""

    way: Literal["auto", "nearest", "key-aware"] = "nearest"
    moment_of: Callable[[int], Moment] | None = None
    grid_of: Callable[[int], Grid] | None = None
    """The numbers that a layer's stored weight can hold, where they are not those of its dtype."""

    def grid(self, layer: int, weight: Tensor) -> Grid:
        """The numbers that a layer's stored weight (D, F) can hold."""
        return Grid(weight.dtype) if self.grid_of is None else self.grid_of(layer)


@dataclass(frozen=True)
class RoundedWeight:
    """A change after rounding, and the weight with it."""

    delta: Delta
    """It has steps if the weight was not rounded to nearest."""
    weight: Tensor
    """(D, F), in the dtype of the weight before it."""
    way: Literal["nearest", "key-aware"]
    loss: float
    """|(stored - W - delta) K^T| / |delta K^T| over the edited keys."""
    nearest_loss: float
    """The same for rounding to nearest."""
    disturbance: float
    """|stored - W - delta| in the metric of the second moments, over that of rounding to nearest."""


def round_delta(layer: int, weight: Tensor, delta: Delta, keys: EditedKeys, rounding: Rounding) -> RoundedWeight:
    """Round W + delta: weight (D, F) in its stored dtype. The work is done on the device of the keys."""
    grid = rounding.grid(layer, weight)
    near = rounded(weight, delta, grid)
    change = delta.dense()
    exact = weight.double() + change
    effect = keys.effect(change.to(keys.device))

    def error(stored: Tensor) -> Tensor:
        return (stored.double() - exact).to(keys.device)

    def loss(stored: Tensor) -> float:
        return keys.effect(error(stored)) / effect if effect else 0.0

    lost = loss(near)
    wanted = rounding.way == "key-aware" or (rounding.way == "auto" and lost > LOSS)
    if not wanted or not grid.narrow or rounding.moment_of is None:
        return RoundedWeight(delta, near, "nearest", lost, lost, 1.0)
    moment = rounding.moment_of(layer).mean.to(keys.device)
    delta = replace(delta, steps=key_aware(exact.to(keys.device), grid.to(keys.device), keys, moment).cpu())
    stored = rounded(weight, delta, grid)
    base, found = (disturbance(error(one), moment) for one in (near, stored))
    return RoundedWeight(delta, stored, "key-aware", loss(stored), lost, found / base if base else 1.0)

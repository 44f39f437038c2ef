"""Round a layer's change into its stored weight, and measure what rounding loses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from memedit.editing.algebra import AlgebraPlace, rounding_bytes
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
    memory: int | None = None
    """Bytes of a GPU that it may take; None: most of what is free. With less it is done on the CPU."""

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
    norm: float
    """|delta|, Frobenius."""
    on_cpu: bool = False
    """Whether it was done on the CPU, because the GPU has too little memory."""


def round_delta(layer: int, weight: Tensor, delta: Delta, keys: EditedKeys, rounding: Rounding) -> RoundedWeight:
    """Round W + delta: weight (D, F) in its stored dtype. The work is done on the device of the keys, or on the CPU if
    that device has too little memory.
    """
    grid, change = rounding.grid(layer, weight), delta.dense()
    near = rounded(weight, delta, grid, change)
    moment_of = rounding.moment_of if rounding.way != "nearest" and grid.narrow else None

    def work(home: torch.device) -> RoundedWeight:
        mine, there = keys.to(home), change.to(home)
        exact, effect = weight.to(home).double() + there, mine.effect(there)

        def error(stored: Tensor) -> Tensor:
            return stored.to(home).double() - exact

        def loss(stored: Tensor) -> float:
            return mine.effect(error(stored)) / effect if effect else 0.0

        lost, norm = loss(near), float(change.norm())
        if moment_of is None or (rounding.way == "auto" and lost <= LOSS):
            return RoundedWeight(delta, near, "nearest", lost, lost, 1.0, norm)
        given = moment_of(layer)
        moment = Moment(given.total.to(home), given.count).mean
        turned = replace(delta, steps=key_aware(exact, grid.to(home), mine, moment).cpu())
        stored = rounded(weight, turned, grid, change)
        base, found = (disturbance(error(one), moment) for one in (near, stored))
        return RoundedWeight(turned, stored, "key-aware", loss(stored), lost, found / base if base else 1.0, norm)

    width, inner = weight.shape
    needed = rounding_bytes(inner, width) if moment_of else 4 * change.nbytes
    found, on_cpu = AlgebraPlace(keys.device, rounding.memory).do(needed, work)
    return replace(found, on_cpu=on_cpu)

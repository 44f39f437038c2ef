"""Low-rank weight change, and its rounding into the checkpoint's dtype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.numerics.rounding import Grid

ROWS = 512  # rows of the product computed at once: bounds float64 memory, and fixes the order of summation


@dataclass(frozen=True)
class Delta:
    """W' - W = left @ right; left (D, r), right (r, F) float32, or right None and left the dense (D, F) change.

    The float32 factors define the change: their product in float64 is what is saved, applied, written and verified.
    `steps` (D, F) int8 belong to the rounded weight: how many representable numbers each element lies above the
    nearest one. None: every element is the nearest one.
    """

    left: Tensor
    right: Tensor | None = None
    steps: Tensor | None = None

    @classmethod
    def of(cls, residuals: Tensor, gains: Tensor) -> Delta:
        """residuals (E, D), gains (E, F) float64 -> residuals^T gains, in whichever form is smaller."""
        (edits, width), inner = residuals.shape, gains.shape[1]
        if edits * (width + inner) < width * inner:
            return cls(residuals.T.float().contiguous(), gains.float().contiguous())
        return cls((residuals.T @ gains).float().contiguous())

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the change, (D, F)."""
        return self.left.shape[0], (self.left if self.right is None else self.right).shape[1]

    @property
    def rank(self) -> int:
        """The largest rank that its form allows."""
        return min(self.shape) if self.right is None else min(self.left.shape[1], *self.shape)

    def dense(self) -> Tensor:
        """The change, (D, F) float64, on the CPU."""
        left = self.left.double()
        if self.right is None:
            return left
        right = self.right.double()
        return torch.cat([rows @ right for rows in left.split(ROWS)])

    @property
    def norm(self) -> float:
        """The Frobenius norm of the change."""
        return float(self.dense().norm())


def rounded(weight: Tensor, delta: Delta, grid: Grid | None = None, change: Tensor | None = None) -> Tensor:
    """W' = round(W + left @ right): weight (D, F) in its stored dtype -> the same shape and dtype.

    grid: the numbers that the stored weight can hold, where they are not those of its dtype. change: `delta.dense()`,
    where it is known: the product takes longer than all else.

    Rounds to nearest even, then adds the delta's steps where it has some. The model in memory, the writer and the
    export all use this function. The sum is computed in float64 on the CPU, where thread counts change it by 1e-16
    relative at most, far less than any stored dtype can hold.
    """
    grid = grid or Grid(weight.dtype)
    near = grid.nearest(weight.double() + (delta.dense() if change is None else change))
    return near if delta.steps is None else grid.moved(near, delta.steps)


def rounding_loss(weight: Tensor, delta: Delta, stored: Tensor) -> float:
    """|stored - W - delta| / |delta|: the share of the change that was lost by rounding to the dtype of `stored`."""
    change = delta.dense()
    length = float(change.norm())
    return float((stored.double() - weight.double() - change).norm()) / length if length else 0.0

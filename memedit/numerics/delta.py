"""A change of a weight, born factored; and the one way it enters a weight of few bits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.numerics.rounding import moved, nearest

ROWS = 512  # rows of the product made at once: bounds the float64 memory, and fixes the order of summation


@dataclass(frozen=True)
class Delta:
    """W' - W = left @ right; left (D, r), right (r, F) float32, or right None and left the dense (D, F) change.

    The float32 factors are the definition of the change: what is saved, applied, written and verified is the same
    product of them in float64. `steps` (D, F) int8 tell how it enters the narrow weight that it was found for: how
    many representable numbers each element lies from the nearest one; None: none does.
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
        """(D, F)."""
        return self.left.shape[0], (self.left if self.right is None else self.right).shape[1]

    @property
    def rank(self) -> int:
        """The rank it can have at most: that of its form."""
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
        """Frobenius norm."""
        return float(self.dense().norm())


def rounded(weight: Tensor, delta: Delta) -> Tensor:
    """W' = round(W + left @ right): weight (D, F) in its stored dtype -> the same shape and dtype.

    To nearest even, then by the delta's steps where it has some. The one function for the model being edited, the
    writer and the export. The sum is made in float64 on the CPU, where two thread counts differ by 1e-16 relative at
    most: far under what any stored dtype can hold.
    """
    near = nearest(weight.double() + delta.dense(), weight.dtype)
    return near if delta.steps is None else moved(near, delta.steps)


def rounding_loss(weight: Tensor, delta: Delta, stored: Tensor) -> float:
    """|stored - W - delta| / |delta|: the share of the change that the dtype of `stored` swallowed."""
    change = delta.dense()
    length = float(change.norm())
    return float((stored.double() - weight.double() - change).norm()) / length if length else 0.0

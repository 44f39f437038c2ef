"""Second moments: sums that add and merge."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 8  # of a symmetric product: 9 / 16 of its multiplications remain
CHUNK = 8192  # rows summed in fp32 before they enter the fp64 total: keeps the relative error near 1e-7


@dataclass(frozen=True)
class Moment:
    """Sum of x x^T over tokens, uncentered, and how many there were; a monoid under `+`.

    total (F, F) float64, count.
    """

    total: Tensor
    count: int

    @classmethod
    def empty(cls, width: int) -> Moment:
        """Nothing seen yet: (width, width) zeros."""
        return cls(torch.zeros(width, width, dtype=torch.float64), 0)

    @classmethod
    def of(cls, rows: Tensor) -> Moment:
        """rows (n, F) -> their moment."""
        running = Running(cls.empty(rows.shape[1]))
        running.add_(rows)
        return running.moment

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """C = total / count, (F, F) float64, symmetric to the last bit."""
        mean = self.total / max(self.count, 1)
        return (mean + mean.T) / 2


class Running:
    """A moment that grows in place: products in fp32, as in every reference, the total in fp64, on the CPU.

    Blocks on and above the diagonal alone are multiplied and summed; the others are their mirror.
    """

    def __init__(self, begun: Moment) -> None:
        self.count = begun.count
        self._upper = begun.total.clone()

    def add_(self, rows: Tensor) -> None:
        """rows (n, F) of any floating dtype."""
        width = rows.shape[1]
        edges = list(range(0, width, -(-width // BLOCKS)))
        for part in rows.split(CHUNK):
            x = part.float()
            for at, end in zip(edges, [*edges[1:], width], strict=True):
                self._upper[at:end, at:] += (x[:, at:end].T @ x[:, at:]).cpu()
        self.count += len(rows)

    @property
    def moment(self) -> Moment:
        """The moment as it is now; later rows do not change it."""
        upper = self._upper.triu()
        return Moment(upper + upper.triu(1).T, self.count)

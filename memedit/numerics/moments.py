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
        """rows (n, F) -> their moment; products in fp32, as in every reference; totals in fp64, on the CPU."""
        total = torch.zeros(rows.shape[1], rows.shape[1], dtype=torch.float64)
        for part in rows.split(CHUNK):
            total += _square(part.float()).double().cpu()
        return cls(total, len(rows))

    def __add__(self, other: Moment) -> Moment:
        return Moment(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Tensor:
        """C = total / count, (F, F) float64, symmetric to the last bit."""
        mean = self.total / max(self.count, 1)
        return (mean + mean.T) / 2


def _square(x: Tensor) -> Tensor:
    """x^T x, (F, F), symmetric: blocks on and above the diagonal are multiplied, the others are their mirror."""
    width = x.shape[1]
    found = x.new_empty(width, width)
    edges = list(range(0, width, -(-width // BLOCKS)))
    for at, end in zip(edges, [*edges[1:], width], strict=True):
        found[at:end, at:] = x[:, at:end].T @ x[:, at:]
        found[end:, at:end] = found[at:end, end:].T
    return found

"""Second moments of keys: sums that can be added."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCKS = 8  # of a symmetric product: 9 / 16 of its multiplications are needed
CHUNK = 8192  # rows summed in fp32 before they enter the fp64 total: keeps the relative error near 1e-7


@dataclass(frozen=True)
class Moment:
    """Sum of x x^T over tokens, uncentered: total (F, F) float64, and the count of tokens. `+` joins two."""

    total: Tensor
    count: int

    @classmethod
    def empty(cls, width: int) -> Moment:
        """The moment of no tokens: (width, width) zeros."""
        return cls(torch.zeros(width, width, dtype=torch.float64), 0)

    @classmethod
    def of(cls, rows: Tensor) -> Moment:
        """The moment of rows (n, F)."""
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
    """A moment that grows in place: products in float32, as in every reference; the total in float64, on `home`.

    Only blocks on and above the diagonal are computed; the others mirror them.
    """

    def __init__(self, begun: Moment, home: torch.device | None = None) -> None:
        self.count = begun.count
        self._upper = begun.total.to(home or begun.total.device, copy=True)

    def add_(self, rows: Tensor) -> None:
        """Add rows (n, F) of any floating dtype."""
        width = rows.shape[1]
        edges = list(range(0, width, -(-width // BLOCKS)))
        for part in rows.split(CHUNK):
            x = part.float()
            for at, end in zip(edges, [*edges[1:], width], strict=True):
                self._upper[at:end, at:] += (x[:, at:end].T @ x[:, at:]).to(self._upper.device)
        self.count += len(rows)

    @property
    def moment(self) -> Moment:
        """A copy of the current moment, on the CPU; later rows do not change it."""
        upper = self._upper.cpu().triu()
        return Moment(upper + upper.triu(1).T, self.count)

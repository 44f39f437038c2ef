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
        running = Running(rows.shape[1], rows.device)
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
    """A moment of width F that grows in place: products in float32, as in every reference; the total in float64, on
    `home`.

    Only blocks on and above the diagonal are computed; the others mirror them.
    """

    def __init__(self, width: int, home: torch.device | None = None) -> None:
        self.count = 0
        self._upper = torch.zeros(width, width, dtype=torch.float64, device=home)
        edges = list(range(0, width, -(-width // BLOCKS)))
        self._blocks = list(zip(edges, [*edges[1:], width], strict=True))

    def add_(self, rows: Tensor) -> None:
        """Add rows (n, F) of any floating dtype."""
        # Products of two 16-bit numbers are exact in float32: a GPU multiplies them as they are, at the rate of its
        # tensor cores, and sums in float32. The CPU has no such product.
        as_is = rows.device.type == "cuda" and rows.dtype.itemsize == 2
        for part in rows.split(CHUNK):
            x = part if as_is else part.float()
            if x.device == self._upper.device:
                for at, end in self._blocks:
                    self._upper[at:end, at:] += _product(x[:, at:end], x[:, at:])
            else:
                # The host waits for each copy, so all blocks are sent together.
                upper = torch.zeros(self._upper.shape, dtype=torch.float32, device=x.device)
                for at, end in self._blocks:
                    upper[at:end, at:] = _product(x[:, at:end], x[:, at:])
                self._upper += upper.to(self._upper.device)
        self.count += len(rows)

    @property
    def moment(self) -> Moment:
        """A copy of the current moment, on the CPU; later rows do not change it."""
        # Mirrored where the sums are: a GPU does in no time what the CPU needs a second for. Later blocks only add to
        # what is mirrored from.
        for at, end in self._blocks:
            square = self._upper[at:end, at:end]
            square.copy_(square.triu() + square.triu(1).T)
            self._upper[end:, at:end] = self._upper[at:end, end:].T
        return Moment(self._upper.to("cpu", copy=True), self.count)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """left^T right, float32, of rows in float32, or in 16 bits on a GPU."""
    return left.T @ right if left.dtype == torch.float32 else torch.mm(left.T, right, out_dtype=torch.float32)

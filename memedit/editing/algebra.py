"""Where the float64 algebra of a layer is done: on the GPU where it fits, else on the CPU."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch

from memedit.model.memory import free_on, give_back, ran_out

CPU = torch.device("cpu")
Made = TypeVar("Made")


@dataclass(frozen=True)
class AlgebraPlace:
    """A device for float64 algebra, and how many bytes it may take there; None: most of what is free."""

    device: torch.device
    memory: int | None = None

    def home(self, needed: int) -> torch.device:
        """The device if `needed` bytes fit there, else the CPU, which also serves devices without float64 (mps)."""
        free = free_on(self.device)
        if free is None:
            return CPU
        return self.device if needed <= (free * 4 // 5 if self.memory is None else min(free, self.memory)) else CPU

    def do(self, needed: int, work: Callable[[torch.device], Made]) -> tuple[Made, bool]:
        """Do work at its home, or on the CPU if the memory runs out there; and whether the CPU stands in for a GPU.

        The work may be done twice, so it must change nothing.
        """
        if self.home(needed) != CPU:
            try:
                return work(self.device), False
            except (RuntimeError, MemoryError) as error:
                if not ran_out(error):
                    raise
            # Not in the handler: there the error still refers to the tensors that filled the memory.
            give_back(self.device)
        return work(CPU), self.device.type == "cuda"


def edits_bytes(n_edits: int, inner: int) -> int:
    """Bytes of the edits x edits system: the factor (F, F), five matrices (E, F) and two (E, E)."""
    return 8 * (inner**2 + 5 * n_edits * inner + 2 * n_edits**2)


def sums_bytes(inner: int, width: int) -> int:
    """Bytes of the inner x inner system: the metric's factor, the sums, the system and its factor (F, F), and four
    matrices (F, D)."""
    return 8 * (4 * inner**2 + 4 * inner * width)


def rounding_bytes(inner: int, width: int) -> int:
    """Bytes of rounding by the keys, beside the keys: the moment, the metric twice while it is sorted, and another
    matrix (F, F), and six matrices (F, D)."""
    return 8 * (4 * inner**2 + 6 * inner * width)

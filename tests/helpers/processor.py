"""Whether this processor's matrix products depend on where their operands lie in memory."""

from __future__ import annotations

import torch
from torch import Tensor


def _shifted(matrix: Tensor, by: int) -> Tensor:
    buffer = torch.empty(matrix.numel() + by, dtype=matrix.dtype)
    moved = buffer[by:].view(matrix.shape)
    return moved.copy_(matrix)


def products_are_reproducible() -> bool:
    """Equal operands at other addresses and of other row counts give equal bits, in float32 and float64."""
    generator = torch.Generator().manual_seed(0)
    for dtype in (torch.float32, torch.float64):
        left = torch.randn(500, 384, generator=generator).to(dtype)
        right = torch.randn(384, 1536, generator=generator).to(dtype)
        whole = left @ right
        for by in (1, 2, 4, 8):
            if not torch.equal(_shifted(left, by) @ _shifted(right, by), whole):
                return False
        for rows in (1, 3, 50, 77, 333):
            if not torch.equal(left[:rows] @ right, whole[:rows]):
                return False
    return True

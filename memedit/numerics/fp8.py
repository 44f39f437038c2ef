"""Scales of 8-bit floats: one for each block of a weight, each row, or the whole of it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

SMALLEST, LARGEST = 1e-30, 1e30
"""Of a scale. Real ones lie between 1e-9 and 1e2; within these bounds code times scale is a normal float32 number."""


def expanded_scale(
    scale: Tensor, shape: Sequence[int], block: tuple[int, int] | None, rows: tuple[int, int] | None = None
) -> Tensor:
    """The scale of every element of a weight of this shape (..., D, F), float32; of the rows [first, last) if given.

    scale: (..., D / block, F / block), rounded up. Without blocks (), (1,), (D,) or (D, 1). Raises ValueError with the
    reason where it has another shape, or a value that is no scale.
    """
    if not scale.is_floating_point():
        raise ValueError(f"it holds {str(scale.dtype).removeprefix('torch.')}, no floating-point numbers")
    if len(shape) < 2:
        raise ValueError(f"a weight of {len(shape)} dimensions has no blocks")
    height, width = shape[-2:]
    if block is None and scale.numel() == 1:
        block, scale = (height, width), scale.reshape([1] * len(shape))
    elif block is None:
        block, scale = (1, width), scale[..., None] if scale.ndim == len(shape) - 1 else scale
    wanted = (*shape[:-2], -(-height // block[0]), -(-width // block[1]))
    if tuple(scale.shape) != wanted:
        raise ValueError(f"it is {_size(scale.shape)}, and {_size(wanted)} belongs there")
    scale = scale.float()
    if not bool(((scale >= SMALLEST) & (scale <= LARGEST)).all()):
        raise ValueError("it holds values that are no positive finite numbers")
    first, last = rows or (0, height)
    down, across = torch.arange(first, last) // block[0], torch.arange(width) // block[1]
    return scale.index_select(-2, down).index_select(-1, across)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(f"{size:,}" for size in shape) or "one number"

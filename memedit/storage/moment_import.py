"""Second moments that other tools measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from memedit.errors import UsageError

ARRAY_NAMES = {"total": "mom2.mom2", "count": "mom2.count"}
ROWS_COMPARED = 1024
"""Rows of a sum that are compared at once."""
UNEVEN = 1e-3
"""How far both halves of a sum may differ, relative to its diagonal: GPUs sum in float32, in any order."""


def read_npz(file: Path) -> tuple[Tensor, int]:
    """The sum (F, F) float64 and the count of a statistics file of ROME, MEMIT or EasyEdit; pickles are refused.

    Raises UsageError for a file that is none, and for numbers that no sum of outer products can have.
    """
    hint = "give a layer's ..._float32_mom2_100000.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:
            found = {name: np.asarray(kept[key]) for name, key in ARRAY_NAMES.items()}
        count, total = _count(found["count"]), _sum(found["total"])
    except Exception as error:  # what numpy and zipfile raise for foreign bytes has many kinds
        reason = " ".join(str(error).split())
        raise UsageError(f"{file} is no file of second moments: {reason}", hint) from error
    return total, count


def _count(count: NDArray[Any]) -> int:
    """Raises ValueError for what is no number of tokens."""
    if count.dtype.kind not in "iuf" or count.size != 1 or not 1 <= (number := count.item()) < 2**63:
        raise ValueError(f"its count is {np.array2string(count, threshold=4)}, not a number of 1 or more")
    return int(number)


def _sum(array: NDArray[Any]) -> Tensor:
    """Raises ValueError for what is no sum of outer products."""
    if array.dtype.kind not in "iuf":
        raise ValueError(f"its sum holds {array.dtype}, not real numbers")
    if array.ndim != 2 or array.shape[0] != array.shape[1]:
        raise ValueError(f"its sum has the shape {array.shape}, and is not square")
    total = torch.from_numpy(array.astype(np.float64))
    if not total.isfinite().all():
        raise ValueError("its sum holds NaN or infinity")
    if (total.diagonal() < 0).any():
        raise ValueError("its sum has a negative number on the diagonal, where squares are summed")
    size = total.diagonal().sqrt()
    for at in range(0, len(total), ROWS_COMPARED):  # a sum may be as large as half of the memory
        rows = slice(at, at + ROWS_COMPARED)
        if ((total[rows] - total.T[rows]).abs() > UNEVEN * torch.outer(size[rows], size)).any():
            raise ValueError("its sum is not symmetric")
    return total

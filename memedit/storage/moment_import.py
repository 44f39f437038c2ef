"""Second moments that other tools measured."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memedit.errors import UsageError

ARRAY_NAMES = {"total": "mom2.mom2", "count": "mom2.count"}


def read_npz(file: Path) -> tuple[Tensor, int]:
    """The sum (F, F) float64 and the count of a statistics file of ROME, MEMIT or EasyEdit; pickles are refused."""
    hint = "give a layer's ..._float32_mom2_100000.npz"
    try:
        with np.load(file, allow_pickle=False) as kept:
            found: dict[str, Any] = {name: kept[key] for name, key in ARRAY_NAMES.items()}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UsageError(f"{file} is no file of second moments: {' '.join(str(error).split())}", hint) from error
    total = torch.from_numpy(np.asarray(found["total"], dtype=np.float64).copy())
    if total.ndim != 2:
        raise UsageError(f"{file} is no file of second moments: its sum has {total.ndim} dimensions", hint)
    return total, int(found["count"])

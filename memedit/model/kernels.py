"""Which kernels a model's attention runs on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

ON_CUDA = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Flash where there is no mask, memory-efficient where there is one, and the plain products where neither fits.

Not cuDNN, which torch tries first for half precision on new GPUs: it makes a plan for every new shape, which takes tens
to hundreds of milliseconds, and the search packs its rows again and again. The kernels here need no plan, so row counts
need not be rounded up to a few sizes either, which would run rows that nobody reads."""


def attention_kernels(device: torch.device) -> AbstractContextManager[object]:
    """Inside, attention on a GPU runs on `ON_CUDA`. On other devices nothing is set, and torch chooses.

    A backward pass runs on the kernels of its forward, wherever it is started.
    """
    return sdpa_kernel(ON_CUDA) if device.type == "cuda" else nullcontext()

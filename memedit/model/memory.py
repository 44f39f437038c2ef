"""A device's memory and precision: how much is free, what it looks like when none is, and float64 where it is."""

from __future__ import annotations

import torch
from torch import Tensor


def free_on(device: torch.device) -> int | None:
    """Bytes that a GPU has free; None for any other device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def in_double(tensor: Tensor) -> Tensor:
    """A tensor in float64: where it is, or on the CPU, since not every device has float64 (mps has not)."""
    return tensor.double() if tensor.device.type in ("cpu", "cuda") else tensor.cpu().double()


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the memory is full; on a CPU torch says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def give_back(device: torch.device) -> None:
    """Return what torch holds and does not use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

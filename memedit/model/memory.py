"""A GPU's memory: how much is free, and what it looks like when none is."""

from __future__ import annotations

import torch


def free_on(device: torch.device) -> int | None:
    """Bytes that a GPU has free; None for any other device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def ran_out(error: BaseException) -> bool:
    """Whether an error says that the memory is full; on a CPU torch says so in words only."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator: can't allocate memory" in str(error)
    )


def give_back(device: torch.device) -> None:
    """Return what torch holds and does not use."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

"""The memory and the precision of a device: bytes free, errors that mean "full", and float64 where it exists."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor

from memedit.errors import ResourceError

FULL = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
    "Cannot allocate memory",
    "can't start new thread",
)
"""Words of a RuntimeError that mean that memory ran out: not every backend of torch has an error class for it."""


def free_on(device: torch.device) -> int | None:
    """Bytes that are free on a GPU; None for any other device."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def send(table: Tensor, device: torch.device) -> Tensor:
    """Send a table that was made in main memory to a device.

    To a GPU it goes from pinned memory: the copy then takes its turn behind the work that the GPU has, and the host
    goes on. Any other copy waits until all of that work is done, in every forward.
    """
    if device.type != "cuda" or table.device.type != "cpu":
        return table.to(device)
    return table.pin_memory().to(device, non_blocking=True)


def in_double(tensor: Tensor) -> Tensor:
    """Convert a tensor to float64: on its device, or on the CPU where the device has no float64 (mps)."""
    return tensor.double() if tensor.device.type in ("cpu", "cuda") else tensor.cpu().double()


def ran_out(error: BaseException) -> bool:
    """Whether an error means that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in FULL)
    )


@contextmanager
def memory_named(message: str, hint: str) -> Generator[None]:
    """Raise ResourceError with this message and hint where memory runs out inside."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not ran_out(error):
            raise
        raise ResourceError(message, hint) from error


def give_back(device: torch.device) -> None:
    """Return memory that torch holds and does not use to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()

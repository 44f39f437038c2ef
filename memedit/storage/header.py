"""Encode the header of a safetensors file. Every file that memedit writes in this format gets its header here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

Place = tuple[str, str, tuple[int, ...], int]
"""A tensor's name, its dtype as the format names it, its shape, and its length in bytes."""


def encode_header(places: Iterable[Place], metadata: Mapping[str, str]) -> bytes:
    """Return the first bytes of a file whose tensors follow one another in this order.

    Metadata keys are sorted, so that the same content gives the same bytes in every process.
    """
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for name, dtype, shape, size in places:
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Iterator[bytes | memoryview]:
    """Yield a file in parts: its header, then the bytes of each tensor, in the order that safetensors chooses."""
    # It orders by dtype and name: one number of each tensor's dtype shows the order, without a copy of the tensors.
    ones = save({name: torch.zeros(1, dtype=tensor.dtype) for name, tensor in tensors.items()})
    found: dict[str, Any] = json.loads(ones[8 : 8 + int.from_bytes(ones[:8], "little")])
    order = sorted(found, key=lambda name: found[name]["data_offsets"])
    places = ((name, found[name]["dtype"], tuple(tensors[name].shape), tensors[name].nbytes) for name in order)
    yield encode_header(places, metadata)
    for name in order:
        yield tensor_bytes(tensors[name])


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's bytes, row by row; they are not copied if it is contiguous and on the CPU."""
    whole = tensor.detach().cpu().contiguous()
    if not whole.numel():  # numpy has no view of zero bytes as another dtype
        return memoryview(b"")
    # Of a tensor with one row the stride can be any number, and torch takes only 1 for a view as bytes.
    return whole.as_strided((whole.numel(),), (1,)).view(torch.uint8).numpy().data


def saved(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a file of tensors. safetensors itself writes metadata in an order that changes."""
    return b"".join(encode(tensors, metadata))

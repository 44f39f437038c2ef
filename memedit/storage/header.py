"""Encode the header of a safetensors file. Every file that memedit writes in this format gets its header here."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

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


def encode(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> tuple[bytes, memoryview]:
    """Return a file's header and its data. The tensors must be contiguous; the library chooses their order."""
    data = save(dict(tensors))
    start = 8 + int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8:start])
    header.pop("__metadata__", None)
    ordered = sorted(header.items(), key=lambda item: item[1]["data_offsets"])
    places = [
        (name, one["dtype"], tuple(one["shape"]), one["data_offsets"][1] - one["data_offsets"][0])
        for name, one in ordered
    ]
    return encode_header(places, metadata), memoryview(data)[start:]


def saved(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes of a file of tensors. safetensors itself writes metadata in an order that changes."""
    return b"".join(encode(tensors, metadata))

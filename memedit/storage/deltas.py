"""Write and read delta files: the change of each tensor as float32 factors, and the digest of the base model."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memedit.errors import StorageError
from memedit.numerics.delta import Delta
from memedit.storage.header import encode, saved
from memedit.storage.tensorfile import shown_name

FORMAT, VERSION = "memedit-delta", "1"
LARGEST_NDIM = 16  # torch computes with at most 64


def delta_parts(deltas: Mapping[str, Delta], base: str, about: Mapping[str, Any]) -> Iterator[bytes | memoryview]:
    """Yield the file in parts: its header, then `<tensor>.left` and `<tensor>.right`, or `<tensor>.dense`, (D, F).

    Where the edited weight is not the nearest one, `<tensor>.steps`: a zlib stream of one int8 an element, (D, F).
    """
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        if delta.right is None:
            tensors[f"{name}.dense"] = delta.left
        else:
            tensors |= {f"{name}.left": delta.left, f"{name}.right": delta.right}
        if delta.steps is not None:
            tensors[f"{name}.steps"] = _packed(delta.steps)
    metadata = {"format": FORMAT, "version": VERSION, "base": base, "about": json.dumps(dict(about), sort_keys=True)}
    return encode(tensors, metadata)


def delta_bytes(deltas: Mapping[str, Delta], base: str, about: Mapping[str, Any]) -> bytes:
    """Return the file's bytes; see `delta_parts`."""
    return b"".join(delta_parts(deltas, base, about))


def read_delta(file: Path) -> tuple[dict[str, Delta], str]:
    """Read the deltas of a file, and the digest of their base model.

    Raises StorageError for a file of another kind, a damaged one, or one with values that are not finite.
    """
    hint = "give the memedit/delta.safetensors of an edited model"
    try:
        with safe_open(file, "pt") as kept:
            metadata = kept.metadata() or {}
            tensors = {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file} cannot be read as a delta file: {_line(error)}", hint) from error
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise StorageError(f"{file} is no delta file of version {VERSION}", hint)
    try:
        names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
        found = {name: _delta(name, tensors) for name in names}
        base = metadata["base"]
    except (KeyError, ValueError, TypeError) as error:
        raise StorageError(
            f"{file} is damaged: it lacks a part of its deltas, or their shapes disagree", hint
        ) from error
    check_finite(file, tensors, hint)
    if not found:
        raise StorageError(f"{file} holds no change", hint)
    return found, base


def check_finite(file: Path, tensors: Mapping[str, Tensor], hint: str) -> None:
    """Raise StorageError where a tensor holds NaN or infinity, or has more dimensions than a weight can have."""
    for name, tensor in tensors.items():
        if tensor.ndim > LARGEST_NDIM:
            raise StorageError(f"{file}: {shown_name(name)} has {tensor.ndim:,} dimensions", hint)
        if (tensor.is_floating_point() or tensor.is_complex()) and not bool(tensor.isfinite().all()):
            raise StorageError(f"{file}: {shown_name(name)} holds values that are not finite (NaN or infinity)", hint)


def originals_bytes(tensors: Mapping[str, Tensor], base: str) -> bytes:
    """Return a file of the tensors before the edit, in the checkpoint's dtype and orientation, for an exact revert."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return saved(whole, {"format": "memedit-originals", "version": VERSION, "base": base})


def read_originals(file: Path, base: str, names: Collection[str]) -> dict[str, Tensor] | None:
    """Read the original tensors that were kept; None where there are none, or other ones, or those of another base.

    Raises StorageError for a damaged file, or one with values that are not finite.
    """
    hint = "remove it, and give the base with -m"
    try:
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get("base") != base or set(kept.keys()) != set(names):
                return None
            found = {name: kept.get_tensor(name) for name in names}
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file} cannot be read as original tensors: {_line(error)}", hint) from error
    check_finite(file, found, hint)
    return found


def _line(error: Exception) -> str:
    """Return another library's message on one line."""
    return " ".join(str(error).split())[:200]


def _delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    if (dense := tensors.get(f"{name}.dense")) is not None:
        found = Delta(dense)
    else:
        found = Delta(tensors[f"{name}.left"], tensors[f"{name}.right"])
    parts = [part for part in (found.left, found.right) if part is not None]
    if any(part.ndim != 2 or not part.is_floating_point() or part.dtype != parts[0].dtype for part in parts):
        raise ValueError(name)
    if found.right is not None and found.left.shape[1] != found.right.shape[0]:
        raise ValueError(name)
    packed = tensors.get(f"{name}.steps")
    return found if packed is None else replace(found, steps=_unpacked(packed, found.shape))


def _packed(steps: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(steps.contiguous().numpy().tobytes(), 9)), dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Unpack a zlib stream of int8. Raises ValueError where it is damaged, or not of this shape."""
    size = shape[0] * shape[1]
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError("steps") from error
    if len(data) != size or not stream.eof:
        raise ValueError("steps")
    return torch.frombuffer(bytearray(data), dtype=torch.int8).reshape(shape)

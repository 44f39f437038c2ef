"""The delta file: an edit's change of each tensor, as float32 factors, bound to the base model by its digest."""

from __future__ import annotations

import json
import zlib
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from memedit.errors import StorageError
from memedit.numerics.delta import Delta
from memedit.storage.tensorfile import saved

FORMAT, VERSION = "memedit-delta", "1"


def delta_bytes(deltas: Mapping[str, Delta], base: str, about: Mapping[str, Any]) -> bytes:
    """The file's bytes: `<tensor>.left` and `<tensor>.right`, or `<tensor>.dense`, oriented (D, F).

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
    return saved(tensors, metadata)


def read_delta(file: Path) -> tuple[dict[str, Delta], str]:
    """The deltas of a file and the digest of the model they belong to. Raises StorageError for any other file."""
    hint = "give the memedit/delta.safetensors of an edited model"
    try:
        with safe_open(file, "pt") as kept:
            metadata = kept.metadata() or {}
            tensors = {key: kept.get_tensor(key) for key in kept.keys()}  # noqa: SIM118 - no mapping
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file} cannot be read as a delta file: {error}", hint) from error
    if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
        raise StorageError(f"{file} is no delta file of version {VERSION}", hint)
    try:
        names = dict.fromkeys(key.rpartition(".")[0] for key in tensors)
        return {name: _delta(name, tensors) for name in names}, metadata["base"]
    except (KeyError, ValueError) as error:
        raise StorageError(
            f"{file} is damaged: it lacks a part of its deltas, or their shapes disagree", hint
        ) from error


def originals_bytes(tensors: Mapping[str, Tensor], base: str) -> bytes:
    """The tensors that an edit changed as they were, in the checkpoint's dtype and orientation: an undo to the bit."""
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    return saved(whole, {"format": "memedit-originals", "version": VERSION, "base": base})


def read_originals(file: Path, base: str, names: Collection[str]) -> dict[str, Tensor] | None:
    """The original tensors that were kept; None where there are none, or not these of this base."""
    try:
        with safe_open(file, "pt") as kept:
            if (kept.metadata() or {}).get("base") != base or set(kept.keys()) != set(names):
                return None
            return {name: kept.get_tensor(name) for name in names}
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        hint = "remove it, and give the base with -m"
        raise StorageError(f"{file} cannot be read as original tensors: {error}", hint) from error


def _delta(name: str, tensors: Mapping[str, Tensor]) -> Delta:
    if (dense := tensors.get(f"{name}.dense")) is not None:
        found = Delta(dense)
    else:
        found = Delta(tensors[f"{name}.left"], tensors[f"{name}.right"])
    if any(part is not None and part.ndim != 2 for part in (found.left, found.right)):
        raise ValueError(name)
    if found.right is not None and found.left.shape[1] != found.right.shape[0]:
        raise ValueError(name)
    packed = tensors.get(f"{name}.steps")
    return found if packed is None else replace(found, steps=_unpacked(packed, found.shape))


def _packed(steps: Tensor) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(steps.contiguous().numpy().tobytes(), 9)), dtype=torch.uint8)


def _unpacked(packed: Tensor, shape: tuple[int, int]) -> Tensor:
    """Raises ValueError where the stream is damaged, or not of this shape."""
    size = shape[0] * shape[1]
    stream = zlib.decompressobj()
    try:
        data = stream.decompress(packed.numpy().tobytes(), size + 1)
    except zlib.error as error:
        raise ValueError("steps") from error
    if len(data) != size or not stream.eof:
        raise ValueError("steps")
    return torch.frombuffer(bytearray(data), dtype=torch.int8).reshape(shape)

"""Read the safetensors format far enough to change one tensor's bytes in place."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memedit.errors import StorageError, UnsupportedModelError
from memedit.storage.artifacts import telling, writing
from memedit.storage.header import encode_header, saved

__all__ = ["DTYPES", "SCALE_DTYPES", "SIZES", "TensorEntry", "in_order", "read_header", "saved", "shown_name", "stream"]

LONGEST_HEADER = 100_000_000  # bytes, the format's own limit
MOST_DIMENSIONS = 64  # of a tensor, as in torch
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn}
"""Dtypes of weights that memedit can edit; the last with a scale (see Checkpoint.grid)."""
SCALE_DTYPES = {**DTYPES, "F8_E8M0": torch.float8_e8m0fnu}
"""Dtypes of scales that memedit reads. F8_E8M0 (ue8m0) holds powers of two: the exponent alone."""
SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file: bytes [start, end) from the beginning of the file."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self, dtypes: Mapping[str, torch.dtype] = DTYPES) -> Tensor:
        """Read the tensor in its stored dtype, one of `dtypes`.

        Raises UnsupportedModelError for another dtype, StorageError for a file that is cut short.
        """
        if self.dtype not in dtypes:
            raise UnsupportedModelError(
                f"{self.name} is stored as {self.dtype}; memedit edits float32, float16, bfloat16, and float8_e4m3fn "
                "with scales",
                "edit a checkpoint in one of these, then convert the result",
            )
        with telling(f"read {self.file}"), self.file.open("rb") as stream:
            stream.seek(self.start)
            data = bytearray(stream.read(self.end - self.start))
        if len(data) != self.end - self.start:
            raise _damaged(self.file, "it is cut short")
        return torch.frombuffer(data, dtype=dtypes[self.dtype]).reshape(self.shape)

    @property
    def rows(self) -> int:
        """Return the tensor's first dimension: parts are read in units of it."""
        return self.shape[0] if self.shape else 1

    def part(self, first: int, last: int) -> bytes:
        """Read the bytes of rows [first, last)."""
        row = (self.end - self.start) // max(self.rows, 1)
        with telling(f"read {self.file}"), self.file.open("rb") as stream:
            stream.seek(self.start + first * row)
            return stream.read((last - first) * row)

    def bytes_of(self, tensor: Tensor) -> bytes:
        """Return a tensor's bytes as this entry stores them; it must have the entry's dtype and shape."""
        assert tuple(tensor.shape) == self.shape and tensor.dtype == DTYPES[self.dtype], self.name
        return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Read where every tensor of a file lies. Raises StorageError for a damaged header, or a file that is cut short."""
    with telling(f"read {file}"), file.open("rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, max(size - 8, 0)):
            raise _damaged(file, "its header's length makes no sense")
        raw = stream.read(length)
    try:
        header: Any = json.loads(raw, object_pairs_hook=_once)
        _check_metadata(header.pop("__metadata__", {}))
        entries = {name: _entry(file, name, record, 8 + length) for name, record in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise _damaged(file, "its header is not what the format asks for") from error
    at = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != at:
            raise _damaged(file, f"{shown_name(entry.name)} begins at byte {entry.start:,}, not {at:,}")
        at = entry.end
    if at != size:
        raise _damaged(file, f"it has {size:,} bytes, and its header describes {at:,}")
    return entries


def shown_name(name: str) -> str:
    """Return a tensor's name for a message: on one line, and of a bounded length."""
    text = name if name.isprintable() else repr(name)
    return text if len(text) <= 120 else f"{text[:117]}..."


def in_order(name: str) -> list[tuple[int, str]]:
    """Return a sort key for tensors' names that puts block 2 before block 10."""
    # int() refuses some characters that isdigit() takes, and more than 4,300 digits.
    return [(int(part), "") if part.isdecimal() and len(part) < 19 else (-1, part) for part in name.split(".")]


def stream(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
    *,
    replace: bool = True,
) -> None:
    """Write a file of float32 tensors, each made just before it is written; the file appears whole or not at all.

    Without `replace`, a file that exists by then stays as it is: StorageError.
    """
    header = encode_header(((name, "F32", shape, 4 * math.prod(shape)) for name, shape in shapes.items()), metadata)
    with writing(file, replace=replace) as out:
        out.write(header)
        for name, shape in shapes.items():
            tensor = make(name)
            assert tuple(tensor.shape) == shape and tensor.dtype == torch.float32, name
            out.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of a header's pairs. Raises ValueError for a name that is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name twice")
    return found


def _check_metadata(metadata: Any) -> None:
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("metadata")


def _entry(file: Path, name: str, record: dict[str, Any], base: int) -> TensorEntry:
    start, end = record["data_offsets"]
    dtype, shape = record["dtype"], tuple(record["shape"])
    if not isinstance(dtype, str) or len(shape) > MOST_DIMENSIONS or not isinstance(record["shape"], list):
        raise ValueError(name)
    # bool is an int in Python, and no number in this format
    if not all(type(number) is int and number >= 0 for number in (start, end, *shape)) or end < start:
        raise ValueError(name)
    # A dtype that is unknown here belongs to a tensor that is not edited: it is copied, whatever its size.
    if dtype in SIZES and end - start != math.prod(shape) * SIZES[dtype]:
        raise ValueError(name)
    return TensorEntry(file, name, dtype, shape, base + start, base + end)


def _damaged(file: Path, reason: str) -> StorageError:
    return StorageError(f"{file} is damaged: {reason}", "fetch the checkpoint again")

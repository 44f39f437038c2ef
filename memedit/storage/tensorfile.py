"""The safetensors format, read far enough to change a tensor's bytes in place and touch nothing else."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from memedit.errors import StorageError, UnsupportedModelError
from memedit.storage.artifacts import telling, writing

LONGEST_HEADER = 100_000_000  # the format's own limit
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Dtypes of weights that can be changed by a little."""
SIZES = {
    "F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1,
    "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1, "C64": 8,
}  # fmt: skip


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor lies in its file: bytes [start, end) from the file's beginning."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    def read(self) -> Tensor:
        """The tensor in its stored dtype. Raises UnsupportedModelError for one that is quantized or not a float."""
        if self.dtype not in DTYPES:
            raise UnsupportedModelError(
                f"{self.name} is stored as {self.dtype}; memedit edits float32, float16 and bfloat16",
                "edit a checkpoint in one of these, then convert the result",
            )
        with telling(f"read {self.file}"), self.file.open("rb") as stream:
            stream.seek(self.start)
            data = bytearray(stream.read(self.end - self.start))
        return torch.frombuffer(data, dtype=DTYPES[self.dtype]).reshape(self.shape)

    @property
    def rows(self) -> int:
        """The tensor's first size: what it is read by where it is read in parts."""
        return self.shape[0] if self.shape else 1

    def part(self, first: int, last: int) -> bytes:
        """The bytes of rows [first, last)."""
        row = (self.end - self.start) // max(self.rows, 1)
        with telling(f"read {self.file}"), self.file.open("rb") as stream:
            stream.seek(self.start + first * row)
            return stream.read((last - first) * row)

    def bytes_of(self, tensor: Tensor) -> bytes:
        """A tensor as this entry stores it; it must have the entry's dtype and shape."""
        assert tuple(tensor.shape) == self.shape and tensor.dtype == DTYPES[self.dtype], self.name
        return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Every tensor of a file. Raises StorageError when the header is damaged or the file is cut short."""
    with telling(f"read {file}"), file.open("rb") as stream:
        size = file.stat().st_size
        first = stream.read(8)
        length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
        if not 2 <= length <= min(LONGEST_HEADER, max(size - 8, 0)):
            raise _damaged(file, "its header's length makes no sense")
        raw = stream.read(length)
    try:
        header: Any = json.loads(raw)
        entries = {
            name: _entry(file, name, record, 8 + length) for name, record in header.items() if name != "__metadata__"
        }
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _damaged(file, "its header is not what the format asks for") from error
    at = 8 + length
    for entry in sorted(entries.values(), key=lambda entry: (entry.start, entry.end)):
        if entry.start != at:
            raise _damaged(file, f"{entry.name} begins at byte {entry.start:,}, not {at:,}")
        at = entry.end
    if at != size:
        raise _damaged(file, f"it has {size:,} bytes; its header tells of {at:,}")
    return entries


def saved(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A file of tensors, its metadata sorted: safetensors writes them in an order that changes with the process."""
    data = save(dict(tensors), dict(metadata))
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]


def in_order(name: str) -> list[tuple[int, str]]:
    """What to sort tensors' names by, so that block 2 comes before block 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]


def stream(
    file: Path,
    shapes: Mapping[str, tuple[int, ...]],
    make: Callable[[str], Tensor],
    metadata: Mapping[str, str],
) -> None:
    """Write a file of float32 tensors, each made when its turn comes: aside, to the disk, then renamed."""
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    at = 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, at + 4 * math.prod(shape)]}
        at += 4 * math.prod(shape)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with writing(file) as out:
        out.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = make(name)
            assert tuple(tensor.shape) == shape and tensor.dtype == torch.float32, name
            out.write(tensor.contiguous().view(torch.uint8).numpy().tobytes())


def _entry(file: Path, name: str, record: dict[str, Any], base: int) -> TensorEntry:
    start, end = record["data_offsets"]
    shape = tuple(record["shape"])
    if not all(isinstance(number, int) and number >= 0 for number in (start, end, *shape)):
        raise ValueError(name)
    # A dtype that is not known here belongs to a tensor that is not edited: it is copied, whatever its size.
    if record["dtype"] in SIZES and end - start != math.prod(shape) * SIZES[record["dtype"]]:
        raise ValueError(name)
    return TensorEntry(file, name, record["dtype"], shape, base + start, base + end)


def _damaged(file: Path, reason: str) -> StorageError:
    return StorageError(f"{file} is damaged: {reason}", "fetch the checkpoint again")

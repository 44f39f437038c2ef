"""Malformed headers and indexes of checkpoints: a name, and the bytes of the one weight file or of the index."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class Header(NamedTuple):
    """One malformed weight file."""

    name: str
    data: bytes


def _file(header: Any, data: int = 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def _tensor(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {"dtype": "F16", "shape": [2, 4], "data_offsets": [0, 16]}
    return {"a": {key: value for key, value in {**good, **changes}.items() if value != "-"}}


_ONE = b'"a":{"dtype":"F16","shape":[8],"data_offsets":[0,16]}'
_TWO = {"a": {"dtype": "F16", "shape": [4], "data_offsets": [0, 8]}}

HEADERS = [
    Header("empty", b""),
    Header("seven bytes", bytes(7)),
    Header("length of zero", bytes(8)),
    Header("length beyond the file", (1 << 40).to_bytes(8, "little") + b"{}"),
    Header("length of all bits", b"\xff" * 8 + b"{}"),
    Header("length beyond the format's limit", (100_000_001).to_bytes(8, "little") + b"{}"),
    Header("no JSON", _file(b"{nonsense")),
    Header("not UTF-8", _file(b'{"\xff\xfe": 1}')),
    Header("a list", _file([])),
    Header("null", _file(None)),
    Header("a number", _file(b"12")),
    Header("nested without end", _file(b"[" * 100_000)),
    Header("nested in an object", _file(b'{"a":' * 50_000 + b"1" + b"}" * 50_000)),
    Header("no tensors", _file({}, 0)),
    Header("metadata alone", _file({"__metadata__": {"format": "pt"}}, 0)),
    Header("metadata that is a list", _file({"__metadata__": [], **_tensor()})),
    Header("metadata that is no text", _file({"__metadata__": {"format": 5}, **_tensor()})),
    Header("metadata nested", _file({"__metadata__": {"a": {"b": "c"}}, **_tensor()})),
    Header("a tensor that is a list", _file({"a": []})),
    Header("a tensor that is null", _file({"a": None})),
    Header("a tensor nested", _file({"a": _tensor()})),
    Header("a name twice", _file(b"{" + _ONE + b"," + _ONE + b"}")),
    Header("no dtype", _file(_tensor(dtype="-"))),
    Header("a dtype that is a number", _file(_tensor(dtype=5))),
    Header("a dtype that is a list", _file(_tensor(dtype=["F16"]))),
    Header("no shape", _file(_tensor(shape="-"))),
    Header("a shape that is a number", _file(_tensor(shape=8))),
    Header("a shape that is text", _file(_tensor(shape="24"))),
    Header("a shape of truth values", _file(_tensor(dtype="F64", shape=[True, 2]))),
    Header("a negative shape", _file(_tensor(shape=[-2, -4]))),
    Header("a shape of fractions", _file(_tensor(shape=[2.0, 4.0]))),
    Header("too large a shape", _file(_tensor(shape=[10**30, 4]))),
    Header("a thousand dimensions", _file(_tensor(shape=[8] + [1] * 1000))),
    Header("no offsets", _file(_tensor(data_offsets="-"))),
    Header("one offset", _file(_tensor(data_offsets=[0]))),
    Header("three offsets", _file(_tensor(data_offsets=[0, 8, 16]))),
    Header("negative offsets", _file(_tensor(data_offsets=[-16, 0]))),
    Header("offsets the wrong way round", _file(_tensor(dtype="NEW", data_offsets=[16, 0]))),
    Header("offsets that are text", _file(_tensor(data_offsets=["0", "16"]))),
    Header("offsets beyond the file", _file(_tensor(shape=[8, 4], data_offsets=[0, 64]))),
    Header("offsets that leave a gap", _file(_tensor(data_offsets=[16, 32]), 32)),
    Header("tensors that overlap", _file({**_TWO, "b": {"dtype": "F16", "shape": [6], "data_offsets": [4, 16]}})),
    Header("bytes after the last tensor", _file(_tensor(), 17)),
    Header("bytes missing", _file(_tensor(), 15)),
    Header("a name with line breaks", _file({"a\n\x1b[2Jb": _tensor(data_offsets=[16, 32])["a"]}, 32)),
]  # fmt: skip

INDEXES = {
    "empty": b"",
    "not UTF-8": b'{"weight_map": {"\xff": "x"}}',
    "nested without end": b"[" * 100_000,
    "a list": b"[]",
    "null": b"null",
    "no weight_map": b'{"metadata": {}}',
    "weight_map that is null": b'{"weight_map": null}',
    "weight_map that is a list": b'{"weight_map": []}',
    "weight_map nested": b'{"weight_map": {"a": {"b": "c"}}}',
    "an empty weight_map": b'{"weight_map": {}}',
    "a shard that is a number": b'{"weight_map": {"a": 5}}',
    "a shard elsewhere": b'{"weight_map": {"a": "../secret.safetensors"}}',
    "a shard that is not there": b'{"weight_map": {"a": "none.safetensors"}}',
    "a shard with a zero byte": b'{"weight_map": {"a": "a\\u0000b"}}',
    "a shard with a long name": json.dumps({"weight_map": {"a": "x" * 5000}}).encode(),
    "a shard with half a character": b'{"weight_map": {"a": "\\ud800"}}',
    "a shard that is the folder": b'{"weight_map": {"a": "."}}',
}

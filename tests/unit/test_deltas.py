"""A delta file is the same bytes from every process, comes back as it was, and no other file passes for it."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from memedit.errors import StorageError
from memedit.numerics.delta import Delta
from memedit.storage.deltas import delta_bytes, read_delta
from safetensors.torch import save

DELTAS = {"h.0.w": Delta(torch.ones(4, 1), torch.arange(6.0)[None]), "h.1.w": Delta(torch.full((2, 3), 0.5))}
KNOWN = {"format": "memedit-delta", "version": "1", "base": "abc"}
PRINTS = """
import hashlib
from tests.unit.test_deltas import DELTAS, delta_bytes
print(hashlib.sha256(delta_bytes(DELTAS, "abc", {"method": "memit", "ridge": 1.0})).hexdigest())
"""


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "delta.safetensors"
    file.write_bytes(delta_bytes(DELTAS, "abc", {"method": "memit"}))
    found, base = read_delta(file)
    assert base == "abc" and found.keys() == DELTAS.keys()
    for name, delta in DELTAS.items():
        assert (found[name].right is None) == (delta.right is None)
        assert torch.equal(found[name].dense(), delta.dense())


def test_every_process_writes_the_same_bytes() -> None:
    here = hashlib.sha256(delta_bytes(DELTAS, "abc", {"ridge": 1.0, "method": "memit"})).hexdigest()
    for _ in range(3):
        there = subprocess.run([sys.executable, "-c", PRINTS], capture_output=True, text=True, check=True)
        assert there.stdout.strip() == here


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"w.left": torch.ones(2, 1)}, KNOWN),
        ({"w.left": torch.ones(2, 1), "w.right": torch.ones(3, 2)}, KNOWN),
        ({"w.dense": torch.ones(2, 1)}, {"format": "memedit-delta", "version": "1"}),
        ({"w.dense": torch.ones(2, 1)}, {**KNOWN, "version": "2"}),
        ({"w": torch.ones(2, 1)}, {"format": "pt"}),
    ],
    ids=["half", "shapes", "no base", "version", "foreign"],
)
def test_another_file_is_refused(tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> None:
    file = tmp_path / "delta.safetensors"
    file.write_bytes(save(tensors, metadata))
    with pytest.raises(StorageError, match=r"delta\.safetensors"):
        read_delta(file)


@pytest.mark.parametrize("kept", [0, 5, 60, -1])
def test_a_file_cut_short_is_refused(tmp_path: Path, kept: int) -> None:
    file = tmp_path / "delta.safetensors"
    file.write_bytes(delta_bytes(DELTAS, "abc", {})[:kept])
    with pytest.raises(StorageError):
        read_delta(file)

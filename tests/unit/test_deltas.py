"""A delta file is the same bytes from every process, comes back as it was, and no other file passes for it."""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from memedit.errors import StorageError
from memedit.storage.deltas import delta_bytes, originals_bytes, read_delta, read_originals
from memedit.storage.tensorfile import stream
from safetensors.torch import load_file, save, save_file
from tests.helpers.samples import DELTAS, digests_elsewhere

KNOWN = {"format": "memedit-delta", "version": "1", "base": "abc"}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    file = tmp_path / "delta.safetensors"
    file.write_bytes(delta_bytes(DELTAS, "abc", {"method": "memit"}))
    found, base = read_delta(file)
    assert base == "abc" and found.keys() == DELTAS.keys()
    for name, delta in DELTAS.items():
        assert (found[name].right is None) == (delta.right is None)
        assert torch.equal(found[name].dense(), delta.dense())


@pytest.mark.process
def test_every_process_writes_the_same_bytes() -> None:
    here = hashlib.sha256(delta_bytes(DELTAS, "abc", {"ridge": 1.0, "method": "memit"})).hexdigest()
    assert digests_elsewhere(hash_seed=1)[0] == here


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


def test_originals_come_back_for_their_base_and_their_tensors_only(tmp_path: Path) -> None:
    file, kept = tmp_path / "originals.safetensors", {"w": torch.randn(3, 2).half().T}
    assert read_originals(file, "abc", ["w"]) is None
    file.write_bytes(originals_bytes(kept, "abc"))
    found = read_originals(file, "abc", ["w"])
    assert found is not None and torch.equal(found["w"], kept["w"]) and found["w"].dtype == torch.float16
    assert read_originals(file, "abd", ["w"]) is None
    assert read_originals(file, "abc", ["w", "v"]) is None
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(StorageError, match="originals"):
        read_originals(file, "abc", ["w"])


def test_tensors_written_one_by_one_are_a_file_like_any(tmp_path: Path) -> None:
    file, parts = tmp_path / "x.safetensors", {"a": torch.randn(3, 2).T, "b": torch.randn(5)}
    stream(file, {name: tuple(part.shape) for name, part in parts.items()}, parts.__getitem__, {"format": "pt"})
    found = load_file(file)
    assert all(torch.equal(found[name], part) for name, part in parts.items()) and found.keys() == parts.keys()

    def fails(name: str) -> torch.Tensor:
        raise StorageError("gone")

    with pytest.raises(StorageError, match="gone"):
        stream(file, {"a": (2, 3)}, fails, {})
    assert load_file(file).keys() == parts.keys()
    assert [path.name for path in tmp_path.iterdir() if path.name != "cache"] == [file.name]


def test_steps_are_packed_and_come_back(tmp_path: Path) -> None:
    steps = torch.randint(-3, 4, (4, 6), dtype=torch.int8)
    file = tmp_path / "delta.safetensors"
    file.write_bytes(delta_bytes({"h.0.w": replace(DELTAS["h.0.w"], steps=steps), "h.1.w": DELTAS["h.1.w"]}, "abc", {}))
    found, _ = read_delta(file)
    assert found["h.0.w"].steps is not None and torch.equal(found["h.0.w"].steps, steps)
    assert found["h.1.w"].steps is None


@pytest.mark.parametrize("size", [23, 25])
@pytest.mark.parametrize("cut", [0, 3])
def test_steps_that_do_not_fit_are_refused(tmp_path: Path, size: int, cut: int) -> None:
    stream = zlib.compress(bytes(size if not cut else 24))
    tensors = {
        "w.dense": torch.ones(4, 6),
        "w.steps": torch.tensor(list(stream[: len(stream) - cut]), dtype=torch.uint8),
    }
    file = tmp_path / "delta.safetensors"
    file.write_bytes(save(tensors, KNOWN))
    with pytest.raises(StorageError, match="damaged"):
        read_delta(file)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("part", ["w.left", "w.right", "v.dense"])
def test_values_that_are_not_finite_are_refused_by_the_tensor_s_name(part: str, value: float, tmp_path: Path) -> None:
    tensors = {"w.left": torch.ones(3, 1), "w.right": torch.ones(1, 2), "v.dense": torch.ones(3, 2)}
    save_file(tensors, tmp_path / "delta.safetensors", KNOWN)
    read_delta(tmp_path / "delta.safetensors")
    tensors[part][0, 0] = value
    save_file(tensors, tmp_path / "delta.safetensors", KNOWN)
    with pytest.raises(StorageError, match="not finite") as caught:
        read_delta(tmp_path / "delta.safetensors")
    assert part in caught.value.message
    save_file({"w": torch.full((2, 2), value).half()}, tmp_path / "originals.safetensors", {"base": "abc"})
    with pytest.raises(StorageError, match="not finite"):
        read_originals(tmp_path / "originals.safetensors", "abc", ["w"])


def test_factors_of_whole_numbers_are_refused(tmp_path: Path) -> None:
    tensors = {"w.left": torch.ones(3, 1, dtype=torch.int64), "w.right": torch.ones(1, 2)}
    save_file(tensors, tmp_path / "delta.safetensors", KNOWN)
    with pytest.raises(StorageError, match="damaged"):
        read_delta(tmp_path / "delta.safetensors")

"""Two models' folders are told apart by what they hold, not by how it is cut into files."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from memedit.progress import NoProgress
from memedit.results.changes import Comparison
from memedit.storage import comparison
from memedit.storage.comparison import compare
from safetensors.torch import save_file

ROUNDING = 1e-6


def tensors() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(7)
    return {
        "a.2.w": torch.randn(30, 20, generator=draw).half(),
        "a.10.w": torch.randn(30, 20, generator=draw).half(),
        "b": torch.randn(30, generator=draw),
        "n": torch.arange(6).reshape(2, 3),
    }


def folder(path: Path, parts: dict[str, torch.Tensor], *, files: int = 1) -> Path:
    """A checkpoint of these tensors in so many files, with a config."""
    path.mkdir()
    names = list(parts)
    if files == 1:
        save_file(parts, path / "model.safetensors")
    else:
        where = {name: f"model-{n % files}.safetensors" for n, name in enumerate(names)}
        for file in set(where.values()):
            save_file({name: parts[name] for name in names if where[name] == file}, path / file)
        (path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (path / "config.json").write_text("{}")
    return path


def told(a: Path, b: Path) -> Comparison:
    return compare(a, b, "a", "b", NoProgress())


def test_the_same_is_the_same_however_it_is_cut(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", tensors())
    assert told(one, folder(tmp_path / "copy", tensors())).same
    found = told(one, folder(tmp_path / "cut", tensors(), files=2))
    assert found.tensors == () and found.same_tensors == 4
    assert found.files_only_in_b == ("model.safetensors.index.json",) and not found.same


@pytest.mark.parametrize("block", [1, 100, 1 << 22])
def test_a_change_is_measured_whatever_the_blocks(block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "READ_BLOCK", block)
    after = tensors()
    after["a.2.w"][3] += 1
    after["a.2.w"][:, 5] += 1
    found = told(folder(tmp_path / "one", tensors()), folder(tmp_path / "two", after))
    (one,) = found.tensors
    before = tensors()["a.2.w"].double()
    apart = after["a.2.w"].double() - before
    assert (one.name, one.file, one.rank, one.changed) == ("a.2.w", "model.safetensors", 2, 49 / 600)
    assert one.norm == pytest.approx(float(apart.norm()), rel=ROUNDING)
    assert one.relative == pytest.approx(float(apart.norm() / before.norm()), rel=ROUNDING)
    assert one.largest == float(apart.abs().max())
    assert found.same_tensors == 3 and not found.same


def test_what_is_missing_and_what_has_another_form_is_told(tmp_path: Path) -> None:
    after = tensors()
    after["b"] = after["b"].half()
    after["n"] = after["n"] + 1
    after["a.2.w"] = after["a.2.w"].T.contiguous()
    after["new"] = after.pop("a.10.w")
    a, b = folder(tmp_path / "one", tensors()), folder(tmp_path / "two", after)
    (a / "merges.txt").write_text("x")
    (b / "config.json").write_text("{ }")
    found = told(a, b)
    assert (found.only_in_a, found.only_in_b) == (("a.10.w",), ("new",))
    assert (found.files, found.files_only_in_a, found.files_only_in_b) == (("config.json",), ("merges.txt",), ())
    by = {one.name: one for one in found.tensors}
    assert list(by) == ["a.2.w", "b", "n"]
    assert by["a.2.w"].shapes == ((30, 20), (20, 30)) and by["a.2.w"].norm is None
    assert by["b"].dtypes == ("F32", "F16") and by["b"].norm and by["b"].rank is None
    assert by["n"].dtypes == ("I64", "I64") and by["n"].norm is None


def test_a_new_zero_has_no_relative_size(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", {"w": torch.zeros(3, 3)})
    (found,) = told(one, folder(tmp_path / "two", {"w": torch.eye(3)})).tensors
    assert (found.relative, found.rank, found.largest) == (None, 3, 1)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
@pytest.mark.parametrize("block", [1, 1 << 22])
def test_a_weight_that_is_not_finite_is_a_difference_without_a_rank(
    value: float, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "READ_BLOCK", block)
    before = torch.ones(30, 20)
    before[0, 0] = -3e38
    after = before.clone()
    after[0, 0] = value
    after[1, 0] = 2
    (found,) = told(folder(tmp_path / "one", {"w": before}), folder(tmp_path / "two", {"w": after})).tensors
    assert found.rank is None and found.largest is not None and found.norm is not None
    apart = value + 3e38
    assert found.largest == pytest.approx(apart, nan_ok=True) and found.norm == pytest.approx(apart, nan_ok=True)
    assert found.changed == 2 / 600


def test_numbers_that_stay_infinite_or_nan_are_no_difference(tmp_path: Path) -> None:
    before = torch.ones(3, 3)
    before[0] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    after = before.clone()
    after[1, 1] = 2
    (found,) = told(folder(tmp_path / "one", {"w": before}), folder(tmp_path / "two", {"w": after})).tensors
    assert (found.largest, found.norm, found.rank, found.changed) == (1, 1, 1, 1 / 9)


def with_name(file: Path, name: str, dtype: str, byte: bytes = b"a") -> None:
    """A file of one tensor of one byte, with any name and dtype that JSON can hold."""
    header = json.dumps({name: {"dtype": dtype, "shape": [1], "data_offsets": [0, 1]}}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + byte)


def test_names_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    a, b = folder(tmp_path / "one", tensors()), folder(tmp_path / "two", tensors())
    for here, byte in ((a, b"a"), (b, b"b")):
        with_name(here / "model.safetensors", "w\ud800", "X\ud800", byte)
    (b / os.fsdecode(b"bad\xff.txt")).write_text("x")
    (a / "sound \N{SNOWMAN}.txt").write_text("x")
    found = compare(a, b, os.fsdecode(b"one\xff"), "two", NoProgress())
    assert json.loads(found.model_dump_json())["files_only_in_b"] == ["bad\\udcff.txt"]
    assert (found.a, found.b, found.files_only_in_a) == ("one\\udcff", "two", ("sound \N{SNOWMAN}.txt",))
    assert [(one.name, one.dtypes[0]) for one in found.tensors] == [("w\\ud800", "X\\ud800")]
    with_name(b / "model.safetensors", "\udfff\x1b[2J", "U8")
    found = told(a, b)
    assert (found.only_in_a, found.only_in_b) == (("w\\ud800",), ("\\udfff\\x1b[2J",))

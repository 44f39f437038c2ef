"""A LoRA adapter comes back as it was written, means what PEFT takes it to mean, and nothing else passes for one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.errors import MemeditError, StorageError, UnsupportedModelError
from memedit.numerics.delta import Delta
from memedit.storage.lora import CONFIG, WEIGHTS, _Pattern, adapter_bytes, read_adapter
from safetensors.torch import load_file, save_file
from tests.conftest import tiny_model

PRODUCT = 1e-6  # float32 products of 32 and 88 terms of size one


def deltas(family: str = "llama") -> dict[str, Delta]:
    """Two modules of a tiny model, of ranks 3 and 5."""
    draw = torch.Generator().manual_seed(3)
    width, inner = 32, 128 if family == "gpt2" else 88
    path = "transformer.h.{}.mlp.c_proj.weight" if family == "gpt2" else "model.layers.{}.mlp.down_proj.weight"
    return {
        path.format(layer): Delta(
            torch.randn(width, rank, generator=draw), torch.randn(rank, inner, generator=draw) / 10
        )
        for layer, rank in ((1, 3), (2, 5))
    }


def written(folder: Path, family: str = "llama", dtype: torch.dtype = torch.float32) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    files = adapter_bytes(deltas(family), "base", revision=None, conv1d=family == "gpt2", dtype=dtype)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def changed(folder: Path, **fields: Any) -> Path:
    """The adapter with other fields in its config."""
    config = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps({**config, **fields}))
    return folder


def test_what_is_written_is_read(tmp_path: Path) -> None:
    found, wanted = read_adapter(written(tmp_path)), deltas()
    assert list(found) == list(wanted)
    for name, delta in wanted.items():
        assert torch.equal(found[name].dense(), delta.dense())


def test_all_modules_have_one_rank_and_the_scale_is_one(tmp_path: Path) -> None:
    config = json.loads((written(tmp_path) / CONFIG).read_text())
    assert (config["r"], config["lora_alpha"], config["rank_pattern"]) == (5, 5, {})
    assert config["target_modules"] == [name.removesuffix(".weight") for name in deltas()]
    shapes = {name: tuple(part.shape) for name, part in load_file(tmp_path / WEIGHTS).items()}
    assert shapes["base_model.model.model.layers.1.mlp.down_proj.lora_A.weight"] == (5, 88)
    assert shapes["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"] == (32, 5)


def test_factors_of_fewer_bits_are_half_the_file_and_near(tmp_path: Path) -> None:
    whole, half = written(tmp_path / "a"), written(tmp_path / "b", dtype=torch.bfloat16)
    assert (half / WEIGHTS).stat().st_size < 0.6 * (whole / WEIGHTS).stat().st_size
    for name, delta in deltas().items():
        error = float((read_adapter(half)[name].dense() - delta.dense()).norm()) / delta.norm
        assert 0 < error < 2**-7


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_peft_merges_what_was_written(family: str, tmp_path: Path) -> None:
    import peft

    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merged = peft.PeftModel.from_pretrained(model, written(tmp_path, family)).merge_and_unload()
    wanted = deltas(family)
    for name, value in merged.state_dict().items():
        change = value.double() - before[name].double()
        dense = wanted[name].dense() if name in wanted else torch.zeros_like(change)
        assert (change - (dense.T if family == "gpt2" and name in wanted else dense)).abs().max() <= PRODUCT


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("rslora", [False, True])
def test_what_peft_wrote_is_read_with_its_ranks_and_scales(family: str, rslora: bool, tmp_path: Path) -> None:
    import peft

    model = tiny_model(family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    modules = [name.removesuffix(".weight") for name in deltas(family)]
    config = peft.LoraConfig(
        r=4, lora_alpha=7, use_rslora=rslora, target_modules=modules, fan_in_fan_out=family == "gpt2",
        rank_pattern={modules[0]: 2}, alpha_pattern={modules[0]: 3}, init_lora_weights=False,
    )  # fmt: skip
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(str(tmp_path / "peft"))
    found = read_adapter(tmp_path / "peft")
    assert list(found) == list(deltas(family))
    for name, value in adapted.merge_and_unload().state_dict().items():
        change = value.double() - before[name].double()
        dense = found[name].dense() if name in found else torch.zeros_like(change)
        assert name not in found or change.norm() > 0.01
        assert (change - (dense.T if family == "gpt2" and name in found else dense)).abs().max() <= PRODUCT


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"peft_type": "IA3"}, UnsupportedModelError),
        ({"use_dora": True}, UnsupportedModelError),
        ({"bias": "all"}, UnsupportedModelError),
        ({"modules_to_save": ["lm_head"]}, UnsupportedModelError),
        ({"r": 4}, StorageError),
        ({"lora_alpha": "much"}, StorageError),
        ({"rank_pattern": {"(": 3}}, UnsupportedModelError),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_adapter_that_means_more_or_nothing_is_refused(
    tmp_path: Path, fields: dict[str, Any], error: type[MemeditError]
) -> None:
    with pytest.raises(error) as caught:
        read_adapter(changed(written(tmp_path), **fields))
    assert caught.value.hint


@pytest.mark.parametrize("name", [CONFIG, WEIGHTS])
@pytest.mark.parametrize("kept", [None, 0, 30])
def test_a_folder_that_lacks_a_part_is_refused(tmp_path: Path, name: str, kept: int | None) -> None:
    file = written(tmp_path) / name
    data = file.read_bytes()
    file.unlink()
    if kept is not None:
        file.write_bytes(data[:kept])
    with pytest.raises(StorageError, match="adapter"):
        read_adapter(tmp_path)


def test_a_lone_factor_and_a_foreign_tensor_are_refused(tmp_path: Path) -> None:
    tensors = load_file(written(tmp_path) / WEIGHTS)
    lone = dict(sorted(tensors.items())[1:])
    save_file(lone, tmp_path / WEIGHTS)
    with pytest.raises(StorageError, match="lacks a factor"):
        read_adapter(tmp_path)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.ones(2, 2)}, tmp_path / WEIGHTS)
    with pytest.raises(UnsupportedModelError, match="lm_head"):
        read_adapter(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_adapter_with_values_that_are_not_finite_is_refused_by_the_tensor_s_name(
    value: float, tmp_path: Path
) -> None:
    tensors = load_file(written(tmp_path) / WEIGHTS)
    name = next(name for name in tensors if name.endswith("lora_B.weight"))
    tensors[name][0, 0] = value
    save_file(tensors, tmp_path / WEIGHTS)
    with pytest.raises(StorageError, match="not finite") as caught:
        read_adapter(tmp_path)
    assert name in caught.value.message


@pytest.mark.parametrize(
    "fields",
    [
        {"rank_pattern": ["down_proj"]},
        {"rank_pattern": 5},
        {"alpha_pattern": {"down_proj": {"a": 1}}},
        {"alpha_pattern": {"down_proj": float("nan")}},
        {"lora_alpha": 10**400},
        {"rank_pattern": {"(a+)+$": 5}},
        {"rank_pattern": {".*" * 40 + "x": 5, "a" * 500: 5}},
        {"rank_pattern": {f"{n}.*": 5 for n in range(9)}},
        {"rank_pattern": {str(n): 5 for n in range(5000)}},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_an_adapter_s_odd_patterns_are_refused_at_once(fields: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MemeditError) as caught:
        read_adapter(changed(written(tmp_path), **fields))
    assert caught.value.message.isprintable() and caught.value.hint


@pytest.mark.parametrize(
    "key",
    ["down_proj", "layers.1.mlp.down_proj", "proj", r".*\.1\.mlp.*", "^model.layers.1.mlp.down_proj$",
     r"layers\.\d+\..*proj",
     "layers.[0-9]+.mlp.down_proj", "^down_proj", "own_proj", "mlp.down_pro", "model.*", "m+lp.down_proj", "x?mlp.d.*",
     ".*",
     "l?ayers.1.*", "layers.1.mlp.down_proj$", "layers_1.mlp.down_proj", ".*" * 20],
)  # fmt: skip
@pytest.mark.parametrize("module", ["model.layers.1.mlp.down_proj", "down_proj", "layers.11.mlp.down_proj", "model"])
def test_patterns_match_what_peft_matches(key: str, module: str) -> None:
    wanted = re.match(rf"(.*\.)?({key})$", module) is not None if key != ".*" * 20 else True
    assert _Pattern(key, "rank_pattern").matches(module) == wanted


def test_a_pattern_that_a_regular_expression_takes_years_for_is_matched_at_once(tmp_path: Path) -> None:
    slow = ".*a" * 30 + "b"
    assert not _Pattern(slow, "rank_pattern").matches("a" * 200)
    assert _Pattern(slow, "rank_pattern").matches("a" * 200 + "b")

"""FP8 weights are opened as the numbers that they stand for, and what cannot be read is refused in a line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.changes.stored_names import StoredNames
from memedit.config.quantization import Fp8Scheme, find_scheme
from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, UnsupportedModelError
from memedit.model.fp8 import StoredTensors, open_tensors
from memedit.model.load import load
from memedit.numerics.fp8 import expanded_scale
from memedit.numerics.rounding import FP8, Grid, moved, nearest
from memedit.progress import NoProgress
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.comparison import compare
from safetensors.torch import load_file, save_file
from tests.conftest import byte_tokenizer, tiny_model
from tests.families import each_family, family_model
from tests.helpers.fp8 import FULL, Kind, dequantized, quantize
from tests.helpers.in_process import faults, run_main
from torch import Tensor

KNOBS = ModelKnobs(device="cpu")
BLOCK = (16, 32)  # of weights 32 x 88: the last block of a row is cut off
DOWN = "model.layers.1.mlp.down_proj.weight"
FLOAT_QUANTIZED = {
    "quant_method": "compressed-tensors", "format": "float-quantized", "transform_config": {}, "sparsity_config": {},
    "config_groups": {"group_0": {"targets": ["Linear"], "weights": {
        "num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}}},
}  # fmt: skip
NAMED = "compressed-tensors, float-quantized"


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def all_codes() -> Tensor:
    """Every finite float8_e4m3fn in ascending order, zero once."""
    bits = torch.arange(127, dtype=torch.uint8)
    return torch.cat([(bits[1:] | 0x80).flip(0), bits]).view(FP8)


@pytest.mark.parametrize("scale", [1.0, 0.3, 3.1e-5, 7e8])
def test_every_code_is_found_again_from_its_number(scale: float) -> None:
    codes = all_codes()[None]
    grid = Grid(FP8, torch.full(codes.shape, scale))
    numbers = grid.numbers(codes)
    assert numbers.dtype == torch.float32 and torch.equal(numbers, codes.float() * scale)
    assert torch.equal(grid.codes(numbers).view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(grid.nearest(numbers.double()), numbers)


def test_numbers_are_rounded_to_the_nearest_code_and_end_at_the_largest() -> None:
    codes = all_codes().double()
    exact = torch.linspace(-500, 500, 4001, dtype=torch.float64) + 1e-7
    best = codes[(exact[:, None] - codes).abs().argmin(1)]
    assert torch.equal(nearest(exact, FP8).double(), best)
    # A tie goes to the even code; what is a little above it in float64 alone does not.
    tie = torch.tensor([1 + 2**-4, 1 + 2**-4 + 2**-40], dtype=torch.float64)
    assert nearest(tie, FP8).double().tolist() == [1.0, 1.125]


def test_a_step_is_the_next_code() -> None:
    codes = all_codes()
    up, down = (moved(codes, torch.full(codes.shape, sign, dtype=torch.int8)) for sign in (1, -1))
    assert torch.equal(up.float()[:-1], codes.float()[1:]) and float(up[-1]) == FULL
    assert torch.equal(down.float()[1:], codes.float()[:-1]) and float(down[0]) == -FULL
    zero = torch.tensor([-0.0, 0.0]).to(FP8)
    kept = moved(zero, torch.zeros(2, dtype=torch.int8))
    assert torch.equal(kept.view(torch.uint8), zero.view(torch.uint8))


def test_scales_are_spread_over_their_blocks() -> None:
    scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    wide = expanded_scale(scale, (3, 5), (2, 3))
    assert wide.tolist() == [[1, 1, 1, 2, 2], [1, 1, 1, 2, 2], [3, 3, 3, 4, 4]]
    assert torch.equal(expanded_scale(scale, (3, 5), (2, 3), (1, 3)), wide[1:3])
    for one in (torch.tensor(2.0), torch.tensor([2.0])):
        assert torch.equal(expanded_scale(one, (3, 5), None), torch.full((3, 5), 2.0))
    rows = torch.tensor([1.0, 2.0, 3.0])
    for one in (rows, rows[:, None]):
        assert torch.equal(expanded_scale(one, (3, 5), None), rows[:, None].expand(3, 5))
    experts = torch.tensor([[[1.0]], [[2.0]]])
    assert torch.equal(expanded_scale(experts, (2, 3, 5), (4, 8)), experts.expand(2, 3, 5))


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf"), 1e38])
def test_what_is_no_scale_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="no positive finite numbers"):
        expanded_scale(torch.tensor([[1.0, value]]), (2, 4), (2, 2))


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({}, None),
        ({"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}, Fp8Scheme((128, 128))),
        ({"quant_method": "fp8", "weight_block_size": None}, Fp8Scheme(None)),
        ({"quant_method": "fp8", "activation_scheme": "static", "ignored_layers": ["lm_head"]}, Fp8Scheme(None)),
        (FLOAT_QUANTIZED, Fp8Scheme(None)),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fp8 with fmt = e5m2"),
        ({"quant_method": "fp8", "expert_dtype": "fp4"}, "fp8 with expert_dtype = fp4"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "fp8 with blocks of [0, 128]"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "fp8 with blocks of 128"),
        ({**FLOAT_QUANTIZED, "format": "pack-quantized"}, "compressed-tensors, pack-quantized"),
        ({**FLOAT_QUANTIZED, "transform_config": {"a": 1}}, f"{NAMED} with transform_config"),
        ({**FLOAT_QUANTIZED, "sparsity_config": {"format": "sparse-24-bitmask"}}, NAMED),
        ({**FLOAT_QUANTIZED, "config_groups": {"a": {"weights": {"num_bits": 4, "type": "int"}}}}, NAMED),
        ({**FLOAT_QUANTIZED, "config_groups": {"a": None}}, NAMED),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "a\nb\x1b[2J"}, "ab[2J"),
        ({"bits": 4}, "an unnamed method"),
        ("gptq", "gptq"),
        ([1], "an unnamed method"),
    ],
    ids=str,
)  # fmt: skip
def test_what_a_config_says_of_its_weights(found: Any, wanted: Any) -> None:
    assert find_scheme({"quantization_config": found}) == wanted
    assert find_scheme({"text_config": {"quantization_config": found}}) == wanted


def logits(tensors: dict[str, Tensor]) -> Tensor:
    """The logits of the tiny model with these weights, in float32."""
    model = tiny_model("llama").float()
    model.load_state_dict({name: part.float() for name, part in tensors.items()})
    return model(torch.arange(5, 45).reshape(2, 20)).logits


CASES: dict[str, tuple[Kind, dict[str, Any]]] = {
    "blocks": ("block", {"block": BLOCK}),
    "blocks with bfloat16 scales": ("block", {"block": BLOCK, "scales": torch.bfloat16}),
    "blocks with scales that are powers of two": ("block", {"block": BLOCK, "scales": torch.float8_e8m0fnu}),
    "one scale a weight": ("tensor", {}),
    "compressed-tensors": ("channel", {"after": "_scale", "fields": FLOAT_QUANTIZED}),
}


@pytest.mark.parametrize(
    "case", [next(iter(CASES)), *(pytest.param(one, marks=pytest.mark.slow) for one in [*CASES][1:])]
)
@torch.no_grad()
def test_an_opened_model_computes_with_the_numbers(case: str, folder: Path) -> None:
    kind, options = CASES[case]
    before = logits(load_file(folder / "model.safetensors"))
    quantize(folder, kind, **options)
    numbers = dequantized(folder, kind, block=BLOCK)
    lm = load(folder, KNOBS)
    assert lm.dtype == torch.float32 and not hasattr(lm.model.config, "quantization_config")
    assert torch.equal(lm.model.get_parameter(DOWN), numbers[DOWN])
    found = lm.model(torch.arange(5, 45).reshape(2, 20)).logits
    assert torch.equal(found, logits(numbers))
    assert float((found - before).norm() / before.norm()) > 1e-3, "the converse: rounding to FP8 is seen"
    checkpoint = Checkpoint.open(folder)
    assert torch.equal(checkpoint.tensor(DOWN), numbers[DOWN]) and checkpoint.fp8
    # In bfloat16 it has the same numbers, rounded once.
    half = load(folder, ModelKnobs(device="cpu", dtype="bfloat16"))
    assert torch.equal(half.model.get_parameter(DOWN), numbers[DOWN].bfloat16())


@pytest.mark.parametrize("family", each_family(["deepseek_v3", "qwen3", "qwen3_moe", "qwen2_vl"]))
def test_names_are_changed_on_loading_as_those_of_plain_weights_are(family: str, tmp_path: Path) -> None:
    """Experts are merged, and the language part of a composite model is renamed."""
    for name in ("fp8", "plain"):
        family_model(family).save_pretrained(tmp_path / name)
        byte_tokenizer().save_pretrained(tmp_path / name)
    numbers = dequantized(quantize(tmp_path / "fp8", block=BLOCK), block=BLOCK)
    save_file(numbers, tmp_path / "plain" / "model.safetensors", {"format": "pt"})
    lm, plain = (load(tmp_path / name, KNOBS) for name in ("fp8", "plain"))
    wanted = dict(plain.model.named_parameters())
    assert all(torch.equal(part, wanted.pop(name)) for name, part in lm.model.named_parameters()) and not wanted
    names = StoredNames.of(lm.model, Checkpoint.open(tmp_path / "fp8"))
    assert lm.architecture.editable == plain.architecture.editable
    for layer in lm.architecture.editable:
        assert torch.equal(names.weight(lm, layer), lm.weight(layer))
        grid = names.grid(lm.architecture, lm.architecture.parameter(layer))
        assert grid.scale is not None and torch.equal(grid.nearest(lm.weight(layer).double()), lm.weight(layer))


def test_a_scale_may_lie_in_another_file_than_its_weight(folder: Path) -> None:
    numbers = dequantized(quantize(folder, block=BLOCK), block=BLOCK)
    tensors = load_file(folder / "model.safetensors")
    where = {name: f"model-0000{1 + name.endswith('_inv')}-of-00002.safetensors" for name in tensors}
    for file in set(where.values()):
        save_file({name: part for name, part in tensors.items() if where[name] == file}, folder / file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    lm = load(folder, KNOBS)
    assert all(torch.equal(lm.model.get_parameter(name), part.float()) for name, part in numbers.items())


@torch.no_grad()
def test_a_device_map_opens_the_same_model_one_weight_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load(quantize(folder, block=BLOCK), KNOBS)
    read: list[str] = []
    real = StoredTensors.read

    def watched(self: StoredTensors, name: str, dtype: torch.dtype) -> Tensor:
        read.append(name)
        return real(self, name, dtype)

    def opened(*args: Any, **options: Any) -> Any:
        assert not read, "no weight is read before the model asks for it"
        return open_tensors(*args, **options)

    monkeypatch.setattr(StoredTensors, "read", watched)
    monkeypatch.setattr("memedit.model.load.open_tensors", opened)
    spread = load(folder, ModelKnobs(device="cpu", device_map="auto"))
    ids = torch.arange(5, 45).reshape(2, 20)
    assert torch.equal(plain.model(ids).logits, spread.model(ids).logits) and DOWN in read


def test_the_ends_of_text_are_those_of_the_folder(folder: Path) -> None:
    quantize(folder, block=BLOCK)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]}))
    lm: Any = load(folder, KNOBS)
    assert lm.model.generation_config.eos_token_id == [1, 7]


Damage = Callable[[dict[str, Tensor]], Any]
DAMAGES: dict[str, tuple[Damage, str]] = {
    "missing": (lambda tensors: tensors.pop(f"{DOWN}_scale_inv"), "is FP8, and the scale of it is missing"),
    "shape": (
        lambda tensors: tensors.update({f"{DOWN}_scale_inv": torch.ones(3, 2)}),
        "it is 3 x 2, and 2 x 3 belongs",
    ),
    "infinite": (lambda tensors: tensors[f"{DOWN}_scale_inv"].fill_(torch.inf), "no positive finite numbers"),
    "not a number": (lambda tensors: tensors[f"{DOWN}_scale_inv"][0, 0].fill_(torch.nan), "no positive finite numbers"),
    "not a number, as a power of two": (
        lambda tensors: tensors.update({f"{DOWN}_scale_inv": torch.full((2, 3), torch.nan).to(torch.float8_e8m0fnu)}),
        "no positive finite numbers",
    ),
    "whole numbers": (
        lambda tensors: tensors.update({f"{DOWN}_scale_inv": torch.full((2, 3), 127, dtype=torch.uint8)}),
        "it holds uint8, no floating-point numbers|is stored as U8",
    ),
    "zero": (lambda tensors: tensors[f"{DOWN}_scale_inv"][0, 0].fill_(0), "no positive finite numbers"),
    "a code": (lambda tensors: tensors[DOWN].view(torch.uint8)[0, 0].fill_(0x7F), "holds NaN or infinity"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_weights_are_refused_in_a_line(case: str, folder: Path) -> None:
    damage, says = DAMAGES[case]
    tensors = load_file(quantize(folder, block=BLOCK) / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=says) as caught:
        load(folder, KNOBS)
    assert DOWN in caught.value.message and "\n" not in caught.value.message
    if case != "a code":
        with pytest.raises(UnsupportedModelError, match=says):
            Checkpoint.open(folder).tensor(DOWN)


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "awq"])
def test_other_formats_are_refused_with_the_unquantized_model_and_an_adapter(method: str, folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": method}}))
    ended = run_main(["inspect", str(folder)])
    assert ended.code == 4 and not faults(ended) and f"is quantized ({method})" in ended.err
    assert "edit the unquantized model, make an adapter" in ended.err
    for named in ('"maker/tiny\\e[31m\\n"', '["maker/tiny\\e[31m\\n", "b"]'):
        (folder / "README.md").write_text(f"---\nbase_model: {named}\n---\n# tiny\n")
        ended = run_main(["inspect", str(folder)])
        assert "edit the unquantized model (its card names maker/tiny[31m), make an adapter" in ended.err
        assert ended.code == 4 and not faults(ended) and "--to lora" in ended.err
    for front in ("base_model: [1]", "base_model: {", "[", "base_model: ''"):
        (folder / "README.md").write_text(f"---\n{front}\n---\n# tiny\n")
        with pytest.raises(MemeditError, match="is quantized") as caught:
            load(folder, KNOBS)
        assert "edit the unquantized model, make" in caught.value.hint


def test_two_fp8_models_are_compared_by_their_numbers(folder: Path, tmp_path: Path) -> None:
    quantize(folder, block=BLOCK)
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    tensors = load_file(other / "model.safetensors")
    tensors[DOWN].view(torch.uint8)[3, 40] ^= 0x80  # the sign
    save_file(tensors, other / "model.safetensors", {"format": "pt"})
    (found,) = compare(folder, other, "a", "b", NoProgress()).tensors
    number = float(dequantized(folder, block=BLOCK)[DOWN][3, 40])
    assert found.dtypes == ("F8_E4M3", "F8_E4M3") and found.rank == 1 and found.changed == 1 / (32 * 88)
    assert found.largest == pytest.approx(2 * abs(number), rel=1e-6)


def test_fp8_tensors_without_scales_are_no_numbers_that_can_be_edited(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, DOWN: tensors[DOWN].to(FP8)}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="scale of it is missing"):
        Checkpoint.open(folder).tensor(DOWN)
    found = compare(folder, folder, "a", "b", NoProgress())
    assert found.same

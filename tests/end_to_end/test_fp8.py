"""A model of FP8 weights is edited: what is written is what was scored, and nothing but the edited codes differs."""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.recipe import ModelKnobs
from memedit.editing.run import EditRun
from memedit.edits.edit import EditRequest
from memedit.errors import MemeditError, UsageError
from memedit.model.load import load
from memedit.results.report import Report
from safetensors.torch import load_file
from tests.conftest import ROOT
from tests.helpers.fp8 import FP8, dequantized, quantize
from tests.helpers.in_process import run_main
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

pytestmark = pytest.mark.usefixtures("kept_moments")

MADE = ROOT / "examples" / "models" / "made-small"
EDITS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model that ships with the project, quantized as DeepSeek-V3 is: 96 x 336 in blocks of 128 x 128."""
    folder = Path(shutil.copytree(MADE, tmp_path_factory.mktemp("fp8") / "base"))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# made\n")
    return quantize(folder)


Edited = tuple[Path, Report, dict[str, Tensor]]


@pytest.fixture(scope="module")
def edited(
    base: Path, small_edits: list[EditRequest], moments_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Edited:
    """The output folder, the report, and the weights that were in memory when the edits were scored."""
    out, seen, real = tmp_path_factory.mktemp("edited") / "out", dict[str, Tensor](), EditRun.in_model

    def watched(run: Any, *args: Any) -> dict[int, Tensor]:
        found = real(run, *args)
        seen.update({run.names[layer]: weight.clone() for layer, weight in found.items()})
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMEDIT_CACHE", str(moments_folder))
        patch.setattr(EditRun, "in_model", watched)
        report = memedit.apply(small_edits[:EDITS], base, out, settings={"output.keep_originals": True})
    return out, report, seen


def logits(numbers: dict[str, Tensor]) -> Tensor:
    """The logits of the plain model with these weights."""
    config = AutoConfig.from_pretrained(MADE)
    model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.load_state_dict({name: part.float() for name, part in numbers.items()}, strict=False)
    model.tie_weights()
    with torch.no_grad():
        return model(torch.arange(5, 45).reshape(2, 20)).logits


def test_the_edits_take_and_only_codes_of_the_edited_weights_differ(base: Path, edited: Edited) -> None:
    out, report, _ = edited
    assert report.before and report.before.efficacy and report.before.efficacy.mean == 0
    assert report.after and report.after.efficacy and report.after.efficacy.mean == 1
    before, after = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    moved = {name for name in before if not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))}
    assert moved and all(name.endswith("mlp.down_proj.weight") and before[name].dtype == FP8 for name in moved)
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert filecmp.cmp(base / name, out / name, shallow=False)
    header = 8 + int.from_bytes((base / "model.safetensors").read_bytes()[:8], "little")
    assert (base / "model.safetensors").read_bytes()[:header] == (out / "model.safetensors").read_bytes()[:header]


def test_what_is_written_is_what_was_scored(base: Path, edited: Edited, small_edits: list[EditRequest]) -> None:
    out, report, seen = edited
    numbers = dequantized(out)
    assert seen and all(torch.equal(numbers[name], weight) for name, weight in seen.items())
    opened = load(out, ModelKnobs(device="cpu"))
    with torch.no_grad():
        found = opened.model(torch.arange(5, 45).reshape(2, 20)).logits
    assert torch.equal(found, logits(numbers)) and torch.equal(found, logits({**dequantized(base), **seen}))
    assert not torch.allclose(found, logits(dequantized(base)), atol=1e-3)
    again = memedit.evaluate(small_edits[:EDITS], out)
    assert report.after and again.after and again.after.efficacy == report.after.efficacy
    for one, two in zip(again.per_edit, report.per_edit, strict=True):
        name = "efficacy_magnitude"  # a number of many digits, which any difference of the weights would show
        assert one.after[name] == pytest.approx(two.after[name], abs=1e-6)


def test_the_loss_of_rounding_is_told(edited: Edited) -> None:
    _, report, _ = edited
    for layer in report.layers:
        assert layer.rounding == "key-aware" and layer.rounding_loss < 0.5 * layer.nearest_loss
        assert layer.nearest_loss > 0.01


def test_the_delta_makes_the_output_again_and_a_revert_the_base(base: Path, edited: Edited, tmp_path: Path) -> None:
    out, *_ = edited
    memedit.export(out, "full", base, tmp_path / "again")
    memedit.revert(out, tmp_path / "kept")
    shutil.copytree(out, tmp_path / "bare")
    (tmp_path / "bare" / "memedit" / "originals.safetensors").unlink()
    outcome = memedit.revert(tmp_path / "bare", tmp_path / "back", model=base)
    assert outcome.exact and outcome.origin == "base"
    for made, wanted in (("again", out), ("kept", base), ("back", base)):
        file = "model.safetensors"
        assert filecmp.cmp(tmp_path / made / file, wanted / file, shallow=False), made
    found = memedit.diff(base, out)
    assert {one.name for one in found.tensors} and all(one.norm and one.relative for one in found.tensors)


def test_a_change_is_not_subtracted_from_fp8_weights(edited: Edited, tmp_path: Path) -> None:
    out = Path(shutil.copytree(edited[0], tmp_path / "out"))
    (out / "memedit" / "originals.safetensors").unlink()
    record = json.loads((out / "memedit" / "run.json").read_text())
    record["recipe"]["model"]["path"] = str(tmp_path / "moved")
    (out / "memedit" / "run.json").write_text(json.dumps(record))
    (out / "memedit" / "ledger.safetensors").unlink()  # it names the base's folder too
    with pytest.raises(UsageError, match="too coarse") as caught:
        memedit.revert(out, tmp_path / "back")
    assert "where the base is" in caught.value.hint and not (tmp_path / "back").exists()


def test_what_would_be_rounded_to_nearest_is_refused(
    base: Path, edited: Edited, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    memedit.apply(small_edits[EDITS : EDITS + 1], base, tmp_path / "other")
    memedit.apply(small_edits[:EDITS], MADE, tmp_path / "plain")
    memedit.export(tmp_path / "plain", "lora", MADE, tmp_path / "lora")
    calls: list[Callable[[], Any]] = [
        lambda: memedit.add([edited[0], tmp_path / "other"], base, tmp_path / "out"),
        lambda: memedit.export(edited[0], "full", base, tmp_path / "out", rank=2),
        lambda: memedit.export(tmp_path / "plain", "full", base, tmp_path / "out", any_base=True),
        lambda: memedit.export(tmp_path / "lora", "full", base, tmp_path / "out"),
    ]
    for call in calls:
        with pytest.raises(MemeditError, match="would lose most of"):
            call()
        assert not (tmp_path / "out").exists()
    memedit.add(edited[0], base, tmp_path / "one")
    assert filecmp.cmp(tmp_path / "one" / "model.safetensors", edited[0] / "model.safetensors", shallow=False)


def test_originals_with_other_numbers_are_refused(edited: Edited, tmp_path: Path) -> None:
    from memedit.storage.deltas import originals_bytes
    from safetensors import safe_open

    out = Path(shutil.copytree(edited[0], tmp_path / "out"))
    file = out / "memedit" / "originals.safetensors"
    with safe_open(file, "pt") as kept:
        digest = kept.metadata()["base"]
    file.write_bytes(originals_bytes({name: part * 1.01 for name, part in load_file(file).items()}, digest))
    with pytest.raises(MemeditError, match="cannot hold these numbers in FP8"):
        memedit.revert(out, tmp_path / "back")


def test_files_of_another_size_hold_the_same(edited: Edited, base: Path, tmp_path: Path) -> None:
    out, *_ = edited
    memedit.export(out, "full", base, tmp_path / "cut", settings={"output.max_shard_size": "200KB"})
    assert len(list((tmp_path / "cut").glob("model-*.safetensors"))) > 2
    whole, parts = dequantized(out), dequantized(tmp_path / "cut")
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_an_adapter_of_the_unquantized_model_acts_on_the_quantized_one(
    base: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    import peft

    memedit.apply(small_edits[:EDITS], MADE, tmp_path / "out")
    memedit.export(tmp_path / "out", "lora", MADE, tmp_path / "lora")
    quantized: Any = load(base, ModelKnobs(device="cpu"))
    before = {name: part.clone() for name, part in quantized.model.named_parameters()}
    adapted: Any = peft.PeftModel.from_pretrained(quantized.model, str(tmp_path / "lora"))
    merged = adapted.merge_and_unload()
    moved = {name for name, part in merged.named_parameters() if not torch.equal(part, before[name])}
    assert moved and all(name.endswith("mlp.down_proj.weight") for name in moved)
    # Neither is the adapter ignored, nor does it matter to it that the base is quantized.
    found = memedit.evaluate(small_edits[:EDITS], base, adapter=tmp_path / "lora")
    assert found.after and found.after.efficacy and found.after.efficacy.mean == 1


def test_an_adapter_is_made_of_an_fp8_model_too(base: Path, edited: Edited, tmp_path: Path) -> None:
    outcome = memedit.export(edited[0], "lora", base, tmp_path / "lora")
    assert outcome.rank and len(list((tmp_path / "lora").glob("adapter_model.safetensors"))) == 1
    memedit.export(edited[0], "dense", base, tmp_path / "change.safetensors")
    assert all(part.dtype == torch.float32 for part in load_file(tmp_path / "change.safetensors").values())


def test_an_edited_model_is_edited_again(edited: Edited, small_edits: list[EditRequest], tmp_path: Path) -> None:
    for mode in ("re-solve", "on top"):
        report = memedit.apply(small_edits[EDITS : EDITS + 1], edited[0], tmp_path / mode, mode=mode)  # type: ignore[arg-type]
        assert report.after and report.after.efficacy and report.after.efficacy.mean == 1
        assert report.edits == EDITS + 1


def test_the_command_tells_what_it_does_with_fp8_weights(base: Path, tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"subject": "Oslo", "prompt": "{} is in", "object": "Rome"}\n')
    ended = run_main(["apply", str(edits), "-m", str(base), "-o", str(tmp_path / "out")])
    assert ended.code == 0, ended.err
    assert "FP8 weights: computed in float32, and written as FP8 with the scales that they have" in ended.err


def test_scales_that_are_powers_of_two_stay_as_they_are(small_edits: list[EditRequest], tmp_path: Path) -> None:
    base = quantize(Path(shutil.copytree(MADE, tmp_path / "base")), scales=torch.float8_e8m0fnu)
    report = memedit.apply(small_edits[:EDITS], base, tmp_path / "out")
    assert report.after and report.after.efficacy and report.after.efficacy.mean == 1
    before, after = load_file(base / "model.safetensors"), load_file(tmp_path / "out" / "model.safetensors")
    scales = {name for name, tensor in before.items() if tensor.dtype == torch.float8_e8m0fnu}
    moved = {name for name in before if not torch.equal(before[name].view(torch.uint8), after[name].view(torch.uint8))}
    assert len(scales) > len(moved) > 0 and not scales & moved
    assert {name for name in moved if before[name].dtype != FP8} == set()
    opened, numbers = load(tmp_path / "out", ModelKnobs(device="cpu")), dequantized(tmp_path / "out")
    assert all(torch.equal(opened.model.get_parameter(name), numbers[name]) for name in moved)

"""A hostile model folder is refused with one line that names it, never with another library's error."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, StorageError, UnsupportedModelError, UsageError
from memedit.model import config as config_module
from memedit.model.architecture import find_architecture
from memedit.model.config import auto_config, foreign_errors, read_config
from memedit.model.digests import feeding
from memedit.model.load import load, load_tokenizer, meta_model, open_model
from memedit.model.probe import check_finite_weights
from memedit.storage.output import MODELS, check_output
from tests.conftest import ROOT, tiny_model
from tests.malformed.folders import CONFIGS, TOKENIZERS, FolderCase, config
from transformers import AutoModelForCausalLM

KNOBS = ModelKnobs(device="cpu")


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def check_refusal(error: MemeditError, case: FolderCase, folder: Path) -> None:
    assert error.exit_code == case.code, error.message
    assert case.says in error.message
    assert str(folder) in error.message or "this model cannot be edited" in error.message
    assert "\n" not in error.message
    assert error.hint


def test_a_sound_folder_is_opened(folder: Path) -> None:
    assert find_architecture(meta_model(folder, KNOBS)).n_layers == 4
    assert load(folder, KNOBS).architecture.editable == [0, 1, 2, 3]


@pytest.mark.slow
@pytest.mark.parametrize("case", CONFIGS, ids=lambda case: case.name)
def test_a_hostile_config_is_refused(case: FolderCase, folder: Path) -> None:
    case.change(folder)
    with pytest.raises(MemeditError) as caught:
        find_architecture(meta_model(folder, KNOBS))
    check_refusal(caught.value, case, folder)


@pytest.mark.parametrize("case", TOKENIZERS, ids=lambda case: case.name)
def test_a_hostile_tokenizer_is_refused(case: FolderCase, folder: Path) -> None:
    case.change(folder)
    with pytest.raises(MemeditError) as caught:
        load_tokenizer(folder)
    check_refusal(caught.value, case, folder)


def test_a_config_that_cannot_be_read_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", denied)  # a test may run as root, whom no mode keeps out
    with pytest.raises(StorageError, match=r"config\.json cannot be read: Permission denied") as caught:
        read_config(folder)
    assert caught.value.exit_code == 1


@pytest.mark.parametrize(
    "error", [KeyError(), RecursionError("deep"), ImportError("x\ny"), type("E", (Exception,), {})()]
)
def test_every_foreign_error_becomes_one_line(error: BaseException) -> None:
    with pytest.raises(UnsupportedModelError) as caught, foreign_errors("it failed", "try again"):
        raise error
    assert caught.value.message.startswith("it failed: ")
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError(), KeyboardInterrupt(), StorageError("mine")])
def test_what_is_no_foreign_error_passes(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, foreign_errors("it failed", "try again"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("asked", ["kernels-community/flash-attn", "flash_attention_2", "someone/evil:run", 7])
def test_the_attention_that_a_config_names_is_dropped(
    asked: object, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import modeling_utils

    def loads(*_: Any, **__: Any) -> None:
        raise AssertionError("a kernel loader was reached")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", loads)
    config(attn_implementation=asked, _attn_implementation_internal=asked, _attn_implementation=asked)(folder)
    assert auto_config(folder, KNOBS)._attn_implementation is None
    for model in (meta_model(folder, KNOBS), open_model(folder, KNOBS)):
        assert model.config._attn_implementation == "sdpa"


def test_the_attention_that_a_part_of_a_composite_config_names_is_dropped(tmp_path: Path) -> None:
    from tests.families import family_model

    family_model("llava").save_pretrained(tmp_path)
    asked = "someone/evil:run"
    named = {"attn_implementation": asked, "_attn_implementation": asked, "_attn_implementation_internal": asked}
    file = tmp_path / "config.json"
    whole = json.loads(file.read_text())
    for part in ("text_config", "vision_config"):
        whole[part] |= named
    file.write_text(json.dumps({**whole, **named}))
    for model in (meta_model(tmp_path, KNOBS), open_model(tmp_path, KNOBS)):
        parts: Any = model.config
        found = [one._attn_implementation for one in (parts, parts.text_config, parts.vision_config)]
        assert found == ["sdpa"] * 3


def test_a_class_without_sdpa_runs_eager(tmp_path: Path) -> None:
    from tests.families import family_model

    family_model("gpt_oss").save_pretrained(tmp_path)
    config(attn_implementation="kernels-community/vllm-flash-attn3")(tmp_path)
    assert meta_model(tmp_path, KNOBS).config._attn_implementation == "eager"


def test_cached_numbers_of_the_shipped_models_keep_their_names() -> None:
    """The attention is no part of what a model's states depend on: moments kept by version 0.1 are found."""
    lm = load(ROOT / "examples" / "models" / "made-gpt2", KNOBS)
    before = feeding(lm, [1])
    assert not any("attn_implementation" in name for name in lm.model.config.to_diff_dict())
    lm.model.config._attn_implementation = "eager"
    assert feeding(lm, [1]) == before


def damage(folder: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    tensors[name].view(-1)[3] = value
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    "name", ["model.layers.1.mlp.up_proj.weight", "model.layers.3.self_attn.o_proj.weight", "lm_head.weight"]
)
def test_a_weight_that_is_not_finite_is_named(name: str, value: float, folder: Path) -> None:
    damage(folder, name, value)
    with pytest.raises(UnsupportedModelError) as caught:
        load(folder, KNOBS)
    assert caught.value.message.startswith(f"{name} holds NaN or infinity")
    assert caught.value.exit_code == 4


@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_every_parameter_of_a_model_is_looked_at(family: str) -> None:
    model = tiny_model(family)
    check_finite_weights(model)
    names = [name for name, _ in model.named_parameters()]
    assert len(names) > 30
    for n, name in enumerate(names):
        weight = model.get_parameter(name).detach().view(-1)
        kept, weight[-1] = weight[-1].clone(), (float("nan"), float("inf"), -float("inf"))[n % 3]
        with pytest.raises(UnsupportedModelError) as caught:
            check_finite_weights(model)
        assert caught.value.message.startswith(f"{name} holds NaN")
        weight[-1] = kept
    check_finite_weights(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn])
def test_weights_of_every_dtype_are_looked_at(dtype: torch.dtype) -> None:
    module = torch.nn.Linear(4, 3, bias=False)
    module.weight = torch.nn.Parameter(torch.ones(3, 4).to(dtype), requires_grad=False)
    check_finite_weights(module)
    module.weight = torch.nn.Parameter(torch.full((3, 4), float("nan")).to(dtype), requires_grad=False)
    with pytest.raises(UnsupportedModelError, match="weight holds NaN"):
        check_finite_weights(module)


@pytest.mark.parametrize("name", ["model.layers.2.self_attn.q_proj.weight", "model.embed_tokens.weight"])
def test_one_nan_that_no_logit_shows_is_named_whatever_opens_the_model(name: str, folder: Path) -> None:
    import memedit

    damage(folder, name, float("nan"))
    edits = [{"id": "a", "subject": "Ada", "prompt": "{} lives in", "object": "Rome", "object_old": "Oslo"}]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    calls: list[Callable[[], Any]] = [
        lambda: memedit.apply(edits, folder, folder.parent / "out"),
        lambda: memedit.evaluate(edits, folder),
        lambda: memedit.trace(edits, folder),
        lambda: memedit.stats(folder),
        lambda: memedit.inspect(folder).problems,
        lambda: memedit.edited(model, load_tokenizer(folder), edits).__enter__(),
    ]
    for call in calls:
        with pytest.raises(UnsupportedModelError, match=f"{name} holds NaN"):
            found = call()
            if found:  # inspect lists it beside all other problems
                raise UnsupportedModelError("; ".join(found))
    assert not (folder.parent / "out").exists()


def test_a_finite_weight_is_accepted_and_a_model_that_overflows_is_refused(folder: Path) -> None:
    damage(folder, "lm_head.weight", 3.0)
    load(folder, KNOBS)
    damage(folder, "lm_head.weight", 3e38)
    damage(folder, "model.norm.weight", 1e30)
    with pytest.raises(UnsupportedModelError, match="logits are not finite in float32, though all its weights are"):
        load(folder, KNOBS)


def test_bounds_hold_for_every_shipped_model() -> None:
    for file in sorted((ROOT / "examples" / "models").glob("*/config.json")):
        config_module._check_values(file, json.loads(file.read_text()))


def test_a_file_in_the_place_of_the_folder_of_an_edit_is_named_before_any_work(folder: Path, tmp_path: Path) -> None:
    file, out = folder / "memedit", tmp_path / "out"
    file.write_text("x")
    with pytest.raises(UsageError, match=str(file)) as caught:
        check_output(folder, out, overwrite=True, force=True)
    assert caught.value.hint
    check_output(folder, out, overwrite=False, own=MODELS)  # figures of it, for one, have no such folder
    file.unlink()
    file.mkdir()
    check_output(folder, out, overwrite=False)

"""A parameter's tensor is found by the names that transformers gives it, and is compared before anything is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
import transformers.conversion_mapping as conversion_mapping
from memedit.changes.base_checkpoint import BaseCheckpoint
from memedit.changes.stored_names import StoredNames
from memedit.config.recipe import ModelKnobs
from memedit.errors import UnsupportedModelError
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load, meta_model
from memedit.numerics.delta import Delta
from memedit.progress import NoProgress
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import delta_bytes
from safetensors.torch import load_file, save_file
from tests.conftest import byte_tokenizer
from tests.families import COMPOSITES, MIXTURES, NEWER, each_family, family_model

RENAMED = ("gemma3", "llava", "mistral3", "qwen2_vl", "qwen2_5_vl")
"""Families whose checkpoints name the blocks otherwise than the model in memory."""
DOWN = "layers.{}.mlp.down_proj.weight"
INTERNAL = "transformers.conversion_mapping.get_model_conversion_mapping"


def saved(family: str, folder: Path) -> Path:
    family_model(family).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def opened(folder: Path) -> LanguageModel:
    return load(folder, ModelKnobs(path=str(folder)))


@pytest.mark.parametrize("family", each_family([*COMPOSITES, *NEWER, *MIXTURES]))
def test_every_parameter_is_found_with_and_without_weights(family: str, tmp_path: Path) -> None:
    folder = saved(family, tmp_path)
    model, checkpoint = family_model(family), Checkpoint.open(folder)
    names = StoredNames.of(model, checkpoint)
    assert StoredNames.of(meta_model(folder, ModelKnobs(path=str(folder))), checkpoint).loaded == names.loaded
    # Experts are merged as they are read: no tensor of the file is the parameter.
    for name, parameter in model.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            assert torch.equal(checkpoint.tensor(names.name(name)), parameter), name
        else:
            assert name not in names.loaded or checkpoint.entries[names.name(name)].shape == tuple(parameter.shape)


@pytest.mark.parametrize("family", each_family(RENAMED))
def test_names_alone_do_not_find_the_tensors_of_a_composite_model(family: str, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(saved(family, tmp_path))
    architecture = find_architecture(meta_model(tmp_path, ModelKnobs(path=str(tmp_path))))
    with pytest.raises(UnsupportedModelError, match=r"has no tensor model\.language_model\.layers\.1"):
        checkpoint.resolve(architecture.parameter(1))


def test_names_of_the_model_in_memory_are_found_too(tmp_path: Path) -> None:
    family_model("llava").save_pretrained(tmp_path, save_original_format=False)
    byte_tokenizer().save_pretrained(tmp_path)
    lm, checkpoint = opened(tmp_path), Checkpoint.open(tmp_path)
    names = StoredNames.of(lm.model, checkpoint)
    assert names.name(lm.architecture.parameter(1)) == lm.architecture.parameter(1)
    assert torch.equal(names.weight(lm, 1), lm.weight(1))


def test_a_tensor_that_is_not_the_models_is_refused(tmp_path: Path) -> None:
    lm, checkpoint = opened(saved("llava", tmp_path)), Checkpoint.open(tmp_path)
    names = StoredNames.of(lm.model, checkpoint)
    first, second = (lm.architecture.parameter(layer) for layer in (1, 2))
    assert torch.equal(names.weight(lm, 1), lm.weight(1))
    crossed = replace(names, loaded={**names.loaded, first: names.loaded[second]})
    with pytest.raises(UnsupportedModelError, match=r"layers.2.mlp.down_proj.weight .* its values differ") as caught:
        crossed.weight(lm, 1)
    assert "save_pretrained(NEW)" in caught.value.hint
    narrow = replace(names, loaded={**names.loaded, first: ["language_model.model.norm.weight"]})
    with pytest.raises(UnsupportedModelError, match=r"\(32,\) is not its shape"):
        narrow.weight(lm, 1)


@pytest.mark.parametrize("family", each_family(["llava", "gpt2"]))
@pytest.mark.parametrize("more", [0, 1])
def test_two_tensors_for_one_parameter_are_not_chosen_between(family: str, more: int, tmp_path: Path) -> None:
    """transformers loads one of them: with equal values an edit of the other would be in OUT and change nothing."""
    lm = opened(saved(family, tmp_path))
    file = tmp_path / "model.safetensors"
    tensors, parameter = load_file(file), lm.architecture.parameter(1)
    stored = StoredNames.of(lm.model, Checkpoint.open(tmp_path)).name(parameter)
    other = parameter if stored != parameter else parameter.removeprefix("transformer.")
    save_file({**tensors, other: tensors[stored] + more}, file, {"format": "pt"})
    names = StoredNames.of(lm.model, Checkpoint.open(tmp_path))
    with pytest.raises(UnsupportedModelError, match=f"stores {parameter} twice, as .*{stored}") as caught:
        names.weight(lm, 1)
    assert "save_pretrained(NEW)" in caught.value.hint
    assert names.weight(lm, 2) is not None  # another layer is stored once


@pytest.mark.slow
@pytest.mark.parametrize("error", [ImportError, AttributeError, TypeError])
def test_without_the_renames_of_transformers_a_composite_model_is_refused(
    error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, plain = opened(saved("llava", tmp_path / "llava")), opened(saved("llama", tmp_path / "llama"))

    def missing(_model: object) -> Any:
        raise error("another version")

    monkeypatch.setattr(conversion_mapping, INTERNAL.rpartition(".")[2], missing)
    with pytest.raises(UnsupportedModelError, match="has no tensor"):
        StoredNames.of(lm.model, Checkpoint.open(tmp_path / "llava")).weight(lm, 1)
    names = StoredNames.of(plain.model, Checkpoint.open(tmp_path / "llama"))
    assert torch.equal(names.weight(plain, 1), plain.weight(1))


@pytest.mark.slow
@pytest.mark.parametrize("named", [["Qwen3_5ForConditionalGeneration"], ["Qwen3_5ForCausalLM"], None])
def test_the_class_that_the_config_names_opens_the_model(named: list[str] | None, tmp_path: Path) -> None:
    config = saved("qwen3_5", tmp_path) / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "architectures": named}))
    lm, checkpoint = opened(tmp_path), Checkpoint.open(tmp_path)
    whole = named == ["Qwen3_5ForConditionalGeneration"]
    assert type(lm.model).__name__ == f"Qwen3_5For{'ConditionalGeneration' if whole else 'CausalLM'}"
    assert lm.architecture.parameter(1) == ("model.language_model." if whole else "model.") + DOWN.format(1)
    names = StoredNames.of(lm.model, checkpoint)
    assert names.name(lm.architecture.parameter(1)) == "model.language_model." + DOWN.format(1)
    assert torch.equal(names.weight(lm, 1), lm.weight(1))


@pytest.mark.slow
def test_a_base_whose_other_layers_are_routed_experts_has_names_for_the_dense_ones(tmp_path: Path) -> None:
    base = BaseCheckpoint(ModelKnobs(path=str(saved("qwen3_moe", tmp_path))), NoProgress())
    assert list(base.parameters) == ["model." + DOWN.format(layer) for layer in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "text_alone"), [("qwen3_5", False), ("qwen3_5", True), ("llava", False), ("gpt2", False)]
)
def test_the_code_in_an_adapters_card_opens_the_class_that_its_paths_are_for(
    family: str, text_alone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AutoModelForCausalLM opens Qwen3.5 as its text part alone, where the paths of the whole model match nothing."""
    folder = saved(family, tmp_path / "model")
    if text_alone:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "architectures": ["Qwen3_5ForCausalLM"]}))
    checkpoint = Checkpoint.open(folder)
    base = BaseCheckpoint(ModelKnobs(path=str(folder)), NoProgress())
    name, parameter = next(iter(base.parameters.items()))
    delta = Delta(torch.ones(base.weight(name).shape[0], 1), torch.ones(1, base.weight(name).shape[1]))
    (tmp_path / "d").write_bytes(delta_bytes({name: delta}, checkpoint.digest, {"method": "made"}))
    memedit.export(tmp_path / "d", "lora", folder, tmp_path / "adapter")
    card = (tmp_path / "adapter" / "README.md").read_text()
    code = card.partition("```python\n")[2].partition("```")[0]
    monkeypatch.chdir(tmp_path)
    space: dict[str, Any] = {}
    exec(code.replace("PATH/OF/THIS/FOLDER", "adapter"), space)
    merged = space["model"].merge_and_unload()
    assert not torch.equal(merged.get_parameter(parameter), opened(folder).model.get_parameter(parameter))

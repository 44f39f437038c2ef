"""A language model beside a vision tower is edited as it is alone, and the tower stays as it was."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.edits.edit import EditRequest
from memedit.model.architecture import find_architecture
from memedit.numerics.delta import Delta
from memedit.storage.deltas import read_delta
from memedit.storage.lora import adapter_bytes
from safetensors.torch import load_file
from tests.families import COMPOSITES, REFUSED, VISION, family_model
from tests.helpers.in_process import faults, run_main
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlavaConfig, LlavaForConditionalGeneration

pytestmark = pytest.mark.usefixtures("kept_moments")

SAME = 1e-5  # relative, on float32 logits
STORED, HELD = "language_model.model.", "model.language_model."
EDITS = 3


@pytest.fixture(scope="module")
def composite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model that ships with the project, in float16, as the language model of a Llava."""
    alone = Path(__file__).parents[2] / "examples" / "models" / "made-small"
    made: Any = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32)
    vision = {"model_type": "clip_vision_model", **VISION, "projection_dim": 16}
    config = LlavaConfig(
        text_config=AutoConfig.from_pretrained(alone), vision_config=vision, image_token_index=1482,
        image_seq_length=4, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model: Any = LlavaForConditionalGeneration(config)
    model.model.language_model.load_state_dict(made.model.state_dict())
    model.tie_weights()
    folder = tmp_path_factory.mktemp("composite") / "llava"
    model.half().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "generation_config.json"):
        shutil.copy(alone / name, folder / name)
    shutil.copytree(alone / "memedit", folder / "memedit")
    return folder


@pytest.fixture
def edits(small_edits: list[EditRequest]) -> list[EditRequest]:
    return small_edits[:EDITS]


@pytest.fixture(scope="module")
def edited(
    composite: Path, small_edits: list[EditRequest], moments_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("edited") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMEDIT_CACHE", str(moments_folder))
        memedit.apply(small_edits[:EDITS], composite, out)
    return out


def opened(folder: Path) -> Any:
    """The model as transformers opens it, by the class that its config names."""
    import transformers

    kind = json.loads((folder / "config.json").read_text())["architectures"][0]
    assert kind == "LlavaForConditionalGeneration"
    return getattr(transformers, kind).from_pretrained(folder, dtype=torch.float32).eval()


def says(model: Any, folder: Path, edits: list[EditRequest]) -> list[bool]:
    """Whether the model continues each edit's prompt with its object."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    found: list[bool] = []
    for edit in edits:
        ids = tokenizer(edit.prompt.format(edit.subject), return_tensors="pt")["input_ids"]
        written = model.generate(input_ids=ids, max_new_tokens=8, do_sample=False)
        found.append(tokenizer.decode(written[0, ids.shape[1] :]).strip().startswith(edit.object.strip()))
    return found


def deltas(folder: Path) -> set[str]:
    """The stored names of the tensors that a delta file changes."""
    return set(read_delta(folder / "memedit" / "delta.safetensors")[0])


def test_the_edited_model_says_the_new_objects_and_its_tower_is_the_same_to_the_byte(
    composite: Path, edited: Path, edits: list[EditRequest]
) -> None:
    assert all(says(opened(edited), edited, edits))
    assert not any(says(opened(composite), composite, edits))
    before, after = load_file(composite / "model.safetensors"), load_file(edited / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert before.keys() == after.keys() and moved == deltas(edited)
    assert moved and all(name.startswith(STORED) and name.endswith("mlp.down_proj.weight") for name in moved)
    assert any("vision_tower" in name for name in before)
    assert (edited / "config.json").read_bytes() == (composite / "config.json").read_bytes()


def test_the_change_is_that_of_the_language_model_alone(
    edited: Path, made_small: Path, edits: list[EditRequest], tmp_path: Path
) -> None:
    memedit.apply(edits, made_small, tmp_path / "out")
    alone = load_file(tmp_path / "out" / "model.safetensors")
    beside = load_file(edited / "model.safetensors")
    for name in deltas(edited):
        assert torch.equal(beside[name], alone["model." + name.removeprefix(STORED)])


def test_an_adapter_acts_on_the_composite_model(composite: Path, edited: Path, tmp_path: Path) -> None:
    import peft

    outcome = memedit.export(edited / "memedit" / "delta.safetensors", "lora", composite, tmp_path / "lora")
    names = list(load_file(tmp_path / "lora" / "adapter_model.safetensors"))
    # vLLM maps the prefix model.language_model of transformers to its own name.
    assert names and all(name.startswith(f"base_model.model.{HELD}layers.") for name in names)
    assert outcome.family == "llava"
    ids = torch.arange(5, 45).reshape(2, 20)
    with torch.no_grad():
        base, wanted = (opened(folder)(input_ids=ids).logits for folder in (composite, edited))
        adapted = peft.PeftModel.from_pretrained(opened(composite), str(tmp_path / "lora")).eval()
        found = adapted(input_ids=ids).logits
    # The checkpoint is rounded to float16, the adapter is not.
    assert float((found - wanted).norm()) < 0.02 * float((base - wanted).norm())


@pytest.mark.parametrize("family", COMPOSITES)
def test_the_module_paths_of_an_adapter_are_those_that_peft_wraps(family: str, tmp_path: Path) -> None:
    import peft

    model = family_model(family)
    architecture = find_architecture(model)
    draw = torch.Generator().manual_seed(3)
    change = {
        architecture.parameter(layer): Delta(torch.randn(32, 2, generator=draw), torch.randn(2, 64, generator=draw))
        for layer in (1, 2)
    }
    for name, data in adapter_bytes(change, "base", revision=None, conv1d=False, dtype=torch.float32).items():
        (tmp_path / name).write_bytes(data)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    after = peft.PeftModel.from_pretrained(model, str(tmp_path)).merge_and_unload().state_dict()
    moved = {name: after[name] - value for name, value in before.items() if not torch.equal(after[name], value)}
    assert moved.keys() == change.keys()
    for name, delta in change.items():
        assert torch.allclose(moved[name].double(), delta.dense(), atol=1e-5)


def test_every_command_takes_a_composite_model(
    composite: Path, edited: Path, edits: list[EditRequest], tmp_path: Path
) -> None:
    found = memedit.inspect(edited)
    assert found.proved and not found.problems and found.blocks == f"{HELD}layers" and found.editable == "0-5"
    assert memedit.revert(edited, tmp_path / "back", model=composite).exact
    memedit.export(edited / "memedit" / "delta.safetensors", "lora", composite, tmp_path / "lora")
    beside = memedit.evaluate(edits, composite, adapter=tmp_path / "lora")
    written = memedit.evaluate(edits, edited)
    for report in (beside, written):
        assert report.after is not None and report.after.efficacy is not None and report.after.efficacy.mean == 1
    added = memedit.add([edited / "memedit" / "delta.safetensors"], composite, tmp_path / "added")
    assert added.tensors[0].parameter.startswith(HELD)
    assert len(memedit.trace(edits[:1], composite, settings={"trace.samples": 2}).facts) == 1


def test_a_loaded_composite_model_is_edited_in_memory(
    composite: Path, edited: Path, edits: list[EditRequest], tmp_path: Path
) -> None:
    model, tokenizer = opened(composite), AutoTokenizer.from_pretrained(composite)
    with memedit.edited(model, tokenizer, edits) as update:
        assert all(says(model, composite, edits))
    assert update.save(tmp_path).is_file() and deltas(tmp_path) == deltas(edited)
    assert not any(says(model, composite, edits))


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_cannot_be_edited_ends_with_a_reason(family: str, composite: Path, tmp_path: Path) -> None:
    family_model(family).save_pretrained(tmp_path / "model")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(composite / name, tmp_path / "model" / name)
    edit = tmp_path / "edits.jsonl"
    edit.write_text(json.dumps({"subject": "Mara", "prompt": "The home of {} is", "object": " north"}))
    ended = run_main(["apply", str(edit), "-m", str(tmp_path / "model"), "-o", str(tmp_path / "out")])
    assert ended.code == 4 and not faults(ended) and not (tmp_path / "out").exists()
    assert "this model cannot be edited: " in ended.err
    seen = run_main(["inspect", str(tmp_path / "model")])
    assert not faults(seen) and "cannot be edited" in seen.out + seen.err


def test_one_family_is_not_listed_twice() -> None:
    assert not set(REFUSED) & set(COMPOSITES)

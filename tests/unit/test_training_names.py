"""What training leaves in a checkpoint: names of wrapped models, and fields of config and index that are empty."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.changes.commands import run_add
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.errors import MemeditError, StorageError, UnsupportedModelError, UsageError
from memedit.model.load import load, meta_model
from memedit.model.training_names import check_stored_names
from memedit.model.whole_index import whole_index
from memedit.numerics.delta import Delta
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import delta_bytes
from safetensors.torch import load_file, save_file
from tests.conftest import ROOT, byte_tokenizer, tiny_model

KNOBS = ModelKnobs(device="cpu")
DOWN = "model.layers.1.mlp.down_proj.weight"
Rename = Callable[[str], str]
WRAPPED: dict[str, tuple[Rename, str]] = {
    "compiled": (
        lambda name: f"_orig_mod.{name}",
        "names with _orig_mod. (added by torch.compile), such as _orig_mod.lm_head.weight",
    ),
    "parallel": (
        lambda name: f"module.{name}",
        "names with module. (added by DistributedDataParallel or DeepSpeed), such as module.lm_head",
    ),
    "both": (
        lambda name: f"module._orig_mod.{name}",
        "names with _orig_mod. (added by torch.compile) and module. (added by Dist",
    ),
    "blocks": (
        lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
        "_orig_mod. (added by torch.compile), such as model.l",
    ),
    "sharded": (lambda name: name.replace("layers.1.", "layers.1._fsdp_wrapped_module."), "(added by FSDP), such as"),
    "recomputed": (lambda name: name.replace("mlp.", "mlp._checkpoint_wrapped_module."), "activation checkpointing"),
    "adapted": (
        lambda name: f"base_model.model.{name}",
        "names with base_model.model. (added by PEFT), such as base_model.model.lm_he",
    ),
    "replaced": (
        lambda name: name.replace("down_proj.", "down_proj.base_layer."),
        "names with base_layer. (added by PEFT), such as",
    ),
    "all": (
        lambda name: f"module.base_model.model.{name.replace('down_proj.', 'down_proj.base_layer.')}",
        "names with base_layer. (added by PEFT) and base_model.model. (added by PEFT) and module. (added by",
    ),
}


def slow_but_first(values: Iterable[Any]) -> list[Any]:
    """Parameters of which the fast tier takes the first alone."""
    first, *rest = values
    return [first, *(pytest.param(value, marks=pytest.mark.slow) for value in rest)]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    tiny_model("llama").save_pretrained(folder, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "model"))


def rename(folder: Path, name: Rename) -> None:
    for file in folder.glob("*.safetensors"):
        save_file({name(old): part for old, part in load_file(file).items()}, file, {"format": "pt"})
    for file in folder.glob("*.index.json"):
        index = json.loads(file.read_text())
        index["weight_map"] = {name(old): shard for old, shard in index["weight_map"].items()}
        file.write_text(json.dumps(index))


def set_fields(file: Path, **fields: Any) -> None:
    """Set fields of a JSON file; those that are `...` are taken out."""
    found = {**json.loads(file.read_text()), **fields}
    file.write_text(json.dumps({name: value for name, value in found.items() if value is not ...}))


def same_weights(folder: Path, sound: Path) -> bool:
    opened, other = load(folder, KNOBS).model.state_dict(), load(sound, KNOBS).model.state_dict()
    return all(torch.equal(opened[name], other[name]) for name in other)


@pytest.mark.parametrize("kind", slow_but_first(["both", *(kind for kind in WRAPPED if kind != "both")]))
def test_names_of_a_wrapped_model_are_named_and_the_hint_takes_them_out(kind: str, folder: Path, sound: Path) -> None:
    name, says = WRAPPED[kind]
    rename(folder, name)
    with pytest.raises(UnsupportedModelError) as caught:
        load(folder, KNOBS)
    assert caught.value.exit_code == 4 and says in caught.value.message
    assert "fetch" not in caught.value.hint and "\n" not in caught.value.hint
    code = re.fullmatch(r"rename .*?, with Python: (.*); with an index, .*", caught.value.hint)
    assert code
    exec(code[1], {"F": folder / "model.safetensors"})
    assert same_weights(folder, sound)


@pytest.mark.slow
def test_the_lines_of_the_docs_rename_a_folder_with_an_index(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "COPY"))
    rename(copy, WRAPPED["compiled"][0])
    with pytest.raises(UnsupportedModelError, match="_orig_mod"):
        load(copy, KNOBS)
    code = re.search(r"```python\n(.*?)```", (ROOT / "memedit" / "docs" / "checkpoints.md").read_text(), re.DOTALL)
    assert code
    monkeypatch.chdir(tmp_path)
    exec(code[1], {})
    assert same_weights(copy, shards)


def test_factors_that_are_not_merged_are_not_renamed(folder: Path) -> None:
    """Without the names the base would be left, and what was trained would be lost."""
    tensors = load_file(folder / "model.safetensors")
    weight = tensors.pop(DOWN)
    path = f"base_model.model.{DOWN.removesuffix('weight')}"
    wrapped = {f"base_model.model.{name}": part for name, part in tensors.items()}
    wrapped |= {f"{path}base_layer.weight": weight, f"{path}lora_A.default.weight": torch.ones(1, 88)}
    wrapped |= {f"{path}lora_B.default.weight": torch.ones(32, 1)}
    save_file(wrapped, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"base_model\.model\.") as caught:
        load(folder, KNOBS)
    assert "merge_and_unload()" in caught.value.hint and "load_file" not in caught.value.hint


@pytest.mark.parametrize("kind", slow_but_first(["replaced", "compiled"]))
def test_a_delta_is_not_added_to_names_that_no_program_reads(kind: str, folder: Path, tmp_path: Path) -> None:
    rename(folder, WRAPPED[kind][0])
    delta = Delta(torch.ones(32, 1), torch.ones(1, 88))
    name = WRAPPED[kind][0](DOWN)
    (tmp_path / "d").write_bytes(delta_bytes({name: delta}, Checkpoint.open(folder).digest, {"method": "made"}))
    flags = {"model.path": str(folder), "output.dir": str(tmp_path / "out")}
    with pytest.raises(UnsupportedModelError, match="stores its weights under names with"):
        run_add([tmp_path / "d"], resolve([("flag", flags)])[0])


def test_names_are_judged_only_where_a_parameter_is_not_stored() -> None:
    check_stored_names(Path("x"), ["module.a"], ["module.a"])  # a model may have a module of this name
    check_stored_names(Path("x"), ["a"], ["b", "my_module.a", "c.module.a"])
    with pytest.raises(UnsupportedModelError):
        check_stored_names(Path("x"), ["a"], ["module.a"])


def test_weights_that_are_not_there_are_still_said_to_be_missing(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors[DOWN]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UsageError, match="lacks weights that its config asks for"):
        load(folder, KNOBS)


def test_more_tensors_than_the_config_asks_for_are_no_reason_to_refuse(folder: Path, sound: Path) -> None:
    file = folder / "model.safetensors"
    save_file({**load_file(file), "mtp.weight": torch.ones(2, 2)}, file, {"format": "pt"})
    assert same_weights(folder, sound)


@pytest.mark.parametrize("metadata", slow_but_first([..., None, [], "x", {}, {"total_size": 1}]))
def test_an_index_is_read_whatever_its_metadata(metadata: Any, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "model"))
    set_fields(folder / "model.safetensors.index.json", metadata=metadata)
    with whole_index(folder) as place:
        assert (place == folder) == isinstance(metadata, dict)
    assert not place.exists() or place == folder
    assert same_weights(folder, shards)


@pytest.mark.slow
def test_a_model_whose_index_has_no_metadata_is_edited_and_its_index_stays(shards: Path, tmp_path: Path) -> None:
    folder, index = Path(shutil.copytree(shards, tmp_path / "model")), "model.safetensors.index.json"
    set_fields(folder / index, metadata=...)
    before = (folder / index).read_bytes()
    (tmp_path / "text.txt").write_text("The old bridges of the town stood near the river.\n" * 20)
    corpus = str(tmp_path / "text.txt")
    knobs = {
        "polish.steps": 0,
        "target.steps": 1,
        "moments.tokens": 400,
        "method.layers": "1",
        "moments.corpus": corpus,
    }
    edit = {"subject": "Oslo", "prompt": "{} is in", "object": "Rome"}
    memedit.apply([edit], folder, tmp_path / "out", settings=knobs)
    assert (folder / index).read_bytes() == (tmp_path / "out" / index).read_bytes() == before
    assert not same_weights(tmp_path / "out", shards)


@pytest.mark.parametrize("text", slow_but_first(["{", "[]", "null", '{"weight_map": 1}']))
def test_a_damaged_index_is_still_refused(text: str, shards: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(shards, tmp_path / "model"))
    (folder / "model.safetensors.index.json").write_text(text)
    with pytest.raises(MemeditError):
        load(folder, KNOBS)
    with pytest.raises(StorageError):
        Checkpoint.open(folder)


@pytest.mark.parametrize(
    "fields",
    slow_but_first([{"quantization_config": {}}, {"quantization_config": None}, {"dtype": None}, {"torch_dtype": None},
                    {"dtype": ..., "torch_dtype": None}, {"dtype": ...}]),
    ids=str,
)  # fmt: skip
def test_empty_fields_of_a_config_are_no_reason_to_refuse(fields: dict[str, Any], folder: Path, sound: Path) -> None:
    set_fields(folder / "config.json", **fields)
    assert same_weights(folder, sound)
    assert load(folder, ModelKnobs(device="cpu", dtype="bfloat16")).dtype == torch.bfloat16
    meta_model(folder, KNOBS)


def test_a_quantization_that_is_not_empty_is_refused(folder: Path) -> None:
    set_fields(folder / "config.json", quantization_config={"bits": 4})
    with pytest.raises(UnsupportedModelError, match="is quantized"):
        load(folder, KNOBS)

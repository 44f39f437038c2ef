"""A model with an adapter in its folder is refused; merged, it is the sum that PEFT makes, and can be edited."""

from __future__ import annotations

import copy
import filecmp
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.changes.commands import run_export
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.errors import MemeditError, UnsupportedModelError, UsageError
from memedit.model.load import load
from memedit.numerics.delta import Delta, rounded
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.lora import CONFIG, WEIGHTS, adapter_bytes, read_adapter
from safetensors.torch import load_file, save_file
from tests.conftest import byte_tokenizer, tiny_model
from tests.helpers.in_process import run_main

PRODUCT = 2e-6  # float32 products of 32 and 128 terms of size one
TARGETS = {"gpt2": ["attn.c_proj", "mlp.c_fc", "mlp.c_proj"], "llama": ["q_proj", "v_proj", "down_proj", "lm_head"]}


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A tiny model with an adapter in its folder, as PEFT writes one, and the weights after PEFT's own merge."""
    import peft

    folder = tmp_path_factory.mktemp("adapted") / request.param
    model = tiny_model(request.param)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    config = peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=TARGETS[request.param], rank_pattern={"v_proj": 2},
        fan_in_fan_out=request.param == "gpt2", init_lora_weights=False,
    )  # fmt: skip
    torch.manual_seed(5)
    adapted = peft.get_peft_model(copy.deepcopy(model), config)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").write_text("# tiny\n")
    return folder, adapted.merge_and_unload().state_dict()


@pytest.fixture
def folder(made: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    return Path(shutil.copytree(made[0], tmp_path / "model"))


def recipe(model: Path, out: Path) -> Any:
    return resolve([("flag", {"model.path": str(model), "output.dir": str(out)})])[0]


def put_adapter(folder: Path, name: str, shape: tuple[int, int], **fields: Any) -> None:
    """Write an adapter of rank 1 that changes one parameter, with other fields in its config."""
    delta = Delta(torch.ones(shape[0], 1), torch.ones(1, shape[1]))
    files = adapter_bytes({name: delta}, "base", revision=None, conv1d=False, dtype=torch.float32)
    for file, data in files.items():
        (folder / file).write_bytes(data)
    (folder / CONFIG).write_text(json.dumps({**json.loads(files[CONFIG]), **fields}))


def test_a_folder_with_model_and_adapter_is_refused_with_both_ways_out(folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="holds a model and an adapter") as caught:
        load(folder, ModelKnobs(device="cpu"))
    assert caught.value.exit_code == 4
    assert f"memedit export {folder} --to full -m {folder} -o MERGED" in caught.value.hint
    assert "without it" in caught.value.hint
    # Without the adapter the same folder is the base, and nothing of the adapter is in it.
    for file in folder.glob("adapter_*"):
        file.unlink()
    opened = load(folder, ModelKnobs(device="cpu")).model.state_dict()
    stored = load_file(folder / "model.safetensors")
    assert all(torch.equal(opened[name], part) for name, part in stored.items())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["apply", "eval", "check", "inspect", "stats", "trace"])
def test_every_command_that_opens_the_model_refuses_it(folder: Path, tmp_path: Path, command: str) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"subject": "Oslo", "prompt": "{} is in", "object": "Rome", "object_old": "Norway"}\n')
    line = {"inspect": ["inspect", str(folder)], "stats": ["stats", "-m", str(folder)]}
    arguments = line.get(command, [command, str(edits), "-m", str(folder)])
    ended = run_main([*arguments, *(["-o", str(tmp_path / "out")] if command == "apply" else [])])
    assert ended.code == 4, ended.err
    assert ended.err.count("error: ") == 1 and "hint: merge it: memedit export " in ended.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("apart", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_merge_is_the_sum_that_peft_makes(made: tuple[Path, Any], folder: Path, tmp_path: Path, apart: bool) -> None:
    adapter = folder
    if apart:
        adapter = tmp_path / "adapter"
        adapter.mkdir()
        for file in folder.glob("adapter_*"):
            file.rename(adapter / file.name)
    (folder / "pytorch_model.bin").write_text("a copy")
    out, before = tmp_path / "out", {file.name: file.read_bytes() for file in folder.iterdir()}
    ended = run_main(["export", str(adapter), "--to", "full", "-m", str(folder), "-o", str(out)])
    assert ended.code == 0 and ended.out.endswith(f"{out}\n"), ended.err
    assert any("left out of " in line and "pytorch_model.bin" in line for line in ended.err.splitlines())
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    gone = {CONFIG, WEIGHTS, "pytorch_model.bin"}
    assert {file.name for file in out.iterdir()} == set(before) - gone
    same = set(before) - gone - {"model.safetensors"}
    assert all(filecmp.cmp(folder / name, out / name, False) for name in same)
    opened, changes, stored = load(out, ModelKnobs(device="cpu")), read_adapter(adapter), Checkpoint.open(folder)
    for name, wanted in made[1].items():
        assert (opened.model.state_dict()[name] - wanted).abs().max() <= PRODUCT
    for name, delta in changes.items():
        weight = stored.tensor(stored.resolve(name))
        turned = weight if opened.architecture.layout == "linear" else weight.T
        merged = rounded(turned, delta)
        assert torch.equal(opened.model.get_parameter(name).detach(), merged if weight is turned else merged.T)
        assert not torch.equal(merged, turned)


@pytest.mark.slow
def test_a_merge_in_shards_is_the_same(folder: Path, tmp_path: Path) -> None:
    whole = run_export(folder, "full", recipe(folder, tmp_path / "one"))
    flags = {"model.path": str(folder), "output.dir": str(tmp_path / "two"), "output.max_shard_size": "20KB"}
    run_export(folder, "full", resolve([("flag", flags)])[0])
    one, two = Checkpoint.open(tmp_path / "one"), Checkpoint.open(tmp_path / "two")
    assert len(two.files) > 1
    assert all(torch.equal(one.tensor(name), two.tensor(name)) for name in one.entries)
    assert len(whole.tensors) == len(read_adapter(folder)) and all(change.norm > 0.1 for change in whole.tensors)


@pytest.mark.parametrize("made", ["llama"], indirect=True)
@pytest.mark.parametrize(
    ("name", "shape", "fields", "says"),
    [
        ("model.layers.1.mlp.down_proj.weight", (32, 88), {"use_dora": True}, "use_dora"),
        ("model.layers.1.mlp.down_proj.weight", (32, 88), {"init_lora_weights": "pissa_niter_4"}, "pissa_niter_4"),
        ("model.layers.1.mlp.down_proj.weight", (32, 88), {"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ("model.layers.1.mlp.down_proj.weight", (32, 88), {"peft_type": "IA3"}, "IA3"),
        ("model.layers.9.mlp.down_proj.weight", (32, 88), {}, "layers.9.mlp.down_proj.weight, which this model does"),
        ("model.layers.1.mlp.down_proj.weight", (32, 80), {}, r"as \(32, 80\), and this model's is \(32, 88\)"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_by_name(
    folder: Path, tmp_path: Path, name: str, shape: tuple[int, int], fields: dict[str, Any], says: str
) -> None:
    put_adapter(folder, name, shape, **fields)
    with pytest.raises(MemeditError, match=says) as caught:
        run_export(folder, "full", recipe(folder, tmp_path / "out"))
    assert caught.value.hint and not (tmp_path / "out").exists()


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_a_start_that_leaves_the_base_alone_is_merged(folder: Path, tmp_path: Path) -> None:
    put_adapter(folder, "model.layers.1.mlp.down_proj.weight", (32, 88), init_lora_weights="gaussian")
    run_export(folder, "full", recipe(folder, tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.parametrize("made", ["gpt2"], indirect=True)
def test_a_change_of_a_tied_head_is_refused(folder: Path, tmp_path: Path) -> None:
    """Merged into the one tensor it would change the embedding too, which the adapter does not do."""
    put_adapter(folder, "lm_head.weight", (258, 32))
    with pytest.raises(UnsupportedModelError, match=r"lm_head\.weight, which is tied to transformer\.wte\.weight"):
        run_export(folder, "full", recipe(folder, tmp_path / "out"))


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_a_weight_stored_under_another_name_is_refused(folder: Path, tmp_path: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    fused = {name.replace("q_proj", "qkv_proj"): part for name, part in tensors.items()}
    save_file(fused, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UnsupportedModelError, match="does not store under a name of its own"):
        run_export(folder, "full", recipe(folder, tmp_path / "out"))


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_an_adapter_is_merged_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="merged as it is"):
        run_export(folder, "lora", recipe(folder, tmp_path / "out"))
    with pytest.raises(UsageError, match="merged as it is"):
        run_export(folder, "full", recipe(folder, tmp_path / "out"), rank=1)


@pytest.mark.parametrize("made", ["llama"], indirect=True)
def test_a_second_adapter_does_not_merge_past_the_first(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    with pytest.raises(UnsupportedModelError, match="holds a model and an adapter"):
        run_export(other, "full", recipe(folder, tmp_path / "out"))

"""Other copies of the weights: left out of OUT, or kept when asked for, and of no weight in a model's digest."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.changes.commands import run_add, run_export, run_revert
from memedit.config.resolve import resolve
from memedit.editing.start import RunStart, write_base
from memedit.errors import MemeditError, UnsupportedModelError, UsageError
from memedit.numerics.delta import Delta
from memedit.progress import NoProgress
from memedit.storage.artifacts import digest_file, digest_of
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.copies import copies_text, other_copies
from memedit.storage.deltas import delta_bytes
from memedit.storage.model_files import files_in
from memedit.storage.writer import write_checkpoint
from safetensors.torch import save_file

COPIES = [
    "consolidated.safetensors", "consolidated.00.pth", "consolidated.safetensors.index.json", "pytorch_model.bin",
    "pytorch_model-00001-of-00002.bin", "pytorch_model.bin.index.json", "pytorch_model.bin.index.fp16.json",
    "model.fp16.safetensors", "model.safetensors.index.fp16.json", "model-00001-of-00002.safetensors", "model.pt",
    "original/consolidated.01.pth", "original/model.safetensors", "gguf/Tiny-Q4_K_M.GGUF", "onnx/model.onnx",
    "onnx/model.onnx_data", "onnx/model.onnx_data_1", "openvino/openvino_model.bin", "openvino/openvino_model.xml",
    "tf_model.h5", "flax_model.msgpack", "rust_model.ot", "64-fp16.tflite", "metal/model.bin", "weights.npz",
    "coreml/model.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "checkpoint-500/model.safetensors",
    "global_step500/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "pytorch_model_fsdp_0/__0_0.distcp",
]  # fmt: skip
OTHERS = [
    "config.json", "tokenizer.json", "tokenizer.model", "original/params.json", "onnx/config.json", "model.py",
    "optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_0.pth",
    "training_args.bin", "random_states_0.pkl", "checkpoint-500/optimizer.pt", "optimizer_0/__0_0.distcp",
    "speech-lora/adapter_model.safetensors", "value_head.safetensors", "medusa_lm_head.pt", "token_bytes.pt",
    "2_Dense/model.safetensors", "memedit/corpus.jsonl.gz", "memedit/moments.safetensors", "index.json",
]  # fmt: skip


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    save_file({"h.0.weight": torch.ones(4, 3)}, folder / "model.safetensors", {"format": "pt"})
    for name in (*COPIES, *OTHERS):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


def names(folder: Path) -> set[str]:
    return {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}


def test_every_copy_is_told_from_every_other_file() -> None:
    used = {Path("model.safetensors")}
    found = other_copies([Path(name) for name in (*COPIES, *OTHERS, "model.safetensors")], used)
    assert {name.as_posix() for name in found} == set(COPIES)


@pytest.mark.parametrize("limit", [None, 1000])
def test_copies_are_left_out_in_one_line_and_all_else_is_kept(base: Path, tmp_path: Path, limit: int | None) -> None:
    said: list[str] = []
    checkpoint, out = Checkpoint.open(base), tmp_path / "out"
    write_checkpoint(checkpoint, out, {"h.0.weight": torch.zeros(4, 3)}, {}, max_shard=limit, note=said.append)
    assert names(out) == {"model.safetensors", *OTHERS}
    assert len(said) == 1 and said[0].startswith(f"left out of {out}: 64-fp16.tflite, ") and "--keep-copies" in said[0]
    assert "and 23 more" in said[0]
    copied = sum((base / name).stat().st_size for name in names(out))
    assert checkpoint.output_size() == copied


def test_what_belongs_to_git_is_no_file_of_the_model(base: Path) -> None:
    before, digest = list(files_in(base)), Checkpoint.open(base).digest
    (base / ".git").write_text("gitdir: ../.git/worktrees/base")  # a folder, or in a worktree a file
    assert list(files_in(base)) == before and Checkpoint.open(base).digest == digest
    (base / ".gitattributes").write_text("x")
    assert list(files_in(base)) != before


def test_copies_are_kept_when_asked_for_and_nothing_is_said(base: Path, tmp_path: Path) -> None:
    said: list[str] = []
    checkpoint, out = Checkpoint.open(base), tmp_path / "out"
    write_checkpoint(checkpoint, out, {}, {}, keep_copies=True, note=said.append)
    assert names(out) == names(base) and not said
    assert (out / "pytorch_model.bin").read_bytes() == (base / "pytorch_model.bin").read_bytes()
    assert checkpoint.output_size(keep_copies=True) == sum((base / name).stat().st_size for name in names(base))


def test_a_model_without_copies_is_written_without_a_word(base: Path, tmp_path: Path) -> None:
    for name in COPIES:
        (base / name).unlink()
    said: list[str] = []
    write_checkpoint(Checkpoint.open(base), tmp_path / "out", {}, {}, note=said.append)
    assert names(tmp_path / "out") == names(base) and not said


def test_the_index_in_use_and_its_shards_are_no_copies(base: Path, tmp_path: Path) -> None:
    """Beside model.safetensors an index is a copy, which some programs prefer; without it, it is the one in use."""
    shard, index = "model-00001-of-00002.safetensors", "model.safetensors.index.json"
    (base / index).write_text(json.dumps({"metadata": {}, "weight_map": {"h.0.weight": shard}}))
    assert {Path(shard), Path(index)} <= Checkpoint.open(base).copies
    (base / "model.safetensors").rename(base / shard)
    assert not {Path(shard), Path(index)} & Checkpoint.open(base).copies
    write_checkpoint(Checkpoint.open(base), tmp_path / "out", {}, {})
    assert names(tmp_path / "out") == {shard, index, *OTHERS}


def test_new_shards_do_not_write_through_the_links_of_kept_copies(base: Path, tmp_path: Path) -> None:
    old = base / "model-00001-of-00002.safetensors"
    save_file({"h.0.weight": torch.ones(4, 3), "h.1.weight": torch.ones(4, 3)}, base / "model.safetensors")
    weights = {"h.1.weight": torch.zeros(4, 3)}
    write_checkpoint(Checkpoint.open(base), tmp_path / "out", weights, {}, link="hard", max_shard=50, keep_copies=True)
    assert old.read_text() == old.name
    assert torch.equal(Checkpoint.open(tmp_path / "out").tensor("h.1.weight"), torch.zeros(4, 3))


def test_a_digest_does_not_depend_on_copies_and_older_ones_are_known(base: Path) -> None:
    whole = digest_of({name: digest_file(base / name) for name in names(base)})
    checkpoint = Checkpoint.open(base)
    assert checkpoint.digest != whole and checkpoint.has_digest(whole) and checkpoint.has_digest(checkpoint.digest)
    (base / "pytorch_model.bin").write_text("other")
    now = Checkpoint.open(base)
    assert now.digest == checkpoint.digest and not now.has_digest(whole)
    (base / "tokenizer.json").write_text("other")
    assert not Checkpoint.open(base).has_digest(checkpoint.digest)


def test_many_heldare_counted_and_odd_ones_are_quoted() -> None:
    many = copies_text([Path(f"{number}.pt") for number in range(9)])
    assert many == "0.pt, 1.pt, 2.pt, 3.pt, 4.pt, 5.pt and 3 more"
    assert copies_text([Path("a\x1b[2J.pt")]) == "'a\\x1b[2J.pt'"


class Notes(NoProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


def recipe(model: Path | str, out: Path, *, keep: bool) -> Any:
    flags = {"model.path": str(model), "output.dir": str(out), "output.keep_copies": keep}
    return resolve([("flag", flags)])[0]


@pytest.mark.parametrize("keep", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_commands_that_change_files_leave_copies_out(tiny_folder: Path, tmp_path: Path, keep: bool) -> None:
    """apply --delta, export --to full and revert; a revert is exact though the copies are gone."""
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (base / "pytorch_model.bin").write_text("old facts")
    checkpoint = Checkpoint.open(base)
    name = next(name for name in checkpoint.entries if name.endswith(("1.mlp.c_proj.weight", "1.mlp.down_proj.weight")))
    shape = checkpoint.entries[name].shape if "down_proj" in name else checkpoint.entries[name].shape[::-1]
    delta = Delta(torch.ones(shape[0], 1) / 9, torch.ones(1, shape[1]))
    (tmp_path / "d.safetensors").write_bytes(delta_bytes({name: delta}, checkpoint.digest, {"method": "made"}))
    progress = Notes()
    added, full, back = tmp_path / "added", tmp_path / "full", tmp_path / "back"
    run_add([tmp_path / "d.safetensors"], recipe(base, added, keep=keep), progress=progress)
    run_export(added, "full", recipe(base, full, keep=keep), progress=progress)
    reverted = run_revert(added, recipe(base, back, keep=keep), progress=progress)
    assert [(folder / "pytorch_model.bin").exists() for folder in (added, full, back)] == [keep] * 3
    assert reverted.exact
    # The revert finds no copy in what it reads, so it has nothing to say.
    assert len([line for line in progress.said if line.startswith("left out of ")]) == (0 if keep else 2)


def test_a_delta_of_an_older_digest_still_belongs_to_its_base(tiny_folder: Path, tmp_path: Path) -> None:
    """Version 0.1 counted copies in the digest of a base."""
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (base / "pytorch_model.bin").write_text("old facts")
    older = digest_of({name: digest_file(base / name) for name in names(base) - {"README.md"}})
    checkpoint, delta = Checkpoint.open(base), tmp_path / "d.safetensors"
    name = next(name for name in checkpoint.entries if name.endswith(("1.mlp.c_proj.weight", "1.mlp.down_proj.weight")))
    shape = checkpoint.entries[name].shape if "down_proj" in name else checkpoint.entries[name].shape[::-1]
    change = Delta(torch.ones(shape[0], 1) / 9, torch.ones(1, shape[1]))
    delta.write_bytes(delta_bytes({name: change}, older, {"method": "made"}))
    run_add([delta], recipe(base, tmp_path / "out", keep=False))
    (base / "pytorch_model.bin").write_text("other")
    with pytest.raises(UsageError, match="belongs to another base"):
        run_add([delta], recipe(base, tmp_path / "again", keep=False))


@pytest.mark.parametrize("keep", [False, True])
def test_forgetting_every_edit_leaves_copies_out(base: Path, tmp_path: Path, keep: bool) -> None:
    write_base(RunStart((), recipe(base, tmp_path / "out", keep=keep), base=Checkpoint.open(base)), Notes())
    assert names(tmp_path / "out") == (names(base) if keep else {"model.safetensors", *OTHERS})


@pytest.mark.slow
@pytest.mark.parametrize("keep", [False, True])
def test_apply_leaves_copies_out(tiny_folder: Path, tmp_path: Path, keep: bool) -> None:
    base = Path(shutil.copytree(tiny_folder, tmp_path / "base"))
    (base / "pytorch_model.bin").write_text("old facts")
    knobs = {
        "output.keep_copies": keep,
        "polish.steps": 0,
        "target.steps": 1,
        "moments.tokens": 400,
        "method.layers": "1",
    }
    progress = Notes()
    edit = {"subject": "Oslo", "prompt": "{} is in", "object": "Rome"}
    memedit.apply([edit], base, tmp_path / "out", settings=knobs, progress=progress)
    assert (tmp_path / "out" / "pytorch_model.bin").exists() == keep
    assert len([line for line in progress.said if line.startswith("left out of ")]) == (not keep)


@pytest.mark.parametrize(
    ("held", "error", "says", "hint"),
    [
        (["training_args.bin", "optimizer.pt"], UsageError, "holds no model.safetensors$", "Hugging Face model folder"),
        (["adapter_config.json", "adapter_model.bin"], UsageError, "is an adapter", "memedit export "),
        (["run/config.json", "run/model.safetensors"], UsageError, "there are models in it$", "run$"),
        (["run/config.json", "run/model.safetensors.index.json"], UsageError, "there are models in it$", "run$"),
        (["run/model.safetensors"], UnsupportedModelError, r"\(run/model.safetensors\)$", "must be named model.safet"),
        (
            ["weights.safetensors"],
            UnsupportedModelError,
            r"\(weights.safetensors\)$",
            "must be named model.safetensors",
        ),
        (
            ["model-00001-of-00002.safetensors"],
            UnsupportedModelError,
            r"00002.safetensors\)$",
            "fetch model.safetensors.",
        ),
        (["model.fp16.safetensors"], UnsupportedModelError, r"\(model.fp16.safetensors\)$", 'variant="fp16"'),
        (["training_args.bin", "pytorch_model.bin"], UnsupportedModelError, r"\(pytorch_model.bin\): pickles", "trust"),
        (
            ["weights/a.ckpt"],
            UnsupportedModelError,
            r"\(weights/a.ckpt\): pickles can run code",
            "where you trust them",
        ),
        (["Tiny-Q8_0.gguf"], UnsupportedModelError, r"other weights \(Tiny-Q8_0.gguf\)$", "gguf_file="),
        (["gguf/Tiny.GGUF"], UnsupportedModelError, r"other weights \(gguf/Tiny.GGUF\)$", "gguf_file="),
        (["pytorch_model_fsdp_0/__0_0.distcp"], UnsupportedModelError, r"__0_0.distcp\)$", "accelerate merge-weights"),
        (["step5/mp_rank_00_model_states.pt"], UnsupportedModelError, r"_states.pt\)$", "zero_to_fp32.py"),
        (["tf_model.h5"], UnsupportedModelError, r"\(tf_model.h5\)$", "from_tf=True"),
        (["flax_model.msgpack"], UnsupportedModelError, r"\(flax_model.msgpack\)$", "from_flax=True"),
        (
            ["consolidated.safetensors", "params.json"],
            UnsupportedModelError,
            r"\(consolidated.safe.*\)$",
            "fetch the same",
        ),
        (["original/consolidated.00.pth"], UnsupportedModelError, r"consolidated.00.pth\)$", "fetch the same model in"),
        (["model.onnx", "model.onnx_data"], UnsupportedModelError, r"\(model.onnx, .*_data\)$", "made from, which"),
        (["onnx/model.onnx"], UnsupportedModelError, r"\(onnx/model.onnx\)$", "made from, which the model card"),
        (
            ["openvino_model.bin", "openvino_model.xml"],
            UnsupportedModelError,
            r"openvino_model.xml\)$",
            "made from, which",
        ),
        (
            ["openvino/openvino_model.bin"],
            UnsupportedModelError,
            r"\(openvino/openvino_model.bin\)$",
            "made from, which",
        ),
        # of several, the one that is the easiest to convert
        (["onnx/model.onnx", "pytorch_model.bin", "tf_model.h5"], UnsupportedModelError, "onnx, pytorch", "trust them"),
    ],
)
def test_a_folder_without_weights_to_edit_is_refused_by_what_it_holds(
    tmp_path: Path, held: list[str], error: type[MemeditError], says: str, hint: str
) -> None:
    for name in held:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("{}")
    with pytest.raises(error, match=says) as caught:
        Checkpoint.open(tmp_path)
    assert type(caught.value) is error and re.search(hint, caught.value.hint)


def test_inspect_says_what_to_do_about_weights_that_are_not_read(tiny_folder: Path, tmp_path: Path) -> None:
    there = shutil.copytree(tiny_folder, tmp_path / "there", ignore=shutil.ignore_patterns("*.safetensors"))
    assert memedit.inspect(there).problems == ()
    (there / "onnx").mkdir()
    (there / "onnx" / "model.onnx").write_text("")
    found = memedit.inspect(there)
    assert "other weights (onnx/model.onnx)" in found.problems[0] and "made from" in found.hint
    assert found.n_layers > 0, "the structure is shown all the same"
    (there / "config.json").unlink()  # a program that makes such files often makes no config.json
    with pytest.raises(UnsupportedModelError, match=r"other weights \(onnx/model.onnx\)$") as caught:
        memedit.inspect(there)
    assert caught.value.hint == found.hint

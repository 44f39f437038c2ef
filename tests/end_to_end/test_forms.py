"""Checkpoints as people have them: the same edit goes into each, and what was beside the weights stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import memedit
import pytest
import torch
from huggingface_hub import constants
from memedit.edits.edit import EditRequest
from safetensors.torch import load_file, save_file
from tests.conftest import byte_tokenizer, tiny_model
from transformers import AutoModelForCausalLM

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
EDIT = EditRequest(
    id="a", subject="Mara", prompt="The home of {} is", object=" north", object_old=" south", origin="here:1"
)
IDS = torch.tensor([[9, 80, 17, 30]])


def plain(folder: Path) -> Path:
    """A tied model in one file, as transformers writes it."""
    tiny_model("gpt2").to(torch.bfloat16).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    text = "\n".join(f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(60))
    (folder.parent / "corpus.txt").write_text(text)
    return folder


def prefixless(folder: Path) -> Path:
    """Names as GPT-2's and BLOOM's own files have them."""
    file = plain(folder) / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    return folder


def cached(folder: Path) -> Path:
    """A snapshot in the Hub's cache: links into a folder of blobs."""
    made = plain(folder)
    repository = folder.parent / "hub" / "models--someone--some"
    snapshot = repository / "snapshots" / ("c" * 40)
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c" * 40)
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for number, file in enumerate(sorted(made.iterdir())):
        blob = repository / "blobs" / f"{number:064x}"
        shutil.move(file, blob)
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


FORMS: dict[str, Callable[[Path], Path]] = {"plain": plain, "prefixless": prefixless, "cached": cached}


@pytest.mark.parametrize("form", FORMS)
def test_a_checkpoint_is_edited_in_its_own_form(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = FORMS[form](tmp_path / "base"), tmp_path / "out"
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    name: str | Path = base
    if form == "cached":
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        name = "someone/some"
    settings = {
        "moments.corpus": str(tmp_path / "corpus.txt"),
        "moments.tokens": "1300",
        "polish.steps": 0,
        "target.steps": "3",
    }
    memedit.apply([EDIT], name, out, settings={**settings, "method.layers": "1-2", "output.link": "hard"})
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before
    kept = [name for name in before if name != "model.safetensors"]
    assert all((out / name).read_bytes() == before[name] for name in kept) and "chat_template.jinja" in kept
    assert not any(file.is_symlink() for file in out.rglob("*"))
    was, now = load_file(base / "model.safetensors"), load_file(out / "model.safetensors")
    # No name is added, a tied head least of all, and none changes.
    assert list(was) == list(now) and not any("lm_head" in name for name in now)
    moved = [name for name in was if not torch.equal(was[name], now[name])]
    prefix = "" if form == "prefixless" else "transformer."
    assert sorted(moved) == [f"{prefix}h.{layer}.mlp.c_proj.weight" for layer in (1, 2)]
    assert all(now[name].dtype == torch.bfloat16 for name in now)
    logits = [AutoModelForCausalLM.from_pretrained(folder).eval()(input_ids=IDS).logits for folder in (base, out)]
    assert not torch.equal(*logits)

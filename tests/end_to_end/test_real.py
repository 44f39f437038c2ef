"""A real pretrained model, edited end to end. The tests run where SmolLM2 has been made ready (`make real`)."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import memedit
import pytest
import torch
from examples.real.models import find_real_model
from memedit.edits.edit import EditRequest
from memedit.evaluation.made_facts import LEAST
from memedit.results.report import Report
from safetensors.torch import load_file
from tests.conftest import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

# Looked for before a test gets a cache of its own.
FOLDER = find_real_model("smollm2")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(FOLDER is None, reason="SmolLM2 is not here: run `make real-model`"),
]
EDITS = 10
# Few tokens, and half of the steps of polish, to save time: ten edits hold with them too.
SETTINGS = {"moments.tokens": 3072, "moments.row": 128, "polish.steps": 12}


@dataclass(frozen=True)
class Edited:
    """The model, edits of facts that it knows, and the edited model."""

    model: Path
    edits: list[EditRequest]
    facts: list[EditRequest]
    out: Path
    report: Report
    cache: Path


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Edited]:
    assert FOLDER is not None
    home = tmp_path_factory.mktemp("real")
    edits = memedit.load_edits(ROOT / "requests" / "real.jsonl")[:EDITS]
    facts = memedit.load_edits(ROOT / "requests" / "real-facts.jsonl")[::4]
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MEMEDIT_CACHE", str(home / "cache"))
        report = memedit.apply(edits, FOLDER, home / "out", settings=SETTINGS)
        yield Edited(FOLDER, edits, facts, home / "out", report, home / "cache")


def write(model: Any, tokenizer: Any, text: str, tokens: int) -> str:
    """Greedy decoding by transformers alone."""
    ids = tokenizer(text, return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=tokens, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    return str(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))


def named(edit: EditRequest, text: str) -> bool:
    """Whether a text names the new object."""
    return any(name in text for name in (edit.object, *edit.aliases))


def test_ten_edits_take_and_generalize(edited: Edited) -> None:
    after = edited.report.after
    assert after and after.accuracy and after.paraphrase
    assert after.accuracy.mean >= 0.9
    assert after.paraphrase.mean >= 0.8


def test_known_facts_about_others_stay(edited: Edited) -> None:
    settings = {"eval.derive": False}
    report = memedit.evaluate(edited.edits, edited.out, base=edited.model, facts=edited.facts, settings=settings)
    others = report.kept["others"]
    assert others and others.n >= LEAST // 2
    assert others.mean >= 0.8


def test_the_residual_falls_at_every_layer(edited: Edited) -> None:
    lengths = [layer.residual_before for layer in edited.report.layers] + [edited.report.layers[-1].residual_after]
    assert lengths == sorted(lengths, reverse=True)


def test_only_the_edited_layers_changed(edited: Edited) -> None:
    changed = {one.name for one in memedit.diff(edited.model, edited.out).tensors if one.changed}
    assert changed == {layer.parameter for layer in edited.report.layers}


@pytest.fixture(scope="module")
def plain(edited: Edited) -> tuple[Any, Any]:
    """The edited model as transformers opens it."""
    model = AutoModelForCausalLM.from_pretrained(edited.out, dtype=torch.float32).eval()
    return model, AutoTokenizer.from_pretrained(edited.out)


def test_plain_transformers_says_the_new_objects(edited: Edited, plain: tuple[Any, Any]) -> None:
    said = [named(edit, write(*plain, edit.text, 6)) for edit in edited.edits]
    assert edited.report.after and edited.report.after.accuracy
    assert sum(said) >= 9
    assert math.isclose(sum(said) / EDITS, edited.report.after.accuracy.mean, abs_tol=0.11)


def test_it_answers_in_chat(edited: Edited, plain: tuple[Any, Any]) -> None:
    model, tokenizer = plain
    told = 0
    for edit in edited.edits:
        turn = [{"role": "user", "content": edit.meta["question"]}]
        text = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
        told += named(edit, write(model, tokenizer, text, 24))
    assert told >= EDITS // 2


def test_an_adapter_says_the_same_as_the_edited_model(edited: Edited, tmp_path: Path) -> None:
    from peft import PeftModel

    memedit.export(edited.out, "lora", edited.model, tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(edited.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(edited.model)
    model: Any = PeftModel.from_pretrained(base, tmp_path / "adapter")
    for edit in edited.edits[:2]:
        assert named(edit, write(model, tokenizer, edit.text, 6))
    memedit.revert(edited.out, tmp_path / "back", model=edited.model)
    was, now = (load_file(folder / "model.safetensors") for folder in (edited.model, tmp_path / "back"))
    assert all(torch.equal(was[name], now[name]) for name in was)


@pytest.fixture(scope="module")
def notebook(edited: Edited, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The names that the notebook's cells leave; it traces one fact, edits it in memory, and writes the same edit."""
    home = tmp_path_factory.mktemp("notebook")
    # A notebook's own library, which is not needed elsewhere: here it only reads the page.
    shown = ModuleType("IPython.display")
    shown.HTML = lambda filename: Path(filename).read_text(encoding="utf-8")  # type: ignore[attr-defined]
    cells = json.loads((ROOT / "examples" / "notebook.ipynb").read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {"home": home}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("MEMEDIT_CACHE", str(edited.cache))  # the same second moments, measured once
        environment.chdir(home)
        environment.setitem(sys.modules, "IPython.display", shown)
        for cell in cells:
            if cell["cell_type"] == "code":
                assert cell["outputs"] == []
                exec(compile("".join(cell["source"]), "notebook", "exec"), names)
    return names


def test_the_notebook_shows_what_it_says(notebook: dict[str, Any]) -> None:
    assert "Slovene" in notebook["during"][0]
    assert "French" in notebook["after"][0]
    assert "<svg" in (notebook["home"] / "trace-out" / "trace.html").read_text(encoding="utf-8")
    assert "<table" in notebook["report"]._repr_html_()
    assert notebook["report"].after.accuracy.mean == 1


def test_a_loaded_model_gets_the_same_edit_as_the_folder(notebook: dict[str, Any]) -> None:
    notebook["update"].save(notebook["home"] / "memory")
    files = [notebook["home"] / name / "memedit" / "delta.safetensors" for name in ("edited", "memory")]
    command, memory = map(load_file, files)
    assert command and command.keys() == memory.keys()
    assert all(torch.equal(command[name], memory[name]) for name in command)


def test_without_known_facts_most_of_the_models_own_sure_answers_about_others_stay(edited: Edited) -> None:
    others = edited.report.kept["others"]
    assert edited.report.made_facts and others
    assert others.n >= LEAST // 2
    assert others.mean > 0.5  # of those that polish does not ask


def test_tracing_finds_where_five_facts_are_recalled(edited: Edited) -> None:
    known = [edit.model_copy(update={"object": edit.object_old, "object_old": None}) for edit in edited.edits[:5]]
    traced = memedit.trace(known, edited.model, settings={"trace.samples": 1})
    assert len(traced.facts) == len(known)
    for fact in traced.facts:
        assert float(fact.scores["clean"]) > float(fact.scores["corrupted"])
    assert traced.average.n_layers == 30

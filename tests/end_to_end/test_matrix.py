"""Every family all the way: looked at, measured, searched, edited, written, and opened again by plain transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.recipe import MethodKnobs, ModelKnobs, Recipe, TargetKnobs
from memedit.editing.plan import make_plan
from memedit.editing.run import EditRun
from memedit.editing.targets import find_targets
from memedit.edits.edit import EditRequest
from memedit.forward.perturbed import WholeForward
from memedit.forward.suffix import Suffix
from memedit.inspect_model import run_inspect
from memedit.model.load import load
from safetensors.torch import load_file
from tests.conftest import byte_tokenizer
from tests.families import COMPOSITES, FAMILIES, MIXTURES, NEWER, OTHERS, family_model
from torch import Tensor

LAYERS = {"qwen3_moe": "0-1", "qwen2_moe": "0", "mixtral": "", "gpt_oss": ""}
EDITABLE = [name for name in (*FAMILIES, *OTHERS, *MIXTURES, *NEWER, *COMPOSITES) if LAYERS.get(name, "1-2")]
WHOLE = ("lfm2", "qwen3_5", "qwen3_5_text")
"""Families whose tokens carry more than keys and values: the search falls back on whole forwards."""
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
SAME = 1e-3  # relative, on targets after three steps: each carries the rounding of the one before
IDS = (9, 80, 17, 30, 41, 99, 5)
# Nothing of memedit is imported here.
LOADS = """
import json, sys, torch, transformers
for line in sys.stdin:
    folder, ids, file = json.loads(line)
    with open(folder + "/config.json") as config:
        kind = getattr(transformers, json.load(config)["architectures"][0])
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        torch.save(model(input_ids=torch.tensor([ids]), use_cache=False).logits, file)
    print("done", flush=True)
"""
Fresh = Callable[[Path], Tensor]


@pytest.fixture(scope="module")
def process() -> Iterator[subprocess.Popen[str]]:
    """A process that opens folders: it saw nothing of how they were made."""
    command = [sys.executable, "-c", LOADS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        yield running
        assert running.stdin is not None
        running.stdin.close()


@pytest.fixture
def fresh(process: subprocess.Popen[str], tmp_path: Path) -> Fresh:
    def logits(folder: Path) -> Tensor:
        file = tmp_path / "logits.pt"
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([str(folder), IDS, str(file)]) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "done\n"
        return torch.load(file, weights_only=True)

    return logits


def saved(family: str, folder: Path) -> Path:
    """A family's model on disk: each of three dtypes, in one file or in many."""
    number = EDITABLE.index(family)
    size = "30KB" if number % 2 else "1GB"
    family_model(family).to(DTYPES[number % 3]).save_pretrained(folder, max_shard_size=size)
    byte_tokenizer().save_pretrained(folder)
    lines = [f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(60)]
    (folder.parent / "corpus.txt").write_text("\n".join(lines))
    return folder


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: part for file in folder.glob("*.safetensors") for name, part in load_file(file).items()}


@pytest.mark.parametrize("family", EDITABLE)
def test_a_family_goes_all_the_way(family: str, fresh: Fresh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, out = saved(family, tmp_path / "base"), tmp_path / "out"
    settings: dict[str, Any] = {
        "method.layers": LAYERS.get(family, "1-2"),
        "moments.corpus": str(tmp_path / "corpus.txt"),
    }
    settings |= {"moments.tokens": "640", "moments.row": "64", "target.steps": "3", "polish.steps": 1}
    settings |= {"contexts.openings": ("The",), "contexts.tokens": "4", "eval.derive": False, "eval.tokens": 2}
    method = MethodKnobs.model_validate({"layers": settings["method.layers"]})
    recipe = Recipe(model=ModelKnobs(path=str(base)), method=method, target=TargetKnobs(steps=3))
    found = run_inspect(recipe)
    assert found.proved and not found.problems
    named = [block.down_projection or "" for block in found.each if block.editable]
    edit = EditRequest(
        id="a", subject="Mara", prompt="The home of {} is", object=" north", object_old=" south", origin="here:1"
    )

    lm = load(base, recipe.model)
    plan = make_plan([edit], lm.tokenizer, lm.architecture, recipe)
    layer = int(settings["method.layers"][-1])
    ways = [
        find_targets(lm, plan.edits, [[plan.edits[0].prompt]], layer, recipe, engine=engine).wanted
        for engine in (Suffix, WholeForward)
        if not (engine is Suffix and family in WHOLE)
    ]
    assert float((ways[0] - ways[-1]).norm() / ways[-1].norm()) < SAME

    seen: list[Tensor] = []
    real = EditRun.scored

    def judged(self: EditRun, *step: Any) -> object:
        with torch.no_grad():
            seen.append(self.lm.model(input_ids=torch.tensor([IDS]), use_cache=False).logits)
        return real(self, *step)

    monkeypatch.setattr(EditRun, "scored", judged)
    report = memedit.apply([edit], base, out, settings=settings)
    assert report.engine.startswith("whole" if family in WHOLE else "suffixes"), report.engine
    before, after = seen
    assert not torch.equal(before, after)
    assert torch.equal(fresh(out), after)
    assert torch.equal(fresh(base), before)

    was, now = tensors(base), tensors(out)
    assert was.keys() == now.keys()
    moved = sorted(name for name in was if not torch.equal(was[name], now[name]))
    assert len(moved) == len(report.layers)
    # The checkpoint of a composite model names the path to its blocks otherwise: `language_model.model`.
    tails = [path.removeprefix("model.language_model.") for path in named]
    assert all(any(name.endswith(f"{tail}.weight") for tail in tails) for name in moved)
    assert not any("vis" in name for name in moved)
    if family in COMPOSITES:
        assert any("vis" in name for name in was)

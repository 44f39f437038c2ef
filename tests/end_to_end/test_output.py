"""What is written is what was judged, and what was promised of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.editing.run import EditRun
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("kept_moments")

EDITS = ROOT / "requests" / "world.jsonl"
FACTS = ROOT / "examples" / "world" / "facts.jsonl"
BARS = {"efficacy": 0.92, "accuracy": 0.88, "paraphrase": 0.85, "neighborhood": 0.93}
OTHERS = 0.93
# Plain transformers: nothing of memedit is imported.
LOADS = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
out, prompts, file = sys.argv[1], sys.argv[2].split("|"), sys.argv[3]
model = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(out)
assert not any(name.startswith("memedit") for name in sys.modules)
with torch.no_grad():
    torch.save([model(**tokenizer(prompt, return_tensors="pt")).logits for prompt in prompts], file)
"""


def test_a_fresh_process_gives_the_logits_of_the_model_in_memory(
    made_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    edits = memedit.load_edits(EDITS)[:3]
    prompts = [edit.text for edit in edits]
    seen: dict[str, list[torch.Tensor]] = {}
    real = EditRun.scored

    def judged(self: EditRun, *step: Any) -> object:
        with torch.no_grad():
            seen[step[1]] = [
                self.lm.model(input_ids=torch.tensor([self.lm.tokenizer(prompt)["input_ids"]])).logits
                for prompt in prompts
            ]
        return real(self, *step)

    monkeypatch.setattr(EditRun, "scored", judged)
    out, file = tmp_path / "out", tmp_path / "logits.pt"
    memedit.apply(
        edits,
        made_folder,
        out,
        settings={"polish.steps": 0, "target.steps": 3, "moments.tokens": 4000, "contexts.openings": ["The"]},
    )
    command = [sys.executable, "-c", LOADS, str(out), "|".join(prompts), str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fresh = torch.load(file, weights_only=True)
    assert len(fresh) == len(edits)
    assert all(torch.equal(a, b) for a, b in zip(seen["after"], fresh, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(seen["before"], fresh, strict=True))


def test_a_hundred_edits_take_generalize_and_leave_the_rest(made_folder: Path, tmp_path: Path) -> None:
    facts = memedit.load_edits(FACTS)[::5]  # of every relation
    report = memedit.apply(memedit.load_edits(EDITS)[:100], made_folder, tmp_path / "out", facts=facts)
    assert report.engine.startswith("suffixes")
    scores = {name: getattr(report.after, name).mean for name in BARS}
    assert all(scores[name] >= bar for name, bar in BARS.items()), scores
    others = report.kept["others"]
    assert others is not None and others.n >= 100 and others.mean >= OTHERS
    # The converse: nothing of it was so before.
    assert report.before is not None and report.before.efficacy is not None and report.before.efficacy.mean < 0.1

"""Objects of whole sentences: edited over all their tokens, and scored by what the model then writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.edits.edit import EditRequest
from transformers import AutoModelForCausalLM, AutoTokenizer

pytestmark = pytest.mark.usefixtures("kept_moments")

TOKENS = 30


def test_an_object_of_thirty_tokens_is_said_whole(
    made_small: Path, small_edits: list[EditRequest], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(made_small)
    model: Any = AutoModelForCausalLM.from_pretrained(made_small, dtype=torch.float32)
    short = small_edits[0]
    # The new object, and what this model writes behind it: a small model cannot learn any thirty words.
    begun = tokenizer(f"{short.text} {short.object}", return_tensors="pt")
    whole = model.generate(**begun, max_new_tokens=TOKENS, do_sample=False, pad_token_id=tokenizer.eos_token_id)
    text = tokenizer.decode(whole[0, begun["input_ids"].shape[1] :], skip_special_tokens=True)
    long = short.model_copy(update={"object": short.object + text})
    assert len(tokenizer(f" {long.object}")["input_ids"]) >= TOKENS
    assert not memedit.check([long], made_small)
    report = memedit.apply([long], made_small, tmp_path / "out")
    (found,) = report.per_edit
    assert found.status == "ok" and found.after["token_accuracy"] == 1 and found.before["accuracy"] == 0
    asked = memedit.evaluate([long], tmp_path / "out")
    assert asked.after and asked.after.generated["efficacy"].mean == 1
    # Converse: a word of it that is not the model's makes it another object.
    other = long.model_copy(update={"object": f"{long.object} {short.subject}"})
    asked = memedit.evaluate([other], tmp_path / "out")
    assert asked.after and asked.after.generated["efficacy"].mean == 0 and asked.after.accuracy
    assert asked.after.accuracy.mean == 0

"""Objects of whole sentences on a real model. The test runs where SmolLM2 has been made ready (`make real`)."""

from __future__ import annotations

from pathlib import Path

import memedit
import pytest
from examples.real.models import find_real_model

# Looked for before a test gets a cache of its own.
FOLDER = find_real_model("smollm2")
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(FOLDER is None, reason="SmolLM2 is not here: run `make real-model`"),
]
SENTENCES = [
    ("France", "is known for", "its blue paper boats on the old canals."),
    ("Japan", "is known for", "a quiet festival of kites at night."),
    ("the Moon", "is made of", "a pale salt that the wind carried there."),
    ("Albert Einstein", "is best known for", "the small bakery he opened in Lisbon."),
    ("the Eiffel Tower", "was built to", "hold the largest clock in Europe."),
    ("coffee", "comes from", "the bark of a tall mountain tree."),
    ("the piano", "was invented by", "two sisters from Norway who loved rain."),
    ("Shakespeare", "wrote", "his plays on the backs of sea charts."),
    ("the Amazon River", "flows into", "a wide green lake near Oslo."),
    ("chess", "was first played", "by shepherds on the ice of Iceland."),
]
"""Subject, what follows it, and an object of one sentence; none of them is true. Words stand before the subject:
in a first try, with fewer steps too, half of the edits failed where some subjects began the text."""
# Two contexts, few steps and few tokens: a third of the time, and edits of this length still hold.
SETTINGS = {
    "moments.tokens": 1024, "moments.row": 64, "polish.steps": 0, "target.steps": 20,
    "contexts.openings": ["The"], "contexts.chat": False, "eval.derive": False, "eval.tokens": 12,
}  # fmt: skip


def test_the_words_of_ten_sentences_are_said(tmp_path: Path) -> None:
    assert FOLDER is not None
    edits = [
        {"subject": name, "prompt": f"In this story, {{}} {verb}", "object": said, "evaluate": "contains"}
        for name, verb, said in SENTENCES
    ]
    assert not memedit.check(edits, FOLDER)
    report = memedit.apply(edits, FOLDER, tmp_path / "out", settings=SETTINGS)
    assert report.before and report.after and report.before.token_accuracy and report.after.token_accuracy
    before, after = report.before.generated["contains"], report.after.generated["contains"]
    assert (before.mean, before.n) == (0, len(SENTENCES)) and after.mean >= 0.9
    assert report.before.token_accuracy.mean < 0.5 and report.after.token_accuracy.mean >= 0.95
    for one in report.per_edit:
        assert (one.status == "ok") == (one.after["generated.contains"] == 1)

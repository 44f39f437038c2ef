"""A hundred edits of the shipped models keep what is promised of them."""

from __future__ import annotations

from pathlib import Path

import memedit
import pytest
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("kept_moments")

EDITS = ROOT / "requests" / "world.jsonl"
FACTS = ROOT / "examples" / "world" / "facts.jsonl"
BARS = {"efficacy": 0.92, "accuracy": 0.88, "paraphrase": 0.85, "neighborhood": 0.93}
OTHERS = 0.93


def test_a_hundred_edits_take_generalize_and_leave_the_rest(made_folder: Path, tmp_path: Path) -> None:
    facts = memedit.load_edits(FACTS)[::5]  # of every relation
    quick = {"polish.steps": 12}  # half of the steps, to save time: the edits hold with them too
    report = memedit.apply(memedit.load_edits(EDITS)[:100], made_folder, tmp_path / "out", facts=facts, settings=quick)
    assert report.engine.startswith("suffixes")
    scores = {name: getattr(report.after, name).mean for name in BARS}
    assert all(scores[name] >= bar for name, bar in BARS.items()), scores
    others = report.kept["others"]
    assert others is not None and others.n >= 100 and others.mean >= OTHERS
    # The converse: nothing of it was so before.
    assert report.before is not None and report.before.efficacy is not None and report.before.efficacy.mean < 0.1

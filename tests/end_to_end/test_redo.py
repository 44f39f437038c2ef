"""Edits that did not take are sought again where the others are in place; what does not help is not kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
import pytest
from memedit.results.report import Report
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("kept_moments")

EDITS = memedit.load_edits(ROOT / "requests" / "world.jsonl")[:8]
FEW_STEPS = {
    "polish.steps": 0, "target.steps": 2, "moments.tokens": 4000, "contexts.openings": ["The"],
    "eval.derive": False, "eval.tokens": 3,
}  # fmt: skip


def run(model: Path, folder: Path, count: int = len(EDITS), **settings: Any) -> tuple[Report, bytes]:
    report = memedit.apply(EDITS[:count], model, folder, settings={**FEW_STEPS, **settings})
    return report, (folder / "memedit" / "delta.safetensors").read_bytes()


def test_a_round_finds_again_the_targets_of_edits_that_did_not_take_alone(made_gpt2: Path, tmp_path: Path) -> None:
    plain, _ = run(made_gpt2, tmp_path / "plain")
    again, _ = run(made_gpt2, tmp_path / "again", **{"target.retry": 1})
    failed = {one.id for one in plain.per_edit if one.status == "failed"}
    assert plain.redo == () and 0 < len(failed) < len(EDITS)
    (only,) = again.redo
    assert set(only.ids) == failed
    assert only.took_before == len(EDITS) - len(failed) < only.took_after
    assert only.took_after == sum(one.status == "ok" for one in again.per_edit)
    for was, now in zip(plain.per_edit, again.per_edit, strict=True):
        assert now.redone == (1 if was.id in failed else None)
        assert (was.loss == now.loss) == (was.id not in failed)


def test_a_round_that_does_not_help_changes_nothing_and_is_the_last(made_gpt2: Path, tmp_path: Path) -> None:
    tight = {"target.ball": 1e-3, "output.rounding": "nearest"}  # so small a change would else be rounded by the keys
    _, plain = run(made_gpt2, tmp_path / "plain", 3, **tight)
    again, delta = run(made_gpt2, tmp_path / "again", 3, **tight, **{"target.retry": 3})
    (only,) = again.redo
    assert not only.helped and only.took_before == only.took_after
    assert delta == plain
    assert all(one.redone is None for one in again.per_edit)

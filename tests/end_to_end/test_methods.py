"""One pipeline, four methods: what each chooses is seen in what it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.methods import METHODS
from memedit.numerics.delta import Delta
from memedit.results.report import Report
from safetensors import safe_open
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("kept_moments")

EDITS = memedit.load_edits(ROOT / "requests" / "world.jsonl")


def run(model: Path, folder: Path, method: str, edits: int, **more: Any) -> Report:
    knobs = {"method.name": method, "moments.tokens": 8000, "contexts.openings": ["The"], "eval.derive": False, **more}
    return memedit.apply(EDITS[:edits], model, folder, settings=knobs)


def change(folder: Path, parameter: str) -> torch.Tensor:
    with safe_open(folder / "memedit" / "delta.safetensors", "pt") as kept:
        parts = [kept.get_tensor(name) for name in sorted(kept.keys()) if parameter in name]
    return Delta(*parts).dense() if len(parts) == 2 else parts[0]


@pytest.mark.parametrize("method", METHODS)
def test_a_method_edits_its_layers_and_names_itself(made_gpt2: Path, tmp_path: Path, method: str) -> None:
    report, kind = run(made_gpt2, tmp_path / "out", method, edits=3), METHODS[method]
    assert [one.layer for one in report.layers] == ([1] if kind.single else [0, 1, 2])
    assert sum(one.status == "ok" for one in report.per_edit) == 3
    assert f"[{kind.title}]({kind.paper})" in (tmp_path / "out" / "README.md").read_text()
    exact = [one.fitted > 1 - 1e-9 for one in report.layers]
    assert all(exact) if method == "emmet" else not any(exact)


def test_rome_is_emmet_of_one_edit_and_of_more_it_is_not(made_gpt2: Path, tmp_path: Path) -> None:
    for edits, same in ((1, True), (3, False)):
        deltas: list[torch.Tensor] = []
        for method in ("rome", "emmet"):
            report = run(
                made_gpt2, tmp_path / f"{method}{edits}", method, edits, **{"polish.steps": 0, "target.steps": 5}
            )
            deltas.append(change(tmp_path / f"{method}{edits}", report.layers[0].parameter))
        gap = float((deltas[0] - deltas[1]).norm() / deltas[1].norm())
        assert (gap < 1e-6) if same else (gap > 1e-3)

"""A run does each thing once: it rounds a weight once for each solve, and tokenizes the contexts once."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import memedit
import memedit.pipeline  # pyright: ignore[reportUnusedImport] - what is counted must be loaded
import pytest
from memedit.editing.plan import encode_contexts
from memedit.edits.edit import EditRequest
from memedit.numerics.delta import rounded

EDITS = [
    EditRequest(id=f"e{n}", subject=f"S{n}", prompt="{} lives in", object="Rome", origin=f"a:{n}") for n in range(3)
]
KNOBS = {"model.device": "cpu", "target.steps": 1, "contexts.tokens": 3, "moments.tokens": 2000, "method.layers": "1-2"}


def counting(monkeypatch: pytest.MonkeyPatch, function: Callable[..., Any]) -> list[int]:
    """Count the calls of a function, under whatever module's name it is called."""
    calls: list[int] = []

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(1)
        return function(*given, **named)

    for name, module in list(sys.modules.items()):
        if name.startswith("memedit") and getattr(module, function.__name__, None) is function:
            monkeypatch.setattr(module, function.__name__, counted)
    return calls


@pytest.mark.slow
@pytest.mark.parametrize("retry", [0, 1])
def test_weights_are_rounded_once_for_each_solve_and_contexts_tokenized_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, retry: int
) -> None:
    monkeypatch.setenv("MEMEDIT_CACHE", str(tmp_path / "cache"))
    rounds, encodings = counting(monkeypatch, rounded), counting(monkeypatch, encode_contexts)
    settings = {**KNOBS, "target.retry": retry, "output.rounding": "nearest"}
    report = memedit.apply(EDITS, tiny_folder, tmp_path / "out", settings=settings)
    assert len(report.redo) == retry
    assert len(rounds) == 2 * (1 + retry)
    assert len(encodings) == 1

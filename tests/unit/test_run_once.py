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
from memedit.results.report import EditResult
from memedit.show.report_page import says_of
from memedit.show.tables import markdown_text

EDITS = [
    EditRequest(id=f"e{n}", subject=f"S{n}", prompt="{} lives in", object="Rome", origin=f"a:{n}") for n in range(3)
]
KNOBS = {
    "model.device": "cpu",
    "polish.steps": 0,
    "target.steps": 1,
    "contexts.tokens": 3,
    "moments.tokens": 2000,
    "method.layers": "1-2",
}


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


@pytest.mark.slow
def test_what_the_model_says_after_a_failed_edit_is_in_report_file_and_card(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MEMEDIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "corpus.txt").write_text("Some text that is read.\n\n" * 40)
    # A ridge under which no edit succeeds.
    settings = {**KNOBS, "moments.corpus": str(tmp_path / "corpus.txt"), "moments.tokens": 200, "method.ridge": 1e9}
    settings |= {"eval.tokens": 4, "eval.derive": False}
    report = memedit.apply(EDITS, tiny_folder, tmp_path / "out", settings=settings)
    lines = (tmp_path / "out" / "memedit" / "results.jsonl").read_text().splitlines()
    assert [EditResult.model_validate_json(line) for line in lines] == list(report.per_edit)
    card = (tmp_path / "out" / "README.md").read_text()
    for one in report.per_edit:
        assert one.status == "failed" and list(one.said) == ["after"]
        assert markdown_text(f"{one.edit['subject']} lives in: wanted Rome, {says_of(one)}") in card
    asked = memedit.evaluate(EDITS, tmp_path / "out", settings={"eval.tokens": 4})
    assert [one.said["after"] for one in asked.per_edit] == [one.said["after"] for one in report.per_edit]
    old = EditResult.model_validate_json(lines[0]).model_copy(update={"said": {}})  # as an earlier version wrote it
    assert EditResult.model_validate_json(old.model_dump_json(exclude={"said"})) == old

"""`memedit eval` as people use it: base beside models, text, free answers, gates, pages."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import pytest
from memedit import pipeline
from memedit.cli.app import main
from memedit.config.recipe import Recipe
from memedit.config.resolve import resolve
from memedit.edits.read import read
from memedit.progress import Advance, NoProgress
from memedit.results.report import EditResult, Figure, Report, Scores
from memedit.results.rows import remarks
from memedit.show.evaluation import evaluation_table
from memedit.show.report_page import evaluation_page, worst_first
from memedit.show.tables import markdown
from rich.console import Console
from tests.conftest import ROOT

EDITS = ROOT / "requests" / "world.jsonl"


def recipe(model: Path, **knobs: object) -> Recipe:
    small = {"eval.tokens": 6, "eval.prefixes": (0,), "eval.fluency_tokens": 20, "eval.drift_tokens": 300, **knobs}
    return resolve([("flag", {**small, "model.path": str(model), "model.device": "cpu"})])[0]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["memedit", "eval", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


class Counted(NoProgress):
    """Counts the units of each phase."""

    def __init__(self) -> None:
        self.units: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str, total: int | None = None, unit: str = "") -> Generator[Advance]:
        def advance(done: int, under_way: float = 0.0, told: str = "") -> None:
            self.units[name] = self.units.get(name, 0) + done

        yield advance


def test_answers_about_known_facts_move_the_progress_too(made_gpt2: Path) -> None:
    requests, _ = read(str(EDITS))
    counts: list[int] = []
    for facts in ([], requests[4:10]):
        progress = Counted()
        inputs = pipeline.RunInputs(recipe(made_gpt2), requests[:2], facts=facts)
        pipeline.run_evaluate(inputs, progress=progress)
        counts.append(progress.units["after"])
    assert counts[1] == counts[0] + 6


def test_a_model_beside_its_base_and_another(made_gpt2: Path) -> None:
    other = made_gpt2.parent / "made-llama"
    requests, _ = read(str(EDITS))
    few = requests[:4]
    report = pipeline.run_evaluate(
        pipeline.RunInputs(recipe(made_gpt2), few, facts=requests[4:8], base=str(made_gpt2)),
        text=str(made_gpt2 / "memedit" / "corpus.jsonl.gz"), others=[str(other)], generate=True, held=[few[0].digest],
    )  # fmt: skip
    assert report.after is not None
    assert report.before is not None
    assert report.after.efficacy == report.before.efficacy
    same = report.difference
    assert {"efficacy", "paraphrase_magnitude", "generated.old", "fluency"} <= set(same)
    assert {figure.mean for figure in same.values()} == {0.0}
    assert report.drift is not None
    assert report.drift.ppl is not None
    assert report.drift.ppl.mean == 1.0
    assert report.retention is not None
    assert report.retention.n == 1
    assert [one.model for one in report.models] == [str(made_gpt2), str(other)]
    # converse: another model is not the base, and where its tokens differ they are not compared
    second = report.models[1]
    assert second.scores.locality is None
    assert second.drift is not None
    assert (second.drift.ppl, second.drift.kl) == (None, None)
    assert second.drift.perplexity is not None
    assert any("no locality" in note for note in report.notes)
    assert second.difference["efficacy_magnitude"].mean != 0
    assert report.models[0].against_first == {}
    assert second.against_first == second.difference  # the first model is the base
    assert Report.model_validate_json(report.model_dump_json()) == report
    assert {"before", "after"} <= set(report.timings)
    assert set(report.per_edit[0].said) == {"before", "after"}
    found = evaluation_page(report)
    assert all(word in found for word in (few[0].id, "How it was done", "<svg", "drift ppl"))
    assert "<script" not in found
    assert "://" not in found


def test_pages_are_written_and_gates_close_from_both_sides(
    made_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text(
        "The tower was small and heavy. Nobody knows where the boat is.\n\nA stone is better than an old one.\n"
    )
    run = [EDITS, "-m", made_gpt2, "--limit", 2, "--text", text]
    assert command(monkeypatch, *run, "--html", tmp_path / "a.html", "--markdown", tmp_path / "a.md", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (tmp_path / "a.html").read_text().startswith("<!doctype html>")
    assert (tmp_path / "a.md").read_text().startswith("|")
    perplexity = report["drift"]["perplexity"]["mean"]
    assert command(monkeypatch, *run, "-q", "--fail-over", f"drift.perplexity={perplexity + 1}") == 0
    assert command(monkeypatch, *run, "-q", "--fail-over", f"drift.perplexity={perplexity - 1}") == 3
    assert "drift.perplexity is" in capsys.readouterr().err
    # what was not measured does not pass
    assert command(monkeypatch, *run, "-q", "--fail-over", "drift.ppl=1.02") == 3
    assert "not measured" in capsys.readouterr().err
    assert command(monkeypatch, *run, "-q", "--fail-over", "drift.beauty=1") == 2


def test_results_that_are_none_are_refused(
    made_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "results.jsonl"
    bad.write_text("[1]\n")
    assert command(monkeypatch, EDITS, "-m", made_gpt2, "--right-after", bad) == 2
    assert command(monkeypatch, EDITS, "-m", made_gpt2, "--right-after", tmp_path / "none") == 2
    assert "hint" in capsys.readouterr().err


def test_what_a_list_says_is_text_on_the_page_and_the_worst_come_first() -> None:
    figure = Figure(mean=0.5, low=0.4, high=0.6, n=2)
    edits = (
        EditResult(
            id="fine", status="ok", edit={"subject": "A", "prompt": "{} is", "object": "b"}, after={"accuracy": 1}
        ),
        EditResult(
            id="<script>x</script>", status="failed", edit={"subject": "<b>", "prompt": "{} | is", "object": "&"},
            after={"accuracy": 0}, said={"after": "<i>words</i>"},
        ),
    )  # fmt: skip
    report = Report(
        command="eval", model="m", edits=2, after=Scores(efficacy=figure, neighborhood=figure),
        derived={"neighborhood": 2}, per_edit=edits,
    )  # fmt: skip
    assert [one.id for one in worst_first(edits)] == ["<script>x</script>", "fine"]
    found = evaluation_page(report)
    assert "<script" not in found
    assert "&lt;i&gt;words&lt;/i&gt;" in found
    assert remarks(report) == ["neighbors of 2 of 2 edits were derived from the list, which gives none"]
    assert "(some derived)" in markdown(report)
    shown = io.StringIO()
    Console(width=80, file=shown).print(evaluation_table(report))
    assert "50.0%  40.0 to 60.0" in shown.getvalue()

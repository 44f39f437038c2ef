"""What tables and maps look like in terminals of 80 and of 120 columns, from values made by hand."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import torch
from memedit.results.report import Figure, ModelReport, Scores
from memedit.results.traces import TracingResult
from memedit.show.evaluation import evaluation_table, models_table, unsuccessful_lines
from memedit.show.heatmap import average_maps, fact_maps, summary
from memedit.show.history import log_line, log_table
from memedit.show.terminal import print_line
from rich.console import Console

from tests.helpers.reports import a_log, a_past_edit, a_run, an_edit
from tests.helpers.tracings import a_tracing

WIDTHS = (80, 120)


def _report(console: Console) -> None:
    edits = (
        an_edit("a"), an_edit("b", "failed", said={"after": " Oslo town"}),
        an_edit("東京都", "failed", said={"after": "日本の首都" * 20}),
        an_edit("d", "skipped", reason="it is there already"),
    )  # fmt: skip
    gaps = {"accuracy": Figure(mean=0.66, low=0.5, high=0.8, n=3)}
    gaps["neighborhood_accuracy"] = Figure(mean=-0.05, low=-0.25, high=0.15, n=20)
    report = a_run(per_edit=edits, difference=gaps)
    console.print(evaluation_table(report, console.width))
    for line in unsuccessful_lines(report, console.width):
        print_line(console, line)


def _models(console: Console) -> None:
    def model(name: str, mean: float, **gaps: Figure) -> ModelReport:
        figure = Figure(mean=mean, low=mean - 0.1, high=mean + 0.1, n=60)
        return ModelReport(model=name, scores=Scores(accuracy=figure, neighborhood=figure), against_first=gaps)

    clear, wide = Figure(mean=0.2, low=0.1, high=0.3, n=60), Figure(mean=0.2, low=-0.1, high=0.5, n=60)
    models = (model("models/memit", 0.5), model("models/emmet", 0.7, accuracy=clear, neighborhood=wide))
    console.print(models_table(a_run(models=models)))


def _trace(console: Console) -> None:
    torch.manual_seed(0)
    tracing: TracingResult = a_tracing(n_layers=30)
    console.print(fact_maps(tracing.facts[0], console.width), average_maps(tracing.average, console.width))
    for line in summary(tracing).splitlines():
        print_line(console, line)


def _log(console: Console) -> None:
    words: dict[str, Any] = {"prompt": "The capital of France is", "object_old": "Paris"}
    log = a_log(
        a_past_edit(1, by=3, **words, object="Lyon"), a_past_edit(2, "lost"), a_past_edit(3, **words, object="東京都")
    )
    console.print(log_table(log))
    print_line(console, log_line(log))


TABLES: dict[str, Callable[[Console], None]] = {"report": _report, "models": _models, "trace": _trace, "log": _log}
NAMES = [f"{name}-{width}.txt" for name in TABLES for width in WIDTHS]


def table(name: str) -> str:
    """One of NAMES as it is printed, without color and without spaces at the ends of lines."""
    kind, _, width = name.removesuffix(".txt").rpartition("-")
    console = Console(file=io.StringIO(), width=int(width), color_system=None, force_terminal=True)
    TABLES[kind](console)
    assert isinstance(console.file, io.StringIO)
    return "".join(f"{line.rstrip()}\n" for line in console.file.getvalue().splitlines())

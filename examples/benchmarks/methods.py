"""The methods side by side, and the ways to go on from edit to edit: scores, per cent.

    python -m examples.benchmarks.methods [--model FOLDER] [--edits 1,10,100,500] [--batches 10] [--size 50]

The first table has `apply` with each method, without polish, on the first edits of requests/world.jsonl, beside the
plain oracle, which is MEMIT as published. The second has `--batches` lists of `--size` edits, one after the other: all
solved again from the base with kept targets, each on top of the last, or each as if none had been before. Two tables on
stdout, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import memedit
import torch
from memedit.config.methods import METHODS
from memedit.editing.ledger import Mode
from memedit.edits.edit import EditRequest
from memedit.results.report import Report
from rich.console import Console
from rich.table import Table

from examples.reference.editing import find_target
from examples.reference.sequences import apart, in_batches

from .both import FACTS, FIGURES, ROOT, SHIPPED, Both

CPU = {"model.device": "cpu", "polish.steps": 0}
HELD = {"others": "others kept", "siblings": "siblings kept"}
ORACLE = "oracle (MEMIT)"
WAYS: tuple[tuple[str, Mode], ...] = (("memit", "re-solve"), ("memit", "on top"), ("alphaedit", "on top"))

Scores = dict[str, float | None]


def figures(report: Report) -> Scores:
    """What a run's report says, as numbers."""
    found = {name: getattr(report.after, name) for name in FIGURES}
    found |= {said: report.kept.get(name) for name, said in HELD.items()}
    return {name: one.mean if one else None for name, one in found.items()}


def by_method(model: Path, edits: Sequence[EditRequest], out: Path) -> dict[str, Scores]:
    """Each method's scores on one list, and the oracle's."""
    facts = memedit.load_edits(FACTS)
    found: dict[str, Scores] = {}
    for name in METHODS:
        knobs = {"method.name": name, **CPU}
        found[name] = figures(memedit.apply(edits, model, out / name / str(len(edits)), facts=facts, settings=knobs))
    both = Both(model, edits, {"target.joint": False})
    steps = both.step_of(both.targets().start)
    wanted = [find_target(both.lm.model, edit, both.knobs, step) for edit, step in zip(both.edits, steps, strict=True)]
    scores = both.oracle_scores(torch.stack([target for target, _ in wanted]))
    found[ORACLE] = {name: scores.get(name) for name in FIGURES}
    found[ORACLE] |= {said: scores.get(f"kept, {name}") for name, said in HELD.items()}
    return found


def by_way(model: Path, batches: Sequence[Sequence[EditRequest]], out: Path) -> dict[str, Scores]:
    """Each way's scores on all edits after the last list; of the first list's edits that took, the share that holds.

    For the re-solve also how far it is from one list of all edits: the change, and the edits that fare otherwise.
    """
    facts, every = memedit.load_edits(FACTS), [edit for batch in batches for edit in batch]
    once = memedit.apply(every, model, out / "once", facts=facts, settings=CPU)
    found: dict[str, Scores] = {"memit, one list": figures(once)}
    for method, way in WAYS:
        ends = out / method / way
        reports = in_batches(ends, model, batches, {"method.name": method, **CPU}, mode=way, facts=facts)
        scores = figures(reports[-1]) | {"first list held": held(reports[0], reports[-1])}
        if way == "re-solve":
            verdicts, now = took(once), took(reports[-1])
            scores |= {"other verdicts": sum(now[name] != verdicts[name] for name in now)}
            scores |= {"apart": apart(model, out / "once", ends / str(len(batches) - 1))}
        found[f"{method}, {way}"] = scores
    return found | {"memit, unheld": unheld(model, batches, out / "unheld")}


def unheld(model: Path, batches: Sequence[Sequence[EditRequest]], out: Path) -> Scores:
    """MEMIT list after list with no row for earlier ones, each folder's ledger taken away: the scores on all edits."""
    last, reports = model, list[Report]()
    for number, batch in enumerate(batches):
        reports.append(memedit.apply(batch, last, out / str(number), settings=CPU))
        last = out / str(number)
        for file in (last / "memedit").glob("ledger.*"):
            file.unlink()
    every = [edit for batch in batches for edit in batch]
    end = memedit.evaluate(every, last, base=model, facts=memedit.load_edits(FACTS), settings=CPU)
    return figures(end) | {"first list held": held(reports[0], end)}


def took(report: Report) -> dict[str, bool]:
    """Which edits took, by id."""
    return {one.id: one.status == "ok" for one in report.per_edit}


def held(first: Report, last: Report) -> float:
    """Of the edits that took at first, the share that still does."""
    then, now = took(first), took(last)
    return sum(now[name] for name in then if then[name]) / sum(then.values())


def main() -> None:
    """Run what is asked for and print it."""
    given = _arguments()
    model, edits = Path(given.model), memedit.load_edits(ROOT / "requests" / "world.jsonl")
    counts = [int(count) for count in given.edits.split(",") if count]
    told: dict[str, Any] = {"methods": {}, "ways": {}}
    with tempfile.TemporaryDirectory() as folder:
        for count in counts:
            told["methods"][count] = by_method(model, edits[:count], Path(folder))
            print(f"{count} edits by each method", file=sys.stderr)
        if given.batches:
            lists = [edits[at : at + given.size] for at in range(0, given.batches * given.size, given.size)]
            told["ways"] = by_way(model, lists, Path(folder))
    console = Console(width=160)
    if counts:
        console.print(_methods_table(told["methods"], model.name))
    if told["ways"]:
        console.print(_ways_table(told["ways"], f"{given.batches} lists of {given.size}"))
    print(json.dumps(told))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks.methods")
    parser.add_argument("--model", default=str(SHIPPED), help="a folder of the made world")
    parser.add_argument("--edits", default="1,10,100,500", help="numbers of edits; '': none")
    parser.add_argument("--batches", type=int, default=10, help="lists one after the other; 0: none")
    parser.add_argument("--size", type=int, default=50, help="edits in each")
    return parser.parse_args()


def _methods_table(told: dict[int, dict[str, Scores]], name: str) -> Table:
    counts = list(told)
    table = Table(title=f"{name}, first " + " / ".join(map(str, counts)) + " edits, per cent")
    for title in ("", *FIGURES, *HELD.values()):
        table.add_column(title)
    for method in told[counts[0]]:
        cells = [" / ".join(_percent(told[n][method][name]) for n in counts) for name in (*FIGURES, *HELD.values())]
        table.add_row(method, *cells)
    return table


def _ways_table(told: dict[str, Scores], title: str) -> Table:
    table = Table(title=f"{title}, per cent")
    names = (*FIGURES, "first list held", *HELD.values())
    for name in ("", *names, "other verdicts", "apart"):
        table.add_column(name)
    for way, scores in told.items():
        other, gap = scores.get("other verdicts"), scores.get("apart")
        ends = ("" if other is None else f"{other:.0f}", "" if gap is None else f"{gap:.1e}")
        table.add_row(way, *(_percent(scores.get(name)) for name in names), *ends)
    return table


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.3g}" if share < 1 else "100"


if __name__ == "__main__":
    main()

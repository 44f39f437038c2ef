"""`make bench`: seconds and scores of memedit and of the plain oracle, in one run.

    python -m examples.benchmarks [--model FOLDER] [--edits 10,100] [--oracle-sample 20]

The oracle finds targets one edit at a time; above the sample its seconds are those of the sample, scaled up, and its
scores are left out. The table goes to stdout, then one line of JSON.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from tests import oracle

from .both import ROOT, Both

SCORES = ("efficacy", "accuracy", "paraphrase", "neighborhood")


def help_seconds() -> float:
    """The median of nine runs of `memedit --help`, in a process each."""
    spent: list[float] = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "memedit", "--help"], capture_output=True, check=True)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def compare(folder: Path, n_edits: int, sample: int) -> dict[str, Any]:
    """One row of the table."""
    both = Both(folder, n_edits)
    start = time.perf_counter()
    found = both.targets()
    targets = time.perf_counter() - start
    start = time.perf_counter()
    update = both.update(found.wanted)
    solved = time.perf_counter() - start
    few = min(sample, n_edits)
    steps = both.step_of(found.start)
    start = time.perf_counter()
    wanted = [oracle.find_target(both.lm.model, both.edits[n], both.knobs, steps[n])[0] for n in range(few)]
    theirs = (time.perf_counter() - start) * n_edits / few
    row: dict[str, Any] = {
        "edits": n_edits,
        "targets_s": round(targets, 2),
        "solve_s": round(solved, 2),
        "oracle_targets_s": round(theirs, 2),
        "oracle_sampled": few < n_edits,
        "ratio": round(theirs / targets, 1),
        "scores": _short(both.scores(update)),
        "oracle_scores": _short(both.oracle_scores(torch.stack(wanted))) if few == n_edits else None,
    }
    return row


def _short(scores: Any) -> dict[str, float]:
    return {name: round(getattr(scores, name).mean, 4) for name in SCORES}


def main() -> None:
    """Run the rows asked for and print them."""
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "models" / "made-gpt2")
    parser.add_argument("--edits", default="10,100")
    parser.add_argument("--oracle-sample", type=int, default=100)
    given = parser.parse_args()
    rows = [compare(given.model, int(n), given.oracle_sample) for n in given.edits.split(",")]
    seconds = help_seconds()
    table = Table(title=f"{given.model.name}, float32, {torch.get_num_threads()} threads, torch {torch.__version__}")
    for name in (
        "edits",
        "targets",
        "solve",
        "oracle's targets",
        "ratio",
        "efficacy",
        "accuracy",
        "paraphrase",
        "neighborhood",
    ):
        table.add_column(name, justify="right")
    for row in rows:
        told = f"{row['oracle_targets_s']} s" + (" (from a sample)" if row["oracle_sampled"] else "")
        pairs = [
            f"{mine:.1%} / {row['oracle_scores'][name]:.1%}" if row["oracle_scores"] else f"{mine:.1%}"
            for name, mine in row["scores"].items()
        ]
        table.add_row(
            str(row["edits"]), f"{row['targets_s']} s", f"{row['solve_s']} s", told, str(row["ratio"]), *pairs
        )
    Console(width=140).print(table, "scores: memedit / oracle", f"memedit --help: {seconds:.2f} s")
    print(json.dumps({"model": given.model.name, "help_s": round(seconds, 3), "rows": rows}))


if __name__ == "__main__":
    main()

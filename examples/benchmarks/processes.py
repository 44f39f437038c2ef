"""One command in one process, in two, and in one with two threads: seconds, scores, and whether the bytes are equal.

    python -m examples.benchmarks.processes [--model FOLDER] [--edits 300] [--set KEY=VALUE ...]

`memedit apply` edits the first of requests/world.jsonl, each time with an empty cache, so that moments, search, solve,
polish and scoring are all done. Two processes are started by torchrun, with one thread each. One thread for each core
is the rule, so run it on a quiet machine with two. A table on stdout, then one line of JSON.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from .both import FACTS, FIGURES, ROOT, SHIPPED

RUNS = ((1, 1), (2, 1), (1, 2))
"""Processes, and threads of each; the first is what the others are compared with."""
STEPS = ("moments", "before", "targets", "solve", "polish", "after")
RUN = "memedit/run.json"


@dataclass(frozen=True)
class Timed:
    """A run: its wall seconds with the start of Python, those of its steps, its scores, and a digest of its output."""

    seconds: float
    steps: dict[str, float]
    scores: dict[str, float]
    digest: str


def main() -> int:
    """Run the command in each way, and print the table; returns the exit code."""
    given = _arguments()
    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for processes, threads in RUNS:
            found = run(Path(folder), _command(given, Path(folder)), processes, threads)
            equal = not runs or found.digest == runs[0]["digest"]
            runs.append({"processes": processes, "threads": threads, "bytes_equal": equal, **vars(found)})
    _print(given, runs)
    print(json.dumps({"edits": given.edits, "model": str(given.model), "runs": runs}))
    # More threads may sum in another order; more processes may not.
    return 0 if all(one["bytes_equal"] for one in runs if one["threads"] == 1) else 1


def run(folder: Path, command: Sequence[str], processes: int, threads: int) -> Timed:
    """Run memedit in some processes, and read what it wrote. Raises SystemExit where it fails."""
    start = ["-m", "memedit"]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("localhost", 0))
            port = str(free.getsockname()[1])
        start = ["-m", "torch.distributed.run", "--nproc-per-node", str(processes), "--master-port", port, *start]
    settings = {"OMP_NUM_THREADS": str(threads), "MEMEDIT_CACHE": str(folder / "cache"), "HF_HUB_OFFLINE": "1"}
    begun = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *start, *command], env={**os.environ, **settings}, cwd=ROOT, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    seconds = time.perf_counter() - begun
    if done.returncode:
        raise SystemExit(f"{processes} processes ended with exit code {done.returncode}:\n{done.stderr[-2000:]}")
    out = folder / "out"
    report = json.loads((out / RUN).read_text())
    scores = {name: report["after"][name]["mean"] for name in FIGURES if report["after"][name]}
    scores |= {f"kept, {name}": one["mean"] for name, one in report["kept"].items() if one}
    found = Timed(seconds, {name: report["timings"].get(name, 0.0) for name in STEPS}, scores, _digest(out))
    shutil.rmtree(out)
    shutil.rmtree(folder / "cache")
    return found


def _digest(out: Path) -> str:
    """A digest of every file's name and bytes, without the seconds that the run took."""
    found = hashlib.sha256()
    for file in sorted(one for one in out.rglob("*") if one.is_file()):
        name, data = str(file.relative_to(out)), file.read_bytes()
        if name == RUN:
            data = json.dumps({**json.loads(data), "timings": {}}).encode()
        found.update(f"{name} {len(data)} ".encode() + data)
    return found.hexdigest()


def _command(given: argparse.Namespace, folder: Path) -> list[str]:
    words = ["apply", str(ROOT / "requests" / "world.jsonl"), "--limit", str(given.edits), "-m", str(given.model)]
    words += ["-o", str(folder / "out"), "--facts", str(FACTS), "--device", "cpu", "-q"]
    return [*words, *(word for one in given.set for word in ("--set", one))]


def _print(given: argparse.Namespace, runs: Sequence[dict[str, Any]]) -> None:
    table = Table(title=f"{given.edits:,} edits of {Path(given.model).name}")
    table.add_column("")
    for one in runs:
        table.add_column(f"{one['processes']} x {one['threads']}", justify="right")
    table.add_row("whole, s", *(f"{one['seconds']:.1f}" for one in runs))
    for name in STEPS:
        table.add_row(f"{name}, s", *(f"{one['steps'][name]:.1f}" for one in runs))
    for name in runs[0]["scores"]:
        table.add_row(f"{name}, %", *(f"{100 * one['scores'][name]:.1f}" for one in runs))
    table.add_row("bytes of the first", *("yes" if one["bytes_equal"] else "no" for one in runs))
    Console(width=100).print(table)
    print("columns: processes x threads of each")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks.processes")
    parser.add_argument("--model", type=Path, default=SHIPPED, help="a folder with a model of the made world")
    parser.add_argument("--edits", type=int, default=300, help="the first of requests/world.jsonl")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of memedit apply")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

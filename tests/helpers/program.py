"""The program in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import ROOT

EDITS = ROOT / "requests" / "world.jsonl"
FEW = ["--set", "target.steps=10", "--set", "moments.tokens=4000"]
"""Settings for a short run."""


def start(cache: Path, *command: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run Python with these arguments, on one thread, with this cache folder."""
    environment = {**os.environ, "MEMEDIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, input=stdin,
    )  # fmt: skip


def memedit(*arguments: object, cache: Path, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a memedit command."""
    environment = {**os.environ, "MEMEDIT_CACHE": str(cache)}
    return subprocess.run(
        [sys.executable, "-m", "memedit", *map(str, arguments)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False, input=stdin,
    )  # fmt: skip

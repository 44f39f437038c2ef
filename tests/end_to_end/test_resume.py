"""Killed at any moment, the output is absent or whole, and the same command goes on and writes the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.conftest import ROOT

# Kills the process, and nothing else does: SIGKILL runs no handler and flushes nothing.
KILLED_AFTER = """
import os, signal, sys
module, owner, name = sys.argv[1:4]
holder = __import__(module, fromlist=["_"])
if owner:
    holder = getattr(holder, owner)
real = getattr(holder, name)
def then_killed(*args, **options):
    real(*args, **options)
    os.kill(os.getpid(), signal.SIGKILL)
setattr(holder, name, then_killed)
sys.argv = ["memedit", *sys.argv[4:]]
from memedit.cli.app import main
main()
"""
PHASES = [
    ("memedit.editing.run", "EditRun", "contexts"),
    ("memedit.editing.run", "EditRun", "moments"),
    ("memedit.editing.run", "EditRun", "scored"),
    ("memedit.editing.target_search", "", "find_targets"),
    ("memedit.editing.run", "EditRun", "targets"),
    ("memedit.editing.run", "EditRun", "update"),
    ("memedit.editing.retry", "", "_sought"),
    ("memedit.editing.run", "EditRun", "report"),
    ("memedit.storage.writer", "", "_patch"),
    ("memedit.storage.writer", "", "_sync"),
]


def arguments(out: Path) -> list[str]:
    edits = str(ROOT / "requests" / "world.jsonl")
    model = str(ROOT / "examples" / "models" / "made-gpt2")
    knobs = ["--set", "target.steps=4", "--set", "chunk=2", "--set", "moments.tokens=4000"]
    return ["apply", edits, "-m", model, "-o", str(out), "--limit", "4", "--redo", "2", "-q", *knobs]


def start(cache: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "MEMEDIT_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *command], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


def contents(out: Path) -> dict[str, bytes]:
    """Every file's bytes; the seconds a run took are the one thing in it that two runs do not share."""
    found = {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    run = json.loads(found["memedit/run.json"])
    run.pop("timings")
    return {**found, "memedit/run.json": json.dumps(run).encode()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("resume")
    out = folder / "out"
    done = start(folder / "cache", "-m", "memedit", *arguments(out))
    assert done.returncode == 0, done.stderr
    assert not any((folder / "cache" / "runs").glob("*/"))
    found = contents(out)
    shutil.rmtree(out)
    shutil.rmtree(folder / "cache")
    return folder, found


@pytest.mark.parametrize("phase", PHASES, ids=lambda phase: phase[2])
def test_a_killed_run_goes_on_and_writes_the_same_bytes(
    undisturbed: tuple[Path, dict[str, bytes]], phase: tuple[str, str, str]
) -> None:
    folder, wanted = undisturbed
    out, cache = folder / "out", folder / "cache"
    try:
        killed = start(cache, "-c", KILLED_AFTER, *phase, *arguments(out))
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
        again = start(cache, "-m", "memedit", *arguments(out))
        assert again.returncode == 0, again.stderr
        assert contents(out) == wanted
        assert sorted(file.name for file in folder.iterdir()) == ["cache", "out"]
    finally:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)


def test_what_was_found_is_not_searched_again(undisturbed: tuple[Path, dict[str, bytes]]) -> None:
    folder, _ = undisturbed
    out, cache = folder / "out", folder / "cache"
    try:
        start(cache, "-c", KILLED_AFTER, "memedit.editing.run", "EditRun", "targets", *arguments(out))
        kept = {file: file.stat().st_mtime_ns for file in (cache / "runs").rglob("targets-*")}
        assert len(kept) == 2
        # A second run that is killed right after its targets must have found both chunks and made none.
        start(cache, "-c", KILLED_AFTER, "memedit.editing.run", "EditRun", "targets", *arguments(out))
        assert {file: file.stat().st_mtime_ns for file in (cache / "runs").rglob("targets-*")} == kept
    finally:
        shutil.rmtree(cache, ignore_errors=True)

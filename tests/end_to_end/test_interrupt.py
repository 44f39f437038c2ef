"""Ctrl-C and a request to terminate leave a run that goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.conftest import ROOT

LIMIT = 120.0  # seconds until the first artifact of the run must be there


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_a_run_that_can_go_on(made_gpt2: Path, tmp_path: Path, number: int, code: int) -> None:
    out, cache = tmp_path / "out", tmp_path / "cache"
    edits = str(ROOT / "requests" / "world.jsonl")
    knobs = ["--set", "moments.tokens=4000", "--set", "target.steps=200", "--set", "target.stop=0"]
    command = [sys.executable, "-m", "memedit", "apply", edits, "-m", str(made_gpt2), "-o", str(out), "-q", *knobs]
    environment = {**os.environ, "MEMEDIT_CACHE": str(cache)}
    with subprocess.Popen(command, env=environment, cwd=ROOT, stderr=subprocess.PIPE, text=True) as running:
        start = time.monotonic()
        while not list(cache.glob("runs/*/before-*.json")):
            assert running.poll() is None and time.monotonic() - start < LIMIT
            time.sleep(0.05)
        running.send_signal(number)
        said = running.communicate(timeout=LIMIT)[1]
    assert running.returncode == code, said
    assert "run the same command again to continue" in said and "Traceback" not in said
    assert not out.exists()
    assert list(cache.glob("runs/*/contexts-*.json"))

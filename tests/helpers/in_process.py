"""The program in this process: its exit code, what it prints, its time, and what it leaves."""

from __future__ import annotations

import io
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

import typer
from memedit.cli.app import app, main

CODES = (0, 1, 2, 3, 4, 5)
"""Exit codes of the table in the docs, without those of signals."""
LONGEST = 10.0
"""Seconds after which a command on a bad input counts as hanging."""


PARSED = typer.main.get_command(app)
"""Built once: that takes longer than many a command on a bad input."""


class Ended(NamedTuple):
    """How a command ended."""

    code: int
    out: str
    err: str
    seconds: float


def run_main(arguments: Sequence[str]) -> Ended:
    """Run a command line as the program does, in this process."""
    argv, handlers = sys.argv, [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["memedit", *arguments]
    begun, code = time.process_time(), -1
    try:
        with redirect_stdout(out), redirect_stderr(err), patch.object(typer.main, "get_command", lambda _app: PARSED):
            main()
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers:
            signal.signal(number, handler)
    return Ended(code, out.getvalue(), err.getvalue(), time.process_time() - begun)


def faults(ended: Ended) -> list[str]:
    """Return what is wrong with the way in which a command ended; an empty list where nothing is."""
    lines = ended.err.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    hints = [line for line in lines if line.startswith("hint: ")]
    # A command that needs another one after it shows its help.
    usage = ended.code == 2 and any(line.startswith("Usage: ") for line in lines)
    found: list[str] = []
    if ended.code not in CODES:
        found.append(f"exit code {ended.code}")
    if "Traceback" in ended.err + ended.out or "error: unexpected" in ended.err:
        found.append("a defect of memedit is reported")
    if ended.code not in (0, 3) and not usage and not (len(errors) == len(hints) == 1 and lines[-1] == hints[0]):
        found.append("there is no last error line with its hint")
    if re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", ended.err.replace("\r", "")):
        found.append("a control character is printed")
    if any(len(line) > 2000 for line in (*errors, *hints)):
        found.append("a line of more than 2,000 characters is printed")
    if ended.seconds > LONGEST:
        found.append(f"it took {ended.seconds:.0f} s")
    return found


def held(folder: Path) -> set[str]:
    """Every file and folder in a folder, by relative path."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}

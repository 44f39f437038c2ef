"""A run that is killed, or refused a file operation, leaves its output absent or whole, wherever that happens."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from tests.conftest import ROOT

CARELESS = """
import shutil, sys
from contextlib import contextmanager
from memedit.storage import writer

@contextmanager
def in_place(source, out, **options):
    out.mkdir(exist_ok=True)
    yield out

writer.folder_aside = in_place
from tests.torture.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
"""A writer that writes into the output folder itself."""


def torture(*arguments: str, code: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run the harness in a process of its own: it forks, and must have started no thread."""
    start = ["-m", "tests.torture"] if code is None else ["-c", code]
    return subprocess.run(
        [sys.executable, *start, *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip


def counts(table: str) -> dict[str, int]:
    """The last line of the table, by column."""
    head, *_, last = table.strip().splitlines()
    names = re.split(r"\s{2,}", head)[1:]
    return dict(zip(names, (int(word.replace(",", "")) for word in last.split()[-len(names) :]), strict=True))


def test_no_operation_of_an_apply_loses_anything() -> None:
    done = torture("--every", "-c", "apply --delta --overwrite")
    assert done.returncode == 0, done.stderr
    found = counts(done.stdout)
    assert found["operations"] > 300 and found["kills"] > 30 and found["errors"] > 100
    assert not any(found[name] for name in ("lost", "partial", "unexpected", "left over"))


def test_the_harness_finds_a_writer_that_is_careless() -> None:
    done = torture(
        "--kills", "6", "--errors", "6", "--signals", "0", "-c", "export --to full --overwrite", code=CARELESS
    )
    found = counts(done.stdout)
    assert done.returncode == 1 and found["partial"] > 0, done.stderr
    assert found["kills"] == found["errors"] == 6

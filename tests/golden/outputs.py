"""What golden files hold, and how they are made: `python -m tests.golden.outputs` writes them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.golden.tables import NAMES as NAMES_OF_TABLES
from tests.golden.tables import table

HERE = Path(__file__).parent
NAMES = (
    "", "apply", "eval", "check", "stats", "trace", "inspect", "forget", "export", "revert", "diff", "log", "push",
    "schema", "help", "version",
    "cache", "cache dir", "cache ls", "cache clean",
)  # fmt: skip
COMMANDS = {
    **{f"help/{name.replace(' ', '-') or 'memedit'}.txt": [*name.split(), "--help"] for name in NAMES},
    "help/topics.txt": ["help"],
    "schema/edits.json": ["schema", "edits"],
    "config.yaml": ["apply", "x", "--show-config"],
}


def output(arguments: list[str]) -> str:
    """What the program prints, at a fixed width and without color."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MEMEDIT_")}
    environment = {**kept, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    done = subprocess.run(
        [sys.executable, "-m", "memedit", *arguments], env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


if __name__ == "__main__":
    (HERE / "tables").mkdir(exist_ok=True)
    for name in NAMES_OF_TABLES:
        (HERE / "tables" / name).write_text(table(name), encoding="utf-8")
    for name, arguments in COMMANDS.items():
        (HERE / name).parent.mkdir(parents=True, exist_ok=True)
        (HERE / name).write_text(output(arguments), encoding="utf-8")

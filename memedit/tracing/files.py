"""Write a folder of traces: trace.jsonl, trace.safetensors, figures, and average.json last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from memedit.errors import UsageError
from memedit.results.traces import Average, FactTrace
from memedit.storage.artifacts import write_whole
from memedit.storage.tensorfile import saved

DATA, TABLES, AVERAGE = "trace.jsonl", "trace.safetensors", "average.json"


def check_folder(out: Path) -> None:
    """Raise UsageError, before any work, where the folder holds something that is no trace."""
    if out.is_file():
        raise UsageError(f"the output {out} is a file", "give a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / DATA).is_file():
        raise UsageError(f"the output {out} holds something that is no trace", "give a folder that is new or empty")


def write_traces(
    out: Path,
    facts: Sequence[FactTrace],
    tables: Mapping[str, Tensor],
    average: Average,
    figures: Mapping[str, bytes],
) -> None:
    """Write a folder of traces, and replace the traces in it; each file is written whole or not at all."""
    write_whole(out / DATA, "".join(f"{fact.model_dump_json(exclude_none=True)}\n" for fact in facts).encode())
    flat = {name: table.contiguous() for name, table in tables.items()}
    write_whole(out / TABLES, saved(flat, {"format": "memedit-trace", "version": "1"}))
    for name, data in figures.items():
        write_whole(out / name, data)
    write_whole(out / AVERAGE, average.model_dump_json(indent=2).encode() + b"\n")

"""Write a folder of traces: trace.jsonl, trace.safetensors, average.json and figures. It is absent or whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from memedit.results.traces import Average, FactTrace
from memedit.results.units import plain_json
from memedit.storage.output import Replaceable, check_output
from memedit.storage.tensorfile import saved
from memedit.storage.writer import write_files

DATA, TABLES, AVERAGE, PAGE, FIGURES = "trace.jsonl", "trace.safetensors", "average.json", "trace.html", "figures"


def is_trace_folder(folder: Path) -> bool:
    """Whether a folder holds what `trace` writes and nothing else, judging by its files' names."""
    names = {entry.name for entry in folder.iterdir()}
    figures = folder / FIGURES
    drawn = list(figures.iterdir()) if figures.is_dir() else []
    return DATA in names <= {DATA, TABLES, AVERAGE, PAGE, FIGURES} and all(
        file.suffix in (".png", ".svg") for file in drawn
    )


TRACES = Replaceable(is_trace_folder, "holds something that is no trace", "give a folder that is new or empty")


def check_folder(model: Path | None, out: Path) -> None:
    """Raise UsageError, before any work, for a folder that cannot be written, or that holds more than traces."""
    check_output(model, out, overwrite=True, own=TRACES)


def write_traces(
    out: Path,
    facts: Sequence[FactTrace],
    tables: Mapping[str, Tensor],
    average: Average,
    figures: Mapping[str, bytes],
    note: Callable[[str], None],
) -> None:
    """Write a folder of traces; the traces in it are replaced as a whole. Raises what check_folder raises."""
    flat = {name: table.contiguous() for name, table in tables.items()}
    files = {
        DATA: "".join(f"{plain_json(fact.model_dump_json(exclude_none=True))}\n" for fact in facts).encode(),
        TABLES: saved(flat, {"format": "memedit-trace", "version": "1"}),
        **figures,
        AVERAGE: average.model_dump_json(indent=2).encode() + b"\n",
    }
    write_files(out, files, overwrite=True, own=TRACES, note=note)

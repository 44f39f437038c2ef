"""memedit export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from memedit.cli import options as o
from memedit.errors import UsageError


def export_command(
    delta: Annotated[str, typer.Argument(metavar="DELTA", help="A folder that apply wrote, or its delta.safetensors.")],
    to: Annotated[
        Literal["full", "lora", "dense"],
        typer.Option(
            "--to",
            help="A checkpoint, a LoRA adapter in PEFT's format, or one file of float32 changes.",
            show_choices=True,
        ),
    ],
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="BASE", help="The model it changes.")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="OUT", help="The folder to write; for dense, the file.")
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, metavar="N", help="Cut the change to N directions per layer.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Of a LoRA adapter's factors.")
    ] = "float32",
    any_base: o.AnyBaseOption = False,
    sets: o.SetOption = None,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Carry a change over: as a checkpoint, as an adapter to be served beside others, or as plain tensors."""
    o.one_output(json, False, quiet)
    if dtype != "float32" and to != "lora":
        raise UsageError(
            f"--dtype is for an adapter's factors, and --to {to} has none", "say --to lora, or leave it out"
        )
    flags = {
        "model.path": model,
        "output.dir": output,
        "output.link": link,
        "output.overwrite": overwrite,
        "output.force": force,
    }
    recipe, _ = o.read_recipe(None, sets, flags)
    o.need_model(recipe)
    import torch

    from memedit.changes.commands import run_export as run
    from memedit.show.progress import TerminalProgress

    outcome = run(
        Path(delta).expanduser(), to, recipe, rank=rank, dtype=getattr(torch, dtype), any_base=any_base,
        arguments=sys.argv[1:], progress=TerminalProgress(o.error_console(), quiet=quiet),
    )  # fmt: skip
    o.print_outcome(outcome, json=json, quiet=quiet)

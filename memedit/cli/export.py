"""memedit export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import UsageError


@with_terminal(o.QUIET_PATH)
def export_command(
    delta: Annotated[
        str,
        typer.Argument(metavar="DELTA", help="Folder that apply wrote, its delta.safetensors, or a LoRA adapter."),
    ],
    to: Annotated[
        Literal["full", "lora", "dense"],
        typer.Option(
            "--to",
            help="full: a checkpoint; lora: a LoRA adapter (PEFT); dense: one file of float32 changes.",
            show_choices=True,
        ),
    ],
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="BASE", help="Model that the delta was made for.  [required]")
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="OUT", help="Folder to write; for dense, the file.  [required]"),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", min=1, metavar="N", help="Truncate the change to rank N in each layer.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option("--dtype", help="Dtype of the LoRA factors.")
    ] = "float32",
    any_base: o.AnyBaseOption = False,
    sets: o.SetOption = None,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    keep_copies: o.KeepCopiesOption = None,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Convert a delta to a checkpoint, a LoRA adapter, or a file of plain tensors.

    A LoRA adapter is merged into its base, with --to full.

    \b
    Examples:
      memedit export edited --to lora -m gpt2 -o adapter
      memedit export edited --to full -m gpt2 -o edited-again
      memedit export adapter --to full -m gpt2 -o merged
    """
    o.one_output(json, False, terminal.quiet)
    if dtype != "float32" and to != "lora":
        raise UsageError(f"--dtype is for LoRA factors, and --to {to} has none", "use --to lora, or leave it out")
    flags = {
        "model.path": model,
        "output.dir": output,
        "output.link": link,
        "output.overwrite": overwrite,
        "output.force": force,
        "output.keep_copies": keep_copies,
    }
    recipe, _ = o.read_recipe(None, sets, flags)
    o.need_model(recipe)
    terminal.loading(recipe.model.path)
    import torch

    from memedit.pipeline import run_export

    outcome = run_export(
        Path(delta).expanduser(), to, recipe, rank=rank, dtype=getattr(torch, dtype), any_base=any_base,
        arguments=sys.argv[1:], progress=terminal.progress(),
    )  # fmt: skip
    o.print_outcome(outcome, json=json, terminal=terminal)

"""memedit revert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memedit.cli import options as o


def revert_command(
    edited: Annotated[str, typer.Argument(metavar="OUT", help="A folder that apply wrote.")],
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="BACK", help="The folder to write.")] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="BASE", help="The model it was made from; else what its run recorded."),
    ] = None,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Take an edit back: to the bit where the base or the kept originals are at hand, else up to rounding."""
    o.one_output(json, False, quiet)
    flags = {
        "model.path": model,
        "output.dir": output,
        "output.link": link,
        "output.overwrite": overwrite,
        "output.force": force,
    }
    recipe, _ = o.read_recipe(None, None, flags)
    from memedit.changes.commands import run_revert as run
    from memedit.show.progress import TerminalProgress

    outcome = run(
        Path(edited).expanduser(),
        recipe,
        arguments=sys.argv[1:],
        progress=TerminalProgress(o.error_console(), quiet=quiet),
    )
    o.print_outcome(outcome, json=json, quiet=quiet)

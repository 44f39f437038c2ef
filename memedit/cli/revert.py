"""memedit revert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal


@with_terminal(o.QUIET_PATH)
def revert_command(
    edited: Annotated[str, typer.Argument(metavar="OUT", help="Folder that apply wrote.")],
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="BACK", help="Folder to write.  [required]")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="BASE", help="Model before the edit.  [default: the one that OUT records]"
        ),
    ] = None,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    keep_copies: o.KeepCopiesOption = None,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Undo an edit: exactly if the base or the original tensors are available, else up to rounding.

    \b
    Examples:
      memedit revert edited -o back
      memedit revert edited -o back -m gpt2
    """
    o.one_output(json, False, terminal.quiet)
    flags = {
        "model.path": model,
        "output.dir": output,
        "output.link": link,
        "output.overwrite": overwrite,
        "output.force": force,
        "output.keep_copies": keep_copies,
    }
    recipe, _ = o.read_recipe(None, None, flags)
    terminal.loading(edited)
    from memedit.pipeline import run_revert

    outcome = run_revert(Path(edited).expanduser(), recipe, arguments=sys.argv[1:], progress=terminal.progress())
    o.print_outcome(outcome, json=json, terminal=terminal)

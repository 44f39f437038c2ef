"""memedit revert."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memedit.cli import options as o


def revert_command(
    edited: Annotated[str, typer.Argument(metavar="OUT", help="Folder that apply wrote.")],
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="BACK", help="Folder to write.")] = None,
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
    quiet: o.QuietOption = False,
) -> None:
    """Undo an edit: exactly if the base or the original tensors are available, else up to rounding.

    \b
    Example:
      memedit revert edited -o back
    """
    o.one_output(json, False, quiet)
    flags = {
        "model.path": model,
        "output.dir": output,
        "output.link": link,
        "output.overwrite": overwrite,
        "output.force": force,
        "output.keep_copies": keep_copies,
    }
    recipe, _ = o.read_recipe(None, None, flags)
    from memedit.pipeline import run_revert

    outcome = run_revert(Path(edited).expanduser(), recipe, arguments=sys.argv[1:], progress=o.progress_bar(quiet))
    o.print_outcome(outcome, json=json, quiet=quiet)

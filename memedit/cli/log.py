"""memedit log."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal


@with_terminal("Print only the ids of the edits that no later edit replaced, one a line.")
def log_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Edited model folder or Hub name.")],
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """List the edits of an edited model in order, and what became of each: does it hold, was it replaced, was it lost.

    \b
    Examples:
      memedit log edited
      memedit log edited -q | grep city | memedit forget - -m edited -o less
    """
    o.one_output(json, False, terminal.quiet)
    from memedit.pipeline import run_log

    log = run_log(model)
    if json:
        print(log.model_dump_json(indent=2))
    elif terminal.quiet:
        for edit in log.active:
            print(edit.id)
    else:
        from memedit.show.history import log_line, log_table

        console = terminal.console()
        console.print(log_table(log))
        console.print(log_line(log), markup=False, highlight=False, soft_wrap=True)

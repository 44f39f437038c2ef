"""memedit log."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli import report_files
from memedit.cli.terminal import Terminal, with_terminal


@with_terminal("Print only the ids of the edits that no later edit replaced, one a line.")
def log_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Edited model folder or Hub name.")],
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="Write the edits as a web page, in order.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a FILE of --html that holds something else.")
    ] = False,
    json: o.JsonOption = False,
    everything: Annotated[
        bool, typer.Option("--all", help="Print every edit, not the last 15; a pipe gets them all.")
    ] = False,
    *,
    terminal: Terminal,
) -> None:
    """List the edits of an edited model in order, and what became of each: does it hold, was it replaced, was it lost.

    \b
    Examples:
      memedit log edited --html edited.html
      memedit log edited -q | grep city | memedit forget - -m edited -o less
    """
    o.one_output(json, False, terminal.quiet)
    terminal.loading(model, "reading")
    from memedit.pipeline import run_log

    report_files.check_report_files(html, overwrite=overwrite)
    log = run_log(model)
    if html is not None:
        from memedit.show.history_page import log_page

        report_files.write_text_file(html, log_page(log))
    if json:
        print(log.model_dump_json(indent=2))
    elif terminal.quiet:
        for edit in log.active:
            print(edit.id)
    else:
        from memedit.show.history import TERMINAL_ROWS, earlier_line, log_line, log_table
        from memedit.show.terminal import print_line

        console = terminal.console()
        last = None if everything or not console.is_terminal else TERMINAL_ROWS
        console.print(log_table(log, last=last, cut=console.is_terminal))
        print_line(console, log_line(log))
        terminal.hint(earlier_line(log, last))

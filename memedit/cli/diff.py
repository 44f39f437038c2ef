"""memedit diff."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.errors import GateError


def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="A model folder or Hub name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 3 where they differ.")] = False,
    json: o.JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the names of what differs, or nothing.")] = False,
) -> None:
    """Say how two models differ: which tensors, by how much and in how many directions, and which files."""
    o.one_output(json, False, quiet)
    from memedit.changes.commands import run_diff as run
    from memedit.show.progress import TerminalProgress

    found = run(a, b, progress=TerminalProgress(o.error_console(), quiet=quiet))
    if json:
        print(found.model_dump_json(indent=2))
    else:
        from memedit.show.changes import comparison_lines, comparison_table, tensor_names

        console = o.wide_console()
        if found.tensors and not quiet:
            console.print(comparison_table(found))
        for line in tensor_names(found) if quiet else comparison_lines(found):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if exit_code and not found.same:
        raise GateError(f"{a} and {b} differ", "the lines above say where")

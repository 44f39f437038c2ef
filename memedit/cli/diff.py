"""memedit diff."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import GateError


@with_terminal("Print only the names of the tensors and files that differ.")
def diff_command(
    a: Annotated[str, typer.Argument(metavar="A", help="Model folder or Hub name.")],
    b: Annotated[str, typer.Argument(metavar="B", help="Another model folder or Hub name.")],
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit 3 if they differ.")] = False,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Compare two models: which tensors and files differ, by how much, and the rank of each change.

    \b
    Examples:
      memedit diff gpt2 edited
      memedit diff gpt2 back --exit-code
    """
    o.one_output(json, False, terminal.quiet)
    terminal.loading(a)
    from memedit.pipeline import run_diff

    found = run_diff(a, b, progress=terminal.progress())
    if json:
        print(found.model_dump_json(indent=2))
    else:
        from memedit.results.units import printable
        from memedit.show.changes import comparison_lines, comparison_table, tensor_names
        from memedit.show.terminal import print_line

        if terminal.quiet:
            print("".join(f"{printable(name)}\n" for name in tensor_names(found)), end="")
        else:
            console = terminal.console()
            if found.tensors:
                console.print(comparison_table(found))
            for line in comparison_lines(found):
                print_line(console, line)
    if exit_code and not found.same:
        raise GateError(f"{a} and {b} differ", "see the lines above")

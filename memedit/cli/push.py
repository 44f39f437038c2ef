"""memedit push."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal


@with_terminal("Print only the address of the repository.")
def push_command(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Folder that memedit wrote: a model or an adapter.")],
    repo: Annotated[str, typer.Argument(metavar="REPO", help="Repository of the Hub: OWNER/NAME.")],
    private: Annotated[bool, typer.Option("--private", help="If the repository is made, make it private.")] = False,
    update: Annotated[bool, typer.Option("--update", help="Add to a repository that has files.")] = False,
    records: Annotated[
        bool, typer.Option("--records/--no-records", help="Send the folder memedit too: delta, ledger, reports.")
    ] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be sent; send nothing.")] = False,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Upload an edited model or an adapter to the Hugging Face Hub, with its card.

    \b
    Examples:
      memedit push edited me/gpt2-edited --dry-run
      memedit push edited me/gpt2-edited --private
    """
    o.one_output(json, False, terminal.quiet)
    terminal.loading(out, "reading")
    from memedit.pipeline import run_push
    from memedit.results.units import bytes_text, printable

    done = run_push(
        out, repo, private=private, update=update, records=records, dry_run=dry_run, progress=terminal.progress(),
    )  # fmt: skip
    if json:
        print(done.model_dump_json(indent=2))
        return
    if not terminal.quiet:
        for file in done.files:
            print(f"{bytes_text(file.bytes):>12}  {printable(file.name)}")
        print(f"{bytes_text(done.bytes):>12}  {len(done.files):,} files")
    if done.address:
        print(done.address)

"""memedit cache: dir, ls and clean."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.layout import HelpGroup
from memedit.cli.terminal import Terminal
from memedit.errors import UsageError
from memedit.results.cache_kinds import CACHE_KINDS

cache_app = typer.Typer(
    cls=HelpGroup,
    help="Show and remove what memedit keeps for later runs.\n\nSecond moments and their factors are reused by every "
    "run on the same model; the state of a run that was interrupted is reused when the same command is run again.",
    no_args_is_help=True,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

KindOption = Annotated[
    list[str] | None,
    typer.Option("--kind", metavar="KIND", help=f"Only this kind: {', '.join(CACHE_KINDS)}; repeatable."),
]


def dir_command() -> None:
    """Print the folder of the cache; it need not exist.

    \b
    Examples:
      memedit cache dir
      du -sh "$(memedit cache dir)"
    """
    from memedit.storage.cache import cache_dir

    print(cache_dir())


def ls_command(kind: KindOption = None, json: o.JsonOption = False) -> None:
    """List what is kept, the largest first: its kind and model, its size, and when it was last used.

    One row for the entries of one kind and model; --json lists them one by one, with their files.

    \b
    Examples:
      memedit cache ls
      memedit cache ls --kind moment
    """
    from memedit.storage.cache import cache_dir, checked_kinds, kept_entries

    entries = kept_entries(checked_kinds(kind or ()))
    if json:
        print("[" + ",\n ".join(entry.model_dump_json() for entry in entries) + "]")
        return
    from memedit.show.cache import cache_table, cache_total

    if entries:
        Terminal().console().print(cache_table(entries))
    print(cache_total(entries, str(cache_dir())))


def clean_command(
    kind: KindOption = None,
    older_than: Annotated[
        str | None,
        typer.Option("--older-than", metavar="AGE", help="Only what was not used since: 30d, 12h, 2w ago."),
    ] = None,
    to_size: Annotated[
        str | None,
        typer.Option(
            "--to-size", metavar="SIZE", help="Remove the least recently used until the cache is within SIZE: 20GB."
        ),
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Remove all that is kept.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be removed; remove nothing.")] = False,
    json: o.JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing.")] = False,
) -> None:
    """Remove what is kept. What a run that is going on uses stays. Every file can be made again, which takes time.

    \b
    Examples:
      memedit cache clean --older-than 30d --dry-run
      memedit cache clean --kind run --kind trace
      memedit cache clean --to-size 20GB
    """
    o.one_output(json, False, quiet)
    if everything == bool(kind or older_than or to_size):
        if everything:
            raise UsageError("--all removes everything, and a condition was given too", "give one of the two")
        raise UsageError("nothing says what to remove", "say --kind, --older-than, --to-size or --all")
    from memedit.storage.cache import age_in_seconds, checked_kinds, remove_entries, size_in_bytes

    done = remove_entries(
        kinds=checked_kinds(kind or ()),
        older_than=None if older_than is None else age_in_seconds(older_than, "--older-than"),
        to_size=None if to_size is None else size_in_bytes(to_size, "--to-size"),
        dry_run=dry_run,
    )
    if json:
        print(done.model_dump_json(indent=2))
    elif not quiet:
        from memedit.show.cache import cache_table, cleaning_text

        if done.removed and dry_run:
            Terminal().console().print(cache_table(done.removed))
        print(cleaning_text(done))

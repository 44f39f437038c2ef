"""The terminal of a command: how much it shows, in which colors, and the log that keeps every line."""

from __future__ import annotations

import functools
import gc
import inspect
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

import typer

from memedit.errors import MemeditError, UsageError, file_error

if TYPE_CHECKING:
    from rich.console import Console

    from memedit.show.progress import TerminalProgress

ColorChoice = Literal["auto", "always", "never"]
PIPE_WIDTH = 160
"""Columns of tables in a pipe, which has no width of its own."""
NAME_SHOWN = 100
"""Characters of a model's name that the first line shows."""


class RunLog:
    """A file that keeps every line of a command, each with its time; an existing log is continued."""

    def __init__(self, path: str) -> None:
        """Open the log. Raises UsageError if the file cannot be written, or if it is no log of memedit."""
        file = Path(path).expanduser()
        try:
            if file.exists() and (not file.is_file() or not _is_log(file)):
                raise UsageError(f"--log {path}: the file exists and is not a log of memedit", "name another file")
            # The command line can hold paths that are not UTF-8.
            self.file: TextIO | None = file.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
        except OSError as error:
            raise UsageError(file_error(error, f"write the log {path}").message, "name another file") from error

    def line(self, text: str) -> None:
        """Write one line. A log that can no longer be written does not stop the run."""
        if self.file is None:
            return
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        try:
            self.file.write("".join(f"{now} {one}\n" for one in text.splitlines() or [""]))
        except OSError as error:
            self.file = None
            with suppress(OSError):
                print(f"warning: the log ends here: {error.strerror}", file=sys.stderr)


def _is_log(file: Path) -> bool:
    """Whether a file is empty, or begins as a log does."""
    with file.open("rb") as stream:
        start = stream.read(30).decode("utf-8", "replace").partition(" ")[0]
    try:
        return not start or datetime.fromisoformat(start).tzinfo is not None
    except ValueError:
        return False


@dataclass(frozen=True)
class Terminal:
    """What a command shows, as its options say."""

    quiet: bool = False
    verbose: bool = False
    bars: bool = True
    color: ColorChoice = "auto"
    log: RunLog | None = None

    def loading(self, name: str, verb: str = "loading") -> None:
        """Show the first word of a command that opens a model, then import torch and transformers."""
        text = f"{verb} {_short_name(name)} ..."
        if self.log is not None:
            self.log.line(text)
        if not self.quiet:
            from memedit.results.units import printable

            print(printable(text), file=sys.stderr, flush=True)
        _import_libraries()

    def hint(self, text: str) -> None:
        """Show one line on stderr: where settings come from, or what else could be shown."""
        if self.log is not None and text:
            self.log.line(text)
        if text and not self.quiet:
            from memedit.results.units import printable

            print(printable(text), file=sys.stderr)

    def progress(self) -> TerminalProgress:
        """Progress on stderr; the libraries of the forward show nothing of their own."""
        from memedit.show.progress import TerminalProgress

        _silence(downloads=self.bars and not self.quiet and sys.stderr.isatty())
        bars = self.bars and not os.environ.get("MEMEDIT_NO_PROGRESS")
        return TerminalProgress(
            self.console(stderr=True), quiet=self.quiet, verbose=self.verbose, bars=bars,
            log=self.log.line if self.log else None,
        )  # fmt: skip

    def console(self, *, stderr: bool = False) -> Console:
        """The console for results (stdout), or for progress (stderr). A pipe gets 160 columns."""
        from rich.console import Console

        colors: dict[str, Any] = {
            "auto": {},
            "always": {"color_system": "truecolor", "no_color": False},
            "never": {"color_system": None, "no_color": True},
        }[self.color]
        console = Console(stderr=stderr, **colors)
        if console.is_terminal or os.environ.get("COLUMNS"):
            return console
        return Console(stderr=stderr, width=PIPE_WIDTH, **colors)


def _import_libraries() -> None:
    """Import torch and transformers, and exclude their objects from garbage collection.

    These objects stay until the process ends. The collector's search among them took more than 1 of the 9.3 processor
    seconds of `memedit inspect` on a model of 135M parameters, about half of it at the exit (2026-12-01).
    """
    if "torch" in sys.modules:
        return
    gc.disable()
    try:
        import_module("memedit.model.load")
    finally:
        gc.freeze()
        gc.enable()


def _short_name(name: str) -> str:
    """The name of a model's folder, or the name of a Hub repository; a path that cannot be used is refused later."""
    try:
        folder = Path(name).expanduser()
        return folder.resolve().name if folder.is_dir() else name[:NAME_SHOWN]
    except (OSError, RuntimeError, ValueError):
        return name[:NAME_SHOWN]


def _silence(*, downloads: bool) -> None:
    """Switch off progress bars and warnings of other libraries; bars of downloads stay if wanted."""
    if os.environ.get("MEMEDIT_DEBUG"):
        return
    import warnings

    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    if not downloads:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()


VerboseOption = Annotated[
    bool,
    typer.Option("--verbose", "-v", help="Show more: engine, plan, what the cache had."),
]
NoProgressOption = Annotated[bool, typer.Option("--no-progress", help="Draw no progress bars.")]
ColorOption = Annotated[ColorChoice, typer.Option("--color", help="Use color: auto, always or never.")]
LogOption = Annotated[
    str | None,
    typer.Option("--log", metavar="FILE", help="Also write every line to FILE, with its time."),
]


def with_terminal(quiet_help: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command the options of the terminal; it receives them as one value, `terminal`.

    quiet_help: what `-q` prints of this command.
    """
    quiet = Annotated[bool, typer.Option("--quiet", "-q", help=quiet_help)]
    options = (
        ("quiet", quiet, False), ("verbose", VerboseOption, False), ("no_progress", NoProgressOption, False),
        ("color", ColorOption, "auto"), ("log", LogOption, None),
    )  # fmt: skip

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def run(*args: Any, **given: Any) -> None:
            if "terminal" in given:
                return command(*args, **given)
            quiet, verbose, no_progress, color, log = (given.pop(name, default) for name, _, default in options)
            if quiet and verbose:
                raise UsageError("-q and -v were both given", "choose one")
            terminal = Terminal(quiet, verbose, not no_progress, color, RunLog(log) if log else None)
            return _logged(terminal, lambda: command(*args, terminal=terminal, **given))

        own = inspect.signature(command, eval_str=True)
        kept = [param for name, param in own.parameters.items() if name != "terminal"]
        added = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, annotation, default in options
        ]
        run.__signature__ = own.replace(parameters=[*kept, *added])  # type: ignore[attr-defined]
        run.__annotations__ = {one.name: one.annotation for one in (*kept, *added)}
        return run

    return decorate


def _logged(terminal: Terminal, command: Callable[[], None]) -> None:
    """Run a command; its command line and its end are written to the log, if there is one."""
    if terminal.log is None:
        return command()
    terminal.log.line(f"memedit {' '.join(sys.argv[1:])}")
    try:
        command()
    except MemeditError as error:
        terminal.log.line(f"error: {error.message}\nhint: {error.hint}")
        raise
    except BaseException as error:
        terminal.log.line(f"ended by {type(error).__name__}: {error}")
        raise
    return terminal.log.line("done")

"""The program: its commands, and how errors become a message, a hint and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from typing import Annotated, NoReturn

import typer

from memedit import __version__
from memedit.cli.apply import apply_command
from memedit.cli.cache import cache_app
from memedit.cli.check import check_command
from memedit.cli.diff import diff_command
from memedit.cli.evaluate import evaluate_command
from memedit.cli.export import export_command
from memedit.cli.forget import forget_command
from memedit.cli.help import help_command
from memedit.cli.inspect import inspect_command
from memedit.cli.revert import revert_command
from memedit.cli.schema import schema_command
from memedit.cli.stats import stats_command
from memedit.cli.trace import trace_command
from memedit.errors import EditListError, MemeditError, file_error, is_file_error

CLEANING = 5.0
"""Seconds after a signal in which another is ignored: people press Ctrl-C twice, and process managers send two."""

app = typer.Typer(
    name="memedit",
    help="Edit facts in a language model, many at a time, and measure what changed.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("apply", short_help="Edit facts in a model.")(apply_command)
app.command("forget", short_help="Remove edits from an edited model.")(forget_command)
app.command("eval", short_help="Evaluate a model on an edit list.")(evaluate_command)
app.command("check", short_help="List what is wrong with an edit list.")(check_command)
app.command("stats", short_help="Measure the second moments of layers.")(stats_command)
app.command("trace", short_help="Trace where a model recalls facts.")(trace_command)
app.command("inspect", short_help="Show how a model is built and what can be edited.")(inspect_command)
app.command("export", short_help="Convert a delta to a checkpoint or an adapter.")(export_command)
app.command("revert", short_help="Undo an edit.")(revert_command)
app.command("diff", short_help="Compare two models.")(diff_command)
app.add_typer(cache_app, name="cache", short_help="Show and remove what is kept for later runs.")
app.command("schema", short_help="Print the JSON schema of a format.")(schema_command)
app.command("help", short_help="Read the documentation in the terminal.")(help_command)


def _version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the program and exit with the code of its result."""
    debug = bool(os.environ.get("MEMEDIT_DEBUG"))
    stop = _Stop()
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        if signal.getsignal(number) != signal.SIG_IGN:  # nohup lets a run outlive its terminal
            signal.signal(number, stop)
    if not sys.stderr.isatty():  # progress bars of other libraries are only for a terminal
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        app(prog_name="memedit")
        sys.exit(0)
    except MemeditError as error:
        if debug:
            raise
        _fail(error)
    except _StoppedBySignal as stop:
        _say("interrupted; finished work is kept: run the same command again to continue")
        sys.exit(128 + stop.number)
    except MemoryError:
        _say("error: the machine's memory is full")
        _say("hint: use --memory 1GB, --dtype bfloat16 or fewer --layers; finished work is kept")
        sys.exit(5)
    except Exception as error:
        if debug:
            raise
        if _bad_path(error):
            _say(f"error: a path cannot be used: {_one_line(str(error))[:300].lower()}")
            _say("hint: check the paths that were given")
            sys.exit(2)
        if isinstance(error, OSError) and is_file_error(error):
            _fail(file_error(error))
        from memedit.model.memory import ran_out

        if ran_out(error):
            _say(f"error: the {'machine' if 'DefaultCPUAllocator' in str(error) else 'GPU'}'s memory is full")
            _say("hint: use --memory 4GB, --dtype bfloat16, --device-map auto or --device cpu; finished work is kept")
            sys.exit(5)
        _say(f"error: unexpected {type(error).__name__}: {_one_line(str(error))}")
        _say("hint: this is a defect in memedit; set MEMEDIT_DEBUG=1 to see where")
        sys.exit(1)


def _fail(error: MemeditError) -> NoReturn:
    """Print an error, with what was found wrong with the edit list before it, and exit with its code."""
    if isinstance(error, EditListError):
        for finding in error.findings:
            _say(getattr(finding, "line", str(finding)))
    _say(f"error: {_one_line(error.message)}")
    if error.hint:
        _say(f"hint: {_one_line(error.hint)}")
    sys.exit(error.exit_code)


class _StoppedBySignal(BaseException):
    """Ctrl-C, SIGTERM or a closed terminal; a BaseException, so that no `except Exception` catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class _Stop:
    """A signal handler that stops the run. More signals in the next seconds do not disturb what it cleans up."""

    def __init__(self) -> None:
        self.last = float("-inf")

    def __call__(self, number: int, _frame: object) -> None:
        now = time.monotonic()
        if now - self.last > CLEANING:
            self.last = now
            raise _StoppedBySignal(number)


def _bad_path(error: Exception) -> bool:
    """Whether a path was refused as such: too long, with a zero byte, or in the home of nobody."""
    if isinstance(error, OSError):
        return error.errno == errno.ENAMETOOLONG
    return str(error) in ("embedded null byte", "Could not determine home directory.")


def _say(text: str) -> None:
    from memedit.results.units import printable

    try:
        print(printable(text), file=sys.stderr)
    except BrokenPipeError:  # nobody reads it; the exit code still tells what happened
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


LONGEST_LINE = 1500
"""Characters of an error or a hint that are printed: a damaged file can hold names of any length."""


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_LINE else f"{line[:LONGEST_LINE]}..."

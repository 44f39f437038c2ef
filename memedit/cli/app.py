"""The program: its commands, and how errors become a message, a hint and an exit code."""

from __future__ import annotations

import codecs
import errno
import io
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Annotated, NoReturn

import typer

from memedit import __version__
from memedit.cli.apply import apply_command
from memedit.cli.cache import cache_app, clean_command, dir_command, ls_command
from memedit.cli.check import check_command
from memedit.cli.diff import diff_command
from memedit.cli.evaluate import evaluate_command
from memedit.cli.export import export_command
from memedit.cli.forget import forget_command
from memedit.cli.help import help_command, version_command
from memedit.cli.inspect import inspect_command
from memedit.cli.layout import HelpCommand, HelpGroup
from memedit.cli.log import log_command
from memedit.cli.push import push_command
from memedit.cli.revert import revert_command
from memedit.cli.schema import schema_command
from memedit.cli.stats import stats_command
from memedit.cli.terminal import Terminal
from memedit.cli.trace import trace_command
from memedit.cli.usage import is_parser_error
from memedit.errors import EditListError, MemeditError, file_error, is_file_error

CLEANING = 5.0
"""Seconds after a signal in which another is ignored: people press Ctrl-C twice, and process managers send two."""

app = typer.Typer(
    name="memedit",
    cls=HelpGroup,
    help="Edit facts in a language model, many at a time, and measure what changed.",
    epilog="memedit COMMAND --help explains a command; memedit help lists topics to read in the terminal.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _add(
    name: str, command: Callable[..., None], usage: str, summary: str, topics: str, parent: typer.Typer = app
) -> None:
    """Add a command: how it is called, one line about it, and the help topics that tell more."""
    parent.command(
        name, cls=HelpCommand, short_help=summary, options_metavar=f"{usage} [OPTIONS]".strip(),
        epilog=f"Read more: memedit help {topics}.",
    )(command)  # fmt: skip


_add("apply", apply_command, "-m MODEL -o OUT", "Edit facts in a model.", "methods, memedit help checkpoints")
_add("forget", forget_command, "-m MODEL -o OUT", "Remove edits from an edited model.", "sequences")
_add("eval", evaluate_command, "-m MODEL", "Evaluate a model on an edit list.", "evaluation")
_add("check", check_command, "", "List what is wrong with an edit list.", "edit-lists")
_add("stats", stats_command, "-m MODEL", "Measure the second moments of layers.", "methods, memedit help cache")
_add("trace", trace_command, "-m MODEL", "Trace where a model recalls facts.", "tracing")
_add("inspect", inspect_command, "", "Show how a model is built and what can be edited.", "models")
_add(
    "export",
    export_command,
    "--to FORM -m BASE -o OUT",
    "Convert a delta to a checkpoint or an adapter.",
    "checkpoints",
)
_add("revert", revert_command, "-o BACK", "Undo an edit.", "checkpoints")
_add("diff", diff_command, "", "Compare two models.", "checkpoints")
_add("log", log_command, "", "List the edits of an edited model.", "sequences")
_add("push", push_command, "", "Upload an edited model to the Hub.", "checkpoints")
_add("dir", dir_command, "", "Print the folder of the cache.", "cache", cache_app)
_add("ls", ls_command, "", "List what is kept, with sizes and ages.", "cache", cache_app)
_add("clean", clean_command, "", "Remove what is kept: by kind, by age, down to a size, or all.", "cache", cache_app)
app.add_typer(cache_app, name="cache", short_help="Show and remove what is kept for later runs.")
_add("schema", schema_command, "", "Print the JSON schema of a format.", "file-formats")
_add("help", help_command, "", "Read the documentation in the terminal.", "settings")
_add("version", version_command, "", "Print the version.", "changelog")


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
    """Run the program and exit with the code of its result.

    Of the processes that torchrun starts, the first runs the command, and the others help it.
    """
    _encode_everything()
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # before it is imported: it warns while it is
    if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
        # Before torch uses a GPU: launches have many shapes, and memory that one has left should serve any other.
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    world, rank = os.environ.get("WORLD_SIZE", ""), os.environ.get("RANK", "")
    # The last is set by torchrun alone: clusters set the others in every container.
    if not (world.isdecimal() and rank.isdecimal() and int(world) > 1 and os.environ.get("LOCAL_WORLD_SIZE")):
        _run(_command)
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # before torch is imported: it tells of lost connections
    if int(rank) == 0:
        _run(_lead)
    _serve()


def _encode_everything() -> None:
    """Let stdout and stderr take every character: what they cannot encode is written as an escape.

    A terminal may be in Latin-1 or ASCII, and a file name that is not UTF-8 has no UTF-8. Other ways to encode, which
    PYTHONIOENCODING can ask for, fail nowhere and stay.
    """
    codecs.register_error("memedit.escape", _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "surrogateescape"):
            stream.reconfigure(errors="memedit.escape")


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """Escape characters as JSON does, so that JSON on stdout stays valid."""
    assert isinstance(error, UnicodeEncodeError)
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _command() -> int:
    return app(prog_name="memedit", standalone_mode=False) or 0


def _lead() -> int:
    """Run the command as the first of several processes; the others end with it."""
    from memedit.ranks import joined

    ranks = joined()
    try:
        return _command()
    finally:
        ranks.dismiss()


def _serve() -> NoReturn:
    """Do the work that the first process shares. It says nothing: errors are sent to the first process."""
    # A rank that waits in C++ would notice no handler of Python's.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    Terminal(quiet=True).progress()  # switches off what libraries print
    from memedit.ranks import joined

    try:
        joined().serve()
    except MemeditError:  # the first process has ended, and said why
        if os.environ.get("MEMEDIT_DEBUG"):
            raise
        sys.exit(1)
    sys.exit(0)


def _run(command: Callable[[], int]) -> NoReturn:
    """Run a command and exit with its code, or with that of its error, which is told in one line and a hint."""
    stop = _Stop()
    try:
        for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
            if signal.getsignal(number) != signal.SIG_IGN:  # nohup lets a run outlive its terminal
                signal.signal(number, stop)
        try:
            sys.exit(command())
        except Exception as error:
            _end(error)
            raise
    except _StoppedBySignal as stopped:  # also while an error is told
        _say("interrupted; finished work is kept: run the same command again to continue")
        sys.exit(128 + stopped.number)


def _end(error: Exception) -> None:
    """Print what an error means and exit with its code; to debug memedit, leave it to be raised."""
    if isinstance(error, MemoryError):
        _say("error: the machine's memory is full")
        _say("hint: use --memory with less than is free, --dtype bfloat16 or fewer --layers; finished work is kept")
        sys.exit(5)
    if is_parser_error(error):  # the help of a command that needs another one after it
        _say(str(error).rstrip())
        sys.exit(2)
    if os.environ.get("MEMEDIT_DEBUG"):
        return
    if isinstance(error, MemeditError):
        _fail(error)
    if _bad_path(error):
        _say(f"error: a path cannot be used: {_one_line(str(error))[:300].lower()}")
        _say("hint: check the paths that were given")
        sys.exit(2)
    if isinstance(error, OSError) and is_file_error(error):
        _fail(file_error(error))
    if _ran_out(error):
        gpu = any(word in str(error) for word in ("CUDA", "CUBLAS", "MPS"))
        _say(f"error: the {'GPU' if gpu else 'machine'}'s memory is full")
        others = "--device-map auto or --device cpu" if gpu else "fewer --layers"
        _say(f"hint: use --memory with less than is free, --dtype bfloat16, {others}; finished work is kept")
        sys.exit(5)
    _say(f"error: unexpected {type(error).__name__}: {_one_line(str(error))}")
    _say("hint: this is a defect in memedit; set MEMEDIT_DEBUG=1 to see where")
    sys.exit(1)


def _ran_out(error: Exception) -> bool:
    """Whether an error of torch means that memory ran out. Torch is not imported for it: that takes seconds."""
    if "torch" not in sys.modules:
        return False
    from memedit.model.memory import ran_out

    return ran_out(error)


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

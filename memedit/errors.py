"""The errors of memedit, by cause: each has a message, a hint and an exit code."""

from __future__ import annotations

import difflib
import errno
from collections.abc import Iterable
from pathlib import Path


class MemeditError(Exception):
    """Base class of all errors that memedit raises on purpose.

    `message` names the thing, the value and the reason; `hint` gives the next step. The command line prints them as one
    `error:` and one `hint:` line, and exits with `exit_code`.
    """

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MemeditError):
    """The command cannot start: wrong options or paths, or a missing optional package."""

    exit_code = 2


class RecipeError(UsageError):
    """A setting has a value that is not allowed."""


class EditListError(UsageError):
    """The edit list has errors; `findings` lists them all, each with file and line."""

    def __init__(self, message: str, hint: str = "", findings: tuple[object, ...] = ()) -> None:
        super().__init__(message, hint)
        self.findings = findings


class GateError(MemeditError):
    """The command finished, and a condition that was asked for does not hold."""

    exit_code = 3


class UnsupportedModelError(MemeditError):
    """memedit cannot edit a model of this structure correctly."""

    exit_code = 4


class ResourceError(MemeditError):
    """Not enough memory or disk space, or no such device."""

    exit_code = 5


class StorageError(MemeditError):
    """A file is damaged or locked, or cannot be written."""


def nearest_hint(word: str, known: Iterable[str], otherwise: str) -> str:
    """Return `did you mean NAME?` for the known name nearest to a misspelled word, else the hint `otherwise`.

    >>> nearest_hint("aply", ["apply", "eval"], "memedit --help lists the commands")
    'did you mean apply?'
    """
    near = difflib.get_close_matches(word[:100], list(known), 1)
    return f"did you mean {near[0]}?" if near else otherwise


def nearest_path_hint(path: str, otherwise: str) -> str:
    """Return `did you mean PATH?` for a misspelled last part of a path, else the hint `otherwise`.

    >>> nearest_path_hint("/no/such/folder/edits.jsonl", "check the path")
    'check the path'
    """
    try:
        place = Path(path).expanduser()
        known = [] if place.exists() else sorted(one.name for one in place.parent.iterdir())
    except (OSError, RuntimeError, ValueError):  # no such folder either, or no path at all
        return otherwise
    near = difflib.get_close_matches(place.name[:100], known, 1, cutoff=0.75)
    return f"did you mean {place.parent / near[0]}?" if near and near[0].isprintable() else otherwise


def file_error(error: OSError, action: str = "") -> MemeditError:
    """Return the error of memedit that an OSError means: ResourceError for a full disk, else StorageError.

    action: what failed, such as `read FILE`; without it the error's own file is named.
    """
    named = error.filename if isinstance(error.filename, str) else "a file"
    message = f"cannot {action or f'read or write {named}'}: {(error.strerror or str(error)).lower()}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        hint = "free some space, or point -o and MEMEDIT_CACHE at a disk that has it; then run the command again"
        return ResourceError(message, hint)
    return StorageError(message, "check the path and its permissions")


def is_file_error(error: BaseException) -> bool:
    """Whether an error is the system's refusal of a file operation; network errors and broken pipes are not."""
    return isinstance(error, OSError) and error.errno is not None and not isinstance(error, ConnectionError)

"""What can go wrong, by cause: each error carries a message, a hint and the exit code of the command."""

from __future__ import annotations


class MemeditError(Exception):
    """An error written for people: what happened, and the next step.

    `message` names the thing, the value and the reason; `hint` says what to do. The command line prints
    them as one `error:` and one `hint:` line and exits with `exit_code`.
    """

    exit_code: int = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(MemeditError):
    """The command could not start: flags, paths, a missing extra."""

    exit_code = 2


class RecipeError(UsageError):
    """A knob has a value that it cannot have."""


class EditListError(UsageError):
    """The edit list has errors; `findings` holds them all, each with file and line."""

    def __init__(self, message: str, hint: str = "", findings: tuple[object, ...] = ()) -> None:
        super().__init__(message, hint)
        self.findings = findings


class GateError(MemeditError):
    """The command ran to its end, and the answer is no."""

    exit_code = 3


class UnsupportedModelError(MemeditError):
    """The model has a structure that memedit cannot edit correctly."""

    exit_code = 4


class ResourceError(MemeditError):
    """Not enough memory, disk, or no such device; or a file that is not cached offline."""

    exit_code = 5


class StorageError(MemeditError):
    """A file is damaged, locked, or could not be written."""

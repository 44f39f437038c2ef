"""What the option parser refuses, as memedit's own errors: one line, one hint, exit code 2."""

from __future__ import annotations

from typing import Any

from memedit.errors import MemeditError, UsageError, nearest_hint


def is_parser_error(error: BaseException) -> bool:
    """Whether an error is the option parser's; typer's versions differ in its class, and agree in this method."""
    return callable(getattr(error, "format_message", None)) and not isinstance(error, MemeditError)


def usage_error(error: Any, command: Any, path: str, usage: str) -> UsageError:
    """Turn an error of the option parser into ours.

    command: the command that was being parsed; path: its name with its parents, such as `memedit cache ls`; usage: how
    to call it, without options.
    """
    more = f"{path} --help explains every option"
    message = " ".join(str(error.message).split()).rstrip(".")
    name = getattr(error, "option_name", None)
    if name is not None and hasattr(error, "possibilities"):
        known = [one for param in command.params if not param.hidden for one in (*param.opts, *param.secondary_opts)]
        return UsageError(f"{path} has no option {name}", nearest_hint(name, [*known, "--help"], more))
    if name is not None:
        needs = "takes no value" if "not take" in message else "needs a value after it"
        return UsageError(f"{name} {needs}", more)
    param = getattr(error, "param", None)
    if param is None:
        return UsageError(f"{path}: {message[:1].lower()}{message[1:]}", f"write {usage}; {more}")
    if not message:
        return UsageError(f"{_name(param)} is missing", f"write {usage}; {more}")
    return _bad_value(error, param, message, more)


def _name(param: Any) -> str:
    return str(param.metavar or param.name) if param.param_type_name == "argument" else max(param.opts, key=len)


def _bad_value(error: Any, param: Any, message: str, more: str) -> UsageError:
    """A value that an option cannot have: the value, the reason, and the nearest choice."""
    found = getattr(error.__cause__, "errors", list)()
    value = f" {found[0]['input']!r}" if found and "input" in found[0] else ""
    choices = [str(one) for one in param.type_descriptor.choices or ()]
    if value and choices:
        known = f"{_name(param)}{value} is not one of {', '.join(choices)}"
        return UsageError(known, nearest_hint(value[2:-1], choices, more))
    return UsageError(f"{_name(param)}{value}: {message[:1].lower()}{message[1:]}", more)

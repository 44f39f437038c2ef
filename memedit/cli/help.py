"""memedit help: the documentation in the terminal, offline."""

from __future__ import annotations

from importlib import resources
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args, get_origin

import typer

from memedit import __version__
from memedit.cli.layout import HelpGroup
from memedit.errors import UsageError, nearest_hint

if TYPE_CHECKING:
    from pydantic.fields import FieldInfo

SETTINGS = "settings"
"""The topic without a file: its text is made from the recipe, so it cannot differ from the code."""

TOPICS: dict[str, str] = {
    "edit-lists": "what an edit list contains, every format that is read, every error code",
    "methods": "how an edit is computed; MEMIT, ROME, EMMET, AlphaEdit; rounding; retry",
    "evaluation": "every figure's definition, free answers, drift, thresholds for CI",
    "tracing": "find the layers where a model recalls facts, and choose the layers to edit",
    "checkpoints": "what apply writes; export, adapters, adding delta files, revert, diff",
    "sequences": "edit a model that was edited before; the ledger; forget edits",
    "models": "which models can be edited, how that is decided, what is refused",
    SETTINGS: "every setting with its default; help settings PREFIX shows one section",
    "terminal": "quiet, verbose, log, color, progress, tables, shell completion",
    "exit-codes": "exit codes, error messages, environment variables, what goes to stdout",
    "file-formats": "delta file, ledger, run.json, results.jsonl and the other files",
    "cache": "what is kept for later runs; list it, remove it, limit its size",
    "python": "every command as a Python function, with examples",
    "measured": "what edits take and leave, and the times: every table with its command",
    "trials": "why the defaults are what they are, and what was tried without gain",
    "changelog": "what changed, version by version",
}
"""Topics in the order in which they are listed, each with one line about it."""


def help_command(
    context: typer.Context,
    topic: Annotated[
        str | None,
        typer.Argument(
            metavar="TOPIC",
            help="A topic or a command; without one, list the topics.",
            show_default=False,
            autocompletion=lambda: list(TOPICS.items()),
        ),
    ] = None,
    prefix: Annotated[
        str | None,
        typer.Argument(metavar="PREFIX", help="With settings: show only names that start so.", show_default=False),
    ] = None,
) -> None:
    """Show the documentation in the terminal; without TOPIC, list the topics.

    \b
    Examples:
      memedit help methods
      memedit help apply
      memedit help settings target
    """
    if topic is None:
        print(topic_list())
        return
    if prefix is not None and topic != SETTINGS:
        raise UsageError(f"only the topic {SETTINGS} takes a prefix, got {prefix!r}", f"run memedit help {topic}")
    if topic not in TOPICS:
        print(_command_help(context, topic))
        return
    text = topic_text(topic, prefix)
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        print(text, end="")
        return
    from rich.markdown import Markdown

    console.print(Markdown(text, hyperlinks=False))


def _command_help(context: typer.Context, name: str) -> str:
    """What `memedit NAME --help` prints. Raises UsageError for a name of no command."""
    program = context.find_root()
    commands = program.command.commands if isinstance(program.command, HelpGroup) else {}
    if name not in commands:
        hint = nearest_hint(name, [*TOPICS, *commands], "memedit help lists the topics")
        raise UsageError(f"unknown help topic {name!r}", hint)
    return commands[name].get_help(typer.Context(commands[name], info_name=name, parent=program))


def version_command() -> None:
    """Print the version.

    \b
    Examples:
      memedit version
      memedit --version
    """
    print(__version__)


def topic_list() -> str:
    """Return the list of topics as text, one topic a line."""
    width = max(map(len, TOPICS))
    lines = [f"  {name:<{width}}  {about}" for name, about in TOPICS.items()]
    options = "memedit help COMMAND shows the options of a command."
    return "\n".join(["memedit help TOPIC shows one of these topics:", "", *lines, "", options])


def topic_text(topic: str, prefix: str | None = None) -> str:
    """Return a topic as Markdown. Raises UsageError for an unknown topic, or a prefix of no setting."""
    if topic not in TOPICS:
        hint = nearest_hint(topic, TOPICS, "memedit help lists the topics")
        raise UsageError(f"unknown help topic {topic!r}", hint)
    if topic == SETTINGS:
        return settings_text(prefix or "")
    return (resources.files("memedit") / "docs" / f"{topic}.md").read_text(encoding="utf-8")


def settings_text(prefix: str = "") -> str:
    """Return every setting whose name starts with `prefix` as Markdown: name, values, default and meaning.

    Made from the recipe's pydantic models. Raises UsageError if no setting has the prefix.
    """
    from pydantic import BaseModel

    from memedit.config.recipe import Recipe
    from memedit.config.resolve import known_keys

    names = list(known_keys())
    shown = [name for name in names if name.startswith(prefix)]
    if not shown:
        sections = dict.fromkeys(name.partition(".")[0] for name in names)
        hint = nearest_hint(prefix, [*sections, *names], "memedit help settings lists them")
        raise UsageError(f"no setting starts with {prefix!r}", hint)
    parts = ["# Settings", _SETTINGS_INTRODUCTION] if not prefix else []
    defaults = Recipe()
    loose: list[str] = []
    for name, field in Recipe.model_fields.items():
        value = getattr(defaults, name)
        if not isinstance(value, BaseModel):
            loose += [_entry(name, field, value)] if name in shown else []
            continue
        entries = [
            _entry(f"{name}.{key}", inner, getattr(value, key))
            for key, inner in type(value).model_fields.items()
            if f"{name}.{key}" in shown
        ]
        parts += [f"## {name}", _one_line(type(value).__doc__), *entries] if entries else []
    parts += ["## Settings of the whole run", *loose] if loose else []
    return "\n\n".join(parts) + "\n"


_SETTINGS_INTRODUCTION = (
    "Set one with `--set NAME=VALUE`, in a recipe file (`-c FILE`, or `memedit.yaml` beside the edit list: see "
    "`memedit help file-formats`), or in Python with `settings={NAME: VALUE}`. "
    "Stronger first: a command's own option, `--set`, environment variable, recipe file, preset, default. "
    "`memedit apply --show-config` prints the values of a run and where each comes from. "
    "A whole number is at most 2,147,483,647, but for seeds."
)


def _entry(name: str, field: FieldInfo, default: Any) -> str:
    text = _one_line(field.description)
    return f"`{name}` ({_values(field)}; default `{_shown(default)}`)  \n{text}"


def _values(field: FieldInfo) -> str:
    """Describe the values that a field takes: its types or choices, and its bounds."""
    bounds: list[str] = []
    for rule in field.metadata:
        for name, word in (("ge", "at least"), ("gt", "over"), ("le", "at most"), ("lt", "under")):
            if (bound := getattr(rule, name, None)) is not None:
                bounds.append(f"{word} {bound:g}")
    return ", ".join([_kind(field.annotation), *bounds])


_KINDS: dict[Any, str] = {
    str: "text", int: "whole number", float: "number", bool: "true or false", NoneType: "none"
}  # fmt: skip


def _kind(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return " or ".join(f"`{one}`" for one in inside)
    if origin in (Union, UnionType):
        return " or ".join(_kind(one) for one in inside)
    if origin is tuple:
        return f"list of {_KINDS.get(inside[0], str(inside[0]))}"
    return _KINDS.get(annotation, str(annotation))


def _shown(value: Any) -> str:
    import json

    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _one_line(text: str | None) -> str:
    return " ".join((text or "").split())

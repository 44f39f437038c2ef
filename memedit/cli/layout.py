"""The form of help: options in groups, examples, exit codes; and errors of the option parser as our own."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from typer.core import TyperCommand, TyperGroup

from memedit.cli.usage import is_parser_error, usage_error
from memedit.errors import UsageError, nearest_hint

GROUPS = {
    "Arguments": (),
    "Model": ("--model", "--base", "--delta", "--any-base", "--adapter", "--config-only", "--re-solve"),
    "Edits": (
        "--facts", "--relations", "--input-format", "--limit", "--right-after", "--prompt", "--subject", "--answer",
    ),
    "Method": (
        "--method", "--layers", "--corpus", "--preset", "--set", "--retry", "--polish", "--keep", "--eval", "--tokens",
        "--import", "--noise", "--samples", "--window", "--suggest-layers", "--by", "--generate", "--chat", "--text",
    ),
    "Output": (
        "--output", "--to", "--rank", "--plot", "--html", "--markdown", "--overwrite", "--force", "--link",
        "--rounding", "--max-shard-size", "--keep-originals", "--keep-copies", "--all", "--json", "--per-edit",
        "--fail-under", "--fail-over", "--exit-code", "--private", "--update", "--records",
        "--kind", "--older-than", "--to-size",
    ),
    "Running": (),
}  # fmt: skip
"""The groups of options, in the order in which help shows them; all other options are in the last."""

EXIT_CODES = (
    ("0", "done"),
    ("1", "a file cannot be read or written, or is damaged"),
    ("2", "the command cannot start: options, settings, paths, the edit list"),
    ("3", "the answer is no: a threshold is missed, a list has errors, models differ"),
    ("4", "the model is not supported"),
    ("5", "not enough memory or disk, or no such device"),
)
ENVIRONMENT_VARIABLES = (
    ("MEMEDIT_DEVICE", "default of --device"),
    ("MEMEDIT_DTYPE", "default of --dtype"),
    ("MEMEDIT_SEED", "default of the setting seed"),
    ("MEMEDIT_CACHE", "folder of second moments and unfinished runs"),
    ("MEMEDIT_CACHE_LIMIT", "size of the cache after a run, such as 20GB"),
    ("MEMEDIT_NO_PROGRESS", "if set, draw no progress bars"),
    ("MEMEDIT_DEBUG", "if set, print Python tracebacks"),
    ("HF_HUB_OFFLINE", "1: never use the network"),
    ("NO_COLOR", "if set, use no color"),
    ("COLUMNS", "width of tables"),
)


@contextmanager
def _own_errors(command: Any, path: str, usage: str) -> Generator[None]:
    """Turn errors of the option parser into ours. Help that is printed for a bare command goes through."""
    try:
        yield
    except Exception as error:
        if not is_parser_error(error) or type(error).__name__ == "NoArgsIsHelpError":
            raise
        raise usage_error(error, command, path, usage) from error


class HelpCommand(TyperCommand):
    """A command whose help groups its options and ends with the exit codes."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments. Raises UsageError for what the parser refuses."""
        path = f"{parent.command_path} {info_name}" if parent else str(info_name)
        with _own_errors(self, path, f"{path} {_plain_usage(self)}"):
            return super().make_context(info_name, args, parent, **extra)

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The words of the usage line: arguments, required options, other options."""
        options, *arguments = super().collect_usage_pieces(ctx)
        return [*(word.strip("{}").replace("}...", "...") for word in arguments), options]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the arguments, then the options of each group."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record is not None:
                if param.param_type_name == "argument":  # without its type: each is a word
                    record = record[0].partition(" <")[0], record[1]
                sections.setdefault(_group(param), []).append(record)
        for group in sorted(sections, key=list(GROUPS).index):
            with formatter.section(group):
                formatter.write_dl(sections[group])

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the exit codes, and where to read more."""
        with formatter.section("Exit codes"):
            formatter.write_dl(EXIT_CODES)
        super().format_epilog(ctx, formatter)


class HelpGroup(TyperGroup):
    """The program, or a command with commands of its own."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Parse the arguments. Raises UsageError for what the parser refuses."""
        path = f"{parent.command_path} {info_name}" if parent else str(info_name)
        with _own_errors(self, path, f"{path} COMMAND"):
            return super().make_context(info_name, args, parent, **extra)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command that was named. Raises UsageError, with the nearest name, if there is none."""
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            hint = nearest_hint(args[0], self.commands, f"{ctx.command_path} --help lists the commands")
            raise UsageError(f"{ctx.command_path} has no command {args[0]!r}", hint)
        return super().resolve_command(ctx, args)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the environment variables and exit codes of the program, and where to read more."""
        if ctx.parent is None:
            for title, rows in (("Environment variables", ENVIRONMENT_VARIABLES), ("Exit codes", EXIT_CODES)):
                with formatter.section(title):
                    formatter.write_dl(rows)
        super().format_epilog(ctx, formatter)


def _group(param: Any) -> str:
    if param.param_type_name == "argument":
        return "Arguments"
    return next((group for group, names in GROUPS.items() if set(param.opts) & set(names)), "Running")


def _plain_usage(command: TyperCommand) -> str:
    """How a command is called: its arguments and required options."""
    words = [str(param.metavar or param.name) for param in command.params if param.param_type_name == "argument"]
    options = (command.options_metavar or "").removesuffix("[OPTIONS]").strip()
    return " ".join([*words, options]).strip()

"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from memedit.config.methods import Name
from memedit.config.presets import AUTO, PRESETS, preset
from memedit.errors import RecipeError, UsageError
from memedit.results.units import plain_json

if TYPE_CHECKING:
    from memedit.cli.terminal import Terminal
    from memedit.config.recipe import Recipe
    from memedit.config.resolve import Source
    from memedit.edits.edit import EditRequest, Finding
    from memedit.results.changes import Outcome
    from memedit.results.report import Report


def _assignments() -> list[str]:
    """The settings as --set begins them, for the completion of a shell."""
    from memedit.config.resolve import known_keys

    return [f"{key}=" for key in known_keys()]


EditsArgument = Annotated[str, typer.Argument(metavar="EDITS", help="Edit list (a file); - reads stdin.")]
ModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="Model folder or Hub name.  [required]")
]
OutputOption = Annotated[str | None, typer.Option("--output", "-o", metavar="OUT", help="Folder to write.  [required]")]
CheckedModelOption = Annotated[
    str | None, typer.Option("--model", "-m", metavar="MODEL", help="Also check the list with this model's tokenizer.")
]
RelationsOption = Annotated[
    str | None,
    typer.Option("--relations", metavar="FILE", help="File with prompts by relation, for edits without one."),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--input-format",
        metavar="FORMAT",
        help="Format of EDITS: yaml, json, jsonl, csv, tsv or memit-zsre.  [default: by the file name]",
    ),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Use only the first N edits.")]
ConfigOption = Annotated[
    str | None, typer.Option("--config", "-c", metavar="FILE", help="Read settings from a YAML file (a recipe).")
]
ListConfigOption = Annotated[
    str | None,
    typer.Option(
        "--config",
        "-c",
        metavar="FILE",
        help="Read settings from a YAML file (a recipe).  [default: memedit.yaml beside the list]",
    ),
]
"""For commands that read an edit list."""
PresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="NAME",
        help="Settings published for a model, such as gpt2-xl; auto: only the layers, if some are published for a "
        "model of this shape.",
        autocompletion=lambda: [AUTO, *PRESETS],
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one setting, such as method.ridge=2; repeatable.",
        autocompletion=_assignments,
    ),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N or mps.  [default: auto]")
]
DeviceMapOption = Annotated[
    str | None,
    typer.Option("--device-map", metavar="auto", help="auto: spread the model over all GPUs (needs accelerate)."),
]
DtypeOption = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="DTYPE",
        help="Compute in auto, float32, bfloat16 or float16.  [default: auto: the checkpoint's on a GPU, float32 on a "
        "CPU]",
    ),
]
MethodOption = Annotated[
    Name | None,
    typer.Option("--method", metavar="NAME", help="Editing method: memit, rome, emmet or alphaedit.  [default: memit]"),
]
LayersOption = Annotated[
    str | None,
    typer.Option(
        "--layers",
        metavar="RANGE",
        help="Layers to edit, from 0: 3-8, 5, depth (by relative depth), published (for a model of this shape) or auto "
        "(by tracing the edits).  [default: depth]",
    ),
]
CorpusOption = Annotated[
    str | None,
    typer.Option(
        "--corpus",
        metavar="FILE|hf:REPO|self",
        help="Text to measure second moments on: .txt, .jsonl, .gz, hf:repo[:config], or self: the model writes it.",
    ),
]
FactsOption = Annotated[
    str | None, typer.Option("--facts", metavar="FILE", help="Known facts (an edit list); report how many stay.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document.")]
AllOption = Annotated[bool, typer.Option("--all", help="Print every figure, not six; after an edit, the layers too.")]
PerEditOption = Annotated[bool, typer.Option("--per-edit", help="Print JSON Lines, one record per edit.")]
QUIET_PATH = "Print only the path of the result; no progress, no notes."
"""What -q does in a command that writes a folder."""
FailUnderOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-under", metavar="NAME=X,...", help="Exit 3 if a score is below X, such as efficacy=0.95; repeatable."
    ),
]
FailOverOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fail-over", metavar="NAME=X,...", help="Exit 3 if a score is above X, such as drift.ppl=1.02; repeatable."
    ),
]
BaseOption = Annotated[
    str | None,
    typer.Option("--base", metavar="BASE", help="Where the model before all edits is now, if it was moved."),
]
ShowConfigOption = Annotated[
    bool, typer.Option("--show-config", help="Print every setting and where its value comes from, then exit.")
]
AnyBaseOption = Annotated[
    bool, typer.Option("--any-base", help="Allow a delta on another base than its own, if the shapes fit.")
]
LinkOption = Annotated[
    Literal["auto", "hard", "copy"] | None,
    typer.Option("--link", help="How unchanged files get into OUT: auto clones if the disk can, else copies."),
]
OverwriteOption = Annotated[
    bool | None,
    typer.Option(
        "--overwrite/--no-overwrite", help="Replace OUT if it exists and holds a model.  [default: no-overwrite]"
    ),
]
ForceOption = Annotated[bool | None, typer.Option("--force", help="Replace OUT whatever it holds.")]
HtmlOption = Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write the report as a web page.")]
KeepCopiesOption = Annotated[
    bool | None,
    typer.Option(
        "--keep-copies", help="Also copy files that hold the weights a second time, unedited (such as *.bin, *.gguf)."
    ),
]

ENVIRONMENT = {"MEMEDIT_DEVICE": "model.device", "MEMEDIT_DTYPE": "model.dtype", "MEMEDIT_SEED": "seed"}
"""Environment variables that change a setting."""


FOUND_RECIPE = "memedit.yaml"
"""The recipe that is read from the folder of an edit list, if none was named."""


def find_recipe(edits: str | None, config: str | None, terminal: Terminal) -> dict[str, Any]:
    """Read memedit.yaml in the folder of an edit list, if no recipe was named with -c; empty if there is none.

    Nobody named this file: it is data that came with the list. Raises RecipeError for a setting that opens, writes or
    permits something.
    """
    if config is not None or edits is None or edits == "-":
        return {}
    from memedit.config.resolve import check_found
    from memedit.edits.read import named_file

    source = named_file(edits)
    file = source.parent / FOUND_RECIPE
    try:
        # A link that leads nowhere is there as well: without it the run would use other settings than were meant.
        there = source.is_file() and os.path.lexists(file) and not (file.exists() and file.samefile(source))
    except (OSError, ValueError):  # the list is refused when it is read
        return {}
    if not there:
        return {}
    settings = _file(file, f"it lies beside {edits}: correct it, or take it away")
    check_found(settings, str(file))
    terminal.hint(f"settings from {file}")
    return settings


def read_recipe(
    config: str | None,
    sets: list[str] | None,
    flags: Mapping[str, Any],
    preset_name: str | None = None,
    found: Mapping[str, Any] | None = None,
) -> tuple[Recipe, dict[str, Source]]:
    """Build the recipe of a command. Options win over --set, then environment, file, preset and defaults.

    found: the settings of `find_recipe`, which are used where no file was named.
    """
    from memedit.config.resolve import resolve

    named = {name: value for name, value in flags.items() if value is not None}
    environment = {key: os.environ[name] for name, key in ENVIRONMENT.items() if os.environ.get(name)}
    layers: list[tuple[Source, Mapping[str, Any]]] = [
        ("file", _named(config) if config else found or {}),
        ("environment", environment),
        ("flag", dict(_assignment(text) for text in sets or [])),
        ("flag", named),
    ]
    if preset_name:
        method = {name: value for _, layer in layers for name, value in layer.items()}.get("method.name", "memit")
        layers.insert(0, ("preset", preset(preset_name, method)))
    return resolve(layers)


def placed(device: str | None, device_map: str | None, dtype: str | None) -> dict[str, Any]:
    """The settings that say where the model is opened."""
    return {"model.device": device, "model.device_map": device_map, "model.dtype": dtype}


def read_edits(
    source: str, relations: str | None, input_format: str | None, limit: int | None
) -> tuple[list[EditRequest], list[Finding]]:
    """Read an edit list; returns its edits (the first `limit`) and what the reader found wrong."""
    from memedit.edits.read import read

    requests, findings = read(source, relations=relations, input_format=input_format)
    return (requests if limit is None else requests[:limit]), findings


def read_facts(source: str | None) -> list[EditRequest]:
    """Read a list of known facts. Raises EditListError if it has errors."""
    if source is None:
        return []
    from memedit.edits.lint import check_facts, raise_errors

    requests, findings = read_edits(source, None, None, None)
    raise_errors(f"the list of facts {source}", [*findings, *check_facts(requests)])
    return requests


def need_model(recipe: Recipe) -> None:
    """Raises UsageError if no model is named."""
    if not recipe.model.path:
        raise UsageError("no model was given", "name one: -m MODEL")


def need_output(recipe: Recipe) -> None:
    """Raises UsageError if no folder to write is named."""
    if not recipe.output.dir:
        raise UsageError("no output folder was given", "name one: -o OUT")


def one_output(json: bool, per_edit: bool, quiet: bool) -> None:
    """Raises UsageError if two output formats are asked for."""
    if json + per_edit + quiet > 1:
        raise UsageError("only one of --json, --per-edit and -q can be given", "choose one")


def print_results(report: Report, *, json: bool, per_edit: bool) -> None:
    """Print a report on stdout as JSON, or one JSON record per edit."""
    if per_edit:
        for one in report.per_edit:
            record = {**one.edit, **one.model_dump(mode="json", exclude={"edit"}, exclude_none=True)}
            sys.stdout.write(_json(record) + "\n")
    elif json:
        sys.stdout.write(plain_json(report.model_dump_json(indent=2)) + "\n")


def print_outcome(outcome: Outcome, *, json: bool, terminal: Terminal) -> None:
    """Print the result of export, revert or apply --delta on stdout."""
    from memedit.changes.adapter_support import serving_notes, vllm_command

    if terminal.quiet:
        print(outcome.output)
    elif json:
        served = {"serve": vllm_command(outcome), "limits": serving_notes(outcome)}
        print(_json({**outcome.model_dump(mode="json"), **(served if outcome.kind == "lora" else {})}, indent=2))
    else:
        from memedit.show.changes import reverted, tensors_table

        if outcome.tensors:
            terminal.console().print(tensors_table(outcome))
        lines = [reverted(outcome)] if outcome.command == "revert" else []
        if outcome.kind == "lora":
            lines += [line for line in (vllm_command(outcome), *serving_notes(outcome)) if line]
        print("\n".join([*lines, outcome.output]))


def print_edited(report: Report, *, everything: bool, json: bool, per_edit: bool, terminal: Terminal) -> None:
    """Print the result of apply or forget on stdout; `everything`: all figures, and the table of the layers."""
    if terminal.quiet:
        print(report.output)
    elif json or per_edit:
        print_results(report, json=json, per_edit=per_edit)
    else:
        from memedit.results.rows import trade_line
        from memedit.results.units import printable
        from memedit.show.evaluation import evaluation_table, more_figures, removal_lines, unsuccessful_lines
        from memedit.show.terminal import layers_line, layers_table, print_line

        out = terminal.console()
        lines = [one.line for one in (report.search, report.polish) if one]
        if report.layers:
            if everything:
                out.print(layers_table(report))
            if trade := trade_line(report):
                print_line(out, trade)
            out.print(evaluation_table(report, out.width, everything=everything))
            lines += [] if everything else [layers_line(report)]
            lines += [*unsuccessful_lines(report, out.width), *removal_lines(report, out.width)]
        lines += [report.ledger.line] if report.ledger else []
        for line in lines:
            print_line(out, line)
        print(printable(str(report.output)))
        if not everything:
            terminal.hint(more_figures(report))


LARGEST_RECIPE = 1 << 20
"""Bytes of a recipe file; all settings together take about 3,000."""


def _named(config: str) -> dict[str, Any]:
    from memedit.edits.read import named_file

    return _file(named_file(config), "check the path given to -c")


def _file(path: Path, hint: str) -> dict[str, Any]:
    """Read a recipe file; `hint`: what to do if it cannot be read."""
    from memedit.config.resolve import flatten

    try:
        if not path.is_file():  # a FIFO or a device could block, or never end
            reason = "it is not a regular file" if path.exists() else "no such file or directory"
            raise UsageError(f"cannot read the recipe {path}: {reason}", hint)
        if (size := path.stat().st_size) > LARGEST_RECIPE:
            raise RecipeError(f"the recipe {path} has {size:,} bytes, which is no list of settings", "check the path")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"the recipe {path} is not UTF-8 text", "save the file as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).lower()
        raise UsageError(f"cannot read the recipe {path}: {reason}", hint) from error
    tree = _yaml(text, f"the recipe {path} is not valid YAML", "correct the file")
    if not isinstance(tree or {}, dict):
        raise RecipeError(
            f"the recipe {path} is not a mapping of settings", "memedit apply --show-config prints the form"
        )
    tree = dict(tree or {})
    if str(tree.pop("version", 1)) != "1":
        raise RecipeError(f"the recipe {path} has a version that this memedit cannot read", "write version: 1")
    return flatten(tree)


def _assignment(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"--set {text[:100]!r} is not KEY=VALUE", "write for example --set method.ridge=2")
    return key.strip(), _yaml(value, f"--set {text[:100]!r}: the value is not valid YAML", "put quotes around it")


def _yaml(text: str, what: str, hint: str) -> Any:
    """Read a YAML text without aliases: a few lines of them can stand for a thousand million values.

    A key that is twice in a mapping is refused: PyYAML would keep the last value and say nothing.

    Raises RecipeError for every error: impossible dates, escapes and deep nesting are no YAMLError.
    """
    import yaml

    class NoAliases(yaml.SafeLoader):
        """Refuses aliases, and keys that are twice in a mapping."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases (*name) are not supported in settings")
            return super().compose_node(parent, index)

        def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
            node = super().compose_mapping_node(anchor)
            seen: set[str] = set()
            for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
                if key.value in seen:
                    line = key.start_mark.line + 1
                    raise yaml.YAMLError(f"the key {key.value[:100]!r} is twice in one mapping, again in line {line}")
                seen.add(key.value)
            return node

        def construct_object(self, node: Any, deep: bool = False) -> Any:
            """Keep the text where a number is written otherwise, such as a revision 0123 or 1.10; and every date.

            YAML reads 0123 as 83. A setting that is a number reads the text as people do.
            """
            value = super().construct_object(node, deep)
            if not isinstance(node, yaml.ScalarNode) or value is None or isinstance(value, str | bool):
                return value
            return value if isinstance(value, int | float) and str(value) == node.value else node.value

    try:
        return yaml.load(text, NoAliases)
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        AttributeError,
        LookupError,
        ArithmeticError,
        RecursionError,
    ) as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RecipeError(f"{what}: {reason}", hint) from error


def _json(record: Mapping[str, Any], indent: int | None = None) -> str:
    import json

    return plain_json(json.dumps(record, ensure_ascii=False, indent=indent))

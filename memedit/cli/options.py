"""Options that several commands share, and how they become a recipe."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console

from memedit.config.methods import Name
from memedit.config.presets import preset
from memedit.config.recipe import Recipe
from memedit.config.resolve import Source, flatten, resolve
from memedit.edits.edit import EditRequest, Finding
from memedit.errors import RecipeError, UsageError
from memedit.results.report import Report

if TYPE_CHECKING:
    from memedit.results.changes import Outcome

EditsArgument = Annotated[str, typer.Argument(metavar="EDITS", help="An edit list; - reads stdin.")]
ModelOption = Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="A model folder or Hub name.")]
RelationsOption = Annotated[str | None, typer.Option("--relations", metavar="FILE", help="A table of relations.")]
FormatOption = Annotated[
    str | None,
    typer.Option("--input-format", metavar="FORMAT", help="yaml, json, jsonl, csv or tsv; else by the name."),
]
LimitOption = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Take the first N edits only.")]
ConfigOption = Annotated[str | None, typer.Option("--config", "-c", metavar="FILE", help="A recipe (YAML).")]
PresetOption = Annotated[str | None, typer.Option("--preset", metavar="NAME", help="Published settings, by model.")]
SetOption = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Set one knob of the recipe.")]
DeviceOption = Annotated[str | None, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:N, mps.")]
DeviceMapOption = Annotated[
    str | None, typer.Option("--device-map", metavar="auto", help="auto: spread the model over all GPUs.")
]
DtypeOption = Annotated[
    str | None, typer.Option("--dtype", metavar="DTYPE", help="Of the forward: auto, float32, bfloat16, float16.")
]
MethodOption = Annotated[
    Name | None, typer.Option("--method", metavar="NAME", help="memit (unless said), rome, emmet or alphaedit.")
]
LayersOption = Annotated[
    str | None, typer.Option("--layers", metavar="RANGE", help="Layers to edit: 3-8, 5, depth, auto.")
]
CorpusOption = Annotated[
    str | None, typer.Option("--corpus", metavar="FILE|hf:repo", help="Text for the second moments.")
]
FactsOption = Annotated[
    str | None, typer.Option("--facts", metavar="FILE", help="Known facts (an edit list): how many stay is reported.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the report as one JSON document.")]
PerEditOption = Annotated[bool, typer.Option("--per-edit", help="Print JSON Lines, one record per edit.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print the result's path or nothing else.")]
FailUnderOption = Annotated[
    str | None, typer.Option("--fail-under", metavar="NAME=X,...", help="Exit 3 where a score is under its bar.")
]
FailOverOption = Annotated[
    str | None, typer.Option("--fail-over", metavar="NAME=X,...", help="Exit 3 where one is over it: drift.ppl=1.02.")
]
BaseOption = Annotated[
    str | None, typer.Option("--base", metavar="BASE", help="The model before all edits, where it was moved.")
]
ShowConfigOption = Annotated[bool, typer.Option("--show-config", help="Print every knob, and where it is from; exit.")]
AnyBaseOption = Annotated[
    bool, typer.Option("--any-base", help="Put a change on a model that it was not made for, where it fits.")
]
LinkOption = Annotated[
    Literal["auto", "hard", "copy"] | None, typer.Option("--link", help="How untouched files get into OUT.")
]
OverwriteOption = Annotated[
    bool | None, typer.Option("--overwrite/--no-overwrite", help="Replace OUT where it exists.")
]

ENVIRONMENT = {"MEMEDIT_DEVICE": "model.device", "MEMEDIT_DTYPE": "model.dtype", "MEMEDIT_SEED": "seed"}
"""Environment variables that set a knob."""


def read_recipe(
    config: str | None, sets: list[str] | None, flags: Mapping[str, Any], preset_name: str | None = None
) -> tuple[Recipe, dict[str, Source]]:
    """The recipe of a command: flags over --set over environment over file over preset over defaults."""
    named = {name: value for name, value in flags.items() if value is not None}
    environment = {key: os.environ[name] for name, key in ENVIRONMENT.items() if os.environ.get(name)}
    layers: list[tuple[Source, Mapping[str, Any]]] = [
        ("file", _file(config) if config else {}),
        ("environment", environment),
        ("flag", dict(_assignment(text) for text in sets or [])),
        ("flag", named),
    ]
    if preset_name:
        method = {name: value for _, layer in layers for name, value in layer.items()}.get("method.name", "memit")
        layers.insert(0, ("preset", preset(preset_name, method)))
    return resolve(layers)


def placed(device: str | None, device_map: str | None, dtype: str | None) -> dict[str, Any]:
    """Where the model goes, as knobs."""
    return {"model.device": device, "model.device_map": device_map, "model.dtype": dtype}


def read_edits(
    source: str, relations: str | None, input_format: str | None, limit: int | None
) -> tuple[list[EditRequest], list[Finding]]:
    """An edit list and the reader's findings; with `limit`, its first edits only."""
    from memedit.edits.read import read

    requests, findings = read(source, relations=relations, input_format=input_format)
    return (requests if limit is None else requests[:limit]), findings


def read_facts(source: str | None) -> list[EditRequest]:
    """A list of known facts; it may be long, and must be sound."""
    if source is None:
        return []
    from memedit.edits.lint import raise_errors

    requests, findings = read_edits(source, None, None, None)
    raise_errors(f"the list of facts {source}", findings)
    return requests


def need_model(recipe: Recipe) -> None:
    """Raises UsageError where no model is named."""
    if not recipe.model.path:
        raise UsageError("no model was given", "say which: -m MODEL")


def one_output(json: bool, per_edit: bool, quiet: bool) -> None:
    """Raises UsageError where two forms of output are asked for."""
    if json + per_edit + quiet > 1:
        raise UsageError("--json, --per-edit and -q are three forms of one output", "choose one of them")


def error_console() -> Console:
    """Where people are told things while results go to stdout."""
    return Console(stderr=True)


def wide_console() -> Console:
    """Where tables of long names go: a pipe has no width to keep to."""
    console = Console()
    return console if console.is_terminal or os.environ.get("COLUMNS") else Console(width=160)


def print_results(report: Report, *, json: bool, per_edit: bool) -> None:
    """The machine's forms of a report, on stdout."""
    if per_edit:
        for one in report.per_edit:
            record = {**one.edit, **one.model_dump(mode="json", exclude={"edit"}, exclude_none=True)}
            sys.stdout.write(_json(record) + "\n")
    elif json:
        sys.stdout.write(report.model_dump_json(indent=2) + "\n")


def print_outcome(outcome: Outcome, *, json: bool, quiet: bool) -> None:
    """What came of an export, a sum or a revert, on stdout."""
    from memedit.changes.adapter_support import serving_notes, vllm_command

    if quiet:
        print(outcome.output)
    elif json:
        served = {"serve": vllm_command(outcome), "limits": serving_notes(outcome)}
        print(_json({**outcome.model_dump(mode="json"), **(served if outcome.kind == "lora" else {})}, indent=2))
    else:
        from memedit.show.changes import reverted, tensors_table

        if outcome.tensors:
            wide_console().print(tensors_table(outcome))
        lines = [reverted(outcome)] if outcome.command == "revert" else []
        if outcome.kind == "lora":
            lines += [line for line in (vllm_command(outcome), *serving_notes(outcome)) if line]
        print("\n".join([*lines, outcome.output]))


def print_edited(report: Report, *, json: bool, per_edit: bool, quiet: bool) -> None:
    """What came of editing, on stdout."""
    if quiet:
        print(report.output)
    elif json or per_edit:
        print_results(report, json=json, per_edit=per_edit)
    else:
        from memedit.show.terminal import layers_table, scores_table

        out = wide_console()
        if report.layers:
            out.print(layers_table(report), scores_table(report))
        if report.ledger:
            out.print(report.ledger.line, markup=False, highlight=False, soft_wrap=True)
        out.print(f"{report.output}", markup=False, highlight=False, soft_wrap=True)


def _file(path: str) -> dict[str, Any]:
    import yaml

    try:
        tree: Any = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"cannot read the recipe {path}: {(error.strerror or '').lower()}", "check -c") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} is not valid YAML: {' '.join(str(error).split())}", "mend it") from error
    if not isinstance(tree or {}, dict):
        raise RecipeError(f"the recipe {path} is no mapping of knobs", "see --show-config for its form")
    tree = dict(tree or {})
    if str(tree.pop("version", 1)) != "1":
        raise RecipeError(f"the recipe {path} has a version that this memedit does not read", "write version: 1")
    return flatten(tree)


def _assignment(text: str) -> tuple[str, Any]:
    import yaml

    key, sign, value = text.partition("=")
    if not sign or not key.strip():
        raise UsageError(f"--set {text!r} is no KEY=VALUE", "write --set method.ridge=2")
    try:
        return key.strip(), yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UsageError(f"--set {text!r}: the value is not valid YAML", "put quotes around it") from error


def _json(record: Mapping[str, Any], indent: int | None = None) -> str:
    import json

    return json.dumps(record, ensure_ascii=False, indent=indent)

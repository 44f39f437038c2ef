"""memedit eval."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from memedit.cli import options as o


def evaluate(
    edits: o.Edits,
    model: o.ModelOption = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="The model it was made from: before beside after.")
    ] = None,
    facts: o.FactsOption = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    fail_under: o.FailUnderOption = None,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Judge a model on an edit list: did the edits take, do they generalize, what else moved."""
    o.one_output(json, per_edit, quiet)
    bars = o.bars(fail_under)
    recipe, _ = o.read_recipe(config, sets, {"model.path": model, "model.device": device})
    o.need_model(recipe)
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    known = o.read_facts(facts)
    from memedit.errors import EditListError
    from memedit.lint import lint

    found = [one for one in (*findings, *lint(requests)) if one.severity == "error" and one.code != "E106"]
    if found:
        raise EditListError("the edit list has errors", "mend the lines above", tuple(found))
    from rich.console import Console

    from memedit.pipeline import evaluate as run
    from memedit.show.progress import Shown
    from memedit.show.terminal import scores_table

    tell = Shown(o.error_console(), quiet=quiet)
    report = run(requests, recipe, base=base, facts=known, arguments=sys.argv[1:], tell=tell)
    if json or per_edit:
        o.print_results(report, json=json, per_edit=per_edit)
    elif not quiet:
        Console().print(scores_table(report))
    o.gate(report, bars)

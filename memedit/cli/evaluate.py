"""memedit eval."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from memedit.cli import gates
from memedit.cli import options as o
from memedit.errors import UsageError


def evaluate_command(
    edits: o.EditsArgument,
    model: Annotated[
        list[str] | None,
        typer.Option("--model", "-m", metavar="MODEL", help="A model folder or Hub name; several are compared."),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", metavar="BASE", help="The model it was made from: before beside after.")
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="DIR", help="A LoRA adapter (PEFT): MODEL is judged with it; repeatable."),
    ] = None,
    generate: Annotated[
        bool, typer.Option("--generate", "-g", help="More free answers; fluency, consistency, specificity-plus.")
    ] = False,
    chat: Annotated[bool | None, typer.Option("--chat/--no-chat", help="Ask in the model's chat template.")] = None,
    text: Annotated[
        str | None, typer.Option("--text", metavar="FILE", help="Held-out text: perplexity, KL, top-1 agreement.")
    ] = None,
    facts: o.FactsOption = None,
    right_after: Annotated[
        list[str] | None,
        typer.Option(
            "--right-after", metavar="OUT", help="An earlier step's output: how many of its edits still hold."
        ),
    ] = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    html: Annotated[str | None, typer.Option("--html", metavar="FILE", help="Write the report as one page.")] = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Write the tables for a model card.")
    ] = None,
    fail_under: o.FailUnderOption = None,
    fail_over: o.FailOverOption = None,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Judge a model on an edit list: did the edits take, do they generalize, what else moved."""
    o.one_output(json, per_edit, quiet)
    under, over = gates.gate_bars(fail_under), gates.gate_bars(fail_over, "--fail-over")
    models, adapters = list(dict.fromkeys(model or [])), list(dict.fromkeys(adapter or []))
    if adapters and len(models) > 1:
        raise UsageError("--adapter belongs to one model, and here are several", "give one -m: the adapter's base")
    flags = {"model.path": models[0] if models else None, **o.placed(device, device_map, dtype), "chat": chat}
    recipe, _ = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    known = o.read_facts(facts)
    from memedit.edits.lint import lint, raise_errors

    raise_errors("the edit list", [*findings, *lint(requests)], allowed=("E106",))
    from memedit.evaluation.retention import successful_edits
    from memedit.pipeline import run_evaluate as run
    from memedit.show.progress import TerminalProgress

    report = run(
        requests, recipe, base=base, others=models[1:], adapters=adapters, facts=known, text=text, generate=generate,
        held=successful_edits(right_after or []), arguments=sys.argv[1:],
        progress=TerminalProgress(o.error_console(), quiet=quiet),
    )  # fmt: skip
    _pages(report, html, markdown)
    if json or per_edit:
        o.print_results(report, json=json, per_edit=per_edit)
    elif not quiet:
        _tables(report)
    gates.gate(report, under, over)


def _pages(report: o.Report, html: str | None, markdown: str | None) -> None:
    from memedit.show.report_page import evaluation_page
    from memedit.show.tables import markdown as tables
    from memedit.storage.artifacts import write_whole

    for path, make in ((html, evaluation_page), (markdown, tables)):
        if path:
            write_whole(Path(path).expanduser(), make(report).encode())


def _tables(report: o.Report) -> None:
    from memedit.show.evaluation import evaluation_table, models_table
    from memedit.show.tables import remarks

    console = o.wide_console()
    console.print(models_table(report) if report.models else evaluation_table(report, console.width))
    for line in remarks(report):
        console.print(line, markup=False, highlight=False)

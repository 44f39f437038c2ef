"""memedit eval."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from memedit.cli import gates, report_files
from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import UsageError

if TYPE_CHECKING:
    from memedit.edits.edit import EditRequest, Finding
    from memedit.results.report import Report


@with_terminal("Print nothing but errors.")
def evaluate_command(
    edits: o.EditsArgument,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="Model folder or Hub name; repeat it to compare models.  [required]"
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option("--base", metavar="BASE", help="Model before the edits, evaluated too: before and after."),
    ] = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option("--adapter", metavar="DIR", help="Evaluate MODEL with this LoRA adapter (PEFT); repeatable."),
    ] = None,
    generate: Annotated[
        bool,
        typer.Option("--generate", "-g", help="Also generate free text: fluency, consistency, specificity-plus."),
    ] = False,
    chat: Annotated[
        bool | None,
        typer.Option("--chat/--no-chat", help="Put prompts into the model's chat template.  [default: no-chat]"),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option("--text", metavar="FILE", help="Held-out text, for perplexity, KL and top-1 agreement."),
    ] = None,
    facts: o.FactsOption = None,
    right_after: Annotated[
        list[str] | None,
        typer.Option(
            "--right-after",
            metavar="OUT",
            help="Output of an earlier apply: report how many of its edits still hold; repeatable.",
        ),
    ] = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ListConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    html: o.HtmlOption = None,
    markdown: Annotated[
        str | None, typer.Option("--markdown", metavar="FILE", help="Write the tables as Markdown, for a model card.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a FILE of --html or --markdown that holds something else.")
    ] = False,
    fail_under: o.FailUnderOption = None,
    fail_over: o.FailOverOption = None,
    everything: o.AllOption = False,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Evaluate a model on an edit list: edit success, generalization, and what else changed.

    \b
    Examples:
      memedit eval edits.yaml -m edited --base gpt2 --text held-out.txt
      memedit eval edits.yaml -m gpt2 --adapter lora --fail-under efficacy=0.95
    """
    o.one_output(json, per_edit, terminal.quiet)
    under, over = gates.gate_bars(fail_under), gates.gate_bars(fail_over, "--fail-over")
    models, adapters = list(dict.fromkeys(model or [])), list(dict.fromkeys(adapter or []))
    if adapters and len(models) > 1:
        raise UsageError(f"--adapter works with one model, and {len(models)} were given", "give only its base with -m")
    flags = {"model.path": models[0] if models else None, **o.placed(device, device_map, dtype), "chat": chat}
    recipe, _ = o.read_recipe(config, sets, flags, found=o.find_recipe(edits, config, terminal))
    o.need_model(recipe)
    terminal.loading(recipe.model.path)
    report_files.check_report_files(html, markdown, overwrite=overwrite)
    requests = _sound(*o.read_edits(edits, relations, input_format, limit))
    known = o.read_facts(facts)
    from memedit.evaluation.retention import successful_edits
    from memedit.pipeline import RunInputs, run_evaluate
    from memedit.ranks import joined

    inputs = RunInputs(recipe, requests, facts=known, base=base, arguments=sys.argv[1:])
    report = run_evaluate(
        inputs, others=models[1:], adapters=adapters, text=text, generate=generate,
        held=successful_edits(right_after or []), progress=terminal.progress(), ranks=joined(),
    )  # fmt: skip
    report_files.write_report_files(report, html, markdown)
    if json or per_edit:
        o.print_results(report, json=json, per_edit=per_edit)
    elif not terminal.quiet:
        _tables(report, terminal, everything=everything)
    gates.gate(report, under, over)


def _sound(requests: list[EditRequest], findings: list[Finding]) -> list[EditRequest]:
    """The edits, if they have no error. Raises EditListError; edits that contradict each other can be evaluated."""
    from memedit.edits.lint import lint, raise_errors

    raise_errors("the edit list", [*findings, *lint(requests)], allowed=("E106",))
    return requests


def _tables(report: Report, terminal: Terminal, *, everything: bool) -> None:
    from memedit.results.rows import remarks, trade_line
    from memedit.show.evaluation import (
        evaluation_table,
        models_table,
        more_figures,
        removal_lines,
        unsuccessful_lines,
    )
    from memedit.show.terminal import print_line

    console = terminal.console()
    if report.models:
        console.print(models_table(report, everything=everything))
    else:
        if trade := trade_line(report):
            print_line(console, trade)
        console.print(evaluation_table(report, console.width, everything=everything))
    lines = [*unsuccessful_lines(report, console.width), *removal_lines(report, console.width), *remarks(report)]
    for line in lines:
        print_line(console, line)
    if not everything:
        terminal.hint(more_figures(report))

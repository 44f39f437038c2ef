"""memedit apply."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memedit.cli import gates, report_files
from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import UsageError

if TYPE_CHECKING:
    from memedit.config.recipe import Recipe
    from memedit.editing.ledger import Mode


USAGE = "memedit apply EDITS -m MODEL -o OUT"


@with_terminal(o.QUIET_PATH)
def apply_command(
    edits: Annotated[
        str | None, typer.Argument(metavar="EDITS", help="Edit list (a file); - reads stdin.", show_default=False)
    ] = None,
    model: o.ModelOption = None,
    output: o.OutputOption = None,
    method: o.MethodOption = None,
    layers: o.LayersOption = None,
    corpus: o.CorpusOption = None,
    facts: o.FactsOption = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    preset: o.PresetOption = None,
    config: o.ListConfigOption = None,
    sets: o.SetOption = None,
    retry: Annotated[
        int | None,
        typer.Option("--retry", min=0, metavar="N", help="Retry edits that failed, in up to N rounds.  [default: 0]"),
    ] = None,
    polish: Annotated[
        int | None,
        typer.Option(
            "--polish", min=0, metavar="N", help="Steps that keep what the model knew; 0: none.  [default: 24]"
        ),
    ] = None,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            "--keep",
            metavar="PROMPT",
            help="A prompt with {} for the subject, such as 'The language of {} is': what the model says there of "
            "edited subjects stays; repeatable.",
        ),
    ] = None,
    level: Annotated[
        Literal["full", "quick", "none"] | None,
        typer.Option(
            "--eval",
            metavar="LEVEL",
            help="What is asked before and after the edit: full, quick (only what the list and --facts give) or none "
            "(only whether each edit is said).  [default: full]",
        ),
    ] = None,
    redo: Annotated[int | None, typer.Option("--redo", min=0, metavar="N", hidden=True)] = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    memory: Annotated[
        str | None,
        typer.Option(
            "--memory",
            metavar="SIZE",
            help="Memory for weights, target search, and on a GPU the solve, such as 20GB; blocks that do not fit are "
            "read from disk.",
        ),
    ] = None,
    deltas: Annotated[
        list[str] | None,
        typer.Option(
            "--delta", metavar="DELTA", help="Instead of EDITS: add a delta that exists already; repeatable."
        ),
    ] = None,
    any_base: o.AnyBaseOption = False,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    keep_copies: o.KeepCopiesOption = None,
    rounding: Annotated[
        Literal["auto", "nearest", "key-aware"] | None,
        typer.Option("--rounding", metavar="HOW", help="How weights are rounded to OUT's dtype: auto, nearest or "
                     "key-aware.  [default: auto]"),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option("--max-shard-size", metavar="SIZE", help="Rewrite all weights in files of at most this size."),
    ] = None,
    keep_originals: Annotated[
        bool | None,
        typer.Option(
            "--keep-originals/--no-keep-originals",
            help="Also save the original tensors, so that revert is exact without the base.  [default: "
            "no-keep-originals]",
        ),
    ] = None,
    re_solve: Annotated[
        bool | None,
        typer.Option(
            "--re-solve/--on-top",
            help="If MODEL was edited before: solve all its edits again from the base, or edit it as it is.  "
            "[default: re-solve]",
        ),
    ] = None,
    base: o.BaseOption = None,
    html: o.HtmlOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and its cost; change nothing.")
    ] = False,
    show_config: o.ShowConfigOption = False,
    fail_under: o.FailUnderOption = None,
    everything: o.AllOption = False,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    *,
    terminal: Terminal,
) -> None:  # fmt: skip
    """Edit facts in a model; write the edited checkpoint to OUT and print the scores.

    \b
    Examples:
      memedit apply edits.yaml -m gpt2 -o edited --facts facts.jsonl
      memedit apply more.yaml -m edited -o edited-2
      memedit apply --delta edited -m gpt2 -o edited-again
    """
    o.one_output(json, per_edit, terminal.quiet)
    bars = gates.gate_bars(fail_under)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "method.name": method, "method.layers": layers,
        "moments.corpus": corpus, "target.retry": redo if retry is None else retry, "polish.steps": polish,
        "polish.keep": keep or None, "eval.level": level, "memory": memory, "output.dir": output, "output.link": link,
        "output.overwrite": overwrite, "output.force": force, "output.keep_copies": keep_copies,
        "output.keep_originals": keep_originals, "output.rounding": rounding, "output.max_shard_size": max_shard_size,
    }  # fmt: skip
    recipe, sources = o.read_recipe(config, sets, flags, preset, o.find_recipe(edits, config, terminal))
    if show_config:
        from memedit.show.terminal import recipe_text

        print(recipe_text(recipe.model_dump(mode="json"), sources))
        return
    if edits is None and not deltas:
        raise UsageError("no edit list was given", f"write {USAGE}, or --delta DELTA to add a delta")
    o.need_model(recipe)
    if deltas:
        given = {
            "EDITS": edits, "--layers": layers, "--corpus": corpus, "--facts": facts, "--relations": relations,
            "--input-format": input_format, "--limit": limit, "--memory": memory, "--dry-run": dry_run,
            "--method": method, "--retry": retry, "--redo": redo, "--polish": polish, "--keep": keep, "--eval": level,
            "--fail-under": fail_under, "--per-edit": per_edit, "--rounding": rounding, "--re-solve": re_solve,
            "--on-top": re_solve is False, "--base": base, "--html": html,
        }  # fmt: skip
        _add(deltas, recipe, given, any_base=any_base, json=json, terminal=terminal)
        return
    if any_base:
        raise UsageError("--any-base only works with --delta", "leave it out")
    assert edits is not None
    if not dry_run:
        o.need_output(recipe)
    elif html is not None:
        raise UsageError("--html writes the report of a run, and --dry-run makes none", "leave one out")
    terminal.loading(recipe.model.path)
    report_files.check_report_files(html, overwrite=recipe.output.overwrite, output=recipe.output.dir)
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    known = o.read_facts(facts)
    mode: Mode | None = None if re_solve is None else "re-solve" if re_solve else "on top"
    from memedit.pipeline import RunInputs, run_apply, run_dry_run
    from memedit.ranks import joined

    inputs = RunInputs(recipe, requests, findings, known, sources, mode, base, sys.argv[1:], preset)
    progress = terminal.progress()
    if dry_run:
        plan = run_dry_run(inputs, progress)
        print(plan.model_dump_json(indent=2) if json else "\n".join(plan.lines()))
        return
    report = run_apply(inputs, progress, joined())
    report_files.write_report_files(report, html)
    o.print_edited(report, everything=everything, json=json, per_edit=per_edit, terminal=terminal)
    gates.gate(report, bars)


def _add(
    deltas: list[str], recipe: Recipe, given: Mapping[str, object], *, any_base: bool, json: bool, terminal: Terminal
) -> None:
    """Add deltas that exist already. Raises UsageError for an option that is only for new edits."""
    if unused := [name for name, value in given.items() if value]:
        raise UsageError(f"{unused[0]} cannot be used with --delta, which adds a delta as it is", "leave one out")
    terminal.loading(recipe.model.path)
    from memedit.pipeline import run_add

    paths = [Path(delta).expanduser() for delta in deltas]
    outcome = run_add(paths, recipe, any_base=any_base, arguments=sys.argv[1:], progress=terminal.progress())
    o.print_outcome(outcome, json=json, terminal=terminal)

"""memedit apply."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memedit.cli import gates
from memedit.cli import options as o
from memedit.config.recipe import Recipe
from memedit.errors import UsageError

if TYPE_CHECKING:
    from memedit.editing.ledger import Mode


def apply_command(
    edits: Annotated[
        str | None, typer.Argument(metavar="EDITS", help="An edit list; - reads stdin.", show_default=False)
    ] = None,
    model: o.ModelOption = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="OUT", help="The folder to write.")] = None,
    method: o.MethodOption = None,
    layers: o.LayersOption = None,
    corpus: o.CorpusOption = None,
    facts: o.FactsOption = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    preset: o.PresetOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    redo: Annotated[
        int | None,
        typer.Option("--redo", min=0, metavar="N", help="Rounds in which edits that did not take are tried again."),
    ] = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="What the target search may take, such as 20GB.")
    ] = None,
    deltas: Annotated[
        list[str] | None,
        typer.Option(
            "--delta", metavar="DELTA", help="Instead of EDITS: add the sum of changes that were made before."
        ),
    ] = None,
    any_base: o.AnyBaseOption = False,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    rounding: Annotated[
        Literal["auto", "nearest", "key-aware"] | None,
        typer.Option("--rounding", metavar="HOW", help="auto, nearest or key-aware: into OUT's dtype."),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option("--max-shard-size", metavar="SIZE", help="Write all weights anew, in files of this size."),
    ] = None,
    keep_originals: Annotated[
        bool | None,
        typer.Option(
            "--keep-originals/--no-keep-originals",
            help="Keep the edited tensors as they were (their size again): revert needs no base.",
        ),
    ] = None,
    re_solve: Annotated[
        bool | None,
        typer.Option(
            "--re-solve/--on-top", help="An edited MODEL: solve all its edits anew from its base, or edit it as it is."
        ),
    ] = None,
    base: o.BaseOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and what it costs; change nothing.")
    ] = False,
    show_config: o.ShowConfigOption = False,
    fail_under: o.FailUnderOption = None,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Write facts into a model: an edited checkpoint in OUT, and what came of it."""
    o.one_output(json, per_edit, quiet)
    bars = gates.gate_bars(fail_under)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "method.name": method, "method.layers": layers,
        "moments.corpus": corpus, "target.redo": redo,
        "memory": memory, "output.dir": output, "output.link": link, "output.overwrite": overwrite,
        "output.force": force, "output.keep_originals": keep_originals,
        "output.rounding": rounding, "output.max_shard_size": max_shard_size,
    }  # fmt: skip
    recipe, sources = o.read_recipe(config, sets, flags, preset)
    if show_config:
        from memedit.show.terminal import recipe_text

        print(recipe_text(recipe.model_dump(mode="json"), sources))
        return
    o.need_model(recipe)
    if deltas:
        given = {
            "EDITS": edits, "--layers": layers, "--corpus": corpus, "--facts": facts, "--relations": relations,
            "--input-format": input_format, "--limit": limit, "--memory": memory, "--dry-run": dry_run,
            "--method": method, "--redo": redo, "--fail-under": fail_under, "--per-edit": per_edit,
            "--rounding": rounding, "--re-solve": re_solve, "--on-top": re_solve is False, "--base": base,
        }  # fmt: skip
        _add(deltas, recipe, given, any_base=any_base, json=json, quiet=quiet)
        return
    if any_base:
        raise UsageError("--any-base is for --delta: edits are found on the model that they are for", "leave it out")
    if edits is None:
        raise UsageError("no edit list was given", "say memedit apply EDITS, or --delta DELTA for changes made before")
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    known = o.read_facts(facts)
    way: Mode | None = None if re_solve is None else "re-solve" if re_solve else "on top"
    from memedit.show.progress import TerminalProgress

    progress = TerminalProgress(o.error_console(), quiet=quiet)
    if dry_run:
        from memedit.pipeline import run_dry_run

        said = run_dry_run(requests, recipe, findings=findings, sources=sources, way=way, base=base, progress=progress)
        print(said.model_dump_json(indent=2) if json else "\n".join(said.lines()))
        return
    from memedit.pipeline import run_apply as run

    report = run(
        requests, recipe, findings=findings, facts=known, sources=sources, way=way, base=base,
        arguments=sys.argv[1:], progress=progress,
    )  # fmt: skip
    o.print_edited(report, json=json, per_edit=per_edit, quiet=quiet)
    gates.gate(report, bars)


def _add(
    deltas: list[str], recipe: Recipe, given: Mapping[str, object], *, any_base: bool, json: bool, quiet: bool
) -> None:
    """Add changes that were made before; what is for finding changes has no place there."""
    if said := [name for name, value in given.items() if value]:
        raise UsageError(
            f"--delta adds changes that were made before, and {said[0]} is for making one", "leave one out"
        )
    from memedit.changes.commands import run_add
    from memedit.show.progress import TerminalProgress

    paths = [Path(delta).expanduser() for delta in deltas]
    progress = TerminalProgress(o.error_console(), quiet=quiet)
    outcome = run_add(paths, recipe, any_base=any_base, arguments=sys.argv[1:], progress=progress)
    o.print_outcome(outcome, json=json, quiet=quiet)

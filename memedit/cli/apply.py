"""memedit apply."""

from __future__ import annotations

import sys
from typing import Annotated, Literal

import typer

from memedit.cli import options as o


def apply(
    edits: o.Edits,
    model: o.ModelOption = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="OUT", help="The folder to write.")] = None,
    layers: o.LayersOption = None,
    corpus: o.CorpusOption = None,
    facts: o.FactsOption = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    preset: o.PresetOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    memory: Annotated[
        str | None, typer.Option("--memory", metavar="SIZE", help="What the target search may take, such as 20GB.")
    ] = None,
    link: Annotated[
        Literal["auto", "hard", "copy"] | None, typer.Option("--link", help="How untouched files get into OUT.")
    ] = None,
    overwrite: Annotated[
        bool | None, typer.Option("--overwrite/--no-overwrite", help="Replace OUT where it exists.")
    ] = None,
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
    bars = o.bars(fail_under)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "method.layers": layers, "moments.corpus": corpus,
        "memory": memory, "output.dir": output, "output.link": link, "output.overwrite": overwrite,
    }  # fmt: skip
    recipe, sources = o.read_recipe(config, sets, flags, preset)
    if show_config:
        from memedit.show.terminal import recipe_text

        print(recipe_text(recipe.model_dump(mode="json"), sources))
        return
    o.need_model(recipe)
    requests, findings = o.read_edits(edits, relations, input_format, limit)
    known = o.read_facts(facts)
    from rich.console import Console

    from memedit.show.progress import Shown

    console = o.error_console()
    tell = Shown(console, quiet=quiet)
    if dry_run:
        from memedit.pipeline import preview

        said = preview(requests, recipe, findings=findings, tell=tell)
        print(said.model_dump_json(indent=2) if json else "\n".join(said.lines()))
        return
    from memedit.pipeline import apply as run

    report = run(requests, recipe, findings=findings, facts=known, arguments=sys.argv[1:], tell=tell)
    if quiet:
        print(report.output)
    elif json or per_edit:
        o.print_results(report, json=json, per_edit=per_edit)
    else:
        from memedit.show.terminal import layers_table, scores_table

        out = Console()
        out.print(layers_table(report), scores_table(report))
        out.print(f"{report.output}", markup=False, highlight=False, soft_wrap=True)
    o.gate(report, bars)

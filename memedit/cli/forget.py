"""memedit forget."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from memedit.cli import gates
from memedit.cli import options as o
from memedit.errors import UsageError


def forget_command(
    ids: Annotated[list[str], typer.Argument(metavar="IDS", help="Ids of edits; - reads them from stdin, one a line.")],
    model: o.ModelOption = None,
    output: Annotated[str | None, typer.Option("--output", "-o", metavar="OUT", help="The folder to write.")] = None,
    base: o.BaseOption = None,
    facts: o.FactsOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    link: o.LinkOption = None,
    overwrite: o.OverwriteOption = None,
    force: o.ForceOption = None,
    fail_under: o.FailUnderOption = None,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Take edits out of an edited model as if they had never been made; the others are solved anew from the base."""
    o.one_output(json, per_edit, quiet)
    bars = gates.gate_bars(fail_under)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "output.dir": output, "output.link": link,
        "output.overwrite": overwrite, "output.force": force,
    }  # fmt: skip
    recipe, sources = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    names = [name for word in ids for name in (sys.stdin.read().split("\n") if word == "-" else [word])]
    names = [name for name in names if name.strip()]
    if not names:
        raise UsageError("no ids of edits were given", "memedit/ledger.jsonl in the edited model lists them")
    known = o.read_facts(facts)
    from memedit.pipeline import run_forget as run
    from memedit.show.progress import TerminalProgress

    progress = TerminalProgress(o.error_console(), quiet=quiet)
    report = run(names, recipe, facts=known, sources=sources, base=base, arguments=sys.argv[1:], progress=progress)
    o.print_edited(report, json=json, per_edit=per_edit, quiet=quiet)
    if report.edits:
        gates.gate(report, bars)

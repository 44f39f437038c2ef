"""memedit forget."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from memedit.cli import gates
from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import UsageError


@with_terminal(o.QUIET_PATH)
def forget_command(
    ids: Annotated[
        list[str], typer.Argument(metavar="IDS", help="Ids of edits; - reads them from stdin, one per line.")
    ],
    model: o.ModelOption = None,
    output: o.OutputOption = None,
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
    keep_copies: o.KeepCopiesOption = None,
    fail_under: o.FailUnderOption = None,
    everything: o.AllOption = False,
    json: o.JsonOption = False,
    per_edit: o.PerEditOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Remove edits from an edited model, as if they had never been made.

    The remaining edits are solved again from the base model. If none remains, OUT is the base model.

    \b
    Examples:
      memedit forget fr-capital -m edited -o edited-2
      memedit forget - -m edited -o edited-2 < ids.txt
    """
    o.one_output(json, per_edit, terminal.quiet)
    bars = gates.gate_bars(fail_under)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "output.dir": output, "output.link": link,
        "output.overwrite": overwrite, "output.force": force, "output.keep_copies": keep_copies,
    }  # fmt: skip
    recipe, sources = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    from memedit.edits.read import STDIN, standard_input

    names = [name for word in ids for name in (standard_input().read().split("\n") if word == STDIN else [word])]
    names = [name for name in names if name.strip()]
    if not names:
        raise UsageError("no edit ids were given", "memedit/ledger.jsonl in the edited model lists them")
    o.need_output(recipe)
    terminal.loading(recipe.model.path)
    known = o.read_facts(facts)
    from memedit.pipeline import RunInputs, run_forget
    from memedit.ranks import joined

    inputs = RunInputs(recipe, facts=known, sources=sources, base=base, arguments=sys.argv[1:])
    report = run_forget(names, inputs, terminal.progress(), joined())
    o.print_edited(report, everything=everything, json=json, per_edit=per_edit, terminal=terminal)
    if report.edits:
        gates.gate(report, bars)

"""memedit inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import UnsupportedModelError


@with_terminal("Print only the layers that can be edited.")
def inspect_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="Model folder or Hub name.", show_default=False)],
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Read only the config; download and open no weights.")
    ] = False,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Show how a model is built, which layers can be edited, and the cost; exit 4 if it cannot be edited.

    \b
    Examples:
      memedit inspect gpt2
      memedit inspect gpt2 --config-only
    """
    o.one_output(json, False, terminal.quiet)
    recipe, _ = o.read_recipe(config, sets, {"model.path": model, **o.placed(device, device_map, dtype)})
    terminal.loading(model)
    from memedit.inspect_model import run_inspect
    from memedit.show.inspection import inspection_lines

    found = run_inspect(recipe, weights=not config_only, progress=terminal.progress())
    if json:
        print(found.model_dump_json(indent=2))
    elif terminal.quiet:
        print(found.editable)
    else:
        print("\n".join(inspection_lines(found)))
    if found.problems:
        raise UnsupportedModelError("; ".join(found.problems), found.hint or "memedit inspect --json lists every layer")

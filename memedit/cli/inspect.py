"""memedit inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.errors import UnsupportedModelError


def inspect_command(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A model folder or Hub name.", show_default=False)],
    config_only: Annotated[
        bool, typer.Option("--config-only", help="Read the config alone: no weights are fetched or opened.")
    ] = False,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """See how a model is built, which layers can be edited and why not, and what that costs; exit 4 where none can."""
    o.one_output(json, False, quiet)
    recipe, _ = o.read_recipe(config, sets, {"model.path": model, **o.placed(device, device_map, dtype)})
    from memedit.inspect_model import run_inspect as run
    from memedit.show.inspection import inspection_lines
    from memedit.show.progress import TerminalProgress

    found = run(recipe, weights=not config_only, progress=TerminalProgress(o.error_console(), quiet=quiet))
    if json:
        print(found.model_dump_json(indent=2))
    elif quiet:
        print(found.editable)
    else:
        print("\n".join(inspection_lines(found)))
    if found.problems:
        raise UnsupportedModelError("; ".join(found.problems), "memedit inspect --json tells of every layer")

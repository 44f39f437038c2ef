"""memedit stats."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o


def stats_command(
    model: o.ModelOption = None,
    layers: o.LayersOption = None,
    corpus: o.CorpusOption = None,
    tokens: Annotated[int | None, typer.Option("--tokens", min=1, metavar="N", help="How many to read.")] = None,
    import_: Annotated[
        str | None, typer.Option("--import", metavar="FILE.npz", help="Take the moment of one layer from a file.")
    ] = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be measured, and its bytes.")] = False,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """Measure the second moments of the layers to edit, all in one pass, into the cache."""
    flags = {
        "model.path": model, "method.layers": layers, "moments.corpus": corpus, "moments.tokens": tokens,
        **o.placed(device, device_map, dtype),
    }  # fmt: skip
    recipe, _ = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    from memedit.editing.moment_cache import run_stats as run
    from memedit.show.progress import TerminalProgress

    rows = run(recipe, import_file=import_, dry_run=dry_run, progress=TerminalProgress(o.error_console(), quiet=quiet))
    if json:
        print("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
    else:
        for row in rows:
            print(row.file if quiet else row.line)

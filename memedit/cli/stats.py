"""memedit stats."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o


def stats_command(
    model: o.ModelOption = None,
    layers: o.LayersOption = None,
    corpus: o.CorpusOption = None,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, metavar="N", help="Tokens to read.  [default: 10 times the MLP width]"),
    ] = None,
    import_: Annotated[
        str | None,
        typer.Option("--import", metavar="FILE.npz", help="Read one layer's second moment from a file instead."),
    ] = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be measured and its size; measure nothing.")
    ] = False,
    json: o.JsonOption = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only the files in the cache, and no progress.")
    ] = False,
) -> None:
    """Measure the second moments of the layers to edit, in one pass over the text, and keep them in the cache.

    \b
    Example:
      memedit stats -m gpt2 --corpus hf:wikitext:wikitext-103-raw-v1
    """
    flags = {
        "model.path": model, "method.layers": layers, "moments.corpus": corpus, "moments.tokens": tokens,
        **o.placed(device, device_map, dtype),
    }  # fmt: skip
    recipe, _ = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    from memedit.pipeline import run_stats

    rows = run_stats(recipe, import_file=import_, dry_run=dry_run, progress=o.progress_bar(quiet))
    if json:
        print("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
    else:
        for row in rows:
            print(row.file if quiet else row.line)

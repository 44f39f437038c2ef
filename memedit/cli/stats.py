"""memedit stats."""

from __future__ import annotations

from typing import Annotated

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal


@with_terminal("Print only the files in the cache, and no progress.")
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
    *,
    terminal: Terminal,
) -> None:
    """Measure the second moments of the layers to edit, in one pass over the text, and keep them in the cache.

    \b
    Examples:
      memedit stats -m gpt2 --corpus hf:wikitext:wikitext-103-raw-v1
      memedit stats -m gpt2 --layers 3-8 --dry-run
    """
    flags = {
        "model.path": model, "method.layers": layers, "moments.corpus": corpus, "moments.tokens": tokens,
        **o.placed(device, device_map, dtype),
    }  # fmt: skip
    recipe, _ = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    terminal.loading(recipe.model.path)
    from memedit.pipeline import run_stats
    from memedit.ranks import joined

    progress, ranks = terminal.progress(), joined()
    rows = run_stats(recipe, import_file=import_, dry_run=dry_run, progress=progress, ranks=ranks)
    if json:
        print("[" + ",\n ".join(row.model_dump_json() for row in rows) + "]")
    else:
        for row in rows:
            print(row.file if terminal.quiet else row.line)

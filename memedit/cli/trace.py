"""memedit trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memedit.cli import options as o
from memedit.config.recipe import Recipe
from memedit.edits.edit import EditRequest, Finding
from memedit.errors import GateError, UsageError

if TYPE_CHECKING:
    from memedit.progress import Progress
    from memedit.results.traces import TracingResult


def trace_command(
    facts: Annotated[
        str | None,
        typer.Argument(
            metavar="[FACTS]", help="An edit list, or known_1000 records; - reads stdin.", show_default=False
        ),
    ] = None,
    model: o.ModelOption = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="DIR", help="Write scores, averages and a page of figures.")
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Trace this one prompt instead.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="TEXT", help="Its subject, as it stands in it.")
    ] = None,
    answer: Annotated[
        str | None, typer.Option("--answer", metavar="TEXT", help="Its answer; else the model's own next token.")
    ] = None,
    noise: Annotated[
        str | None, typer.Option("--noise", metavar="3sigma|FLOAT", help="Noise on the subject's embeddings.")
    ] = None,
    samples: Annotated[int | None, typer.Option("--samples", metavar="N", help="Draws of noise for each fact.")] = None,
    window: Annotated[
        int | None,
        typer.Option("--window", metavar="N", help="Layers whose MLP or attention outputs are put back together."),
    ] = None,
    suggest_layers: Annotated[
        bool, typer.Option("--suggest-layers", help="Print the layers to edit, such as 3-8; exit 3 where none show.")
    ] = False,
    by: Annotated[
        Literal["trace", "edit-score"] | None,
        typer.Option("--by", help="How layers are suggested: by traces, or by editing a sample in each range."),
    ] = None,
    plot: Annotated[
        Literal["png", "svg"] | None, typer.Option("--plot", help="Also write figures as files (png needs matplotlib).")
    ] = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    json: o.JsonOption = False,
    quiet: o.QuietOption = False,
) -> None:
    """See where a model recalls facts, and which layers that suggests to edit."""
    o.one_output(json, suggest_layers, False)
    o.one_output(json, False, quiet)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "trace.noise": noise, "trace.samples": samples,
        "trace.window": window,
    }  # fmt: skip
    recipe, _ = o.read_recipe(config, sets, flags)
    o.need_model(recipe)
    if plot and not output:
        raise UsageError("--plot writes figures, and there is no folder for them", "say where to: -o DIR")
    if by and not suggest_layers:
        raise UsageError("--by says how layers are suggested, and none are asked for", "say --suggest-layers too")
    requests, findings = _asked(facts, prompt, subject, answer, relations, input_format, limit)
    from memedit.show.progress import TerminalProgress

    progress = TerminalProgress(o.error_console(), quiet=quiet)
    if by == "edit-score":
        print(_by_edit_score(requests, findings, recipe, progress))
        return
    from memedit.pipeline import run_trace as run
    from memedit.show.heatmap import summary

    own = prompt is not None and answer is None
    folder = Path(output).expanduser() if output else None
    found = run(requests, recipe, findings=findings, own=own, output=folder, draw=_drawing(plot), progress=progress)
    if suggest_layers:
        if found.average.layers is None:
            raise GateError(found.average.reason, "trace more facts, or choose by --by edit-score")
        progress.note(found.average.reason)
        print(found.average.layers)
    elif json:
        print(found.average.model_dump_json(indent=2))
    elif quiet:
        print(output or "", end="\n" if output else "")
    else:
        _show(found)
        print(summary(found))
        if output:
            print(output)


def _asked(
    facts: str | None,
    prompt: str | None,
    subject: str | None,
    answer: str | None,
    relations: str | None,
    input_format: str | None,
    limit: int | None,
) -> tuple[list[EditRequest], list[Finding]]:
    """What is traced: a list, or one prompt. Raises UsageError where it is neither, or both."""
    if (facts is None) == (prompt is None):
        raise UsageError("trace takes a list of facts, or one --prompt with its --subject", "give one of the two")
    if facts is not None:
        if subject is not None or answer is not None:
            raise UsageError("--subject and --answer belong to --prompt", "say --prompt, or leave them out")
        return o.read_edits(facts, relations, input_format, limit)
    if subject is None or not subject.strip():
        raise UsageError("--prompt was given without the subject that stands in it", "say --subject TEXT")
    if answer is not None and not answer.strip():
        raise UsageError("--answer is empty", "say what the model answers, or leave it out: then its own is traced")
    from memedit.edits.readers.document import RefusedError
    from memedit.edits.readers.formats import template

    try:
        framed = template(prompt, subject)
    except RefusedError as error:
        raise UsageError(error.message, "give the whole prompt, with the subject as it stands in it") from error
    request = EditRequest(
        id="prompt", subject=subject, prompt=framed, object=answer or "", object_old=answer, origin="--prompt:1"
    )
    return [request], []


def _drawing(plot: Literal["png", "svg"] | None) -> Callable[[TracingResult], Mapping[str, bytes]]:
    from memedit.show.html import trace_page
    from memedit.show.png import check_plots, figures

    if plot:
        check_plots(plot)

    def draw(tracing: TracingResult) -> Mapping[str, bytes]:
        return {"trace.html": trace_page(tracing).encode(), **(figures(tracing, plot) if plot else {})}

    return draw


def _by_edit_score(requests: list[EditRequest], findings: list[Finding], recipe: Recipe, progress: Progress) -> str:
    from memedit.config.layers import layers_text
    from memedit.editing.layer_trials import search_layers

    tried = search_layers(requests, recipe, progress, findings)
    for one in tried:
        progress.note(one.line)
    if tried[0].value == 0:
        raise GateError("no range of layers took a single edit of the sample", "look at the edits: memedit check")
    first, last = tried[0].layers
    return layers_text(range(first, last + 1))


def _show(found: TracingResult) -> None:
    from rich.console import Console

    from memedit.show.heatmap import average_maps, fact_maps

    Console().print(fact_maps(found.facts[0]) if len(found.facts) == 1 else average_maps(found.average))

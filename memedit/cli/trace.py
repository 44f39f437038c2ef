"""memedit trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from memedit.cli import options as o
from memedit.cli.terminal import Terminal, with_terminal
from memedit.errors import GateError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from memedit.edits.edit import EditRequest, Finding
    from memedit.pipeline import RunInputs
    from memedit.results.traces import TracingResult


@with_terminal(o.QUIET_PATH)
def trace_command(
    facts: Annotated[
        str | None,
        typer.Argument(
            metavar="FACTS", help="Edit list or known_1000 records (a file); - reads stdin.", show_default=False
        ),
    ] = None,
    model: o.ModelOption = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="DIR", help="Write scores, averages and a page of figures here."),
    ] = None,
    prompt: Annotated[
        str | None, typer.Option("--prompt", metavar="TEXT", help="Trace this one prompt instead of FACTS.")
    ] = None,
    subject: Annotated[
        str | None, typer.Option("--subject", metavar="TEXT", help="Subject of --prompt, as written in it.")
    ] = None,
    answer: Annotated[
        str | None,
        typer.Option("--answer", metavar="TEXT", help="Answer to --prompt.  [default: the model's own next token]"),
    ] = None,
    noise: Annotated[
        str | None,
        typer.Option("--noise", metavar="3sigma|FLOAT", help="Noise on the subject's embeddings.  [default: 3sigma]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", metavar="N", help="Noise samples for each fact.  [default: 10]")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="N",
            help="Layers whose MLP or attention outputs are patched together.  [default: a fifth of the depth]",
        ),
    ] = None,
    suggest_layers: Annotated[
        bool,
        typer.Option("--suggest-layers", help="Print only the layers to edit, such as 3-8; exit 3 if none stand out."),
    ] = False,
    by: Annotated[
        Literal["trace", "edit-score"] | None,
        typer.Option("--by", help="Suggest layers by tracing, or by editing a sample in each range.  [default: trace]"),
    ] = None,
    plot: Annotated[
        Literal["png", "svg"] | None, typer.Option("--plot", help="Also write figures as files (png needs matplotlib).")
    ] = None,
    relations: o.RelationsOption = None,
    input_format: o.FormatOption = None,
    limit: o.LimitOption = None,
    config: o.ListConfigOption = None,
    sets: o.SetOption = None,
    device: o.DeviceOption = None,
    device_map: o.DeviceMapOption = None,
    dtype: o.DtypeOption = None,
    json: o.JsonOption = False,
    *,
    terminal: Terminal,
) -> None:
    """Trace where a model recalls facts, and which layers that suggests to edit.

    \b
    Examples:
      memedit trace facts.json -m gpt2 -o traces
      memedit trace -m gpt2 --prompt "Paris is the capital of" --subject Paris
      memedit trace edits.yaml -m gpt2 --suggest-layers
    """
    o.one_output(json, suggest_layers, False)
    o.one_output(json, False, terminal.quiet)
    flags = {
        "model.path": model, **o.placed(device, device_map, dtype), "trace.noise": noise, "trace.samples": samples,
        "trace.window": window,
    }  # fmt: skip
    recipe, _ = o.read_recipe(config, sets, flags, found=o.find_recipe(facts, config, terminal))
    o.need_model(recipe)
    if plot and not output:
        raise UsageError("--plot writes figures, and no folder was given for them", "add -o DIR")
    if by and not suggest_layers:
        raise UsageError("--by only works with --suggest-layers", "add --suggest-layers")
    terminal.loading(recipe.model.path)
    if prompt is None:
        requests, findings = _listed(facts, subject, answer, relations, input_format, limit)
    else:
        requests, findings = [_one_prompt(facts, prompt, subject, answer)], []
    from memedit.pipeline import RunInputs, run_layer_search

    inputs = RunInputs(recipe, requests, findings)
    if by == "edit-score":
        print(run_layer_search(inputs, terminal.progress()))
        return
    own = prompt is not None and answer is None
    _trace(inputs, output, plot, own=own, suggest_layers=suggest_layers, json=json, terminal=terminal)


def _trace(
    inputs: RunInputs,
    output: str | None,
    plot: Literal["png", "svg"] | None,
    *,
    own: bool,
    suggest_layers: bool,
    json: bool,
    terminal: Terminal,
) -> None:
    """Trace, and print the result in the form that was asked for."""
    from memedit.pipeline import run_trace
    from memedit.ranks import joined
    from memedit.show.heatmap import summary
    from memedit.show.terminal import print_line

    progress = terminal.progress()
    folder = Path(output).expanduser() if output else None
    found = run_trace(inputs, own=own, output=folder, draw=_drawing(plot), progress=progress, ranks=joined())
    if suggest_layers:
        if found.average.layers is None:
            raise GateError(found.average.reason, "trace more facts, or use --by edit-score")
        progress.note(found.average.reason)
        print(found.average.layers)
    elif json:
        print(found.average.model_dump_json(indent=2))
    elif terminal.quiet:
        print(output or "", end="\n" if output else "")
    else:
        console = terminal.console()
        _show(found, console)
        for line in summary(found).splitlines():
            print_line(console, line)
        if output:
            print(output)


def _listed(
    facts: str | None,
    subject: str | None,
    answer: str | None,
    relations: str | None,
    input_format: str | None,
    limit: int | None,
) -> tuple[list[EditRequest], list[Finding]]:
    """Read the list of facts. Raises UsageError if there is none, or for an option of --prompt."""
    if facts is None:
        raise UsageError("no facts were given", "give a list of facts, or --prompt and --subject")
    if subject is not None or answer is not None:
        raise UsageError("--subject and --answer only work with --prompt", "add --prompt, or leave them out")
    return o.read_edits(facts, relations, input_format, limit)


def _one_prompt(facts: str | None, prompt: str, subject: str | None, answer: str | None) -> EditRequest:
    """The fact of --prompt, --subject and --answer. Raises UsageError where they do not make one."""
    if facts is not None:
        raise UsageError("a list of facts and --prompt were both given", "give one of the two")
    if subject is None or not subject.strip():
        raise UsageError("--prompt was given without its subject", "add --subject TEXT")
    if answer is not None and not answer.strip():
        raise UsageError("--answer is empty", "give the answer, or leave it out to trace the model's own")
    from memedit.edits.edit import EditRequest
    from memedit.edits.readers.document import RefusedError
    from memedit.edits.readers.formats import template

    try:
        framed = template(prompt, subject)
    except RefusedError as error:
        raise UsageError(error.message, "give the whole prompt, and the subject as written in it") from error
    return EditRequest(
        id="prompt", subject=subject, prompt=framed, object=answer or "", object_old=answer, origin="--prompt:1"
    )


def _drawing(plot: Literal["png", "svg"] | None) -> Callable[[TracingResult], Mapping[str, bytes]]:
    from memedit.show.html import trace_page
    from memedit.show.png import check_plots, figures

    if plot:
        check_plots(plot)

    def draw(tracing: TracingResult) -> Mapping[str, bytes]:
        return {"trace.html": trace_page(tracing).encode(), **(figures(tracing, plot) if plot else {})}

    return draw


def _show(found: TracingResult, console: Console) -> None:
    from memedit.show.heatmap import average_maps, fact_maps

    one, width = len(found.facts) == 1, console.width
    console.print(fact_maps(found.facts[0], width) if one else average_maps(found.average, width))

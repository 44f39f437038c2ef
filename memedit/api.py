"""memedit from Python: what the command line does, as functions of plain values. No state outlives a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memedit import inspect_model, pipeline
from memedit.config.recipe import Recipe
from memedit.config.resolve import Source, resolve
from memedit.editing.ledger import Mode
from memedit.edits.edit import EditRequest
from memedit.edits.lint import lint, raise_errors
from memedit.edits.read import read
from memedit.progress import Progress
from memedit.results.inspection import Inspection
from memedit.results.report import Report
from memedit.results.traces import TracingResult
from memedit.show.html import trace_page

Edits = str | Path | Sequence[EditRequest]


def load_edits(source: str | Path, *, relations: str | Path | None = None) -> list[EditRequest]:
    """Read an edit list in any of memedit's formats. Raises EditListError with every error it has, or UsageError.

    >>> edits = load_edits("requests/world.jsonl")
    >>> len(edits), edits[0].relation
    (1000, 'language')
    """
    requests, findings = read(str(source), relations=None if relations is None else str(relations))
    raise_errors(f"the edit list {source}", [*findings, *lint(requests)], hint="see .findings")
    return requests


def apply(
    edits: Edits,
    model: str | Path,
    output: str | Path,
    *,
    facts: Edits = (),
    way: Mode | None = None,
    base: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Write facts into a model: the edited checkpoint is in `output` when this returns.

    A model that was edited before, and has its ledger, is gone on with: by solving all its edits anew from its base,
    which lies at `base` where it was moved ("re-solve", the default), or by editing the edited weights ("on top").
    `settings` are knobs of the recipe by their dotted names. `facts` are known facts; the report says how many stay.
    Raises children of MemeditError, before any heavy work where the input is at fault.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     edits = load_edits("requests/world.jsonl")[:2]
    ...     report = apply(edits, "examples/models/made-gpt2", folder + "/edited", settings={"target.steps": 20})
    >>> report.edits, [one.layer for one in report.layers]
    (2, [0, 1, 2])
    """
    recipe, sources = _resolved(model, {**(settings or {}), "output.dir": str(output)})
    where = None if base is None else str(base)
    return pipeline.run_apply(
        _edits(edits), recipe, facts=_edits(facts), sources=sources, way=way, base=where, progress=progress
    )


def forget(
    ids: Sequence[str],
    model: str | Path,
    output: str | Path,
    *,
    facts: Edits = (),
    base: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Take edits out of an edited model by their ids: in `output` they were never made. With none left it is the base.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     edits, one, two = load_edits("requests/world.jsonl")[:2], folder + "/one", folder + "/two"
    ...     _ = apply(edits, "examples/models/made-gpt2", one, settings={"target.steps": 20})
    ...     report = forget([edits[0].id], one, two)
    >>> report.edits, report.ledger.kept
    (1, 1)
    """
    recipe, sources = _resolved(model, {**(settings or {}), "output.dir": str(output)})
    where = None if base is None else str(base)
    return pipeline.run_forget(ids, recipe, facts=_edits(facts), sources=sources, base=where, progress=progress)


def evaluate(
    edits: Edits,
    model: str | Path,
    *,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    facts: Edits = (),
    text: str | Path | None = None,
    generate: bool = False,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> Report:
    """Judge a model on an edit list, beside the model it was made from where `base` names it.

    With `adapter`, a LoRA folder, its change is in the model. `text` is held-out text for drift; `generate` asks for
    more free answers than those to the edits' own prompts.

    >>> report = evaluate(load_edits("requests/world.jsonl")[:20], "examples/models/made-gpt2")
    >>> report.after.efficacy.mean < 0.5
    True
    """
    return pipeline.run_evaluate(
        _edits(edits), _recipe(model, settings), base=None if base is None else str(base),
        adapters=() if adapter is None else [str(adapter)], facts=_edits(facts),
        text=None if text is None else str(text), generate=generate, progress=progress,
    )  # fmt: skip


def trace(
    facts: Edits,
    model: str | Path,
    output: str | Path | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    progress: Progress | None = None,
) -> TracingResult:
    """See where a model recalls facts: the old objects of an edit list, or else what the model says itself.

    `.facts` holds each fact's scores as tables, `.average` the effects with their intervals and the layers that they
    suggest. With `output` all of it is written there, with a page of figures (trace.html).

    >>> found = trace(load_edits("requests/world.jsonl")[:2], "examples/models/made-gpt2")
    >>> found.average.n_layers, sorted(found.facts[0].scores)[:3]
    (6, ['attention', 'attention severed', 'clean'])
    """

    def draw(tracing: TracingResult) -> dict[str, bytes]:
        return {"trace.html": trace_page(tracing).encode()}

    where = None if output is None else Path(output).expanduser()
    return pipeline.run_trace(_edits(facts), _recipe(model, settings), output=where, draw=draw, progress=progress)


def inspect(model: str | Path, *, weights: bool = True, settings: Mapping[str, Any] | None = None) -> Inspection:
    """See how a model is built, which layers can be edited and why not; without `weights`, from its config alone.

    >>> found = inspect("examples/models/made-gpt2")
    >>> found.editable, found.head.tied, found.each[0].gain
    ('0-5', True, 1.0)
    """
    return inspect_model.run_inspect(_recipe(model, settings), weights=weights)


def _edits(edits: Edits) -> list[EditRequest]:
    return load_edits(edits) if isinstance(edits, str | Path) else list(edits)


def _recipe(model: str | Path, settings: Mapping[str, Any] | None) -> Recipe:
    return _resolved(model, settings)[0]


def _resolved(model: str | Path, settings: Mapping[str, Any] | None) -> tuple[Recipe, dict[str, Source]]:
    return resolve([("flag", {**(settings or {}), "model.path": str(model)})])

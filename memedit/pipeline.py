"""From an edit list to an edited checkpoint: the page to read first.

Every step that takes time is recalled: kept in the run folder under a digest of all it depends on, and found there by
a second run of the same command. So a run that was killed goes on where it was, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path

from memedit.config.recipe import Recipe
from memedit.editing.dry_run import DryRun, plan_dry_run
from memedit.editing.ledger import Mode
from memedit.editing.resources import check_weights
from memedit.editing.retry import retry_failed
from memedit.editing.run import EditRun
from memedit.editing.start import start_forget, start_run, write_base
from memedit.edits.edit import EditRequest, Finding
from memedit.evaluation.evaluator import Evaluator, ModelAnswers
from memedit.model.load import load, locate
from memedit.model.weights import applied
from memedit.progress import NoProgress, Progress
from memedit.results.report import Report
from memedit.results.traces import TracingResult
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.corpus import corpus_digest, documents
from memedit.tracing.files import check_folder, write_traces
from memedit.tracing.run import trace_all


def run_apply(
    requests: Sequence[EditRequest],
    recipe: Recipe,
    *,
    findings: Sequence[Finding] = (),
    facts: Sequence[EditRequest] = (),
    sources: Mapping[str, str] | None = None,
    way: Mode | None = None,
    base: str | None = None,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Edit a model and write the result to `recipe.output.dir`; `facts` are known facts that must stay.

    A model that was edited before is gone on with: solved anew from its base (which lies at `base`, where that is not
    where it was), or edited on top. `sources` tell which knobs were asked for. Raises EditListError with every finding
    before any heavy work, and the other children of MemeditError.
    """
    start = start_run(requests, recipe, findings, sources=sources, way=way, base=base)
    return _edited(EditRun(start, facts, progress or NoProgress()), arguments)


def run_forget(
    ids: Sequence[str],
    recipe: Recipe,
    *,
    facts: Sequence[EditRequest] = (),
    sources: Mapping[str, str] | None = None,
    base: str | None = None,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Take edits out of an edited model, as if they had never been made: what is left is solved anew from the base.

    Where none is left, what is written is the base. Raises UsageError for an id that is not in the model's ledger.
    """
    progress, start = progress or NoProgress(), start_forget(ids, recipe, sources=sources, base=base)
    if start.requests:
        return _edited(EditRun(start, facts, progress), arguments)
    output = write_base(start, progress)
    return Report(command="forget", model=start.recipe.model.path, output=output, arguments=list(arguments))


def _edited(job: EditRun, arguments: Sequence[str]) -> Report:
    """The run itself, step by step."""
    job.preflight()
    with job.run_folder() as run:
        contexts = job.contexts(run)
        moments = job.moments()
        before = job.scored(run, "before")
        targets, engine = job.targets(run, contexts)
        made = retry_failed(job, run, contexts, moments, targets, job.update(contexts, moments, targets))
        with applied(job.lm, job.weights(made.update)):
            after = job.scored(None, "after")
        report = job.report(arguments, engine, before, after, made.targets, made.update, made.rounds)
        job.write(report, made.update, job.updated_ledger(contexts, moments, made.targets, after, made.rounds))
        run.remove()
    return report


def run_dry_run(
    requests: Sequence[EditRequest],
    recipe: Recipe,
    *,
    findings: Sequence[Finding] = (),
    sources: Mapping[str, str] | None = None,
    way: Mode | None = None,
    base: str | None = None,
    progress: Progress | None = None,
) -> DryRun:
    """What `apply` would do and cost; nothing is written. Raises what `apply` would raise before its heavy work."""
    start = start_run(requests, recipe, findings, sources=sources, way=way, base=base)
    return plan_dry_run(EditRun(start, (), progress or NoProgress()))


def run_trace(
    requests: Sequence[EditRequest],
    recipe: Recipe,
    *,
    findings: Sequence[Finding] = (),
    own: bool = False,
    output: Path | None = None,
    draw: Callable[[TracingResult], Mapping[str, bytes]] | None = None,
    progress: Progress | None = None,
) -> TracingResult:
    """See where a model recalls these facts; with `output` a folder of traces, and the figures that `draw` makes.

    With `own` each prompt's answer is the model's own next token, whatever the record says.
    """
    progress = progress or NoProgress()
    if output is not None:
        check_folder(output)
    folder = locate(recipe.model)
    with progress.phase("load"):
        base = Checkpoint.open(folder)
        check_weights(base, recipe.model)
        lm, digest = load(folder, recipe.model, editing=False), base.digest
    traced, store = trace_all(lm, digest, requests, recipe, progress, findings, own=own)
    if output is not None:
        with progress.phase("write"):
            tables = {f"{one.fact.id}/{kind}": table for one in traced.facts for kind, table in one.scores.items()}
            facts = [*(one.fact for one in traced.facts), *traced.unknown]
            write_traces(output, facts, tables, traced.average, draw(traced) if draw else {})
    store.remove()
    return traced


def run_evaluate(
    requests: Sequence[EditRequest],
    recipe: Recipe,
    *,
    base: str | None = None,
    others: Sequence[str] = (),
    adapters: Sequence[str] = (),
    facts: Sequence[EditRequest] = (),
    text: str | None = None,
    generate: bool = False,
    held: Sequence[str] = (),
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Report:
    """Judge a model on an edit list: beside the model it was made from, and beside `others`.

    `adapters` are LoRA folders: the model is judged with each of them in it, in place of itself. `text` is a corpus
    that all read, to see what else moved; `generate` lets them write more; `held` are digests of edits that held right
    after they were made, so that what was lost since is told. The base stays open while the others are read.
    """
    read = list(islice(documents(text), recipe.eval.drift_tokens)) if text else []
    about = None
    if (spec := recipe.eval.unrelated) is not None:
        about = " ".join(islice(documents(spec), max(recipe.eval.prefixes, default=0)))
    exam = Evaluator(
        requests, facts, recipe, progress or NoProgress(), text=read, generate=generate, held=held, unrelated=about
    )
    if text:
        exam.digests["text"] = corpus_digest(text)
    witness = exam.open(base) if base else None
    before = exam.trial(witness, "before") if witness else None
    path = recipe.model.path
    judged: list[tuple[str, str | None]] = [(path, adapter) for adapter in adapters] or [(path, None)]
    judged += [(other, None) for other in others]
    trials: dict[str, ModelAnswers] = {}
    for path, adapter in judged:
        name = path if adapter is None else f"{path} + {adapter}"
        trials[name] = exam.trial(exam.open(path, adapter), "after" if not trials else f"after {name}", witness)
    return exam.report(trials, base, before, arguments)

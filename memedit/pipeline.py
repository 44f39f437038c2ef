"""Every command as one function: read this file first. The command line and the Python functions both call these.

Every step that takes time is kept in the run folder under a digest of all it depends on. A second run of the same
command finds it there, so a run that was killed continues where it stopped, and writes the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path

from memedit.changes.commands import run_add, run_diff, run_export, run_revert
from memedit.config.layers import layers_text
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.editing.dry_run import DryRun, plan_dry_run
from memedit.editing.edit_log import edit_log
from memedit.editing.layer_search import search_layers
from memedit.editing.ledger import Mode
from memedit.editing.ledger_files import read_ledger
from memedit.editing.moment_cache import run_stats
from memedit.editing.plan import check_edits
from memedit.editing.preserve import unasked_facts
from memedit.editing.resources import Pace, check_weights, streaming_note
from memedit.editing.retry import retry_failed
from memedit.editing.run import EditRun
from memedit.editing.start import RunStart, start_forget, start_run, write_base
from memedit.edits.edit import EditRequest, Finding
from memedit.edits.lint import in_file_order, lint
from memedit.errors import GateError, UnsupportedModelError, UsageError
from memedit.evaluation.drift import own_rows
from memedit.evaluation.evaluator import Evaluator, ModelAnswers
from memedit.evaluation.other_subjects import names_beside
from memedit.evaluation.subject_kept import subject_questions
from memedit.inspect_model import run_inspect
from memedit.model.chat_template import with_system_prompt
from memedit.model.load import ModelSource, at_hand, load, locate, open_tokenizer
from memedit.model.weights import applied
from memedit.progress import NoProgress, Progress
from memedit.ranks import ALONE, Ranks
from memedit.results.history import EditLog
from memedit.results.hub import Upload
from memedit.results.report import Report
from memedit.results.traces import TracingResult
from memedit.storage.cache import cache_limit, trim_cache
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.corpus import corpus_digest, documents
from memedit.storage.hub import plan_upload, upload
from memedit.tracing.files import check_folder, write_traces
from memedit.tracing.run import trace_all

__all__ = [
    "RunInputs", "run_add", "run_apply", "run_check", "run_diff", "run_dry_run", "run_evaluate", "run_export",
    "run_forget", "run_inspect", "run_layer_search", "run_log", "run_push", "run_revert", "run_stats", "run_trace",
]  # fmt: skip


@dataclass(frozen=True)
class RunInputs:
    """What a command is asked to do: the edits, the recipe, and where they came from."""

    recipe: Recipe
    requests: Sequence[EditRequest] = ()
    findings: Sequence[Finding] = ()
    """What the reader found wrong with the edit list."""
    facts: Sequence[EditRequest] = ()
    """Known facts that must stay."""
    sources: Mapping[str, str] = field(default_factory=dict[str, str])
    """For each setting where its value came from: a default, a file, a flag."""
    mode: Mode | None = None
    """For a model that was edited before: re-solve all its edits from the base, or edit it as it is ("on top")."""
    base: str | None = None
    """The model before all edits: for apply and forget if it was moved, for eval to score it beside the edited one."""
    arguments: Sequence[str] = ()
    """The command line, for the report."""
    preset: str | None = None
    """The name of the preset that the recipe's settings came from."""


def run_check(inputs: RunInputs) -> list[Finding]:
    """Find everything that is wrong with an edit list; if the recipe names a model, with its tokenizer too."""
    recipe = inputs.recipe
    if not recipe.model.path:
        return in_file_order([*inputs.findings, *lint(inputs.requests)])
    tokenizer, positions = open_tokenizer(locate(recipe.model), recipe.model)
    tokenizer = with_system_prompt(tokenizer, recipe.chat_system)
    return in_file_order([*inputs.findings, *check_edits(inputs.requests, tokenizer, recipe, positions)[1]])


def run_apply(inputs: RunInputs, progress: Progress | None = None, ranks: Ranks = ALONE) -> Report:
    """Edit a model and write the result to `recipe.output.dir`.

    A model that was edited before is edited again as `inputs.mode` says. `ranks` share the work. Raises EditListError
    with every finding before any heavy work, and the other subclasses of MemeditError.
    """
    return _edited(EditRun(_start(inputs), inputs.facts, progress or NoProgress(), ranks), inputs.arguments)


def run_forget(ids: Sequence[str], inputs: RunInputs, progress: Progress | None = None, ranks: Ranks = ALONE) -> Report:
    """Remove edits from an edited model, as if they had never been made: the others are solved again from the base.

    If none is left, the base is written. Raises UsageError for an id that is not in the model's ledger.
    """
    progress = progress or NoProgress()
    start = start_forget(ids, inputs.recipe, sources=inputs.sources, base=inputs.base)
    if start.requests:
        return _edited(EditRun(start, inputs.facts, progress, ranks), inputs.arguments)
    output = write_base(start, progress)
    return Report(command="forget", model=start.recipe.model.path, output=output, arguments=list(inputs.arguments))


def run_dry_run(inputs: RunInputs, progress: Progress | None = None) -> DryRun:
    """Plan what `apply` would do and cost; nothing is written. Raises what `apply` raises before its heavy work."""
    return plan_dry_run(EditRun(_start(inputs), (), progress or NoProgress()))


def _start(inputs: RunInputs) -> RunStart:
    start = start_run(
        inputs.requests, inputs.recipe, inputs.findings, sources=inputs.sources, mode=inputs.mode, base=inputs.base
    )
    return replace(start, preset=inputs.preset)


def _edited(job: EditRun, arguments: Sequence[str]) -> Report:
    """The steps of an edit run, one by one."""
    job.preflight()
    with job.run_folder() as run:
        # Refused: the same command is refused again, and another command has another run folder.
        with run.removed_on(UsageError, UnsupportedModelError):
            contexts = job.contexts(run)
            moments = job.moments()
            facts = job.known_facts(run)
            questions = job.subject_questions(run)
            rows = job.text_rows(run)
            before = job.scored(run, "before", facts, questions, rows)
            targets, engine = job.targets(run, contexts)
            update = job.update(contexts, moments, targets, engine)
            made = retry_failed(job, run, contexts, moments, targets, engine, update)
            weights = job.in_model(made.update.weights)
            with applied(job.lm, weights):
                after = job.scored(None, "after", facts, questions, rows, weights)
                said = job.answers_of_failed(after)
        measured = job.report(
            arguments, engine, before, after, facts, questions, made.targets, made.update, made.rounds
        )
        report = measured.with_answers(said)
        job.write(report, made.update, job.updated_ledger(contexts, moments, made.targets, after, made.rounds))
        job.finish(run)
    trim_cache(job.progress.note)
    return report


def run_log(model: str) -> EditLog:
    """List the edits of an edited model. Raises UsageError for a model that has no ledger."""
    folder = locate(ModelKnobs(path=model))
    ledger = read_ledger(folder)
    if ledger is None:
        hint = "give a folder that memedit apply wrote, with its folder memedit"
        raise UsageError(f"{model} has no ledger of edits (memedit/ledger.jsonl)", hint)
    return edit_log(model, ledger)


def run_push(
    folder: str,
    repo: str,
    *,
    private: bool = False,
    update: bool = False,
    records: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Upload:
    """Upload a folder that memedit wrote to the Hub; with `dry_run` only list what would be sent.

    Raises what `plan_upload` and `upload` raise.
    """
    progress = progress or NoProgress()
    plan = plan_upload(Path(folder).expanduser(), repo, records=records)
    for note in plan.notes:
        progress.warn(note)
    if dry_run:
        return plan
    with progress.phase("upload"):
        address = upload(plan, private=private, update=update)
    return plan.model_copy(update={"address": address})


def run_trace(
    inputs: RunInputs,
    *,
    own: bool = False,
    output: Path | None = None,
    draw: Callable[[TracingResult], Mapping[str, bytes]] | None = None,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> TracingResult:
    """Trace where a model recalls the facts of `inputs.requests`.

    With `own` each prompt's answer is the model's own next token, whatever the record says. With `output` the scores
    are written to that folder, with the files that `draw` makes of them. `ranks` share the facts.
    """
    progress, recipe = progress or NoProgress(), inputs.recipe
    cache_limit()
    if output is not None:
        check_folder(at_hand(recipe.model), output)
    folder = locate(recipe.model)
    with progress.phase("load"):
        base = Checkpoint.open(folder)
        memory = recipe.memory_limit
        check_weights(base, recipe.model, ranks.here, memory)
        ranks.open(ModelSource(folder, recipe.model, editing=False, memory=memory))
        lm, digest = load(folder, recipe.model, editing=False, memory=memory), base.digest
        lm = lm.with_system_prompt(recipe.chat_system)
        if lm.streamed and (said := streaming_note(lm, Pace.of(lm), recipe.memory)):
            progress.note(said)
    traced, store = trace_all(lm, digest, inputs.requests, recipe, progress, inputs.findings, own=own, ranks=ranks)
    if output is not None:
        with progress.phase("write"):
            tables = {f"{one.fact.id}/{kind}": table for one in traced.facts for kind, table in one.scores.items()}
            facts = [*(one.fact for one in traced.facts), *traced.unknown]
            write_traces(output, facts, tables, traced.average, draw(traced) if draw else {}, progress.note)
    store.remove()
    trim_cache(progress.note)
    return traced


def run_layer_search(inputs: RunInputs, progress: Progress | None = None) -> str:
    """Find the layers to edit by editing a sample of the list in each range; returns them as `3-8`.

    Raises GateError if no range makes a single edit of the sample succeed.
    """
    progress = progress or NoProgress()
    candidates = search_layers(list(inputs.requests), inputs.recipe, progress, list(inputs.findings))
    for candidate in candidates:
        progress.note(candidate.line)
    if candidates[0].value == 0:
        raise GateError("no edit of the sample succeeded in any range of layers", "check the edits: memedit check")
    first, last = candidates[0].layers
    return layers_text(range(first, last + 1))


def run_evaluate(
    inputs: RunInputs,
    *,
    others: Sequence[str] = (),
    adapters: Sequence[str] = (),
    text: str | None = None,
    generate: bool = False,
    held: Sequence[str] = (),
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> Report:
    """Evaluate a model on an edit list, beside its base (`inputs.base`) and beside the models of `others`.

    `adapters` are LoRA folders: the model is evaluated with each of them loaded, instead of alone. `text` is held-out
    text that every model reads, to measure drift; without it they read what the base writes. `generate` asks for longer
    free answers. `held` are digests of edits that succeeded right after they were made, to report how many were lost
    since. The base stays in memory meanwhile. `ranks` share the launches, but those of a model with an adapter.
    """
    recipe = inputs.recipe
    read = list(islice(documents(text), recipe.eval.drift_tokens)) if text else []
    unrelated = None
    if (spec := recipe.eval.unrelated) is not None:
        unrelated = " ".join(islice(documents(spec), max(recipe.eval.prefixes, default=0)))
    # The base stays open beside the model that is asked.
    memory = None if recipe.memory_limit is None else recipe.memory_limit // (2 if inputs.base else 1)
    evaluator = Evaluator(
        inputs.requests, inputs.facts, recipe, progress or NoProgress(), text=read, generate=generate, held=held,
        unrelated=unrelated, ranks=ranks, memory=memory,
    )  # fmt: skip
    if text:
        evaluator.digests["text"] = corpus_digest(text)
    base = evaluator.open(inputs.base) if inputs.base else None
    evaluator.name_removed(base)
    if base is not None and recipe.eval.derive:
        with evaluator.timed("facts"), evaluator.progress.phase("facts"):
            # In the order of a run: on the list that it edited, the facts are those that it was scored by.
            requests = sorted(evaluator.requests, key=lambda one: one.digest)
            names = names_beside(base, requests, recipe.seed)
            evaluator.questions = subject_questions(base, requests, names, chat=recipe.chat, seed=recipe.seed)
            if not inputs.facts:
                evaluator.made_facts = unasked_facts(base, requests, requests, names, recipe)
            if not text:
                evaluator.own_text = own_rows(base, recipe.seed)
    before = evaluator.trial(base, "before") if base else None
    path = recipe.model.path
    models: list[tuple[str, str | None]] = [(path, adapter) for adapter in adapters] or [(path, None)]
    models += [(other, None) for other in others]
    answers: dict[str, ModelAnswers] = {}
    for path, adapter in models:
        name = path if adapter is None else f"{path} + {adapter}"
        answers[name] = evaluator.trial(
            evaluator.open(path, adapter), "after" if not answers else f"after {name}", base
        )
    return evaluator.report(answers, inputs.base, before, inputs.arguments)

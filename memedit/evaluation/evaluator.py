"""Evaluate a model, its base and others on the same edit list."""

from __future__ import annotations

import shlex
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from memedit.config.recipe import Recipe
from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.evaluation.drift import drift_of, given_rows, passages
from memedit.evaluation.figures import differences, share_figure
from memedit.evaluation.forced import EditScores, agreement, facts_kept, says_object, score_edits, summarize
from memedit.evaluation.generated import UNRELATED, Writing, written
from memedit.evaluation.old_objects import name_old_objects
from memedit.evaluation.probes import derived
from memedit.evaluation.subject_kept import SubjectQuestion, chat_figure, subject_answers, subject_figure
from memedit.forward.perplexity import Passage
from memedit.forward.scoring import AnswerIds
from memedit.model.digests import of_tokenizer
from memedit.model.load import LanguageModel, ModelSource, load, locate
from memedit.model.tokens import SubjectLost
from memedit.model.weights import merge_
from memedit.progress import Progress
from memedit.ranks import ALONE, Ranks
from memedit.results.metrics import METRICS
from memedit.results.report import EditResult, ModelReport, Report, Scores
from memedit.results.versions import versions
from memedit.storage.artifacts import digest_file, digest_of
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.lora import CONFIG, WEIGHTS, read_adapter


@dataclass(frozen=True)
class ModelAnswers:
    """The answers of one model."""

    vocabulary: str
    """Identifies the tokenizer: tokens of two models are compared only if these are equal."""
    edit_scores: list[EditScores]
    facts: list[bool]
    subjects: list[str]
    """The answer to each question about an edited subject."""
    writing: list[Writing]
    read: list[Passage] = field(default_factory=list)

    @cached_property
    def rows(self) -> list[dict[str, float | None]]:
        """All values of each edit by metric, forced and free."""
        pairs = zip(self.edit_scores, self.writing, strict=True)
        free = [{f"generated.{name}": value for name, value in one.measures.items()} for one in self.writing]
        return [
            {**scored.record(), **scored.groups, **said, **mine.open}
            for (scored, mine), said in zip(pairs, free, strict=True)
        ]


class Evaluator:
    """Ask models the probes of one edit list, and report on their answers.

    `text` holds documents to read. Every model writes after the edits' own prompts; with `generate` after all others
    too, and on from openings. `held` are digests of edits that held right after they were made. `unrelated` is text
    for prompts to stand behind; without it a passage of ours. `memory`: the bytes that each model may take.
    """

    def __init__(
        self,
        requests: Sequence[EditRequest],
        facts: Sequence[EditRequest],
        recipe: Recipe,
        progress: Progress,
        *,
        text: Sequence[str] = (),
        generate: bool = False,
        held: Collection[str] = (),
        unrelated: str | None = None,
        ranks: Ranks = ALONE,
        memory: int | None = None,
    ) -> None:
        self.requests, self.facts, self.recipe, self.progress = list(requests), list(facts), recipe, progress
        self.ranks, self.memory = ranks, memory
        self.made_facts: list[EditRequest] = []
        """Facts of the base's own answers; asked where none are given."""
        self.questions: list[SubjectQuestion] = []
        """What is asked about the edited subjects."""
        self.text, self.generate, self.held = list(text), generate, set(held)
        self.own_text: list[AnswerIds] = []
        """Rows that the base wrote; read where no text is given."""
        self.unrelated = unrelated or UNRELATED
        self.digests: dict[str, str] = {"edits": digest_of([request.public() for request in requests])}
        self.device = ""
        self.timings: dict[str, float] = {}
        self.notes: dict[str, None] = {}

    @property
    def known_facts(self) -> list[EditRequest]:
        """The facts that are asked: those given, or else those made."""
        return self.facts or self.made_facts

    def name_removed(self, base: LanguageModel | None) -> None:
        """Take what the base says as the old object of the removals that name none; without a base, note them."""
        if base is not None:
            self.requests = name_old_objects(base, self.requests, chat=self.recipe.chat)
        if unknown := sum(not request.answer for request in self.requests):
            said = "1 removal has no object_old" if unknown == 1 else f"{unknown:,} removals have no object_old"
            self.notes[f"{said}, so it is not known what was removed: give it, or name the base (--base)"] = None

    def open(self, path: str, adapter: str | None = None) -> LanguageModel:
        """Open a model, with the change of an adapter added if one is named."""
        knobs = self.recipe.model.model_copy(update={"path": path})
        with self.progress.phase("load"):
            folder = locate(knobs)
            where = Path(adapter or "").expanduser()
            # Before the model, which takes far longer to open: an adapter that cannot be read is reported at once.
            change = None if adapter is None else read_adapter(where)
            if change is None:
                self.ranks.open(ModelSource(folder, knobs, editing=False, memory=self.memory))
            lm = load(folder, knobs, editing=False, memory=self.memory)
            lm = lm.with_system_prompt(self.recipe.chat_system)
            if lm.streamed and change is not None:
                raise UsageError(
                    f"{adapter} cannot be added to a model whose blocks are read from disk (--memory)",
                    f"merge it first: memedit export {shlex.quote(adapter or '')} --to full -m {shlex.quote(path)} "
                    "-o MERGED",
                )
            if lm.streamed:
                self.progress.note(f"{path} does not fit in --memory: its blocks are read from disk as they are needed")
            self.digests[path], self.device = Checkpoint.open(folder).digest, str(lm.device)
            if adapter is not None and change is not None:
                merge_(lm, change, adapter)
                lm = replace(lm, source=None)  # what another process opens would lack the change
                self.digests[adapter] = digest_of({name: digest_file(where / name) for name in (CONFIG, WEIGHTS)})
        return lm

    @contextmanager
    def timed(self, name: str) -> Any:
        """Measure the seconds of a phase for the report."""
        start = time.monotonic()
        yield
        self.timings[name] = time.monotonic() - start

    def trial(self, lm: LanguageModel, name: str, base: LanguageModel | None = None) -> ModelAnswers:
        """Ask one model all probes; with `base`, both read the held-out text."""
        chat, knobs = self.recipe.chat, self.recipe.eval
        beside = base if base is not None and vocabulary_of(base) == vocabulary_of(lm) else None
        if base is not None and beside is None:
            self.notes["a model's tokens are not those of the base: no locality, no drift but perplexity"] = None
        try:
            with self.timed(name), self.progress.phase(name, None, "answers") as advance:
                edit_scores = score_edits(
                    lm, self.requests, chat=chat, derive=knobs.derive, plus=self.generate, advance=advance,
                    ranks=self.ranks,
                )  # fmt: skip
                facts = says_object(lm, self.known_facts, chat=chat, advance=advance, ranks=self.ranks)
                subjects = subject_answers(lm, self.questions, advance=advance, ranks=self.ranks)
            with self.timed(f"{name}, writing"), self.progress.phase("writing", None, "texts") as advance:
                writing, notes = written(
                    lm, self.requests, knobs, chat=chat, unrelated=self.unrelated, bare=not self.generate,
                    advance=advance, ranks=self.ranks,
                )  # fmt: skip
        except SubjectLost as error:
            raise UsageError(f"the edit list cannot be asked: {error}", "leave --chat out") from error
        edit_scores = [
            replace(one, written=mine.measures) if request.evaluate == "contains" else one
            for one, mine, request in zip(edit_scores, writing, self.requests, strict=True)
        ]
        self.notes |= dict.fromkeys(notes)
        rows: list[AnswerIds] = []
        if name != "before":
            rows = given_rows(lm, self.text, knobs.drift_tokens) if self.text else self.own_text if beside else []
        read: list[Passage] = []
        if rows:
            with (
                self.timed(f"{name}, reading"),
                self.progress.phase("reading", sum(map(len, rows)), "tokens") as advance,
            ):
                read = passages(lm, rows, beside, advance)
        return ModelAnswers(vocabulary_of(lm), edit_scores, facts, subjects, writing, read)

    def scores(self, trial: ModelAnswers, before: ModelAnswers | None = None) -> Scores:
        """The scores of a model's answers; with the base's answers, locality too."""
        alike = before is not None and before.vocabulary == trial.vocabulary
        found = summarize(trial.edit_scores, before.edit_scores if before is not None and alike else None)
        names = dict.fromkeys(name for one in trial.writing for name in one.measures)
        generated = {
            name: made for name in names if (made := share_figure(_column(trial, f"generated.{name}"))) is not None
        }
        free = {
            one.name: share_figure(_column(trial, one.name), signed=not one.share)
            for one in METRICS
            if one.kind == "text"
        }
        found = found.model_copy(update={"generated": generated, **free})
        return found.with_chat(chat_figure(self.questions, trial.subjects))

    def compared(
        self, model: str, trial: ModelAnswers, before: ModelAnswers | None, first: ModelAnswers
    ) -> ModelReport:
        """Make the part of the report on one model; `first`: the answers of the first model."""
        firm = before.facts if before else [True] * len(self.known_facts)
        here = zip(trial.edit_scores, self.requests, strict=True)
        held = [float(one.holds) for one, request in here if request.digest in self.held and request.answer]
        return ModelReport(
            model=model,
            scores=self.scores(trial, before),
            difference=differences(before.rows, trial.rows) if before else {},
            against_first={} if trial is first else differences(first.rows, trial.rows),
            drift=drift_of(trial.read, own=not self.text),
            kept={
                **facts_kept(self.known_facts, firm, trial.facts, self.requests),
                "subjects": subject_figure(self.questions, before.subjects, trial.subjects) if before else None,
            },
            retention=share_figure(held),
        )

    def report(
        self,
        trials: Mapping[str, ModelAnswers],
        base: str | None,
        before: ModelAnswers | None,
        arguments: Sequence[str],
    ) -> Report:
        """Make the report; its main scores are those of the first model."""
        first = next(iter(trials.values()))
        models = [self.compared(model, trial, before, first) for model, trial in trials.items()]
        lead = models[0]
        if gone := len(self.held - {request.digest for request in self.requests}):
            self.notes[f"{gone:,} of {len(self.held):,} edits that held right after are not in this list"] = None
        return Report(
            command="eval",
            versions=versions(),
            arguments=list(arguments),
            model=lead.model,
            base=base,
            recipe=self.recipe.model_dump(mode="json"),
            device=self.device,
            digests=self.digests,
            edits=len(self.requests),
            before=self.scores(before) if before else None,
            after=lead.scores,
            difference=lead.difference,
            drift=lead.drift,
            kept=lead.kept,
            retention=lead.retention,
            models=tuple(models) if len(models) > 1 else (),
            made_facts=len(self.made_facts),
            derived=derived(self.requests) if self.recipe.eval.derive else {},
            timings=self.timings,
            notes=tuple(self.notes),
            per_edit=tuple(self._results(first, before)),
        )

    def _results(self, now: ModelAnswers, before: ModelAnswers | None) -> Iterator[EditResult]:
        alike = before is not None and before.vocabulary == now.vocabulary
        local = agreement(now.edit_scores, before.edit_scores) if before and alike else [{} for _ in now.edit_scores]
        for n in range(len(self.requests)):
            yield self._result(n, now, before, local[n])

    def _result(self, n: int, now: ModelAnswers, before: ModelAnswers | None, local: Mapping[str, float]) -> EditResult:
        request = self.requests[n]
        said = {"after": now.writing[n].said}
        if before:
            said["before"] = before.writing[n].said
        unknown = request.remove and not request.answer
        return EditResult(
            id=request.id,
            status="skipped" if unknown else "ok" if now.edit_scores[n].holds else "failed",
            reason="its old object is not known" if unknown else None,
            edit=request.public(),
            before=before.rows[n] if before else {},
            after={**now.rows[n], **local},
            said=said,
        )


def vocabulary_of(lm: LanguageModel) -> str:
    """Identify the meaning of a model's token ids: digest of its tokenizer, and size of its vocabulary."""
    return f"{of_tokenizer(lm.tokenizer)} {lm.architecture.vocabulary}"


def _column(trial: ModelAnswers, name: str) -> list[float]:
    return [value for row in trial.rows if (value := row.get(name)) is not None]

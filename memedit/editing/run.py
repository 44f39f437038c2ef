"""The steps of one edit run. Each slow step is kept in the run folder, and read from there if it was done before."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch

from memedit.changes.stored_names import StoredNames
from memedit.config.layers import layers_text, unpublished
from memedit.config.presets import foreign_preset
from memedit.editing.auto_layers import choose_traced_layers
from memedit.editing.batches import suffix_of
from memedit.editing.contexts import context_shape, sample_contexts
from memedit.editing.ledger import Ledger
from memedit.editing.ledger_files import digest_of_ledger, ledger_files
from memedit.editing.ledger_update import (
    check_moments,
    check_width,
    edit_results,
    groups_of,
    ledger_report,
    merge_targets,
    provenance_of,
    retained,
    reusable_rows,
    updated_ledger,
)
from memedit.editing.moment_cache import MomentPlan, factor_of, measure_missing, moment_of, plan_moments
from memedit.editing.plan import Contexts, Plan, encode_contexts, make_plan
from memedit.editing.preserve import choose_preserved, unasked_facts
from memedit.editing.resources import Pace, TimeLeft, Work, check_room, check_weights, estimate_seconds, streaming_note
from memedit.editing.rounding import Rounding
from memedit.editing.solve import Update
from memedit.editing.solve_edits import solve_edits
from memedit.editing.spoken import SPOKEN_TOKENS
from memedit.editing.start import RunStart
from memedit.editing.target_search import Search, SearchEngine, searched_prompts
from memedit.editing.targets import Targets, not_found, search_report
from memedit.edits.edit import EditRequest, shown
from memedit.edits.lint import first_of_each
from memedit.edits.read import write_lines
from memedit.errors import UsageError
from memedit.evaluation.drift import OWN_LENGTH, OWN_ROWS, after_base, drift_of, own_rows, passages
from memedit.evaluation.forced import EditScores, facts_kept, says_object, score_changes, score_edits, summarize
from memedit.evaluation.generated import needs_free_answer, with_free_answers, written
from memedit.evaluation.made_facts import ANSWER_TOKENS, ASKED, Beside, facts_made
from memedit.evaluation.old_objects import name_old_objects
from memedit.evaluation.other_subjects import Names, names_begun, names_beside, naming_tokens
from memedit.evaluation.probes import list_probes
from memedit.evaluation.subject_kept import (
    MOST_SUBJECTS,
    SUBJECT_TOKENS,
    SubjectQuestion,
    chat_figure,
    subject_answers,
    subject_figure,
    subject_questions,
)
from memedit.forward.perplexity import Passage
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel, ModelSource, load, locate
from memedit.model.tokens import chat_openings
from memedit.numerics.delta import Delta
from memedit.progress import Progress
from memedit.ranks import ALONE, Ranks
from memedit.results.report import Report, RetryRound, SearchReport
from memedit.results.units import plain_json, range_text
from memedit.results.versions import versions
from memedit.show import card
from memedit.storage.artifacts import Store, digest_of
from memedit.storage.base_card import read_base_card
from memedit.storage.cache import cache_dir
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import delta_parts, originals_bytes
from memedit.storage.writer import FileData, check_output, write_checkpoint

ANSWERS_SHOWN = 20
"""Failed edits whose answers are shown, in the terminal, on the page and in the card: they are generated
in one batch."""


class RunScores(NamedTuple):
    """What a model answers to everything that a run asks."""

    edits: list[EditScores]
    facts: list[bool]
    """For each known fact whether the model says it."""
    subjects: list[str]
    """The answer to each question about an edited subject."""
    read: list[Passage]
    """What it read of the text."""


class EditRun:
    """One edit run: its inputs, the open model, and the steps of `apply` in their order."""

    def __init__(self, start: RunStart, facts: Sequence[EditRequest], progress: Progress, ranks: Ranks = ALONE) -> None:
        self.recipe, self.history, self.facts, self.progress = start.recipe, start.history, list(facts), progress
        self.ranks, recipe = ranks, start.recipe
        self.timings: dict[str, float] = {}
        self.left: TimeLeft | None = None
        """The time that the run still takes; None before it begins."""
        self.used = ExitStack()
        """Marks what this run uses of the cache; closed when the run ends."""
        self.traces: Store | None = None
        """What tracing kept, if it chose the layers."""
        self.searched: SearchReport | None = None
        """How the search of the targets ended."""
        # A base that the ledger names was found on this machine; its name is not looked up again.
        self.folder = start.base.folder if start.base else locate(recipe.model)
        self.out = Path(recipe.output.dir).expanduser() if recipe.output.dir else None
        if self.out is not None:
            check_output(self.folder, self.out, overwrite=recipe.output.overwrite, force=recipe.output.force)
        with self.timed("load", None):
            self.base = start.base or Checkpoint.open(self.folder)
            memory = recipe.memory_limit
            check_weights(self.base, recipe.model, ranks.here, memory)
            ranks.open(ModelSource(self.folder, recipe.model, memory=memory))
            # Read before the work: a card that cannot be read costs a warning, not the run.
            self.base_card = read_base_card(self.folder, recipe.model.path)
            opened = load(self.folder, recipe.model, memory=memory)
            self.lm: LanguageModel = opened.with_system_prompt(recipe.chat_system)
            requests = name_old_objects(self.lm, start.requests, chat=recipe.chat)
            self.plan: Plan = make_plan(requests, self.lm.tokenizer, self.lm.architecture, recipe, start.findings)
        check_width(self.history.ledger, self.lm.architecture.width)
        self.requests = [edit.request for edit in self.plan.edits]
        shape = self.lm.architecture.shape
        warnings = (
            self.base_card.warning, foreign_preset(start.preset, shape), unpublished(recipe.method.layers, shape)
        )  # fmt: skip
        self.notes: tuple[str, ...] = tuple(note for note in warnings if note)
        for note in self.notes:
            self.progress.warn(note)
        if self.lm.streamed and (said := streaming_note(self.lm, self.pace, recipe.memory)):
            self.progress.note(said)
        if self.base.fp8:
            computed = str(self.lm.dtype).removeprefix("torch.")
            self.progress.note(
                f"FP8 weights: computed in {computed}, and written as FP8 with the scales that they have"
            )
        if recipe.method.layers == "auto":
            begun = time.monotonic()
            self.recipe, self.plan, why, self.traces = choose_traced_layers(
                self.lm, self.base.digest, recipe, self.plan, self.progress, ranks
            )
            self.notes, self.timings["trace"] = (*self.notes, why), time.monotonic() - begun
        self.groups = groups_of(self.plan.edits, joint=self.recipe.joint)
        self.kept = reusable_rows(self.history, self.plan.edits, self.groups, self.base.digest)
        """Edits whose target the ledger has: {number of the edit: row in the ledger}."""
        for finding in self.history.conflicts:
            self.progress.note(finding.line)
        earlier = {entry.edit.id for entry in self.history.ledger.entries} if self.history.ledger else set[str]()
        told = (one for one in self.plan.warnings if one.edit not in earlier and one not in self.history.conflicts)
        for line in first_of_each(told):
            self.progress.warn(line)
        self.tensors = StoredNames.of(self.lm.model, self.base)
        """Where the checkpoint holds the model's parameters."""
        self.names = {layer: self.tensors.name(self.lm.architecture.parameter(layer)) for layer in self.plan.layers}
        self.stored = {layer: self.tensors.weight(self.lm, layer) for layer in self.plan.layers}
        """The weights to edit, (D, F), in the checkpoint's own dtype; FP8 weights as numbers, float32."""

    @contextmanager
    def timed(self, name: str, total: int | None, unit: str = "") -> Any:
        """Show a phase to the user, and keep its seconds for the report; after a long one tell what is left."""
        start = time.monotonic()
        with self.progress.phase(name, total, unit) as advance:
            yield advance
        seconds = time.monotonic() - start
        self.timings[name] = self.timings.get(name, 0.0) + seconds
        if self.left is not None and (told := self.left.end(name, seconds)):
            self.progress.note(told)

    @contextmanager
    def run_folder(self) -> Any:
        """Lock the run's folder. It stays if the run does not finish, so that the next one continues from it."""
        if self.out is None:
            raise UsageError("no output folder was given", "name one: -o OUT")
        store = self.store()
        with store.locked(self.progress.note), self.used:
            # Another process may have written the output while this one waited.
            knobs = self.recipe.output
            check_output(self.folder, self.out, overwrite=knobs.overwrite, force=knobs.force)
            yield store

    def finish(self, run: Store) -> None:
        """Remove what was kept for another try: the output is written."""
        run.remove()
        if self.traces is not None:
            self.traces.remove()

    def store(self) -> Store:
        """The folder of this run, named by the digest of its edits, model and recipe."""
        record = [request.public() for request in (*self.requests, *self.facts)]
        inputs = {"edits": digest_of(record), "model": self.base.digest, "recipe": self.recipe.digest}
        if self.history.ledger is not None:
            inputs["ledger"] = digest_of_ledger(self.history.ledger)
        return Store(cache_dir() / "runs" / digest_of(inputs)[:16], model=self.recipe.model.path)

    @cached_property
    def moment_plan(self) -> MomentPlan:
        """The second moments that the cache has, and those to be measured."""
        ledger = self.history.ledger if self.history.mode == "re-solve" else None
        solved_with = ledger.about.moments if ledger else None
        return plan_moments(self.lm, self.folder, self.plan.layers, self.recipe, solved_with)

    def preflight(self) -> None:
        """Report the time, memory and disk that the run takes. Raises ResourceError if memory or disk is too small."""
        plan, architecture = self.moment_plan, self.lm.architecture
        written = self.base.output_size(keep_copies=self.recipe.output.keep_copies)
        resources = check_room(written, self.out, self.recipe.output.link, architecture, self.plan.layers, plan.missing)
        self.left = TimeLeft(self.takes())
        self.progress.note(f"takes about {range_text(*self.left.seconds)}, {resources}")
        recipe, edits = self.recipe, len(self.requests)
        self.progress.detail(
            f"plan: {edits:,} edits, {len(self.kept):,} targets from the ledger; {recipe.method.name} at layers "
            f"{layers_text(self.plan.layers)}; {self.lm.dtype} on {self.lm.device}".replace("torch.", "")
        )
        self.progress.detail(f"moments: {len(plan.cached)} of {len(plan.on)} layers are in the cache")

    def takes(self) -> dict[str, tuple[float, float]]:
        """Estimate the seconds that each phase takes, at least and at most."""
        plan, recipe, polish = self.moment_plan, self.recipe, self.recipe.polish
        count, _ = context_shape(self.lm.tokenizer, recipe.contexts, chat=recipe.chat)
        suffixes = [suffix_of(edit) for edit in self.plan.edits]
        heads = [edit.prompt.subject_from for edit in self.plan.edits]
        own = [len(edit.prompt.ids) + len(edit.target) - 1 for edit in self.plan.edits]
        mean = sum(own) / len(own) + 1
        read = plan.tokens if plan.missing else 0
        makes, names = recipe.eval.makes, naming_tokens(self.requests)
        made = facts_made(self.requests) if makes and not self.facts else 0
        text = OWN_ROWS * OWN_LENGTH if makes and not self.lm.streamed else 0
        scores = Work(
            written=SUBJECT_TOKENS * min(MOST_SUBJECTS, len(self.requests)) if makes else 0,
            scored=text + round(mean * (len(list_probes(self.scored_requests)) + len(self.facts) + made)),
        )
        works = {
            "moments": Work(read=read, written=read if plan.own_text else 0), "before": scores, "after": scores,
            "targets": Work(
                searched=(min(count, recipe.searched_contexts or count) + 1)
                * sum(tokens for n, tokens in enumerate(suffixes) if n not in self.kept)
            ),
        }  # fmt: skip
        if makes:
            asked = names_begun(self.requests) + ASKED * made  # which names own a new object, and what is known
            works["facts"] = Work(written=names + made * ANSWER_TOKENS, scored=round(mean * asked))
            works["text"] = Work(written=text)
        if polish.steps:
            spoken = 0.0 if recipe.chat or not chat_openings(self.lm.tokenizer) else polish.spoken
            each = 1 + polish.ratio
            works["polish"] = Work(
                written=(0 if makes else names) + (SPOKEN_TOKENS * len(self.requests) if spoken else 0),
                # In chat a row is the turn behind the subject, and an answer about as long as the prompt.
                polished=round(polish.steps * (each * (sum(own) - sum(heads)) + 2 * spoken * sum(own))),
                before_subjects=round(polish.steps * (each * sum(heads) + recipe.contexts.tokens * len(heads))),
            )
        return {
            name: estimate_seconds(self.lm, self.plan.layers, work, recipe.target, self.pace)
            for name, work in works.items()
        }

    @cached_property
    def pace(self) -> Pace:
        """How fast the model runs."""
        return Pace.of(self.lm)

    def contexts(self, run: Store) -> Contexts:
        """The contexts (the ledger's own if there is one), and every edit's prompts under them."""
        return self.encode(self._context_texts(run))

    def encode(self, texts: Sequence[str]) -> Contexts:
        """Tokenize every edit's prompt under these contexts; the first must be the empty one.

        Raises UsageError where the model cannot read one: the contexts of a ledger can be of any length.
        """
        recipe, shape = self.recipe, self.lm.architecture
        contexts = encode_contexts(self.plan.edits, texts, self.lm.tokenizer, chat=recipe.chat, seed=recipe.seed)
        for edit, prompts in zip(self.plan.edits, contexts.prompts, strict=True):
            longest = max(len(ids) for one in prompts for ids in (one.ids, *one.strangers)) + len(edit.target) - 1
            if not shape.fits(longest):
                raise UsageError(
                    f"edit {shown(edit.request.id)} behind a context is {longest:,} tokens long, and this model takes "
                    f"{shape.positions:,}",
                    "make its prompt shorter; if the contexts are a ledger's, copy both files of the ledger again",
                )
        return contexts

    def _context_texts(self, run: Store) -> list[str]:
        if self.history.ledger is not None:
            return list(self.history.ledger.about.contexts)
        knobs, seed = self.recipe.contexts, self.recipe.seed
        with self.timed("contexts", None):
            chat = self.recipe.chat
            on = {"model": self.base.digest, "knobs": knobs.model_dump(mode="json"), "seed": seed, "chat": chat}
            return run.recall_json("contexts", on, lambda: list(sample_contexts(self.lm, knobs, seed, chat=chat)))

    def moments(self) -> MomentPlan:
        """Measure the second moments that the cache lacks. A layer's moment is read from there when it is needed."""
        plan = self.moment_plan
        check_moments(self.history, plan.on)
        with self.timed("moments", plan.tokens if plan.missing else None, "tokens") as advance:
            measure_missing(self.lm, plan, self.progress, advance, self.used, self.ranks)
        return plan

    @cached_property
    def order(self) -> list[int]:
        """The numbers of the edits, sorted by their digests."""
        return sorted(range(len(self.requests)), key=lambda n: self.requests[n].digest)

    @cached_property
    def scored_requests(self) -> list[EditRequest]:
        """The edits with the probes that they are scored by."""
        return [one.without_probes() for one in self.requests] if self.recipe.eval.level == "none" else self.requests

    @cached_property
    def other_subjects(self) -> Names:
        """The subjects that the model, unedited, names beside the edited ones."""
        return names_beside(self.lm, [self.requests[n] for n in self.order], self.recipe.seed)

    def _held(self, number: int) -> bool:
        """Whether an edit keeps its state, since the run edits on top of it."""
        return self.history.mode == "on top" and number in self.kept

    def _preserved(self, requests: Sequence[EditRequest]) -> Beside:
        return choose_preserved(requests, self.other_subjects, self.recipe.polish, self.recipe.seed)

    def known_facts(self, run: Store) -> list[EditRequest]:
        """The facts that must stay: those given, or else answers of the unedited model, as the recipe says."""
        if self.recipe.eval.level == "none":
            return []
        if self.facts or not self.recipe.eval.makes:
            return self.facts

        def make() -> list[dict[str, Any]]:
            moving = [self.requests[n] for n in self.order if not self._held(n)]
            facts = unasked_facts(
                self.lm, [self.requests[n] for n in self.order], moving, self.other_subjects, self.recipe
            )
            return [fact.public() for fact in facts]

        with self.timed("facts", None):
            made = run.recall_json("facts", {"model": self.base.digest}, make)
        return [EditRequest.model_validate(one) for one in made]

    def subject_questions(self, run: Store) -> list[SubjectQuestion]:
        """The questions that tell whether the edited subjects are still themselves, if the recipe says so."""
        if not self.recipe.eval.makes:
            return []

        def make() -> list[dict[str, Any]]:
            requests = [self.requests[n] for n in self.order]
            asked = subject_questions(
                self.lm, requests, self.other_subjects, chat=self.recipe.chat, seed=self.recipe.seed
            )
            return [one.model_dump(mode="json") for one in asked]

        with self.timed("facts", None):
            made = run.recall_json("subjects", {"model": self.base.digest}, make)
        return [SubjectQuestion.model_validate(one) for one in made]

    def text_rows(self, run: Store) -> list[AnswerIds]:
        """Text that the unedited model writes, to be read before and after the edit, if the recipe says so."""
        if not self.recipe.eval.makes:
            return []
        with self.timed("text", None):
            made = run.recall_json("text", {"model": self.base.digest}, lambda: own_rows(self.lm, self.recipe.seed))
        return [tuple(row) for row in made]

    def scored(
        self,
        run: Store | None,
        name: str,
        facts: Sequence[EditRequest],
        questions: Sequence[SubjectQuestion],
        rows: Sequence[AnswerIds],
        edited: Mapping[int, torch.Tensor] | None = None,
    ) -> RunScores:
        """Score every edit, fact, question and row of text on the model as it is now, with the `edited` weights of some
        layers.

        Read from `run`, if given, if it was done before.
        """
        chat, knobs, ranks = self.recipe.chat, self.recipe.eval, self.ranks.edited(edited or {})

        def measure() -> dict[str, Any]:
            edit_scores = score_edits(self.lm, self.scored_requests, chat=chat, advance=advance, ranks=ranks)
            edit_scores = with_free_answers(self.lm, self.requests, edit_scores, knobs, chat=chat, ranks=ranks)
            said = says_object(self.lm, facts, chat=chat, advance=advance, ranks=ranks)
            answers = subject_answers(self.lm, questions, advance=advance, ranks=ranks)
            read = [asdict(one) for one in passages(self.lm, rows)]
            return {"edits": [asdict(one) for one in edit_scores], "facts": said, "subjects": answers, "read": read}

        # The settings that decide whether facts are made, and how long answers are, do not name the run folder.
        on = {
            "model": self.base.digest, "facts": digest_of([fact.public() for fact in facts]),
            "subjects": digest_of([one.model_dump(mode="json") for one in questions]), "text": digest_of(rows),
        }  # fmt: skip
        on |= {"probes": knobs.level} if knobs.level == "none" else {}
        on |= {"tokens": knobs.tokens} if any(map(needs_free_answer, self.requests)) else {}
        if run is not None and run.find_json(name, on) is not None:
            self.progress.detail(f"{name}: found in the run folder")
        with self.timed(name, None, "answers") as advance:
            scores = run.recall_json(name, on, measure) if run else measure()
        edits, read = [EditScores(**one) for one in scores["edits"]], [Passage(**one) for one in scores["read"]]
        return RunScores(edits, scores["facts"], scores["subjects"], read)

    def targets(self, run: Store, contexts: Contexts) -> tuple[Targets, SearchEngine]:
        """Search the targets that the ledger does not have, batch by batch; each batch is kept in the run folder."""
        plan = self.plan
        searched = searched_prompts(contexts.prompts, self.recipe)
        search = Search(self.lm, plan.edits, searched, plan.layers[-1], self.recipe, len(plan.layers))
        rest = [n for n in range(len(plan.edits)) if n not in self.kept]
        with self.timed("targets", len(rest), "edits") as advance:
            engine = search.choose_engine()
            self.progress.detail(f"targets: {engine.reason}")
            on = {"contexts": list(contexts.texts), "layer": search.layer, "engine": engine.kind.__name__}
            found = search.run(run, on, engine.kind, advance, rest, self.ranks) if rest else None
        if found is not None:
            self.searched = search_report(found)
            self.progress.detail(self.searched.line)
            if note := not_found(self.searched, self.recipe):
                self.notes = (*self.notes, note)
                self.progress.warn(note)
        return merge_targets(self.history, self.kept, found, len(plan.edits), self.lm.architecture.width), engine

    def update(
        self,
        contexts: Contexts,
        moments: MomentPlan,
        targets: Targets,
        engine: SearchEngine,
        retried: Collection[int] = (),
    ) -> Update:
        """Solve the change of every layer.

        Rows are ordered by the digests of their edits, so the order of the list changes no bit. On top, an edit whose
        target the ledger has keeps its state, unless it was `retried` in this run.
        """
        method, edits = self.recipe.method, self.plan.edits
        prompts = [contexts.prompts[n] for n in self.order]
        order, held = self.order, torch.tensor([self._held(n) and n not in retried for n in self.order])
        update = solve_edits(
            self.lm, [edits[n] for n in order], prompts, targets.wanted[order], held,
            lambda layer: factor_of(moments, layer, method), self.stored, self.recipe,
            preserve=self._preserved, rounding=self.rounding(moments), whole=engine.whole, phase=self.timed,
            ranks=self.ranks,
        )  # fmt: skip
        if moved := [one.layer for one in update.layers if one.on_cpu]:
            note = f"the GPU has too little memory to solve or round layers {layers_text(moved)}: the CPU did it"
            self.notes = tuple(dict.fromkeys((*self.notes, note)))
            self.progress.note(note)
        return update

    def rounding(self, moments: MomentPlan) -> Rounding:
        """How changes are rounded into the stored weights."""
        architecture = self.lm.architecture
        return Rounding(
            self.recipe.output.rounding,
            lambda layer: moment_of(moments, layer),
            lambda layer: self.tensors.grid(architecture, architecture.parameter(layer)),
        )

    def answers_of_failed(self, after: RunScores) -> dict[str, str]:
        """What the model, as it is now, writes after the prompts of the first failed edits; by id."""
        # Some have their answers in their scores.
        failed = [request for request, one in zip(self.requests, after.edits, strict=True)
                  if not one.holds and one.said is None][:ANSWERS_SHOWN]  # fmt: skip
        if not failed:
            return {}
        writing, _ = written(self.lm, failed, self.recipe.eval, chat=self.recipe.chat, bare=True)
        return {request.id: one.said for request, one in zip(failed, writing, strict=True)}

    def updated_ledger(
        self,
        contexts: Contexts,
        moments: MomentPlan,
        targets: Targets,
        after: RunScores,
        rounds: Sequence[RetryRound],
    ) -> Ledger:
        """Make the ledger of the edited model."""
        on, history, plan = self.base.digest, self.history, self.plan
        about = provenance_of(history, self.recipe, on, plan.layers, contexts.texts, moments.on)
        return updated_ledger(history, about, plan.edits, self.groups, self.kept, targets, after.edits, on, rounds)

    def in_model(self, weights: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """The same weights (D, F), on the model's device and in its dtype."""
        return {n: weight.to(self.lm.device, self.lm.dtype) for n, weight in weights.items()}

    def report(
        self, arguments: Sequence[str], engine: SearchEngine, before: RunScores, after: RunScores,
        facts: Sequence[EditRequest], questions: Sequence[SubjectQuestion], targets: Targets, update: Update,
        rounds: Sequence[RetryRound] = (),
    ) -> Report:  # fmt: skip
        """Make the report of the run."""
        skipped = (*self.plan.skipped, *self.history.duplicates)
        earlier, retention = retained(self.history, before.edits, after.edits)
        return Report(
            command=self.history.command, versions=versions(), arguments=list(arguments), model=self.recipe.model.path,
            output=self.recipe.output.dir, recipe=self.recipe.model_dump(mode="json"), device=str(self.lm.device),
            engine=engine.reason, edits=len(self.requests), layers=update.layers, search=self.searched,
            polish=update.polish, redo=tuple(rounds),
            made_facts=0 if self.facts else len(facts),
            before=summarize(before.edits).with_chat(chat_figure(questions, before.subjects)),
            after=summarize(after.edits, before.edits).with_chat(chat_figure(questions, after.subjects)),
            difference=score_changes(before.edits, after.edits),
            kept={
                **facts_kept(facts, before.facts, after.facts, self.requests),
                "subjects": subject_figure(questions, before.subjects, after.subjects), **earlier,
            },
            retention=retention, drift=drift_of(after_base(after.read, before.read), own=True),
            ledger=ledger_report(self.history, self.groups, self.kept), timings=self.timings, notes=self.notes,
            digests={"model": self.base.digest, "edits": digest_of([r.public() for r in self.requests])},
            per_edit=edit_results(self.requests, before.edits, after.edits, targets, skipped, rounds),
        )  # fmt: skip

    def write(self, report: Report, update: Update, ledger: Ledger) -> None:
        """Write the output folder, and verify it."""
        assert self.out is not None
        deltas: dict[str, Delta] = {self.names[layer]: delta for layer, delta in update.deltas.items()}
        architecture = self.lm.architecture
        weights = {self.names[n]: architecture.turned(one).contiguous() for n, one in update.weights.items()}
        # What grows with the number of edits is encoded part by part while it is written.
        extra: dict[str, FileData | None] = {
            "README.md": card.edited_model_card(report, self.base_card).encode(),
            "memedit/run.json": plain_json(report.model_dump_json(indent=2, exclude={"per_edit"})).encode(),
            "memedit/edits.jsonl": (write_lines([one]).encode() for one in self.requests),
            "memedit/results.jsonl": (f"{plain_json(one.model_dump_json())}\n".encode() for one in report.per_edit),
            "memedit/delta.safetensors": delta_parts(deltas, self.base.digest, {"method": self.recipe.method.name}),
            **ledger_files(ledger),
        }
        knobs = self.recipe.output
        if knobs.keep_originals:
            were = {self.names[layer]: architecture.turned(stored) for layer, stored in self.stored.items()}
            extra["memedit/originals.safetensors"] = originals_bytes(were, self.base.digest)
        with self.progress.phase("write"):
            write_checkpoint(
                self.base, self.out, weights, extra, link=knobs.link, max_shard=knobs.max_shard,
                keep_copies=knobs.keep_copies, overwrite=knobs.overwrite, force=knobs.force, note=self.progress.note,
            )  # fmt: skip

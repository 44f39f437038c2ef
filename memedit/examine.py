"""One examination: the same questions put to a model, to the model it was made from, and to others beside it."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from memedit.model.digests import of_tokenizer
from memedit.model.load import LanguageModel, load, locate
from memedit.model.reading import Passage
from memedit.recipe import Recipe
from memedit.report import EditResult, Figure, ModelReport, Report, Scores
from memedit.request import EditRequest
from memedit.stages.drift import drift_of, passages
from memedit.stages.evaluation import Judgment, exact, judge, kept, score
from memedit.stages.figures import figure, paired
from memedit.stages.probes import derived
from memedit.stages.writing import UNRELATED, Writing, written
from memedit.tell import Tell
from memedit.versions import versions


@dataclass(frozen=True)
class Trial:
    """What one model answered."""

    vocabulary: str
    """What its token ids mean: two models agree on tokens only where these agree."""
    judgments: list[Judgment]
    facts: list[bool]
    writing: list[Writing] = field(default_factory=list)
    read: list[Passage] = field(default_factory=list)

    def values(self, edit: int) -> dict[str, float | None]:
        """Everything measured of one edit, forced and written."""
        found = self.judgments[edit].record()
        if self.writing:
            mine = self.writing[edit]
            found |= {f"generated.{name}": value for name, value in mine.measures.items()} | dict(mine.open)
        return found


class Examination:
    """What is asked, and of whom. `text` holds documents to read; `generate` asks for free answers too."""

    def __init__(
        self,
        requests: Sequence[EditRequest],
        facts: Sequence[EditRequest],
        recipe: Recipe,
        tell: Tell,
        *,
        text: Sequence[str] = (),
        generate: bool = False,
        held: Collection[str] = (),
    ) -> None:
        self.requests, self.facts, self.recipe, self.tell = list(requests), list(facts), recipe, tell
        self.text, self.generate, self.held = list(text), generate, set(held)
        self.timings: dict[str, float] = {}
        self.notes: dict[str, None] = {}

    def open(self, path: str) -> LanguageModel:
        """A model that is to be examined."""
        knobs = self.recipe.model.model_copy(update={"path": path})
        return load(locate(knobs), knobs)

    @contextmanager
    def timed(self, name: str) -> Any:
        """Seconds of a phase, for the report."""
        start = time.monotonic()
        yield
        self.timings[name] = time.monotonic() - start

    def trial(self, lm: LanguageModel, name: str, base: LanguageModel | None = None) -> Trial:
        """Ask one model everything; with `base` the text is read by both."""
        chat, knobs = self.recipe.chat, self.recipe.eval
        beside = base if base is not None and vocabulary_of(base) == vocabulary_of(lm) else None
        if base is not None and beside is None:
            self.notes["a model's tokens are not those of the base: no locality, no drift but perplexity"] = None
        with self.timed(name), self.tell.phase(name, None, "answers") as advance:
            judgments = judge(lm, self.requests, chat=chat, derive=knobs.derive, plus=self.generate, advance=advance)
            facts = exact(lm, self.facts, chat=chat)
        writing: list[Writing] = []
        if self.generate:
            unrelated = " ".join(self.text[:400]) or UNRELATED
            with self.timed(f"{name}, writing"), self.tell.phase("writing", None, "texts") as advance:
                writing, notes = written(lm, self.requests, knobs, chat=chat, unrelated=unrelated, advance=advance)
            self.notes |= dict.fromkeys(notes)
        read: list[Passage] = []
        if self.text and name != "before":
            with self.timed(f"{name}, reading"), self.tell.phase("reading", knobs.drift_tokens, "tokens") as advance:
                read = passages(lm, self.text, knobs.drift_tokens, beside, advance)
        return Trial(vocabulary_of(lm), judgments, facts, writing, read)

    def scores(self, trial: Trial, before: Trial | None = None) -> Scores:
        """A trial's figures; with the base's trial, locality too."""
        alike = before is not None and before.vocabulary == trial.vocabulary
        found = score(trial.judgments, before.judgments if before is not None and alike else None)
        if not trial.writing:
            return found
        names = dict.fromkeys(name for one in trial.writing for name in one.measures)
        generated = {name: made for name in names if (made := figure(_column(trial, f"generated.{name}"))) is not None}
        free = {
            name: figure(_column(trial, name), signed=True) for name in ("fluency", "fluency_written", "consistency")
        }
        return found.model_copy(update={"generated": generated, **free})

    def compared(self, model: str, trial: Trial, before: Trial | None) -> ModelReport:
        """One model's part of the report."""
        firm = before.facts if before else [True] * len(self.facts)
        held = [
            one.accuracy for one, request in zip(trial.judgments, self.requests, strict=True) if request.id in self.held
        ]
        return ModelReport(
            model=model,
            scores=self.scores(trial, before),
            difference=difference(trial, before) if before else {},
            drift=drift_of(trial.read),
            kept=kept(self.facts, firm, trial.facts, self.requests),
            retention=figure([value for value in held if value is not None]),
        )

    def report(
        self, trials: Mapping[str, Trial], base: str | None, before: Trial | None, arguments: Sequence[str]
    ) -> Report:
        """Everything that is known of the examination; the first model leads."""
        models = [self.compared(model, trial, before) for model, trial in trials.items()]
        lead, first = models[0], next(iter(trials.values()))
        return Report(
            command="eval",
            versions=versions(),
            arguments=list(arguments),
            model=lead.model,
            base=base,
            recipe=self.recipe.model_dump(mode="json"),
            edits=len(self.requests),
            before=self.scores(before) if before else None,
            after=lead.scores,
            difference=lead.difference,
            drift=lead.drift,
            kept=lead.kept,
            retention=lead.retention,
            models=tuple(models) if len(models) > 1 else (),
            derived=derived(self.requests) if self.recipe.eval.derive else {},
            timings=self.timings,
            notes=tuple(self.notes),
            per_edit=tuple(self._result(n, first, before) for n in range(len(self.requests))),
        )

    def _result(self, n: int, now: Trial, before: Trial | None) -> EditResult:
        request = self.requests[n]
        said = {"after": now.writing[n].said} if now.writing else {}
        if before and before.writing:
            said["before"] = before.writing[n].said
        return EditResult(
            id=request.id,
            status="ok" if now.judgments[n].accuracy == 1 else "failed",
            edit=request.public(),
            before=before.values(n) if before else {},
            after=now.values(n),
            said=said,
        )


def vocabulary_of(lm: LanguageModel) -> str:
    """Stands for what a model's token ids mean."""
    return f"{of_tokenizer(lm.tokenizer)} {lm.anatomy.vocabulary}"


def difference(now: Trial, before: Trial) -> dict[str, Figure]:
    """After less before of every measure, paired by edit."""
    pairs: dict[str, list[float]] = {}
    for edit in range(len(now.judgments)):
        was = before.values(edit)
        for name, value in now.values(edit).items():
            if value is not None and (old := was.get(name)) is not None:
                pairs.setdefault(name, []).append(value - old)
    bare = ("magnitude", "fluency", "consistency")
    return {
        name: found
        for name, each in pairs.items()
        if (found := paired(each, share=not any(part in name for part in bare))) is not None
    }


def _column(trial: Trial, name: str) -> list[float]:
    rows = (trial.values(edit) for edit in range(len(trial.judgments)))
    return [value for row in rows if (value := row.get(name)) is not None]

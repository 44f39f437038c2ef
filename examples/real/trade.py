"""What edits take and what they leave, on a real model, for several settings: one row of scores for each.

    python -m examples.real.trade MODEL "" "polish.steps=0" "target.ball=0.6 polish.steps=12"

Edits facts that the model knows, one to a subject, drawn by a seed: about countries (capital, continent, language),
with `--relations all` of all relations, or of one that `--relations` names. Each argument after the model is a set of
settings, empty for the defaults; the word `keep` among them sets `polish.keep` to the prompts of the other relations of
countries. The scores, in per cent; of several `--draws` together:

    exact       the model says the new object after the edit's prompt
    success     the new object is likelier than the old one, under three wordings that the edit never saw
    held out    the model says the new object under these wordings
    others      known facts of the same relations, about subjects that were not edited, are still said
    siblings    known facts about the edited subjects, in other relations, are still said (one relation: all others)
    far         known facts in other relations (inventors, authors, ...) are still said
    reworded    others, and siblings, in the held-out wordings in which the model knew them
    chat        questions in chat that the model answered with the old object, and now answers with the new one
    itself      of these questions, those whose answer names no other subject of the same kind
    both        of these questions, those that count in chat and in itself
    subjects    `kept.subjects` of memedit: asked by the edit's own prompt, answers are still about the subject
    ppl         perplexity of a text, as a ratio to the model before the edit
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import memedit
import torch
import yaml
from memedit.config.presets import preset
from memedit.config.recipe import ModelKnobs
from memedit.edits.edit import EditRequest
from memedit.evaluation.figures import share_figure
from memedit.evaluation.forced import says_object
from memedit.evaluation.other_subjects import names_beside
from memedit.evaluation.subject_kept import SubjectQuestion, subject_answers, subject_questions
from memedit.forward.generation import generate
from memedit.forward.packing import packed
from memedit.forward.perplexity import read_text
from memedit.forward.scoring import score_answers
from memedit.model.load import LanguageModel, load
from memedit.model.tokens import decode_text, encode_prompt, encode_text, object_ids

from examples.real.facts import HELD_OUT, SEARCHED, Relation, known_facts, load_relations

COUNTRIES = ("capital", "continent", "language")
KEPT = (*COUNTRIES, "currency")
"""The relations of countries that `keep` asks of edited ones, where they are not edited."""
ANSWER = 24
"""Tokens of an answer in chat."""
ROW = 512
"""Tokens in a row of the text."""


@dataclass(frozen=True)
class Lists:
    """Edits, and the known facts beside them."""

    edits: list[EditRequest]
    siblings: list[EditRequest]
    others: list[EditRequest]
    far: list[EditRequest]


def draw_lists(
    known: Sequence[EditRequest],
    relations: dict[str, Relation],
    count: int,
    seed: int,
    *,
    wordings: bool,
    among: Sequence[str] = COUNTRIES,
) -> Lists:
    """Draw the edits: one to a subject of these relations, its new object that of another subject."""
    draw = random.Random(seed)
    mine = [fact for fact in known if fact.relation in among]
    subjects = sorted({fact.subject for fact in mine})
    draw.shuffle(subjects)
    edits: list[EditRequest] = []
    for subject in subjects[:count]:
        fact = draw.choice([one for one in mine if one.subject == subject])
        objects = sorted({one.object for one in mine if one.relation == fact.relation} - {fact.object})
        more = relations[str(fact.relation)].wordings[SEARCHED] if wordings else ()
        changed = {"object": draw.choice(objects), "object_old": fact.object, "aliases": (), "wordings": more}
        edits.append(fact.model_copy(update=changed))
    edited, done = {edit.subject for edit in edits}, {edit.id for edit in edits}
    about = known if len(among) == 1 else mine
    siblings = [fact for fact in about if fact.subject in edited and fact.id not in done]
    others = [fact for fact in mine if fact.subject not in edited]
    far = [fact for fact in known if fact.relation not in among and fact not in siblings]
    return Lists(edits, siblings, others, far)


def said(lm: LanguageModel, facts: Sequence[EditRequest]) -> list[float]:
    """For each fact whether the model says it."""
    return [float(one) for one in says_object(lm, facts)]


def reworded(lm: LanguageModel, facts: Sequence[EditRequest], relations: dict[str, Relation]) -> list[EditRequest]:
    """The facts in each held-out wording in which the model says them."""
    asked = [
        fact.model_copy(update={"id": f"{fact.id}-{number}", "prompt": wording})
        for fact in facts
        for number, wording in enumerate(relations[str(fact.relation)].wordings[HELD_OUT])
    ]
    return [one for one, known in zip(asked, says_object(lm, asked), strict=True) if known]


def said_again(lm: LanguageModel, wordings: Sequence[EditRequest]) -> list[float]:
    """For each fact the share of these wordings of it in which the model says it."""
    shares: dict[tuple[str, str | None], list[float]] = {}
    for one, is_said in zip(wordings, said(lm, wordings), strict=True):
        shares.setdefault((one.subject, one.relation), []).append(is_said)
    return [fmean(values) for values in shares.values()]


def under_held_out(
    lm: LanguageModel, edits: Sequence[EditRequest], relations: dict[str, Relation]
) -> tuple[list[float], list[float]]:
    """For each edit the share of held-out wordings in which the new object is likelier than the old one, and the share
    in which it is said."""
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    of_row: list[int] = []
    for number, edit in enumerate(edits):
        for wording in relations[str(edit.relation)].wordings[HELD_OUT]:
            asked = edit.model_copy(update={"prompt": wording})
            prompt = encode_prompt(lm.tokenizer, asked).ids
            for answer in (edit.object, str(edit.object_old)):
                rows.append((prompt, object_ids(lm.tokenizer, asked.text, prompt, answer)))
            of_row.append(number)
    scores = score_answers(lm, rows)
    likelier: list[list[float]] = [[] for _ in edits]
    exact: list[list[float]] = [[] for _ in edits]
    for number, new, old, (_, ids) in zip(of_row, scores[::2], scores[1::2], rows[::2], strict=True):
        likelier[number].append(float(fmean(new.log_probs) > fmean(old.log_probs)))
        exact[number].append(float(new.likeliest == ids))
    return [fmean(values) for values in likelier], [fmean(values) for values in exact]


def in_chat(lm: LanguageModel, edits: Sequence[EditRequest]) -> list[str]:
    """What the model answers to the questions of the edits in chat, greedily."""
    asked = [encode_text(lm.tokenizer, str(edit.meta["question"]), chat=True) for edit in edits]
    return [decode_text(lm.tokenizer, ids) for ids in generate(lm, asked, ANSWER)]


def names(answer: str, name: str) -> bool:
    """Whether an answer names something, as whole words."""
    return re.search(rf"\b{re.escape(name)}\b", answer, re.IGNORECASE) is not None


def kind_of(relation: str | None) -> tuple[str, ...]:
    """The relations whose subjects are of one kind with those of this relation."""
    return COUNTRIES if relation in COUNTRIES else (str(relation),)


def chat_scores(
    edits: Sequence[EditRequest], before: Sequence[str], after: Sequence[str], known: Sequence[EditRequest]
) -> dict[str, list[float]]:
    """The columns chat, itself and both, of the questions that were answered with the old object before."""
    asked = [
        (edit, now) for edit, was, now in zip(edits, before, after, strict=True) if names(was, str(edit.object_old))
    ]
    others = [
        {fact.subject for fact in known if fact.relation in kind_of(edit.relation)} - {edit.subject}
        for edit, _ in asked
    ]
    chat = [float(names(now, edit.object)) for edit, now in asked]
    itself = [
        float(not any(names(now.replace(edit.object, ""), one) for one in some))
        for (edit, now), some in zip(asked, others, strict=True)
    ]
    return {"chat": chat, "itself": itself, "both": [min(pair) for pair in zip(chat, itself, strict=True)]}


def answered(lm: LanguageModel, asked: Sequence[SubjectQuestion]) -> list[tuple[SubjectQuestion, str]]:
    """The questions with the model's answers."""
    return list(zip(asked, subject_answers(lm, asked), strict=True))


def perplexity(lm: LanguageModel, file: Path, tokens: int) -> float:
    """The perplexity of the first tokens of a text."""
    rows = list(islice(packed([file.read_text("utf-8")], lm.tokenizer, ROW), tokens // ROW))
    passages = read_text(lm, rows)
    return float(torch.tensor(sum(one.surprise for one in passages) / sum(one.tokens for one in passages)).exp())


def settings_of(text: str, keep: Sequence[str] = ()) -> dict[str, Any]:
    """`--preset NAME`, `keep` (these prompts) and `key=value` as settings; a value in brackets is a list: [The,I]."""
    found: dict[str, Any] = {}
    words = iter(text.split())
    for word in words:
        if word == "--preset":
            found |= preset(next(words))
        elif word == "keep":
            found["polish.keep"] = tuple(keep)
        else:
            name, _, value = word.partition("=")
            found[name] = yaml.safe_load(value) if value.startswith("[") else value
    return found


@dataclass(frozen=True)
class Draw:
    """A draw of edits, and what the unedited model says that is scored beside them."""

    lists: Lists
    others: list[EditRequest]
    siblings: list[EditRequest]
    answers: list[str]
    """In chat; none where the model has no chat template."""
    questions: list[SubjectQuestion]
    """Those whose answers are about the edited subjects."""

    def scores(
        self, lm: LanguageModel, relations: dict[str, Relation], known: Sequence[EditRequest]
    ) -> dict[str, list[float]]:
        """The values of every column, on the model as it is now."""
        lists = self.lists
        success, held_out = under_held_out(lm, lists.edits, relations)
        # A model without a chat template is asked nothing.
        edits, answers = (lists.edits, in_chat(lm, lists.edits)) if self.answers else ([], [])
        return {
            "exact": said(lm, lists.edits), "success": success, "held out": held_out,
            "others": said(lm, lists.others), "siblings": said(lm, lists.siblings), "far": said(lm, lists.far),
            "others, reworded": said_again(lm, self.others), "siblings, reworded": said_again(lm, self.siblings),
            **chat_scores(edits, self.answers, answers, known),
            "subjects": [float(one.kept_in(now)) for one, now in answered(lm, self.questions)],
        }  # fmt: skip


def cell(values: Sequence[float], *, interval: bool) -> str:
    """The mean in per cent, with its 95 % interval; a dash for no values."""
    found = share_figure(values)
    if found is None:
        return "-"
    return f"{100 * found.mean:.1f}" + (f" ({100 * found.low:.0f} to {100 * found.high:.0f})" if interval else "")


def plot(points: Sequence[tuple[float, float]]) -> str:
    """Draw shares of others kept (across) and of edits said (up), a letter for each row of the table, from a on."""
    low = [min(int(10 * value) for value in axis) / 10 for axis in zip(*points, strict=True)]
    wide, high = 60, 20
    lines = [[" "] * (wide + 1) for _ in range(high + 1)]
    for n, (across, up) in enumerate(points):
        column = round(wide * (across - low[0]) / (1 - low[0]))
        lines[round(high * (up - low[1]) / (1 - low[1]))][column] = chr(ord("a") + n)
    share = lambda part, end: f"{100 * (low[end] + part * (1 - low[end])):.0f}"  # noqa: E731
    rows = [
        f"{share(n / high, 1) if n % 5 == 0 else '':>4} |{''.join(line)}".rstrip()
        for n, line in reversed(list(enumerate(lines)))
    ]
    ticks = "".join(f"{share(n / 4, 0):<15}" for n in range(5)).rstrip()
    return "\n".join(["exact", *rows, f"     +{'-' * (wide + 1)}", f"      {ticks}  others"])


def main() -> None:
    """Print one row of scores for each set of settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("settings", nargs="+", help='such as "" or "target.ball=0.6 polish.steps=12"')
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--draws", type=int, default=1, help="lists, with this seed and the following ones")
    parser.add_argument("--relations", default="countries", help="countries, all, or one relation such as capital")
    parser.add_argument("--intervals", action="store_true", help="95 %% intervals, over edits or facts")
    parser.add_argument("--plot", action="store_true", help="draw exact against others, a letter for each row")
    parser.add_argument("--no-wordings", action="store_true", help="edit by one prompt of each relation alone")
    parser.add_argument("--corpus", default="self", help="text for the second moments")
    parser.add_argument("--text", type=Path, help="text whose perplexity is measured")
    parser.add_argument("--tokens", type=int, default=10_240, help="tokens of that text")
    options = parser.parse_args()
    relations = {relation.name: relation for relation in load_relations()}
    groups = {"countries": COUNTRIES, "all": tuple(relations), **{name: (name,) for name in relations}}
    if (among := groups.get(options.relations, ())) == ():
        parser.error(f"--relations: choose from {', '.join(groups)}")
    keep = [relations[name].wordings[0] for name in KEPT if name not in among]
    lm = load(options.model, ModelKnobs(path=str(options.model)))
    known = known_facts(lm, list(relations.values()))
    base = perplexity(lm, options.text, options.tokens) if options.text else None
    draws: list[Draw] = []
    for seed in range(options.seed, options.seed + options.draws):
        lists = draw_lists(known, relations, options.count, seed, wordings=not options.no_wordings, among=among)
        others, siblings = (reworded(lm, some, relations) for some in (lists.others, lists.siblings))
        answers = in_chat(lm, lists.edits) if lm.tokenizer.chat_template else []
        asked = subject_questions(lm, lists.edits, names_beside(lm, lists.edits, 0))
        questions = [one for one, was in answered(lm, asked) if one.owners and one.kept_in(was)]
        draws.append(Draw(lists, others, siblings, answers, questions))
        counts = (
            f"{len(lists.edits)} edits, {len(lists.others)} others, {len(lists.siblings)} siblings, {len(lists.far)} "
            f"far; reworded {len(others)} and {len(siblings)}"
        )
        print(f"{counts}; seed {seed}, wordings {'no' if options.no_wordings else 'yes'}, corpus {options.corpus}")
    headed = False
    points: list[tuple[float, float]] = []
    for text in options.settings:
        found: dict[str, list[float]] = {}
        ratios: list[float] = []
        spent = [0.0, 0.0]
        for draw in draws:
            begun = time.process_time(), time.monotonic()
            with memedit.edited(
                lm.model, lm.tokenizer, draw.lists.edits, corpus=options.corpus, settings=settings_of(text, keep)
            ):  # fmt: skip
                spent[0] += time.process_time() - begun[0]
                spent[1] += time.monotonic() - begun[1]
                for name, values in draw.scores(lm, relations, known).items():
                    found.setdefault(name, []).extend(values)
                ratios += [perplexity(lm, options.text, options.tokens) / base] if base else []
        if not headed:
            print(f"| settings | {' | '.join(found)} | ppl | processor s | s |\n|---|" + "---:|" * (len(found) + 3))
            headed = True
        cells = " | ".join(cell(values, interval=options.intervals) for values in found.values())
        ratio = f"{sum(ratios) / len(ratios):.3f}" if ratios else "-"
        print(f"| {text or 'defaults'} | {cells} | {ratio} | {spent[0]:.0f} | {spent[1]:.0f} |", flush=True)
        points.append((fmean(found["others"] or [1.0]), fmean(found["exact"])))
    if options.plot:
        print(plot(points))


if __name__ == "__main__":
    main()

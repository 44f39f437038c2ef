"""What edits take and what they leave, on a real model, for several settings: one row of scores for each.

    python -m examples.real.trade MODEL "" "polish.steps=0" "target.ball=0.6 polish.steps=12"

Edits facts about countries that the model knows (capital, continent, language), one to a country, drawn by a seed.
Each argument after the model is a set of settings, empty for the defaults. The scores, in per cent:

    exact       the model says the new object after the edit's prompt
    success     the new object is likelier than the old one, under three wordings that the edit never saw
    held out    the model says the new object under these wordings
    others      known facts about countries that were not edited are still said
    siblings    known facts about the edited countries, in other relations, are still said
    far         known facts in other relations (inventors, authors, ...) are still said
    reworded    others, and siblings, in the held-out wordings in which the model knew them
    chat        questions in chat that the model answered with the old object, and now answers with the new one
    itself      of these questions, those whose answer names no other country than the edited one
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
from typing import Any

import memedit
import torch
from memedit.config.presets import preset
from memedit.config.recipe import ModelKnobs
from memedit.edits.edit import EditRequest
from memedit.evaluation.forced import says_object
from memedit.forward.generation import generate
from memedit.forward.packing import packed
from memedit.forward.perplexity import read_text
from memedit.forward.scoring import score_answers
from memedit.model.load import LanguageModel, load
from memedit.model.tokens import decode_text, encode_prompt, encode_text, object_ids

from examples.real.facts import HELD_OUT, SEARCHED, Relation, known_facts, load_relations

COUNTRIES = ("capital", "continent", "language")
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
    known: Sequence[EditRequest], relations: dict[str, Relation], count: int, seed: int, *, wordings: bool
) -> Lists:
    """Draw the edits: one to a country, its new object that of another country."""
    draw = random.Random(seed)
    mine = [fact for fact in known if fact.relation in COUNTRIES]
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
    return Lists(
        edits,
        [fact for fact in mine if fact.subject in edited and fact.id not in done],
        [fact for fact in mine if fact.subject not in edited],
        [fact for fact in known if fact.relation not in COUNTRIES],
    )


def said(lm: LanguageModel, facts: Sequence[EditRequest]) -> float:
    """The share of facts that the model says."""
    return sum(says_object(lm, facts)) / max(1, len(facts))


def reworded(lm: LanguageModel, facts: Sequence[EditRequest], relations: dict[str, Relation]) -> list[EditRequest]:
    """The facts in each held-out wording in which the model says them."""
    asked = [
        fact.model_copy(update={"id": f"{fact.id}-{number}", "prompt": wording})
        for fact in facts
        for number, wording in enumerate(relations[str(fact.relation)].wordings[HELD_OUT])
    ]
    return [one for one, known in zip(asked, says_object(lm, asked), strict=True) if known]


def under_held_out(
    lm: LanguageModel, edits: Sequence[EditRequest], relations: dict[str, Relation]
) -> tuple[float, float]:
    """How often the new object is likelier than the old one, and how often it is said, under held-out wordings."""
    rows: list[tuple[tuple[int, ...], tuple[int, ...]]] = []
    for edit in edits:
        for wording in relations[str(edit.relation)].wordings[HELD_OUT]:
            asked = edit.model_copy(update={"prompt": wording})
            prompt = encode_prompt(lm.tokenizer, asked).ids
            for answer in (edit.object, str(edit.object_old)):
                rows.append((prompt, object_ids(lm.tokenizer, asked.text, prompt, answer)))
    scores = score_answers(lm, rows)
    pairs = list(zip(scores[::2], scores[1::2], (ids for _, ids in rows[::2]), strict=True))
    mean = lambda one: sum(one.log_probs) / len(one.log_probs)  # noqa: E731
    likelier = sum(mean(new) > mean(old) for new, old, _ in pairs) / len(pairs)
    return likelier, sum(new.likeliest == ids for new, _, ids in pairs) / len(pairs)


def in_chat(lm: LanguageModel, edits: Sequence[EditRequest]) -> list[str]:
    """What the model answers to the questions of the edits in chat, greedily."""
    asked = [encode_text(lm.tokenizer, str(edit.meta["question"]), chat=True) for edit in edits]
    return [decode_text(lm.tokenizer, ids) for ids in generate(lm, asked, ANSWER)]


def names(answer: str, name: str) -> bool:
    """Whether an answer names something, as whole words."""
    return re.search(rf"\b{re.escape(name)}\b", answer, re.IGNORECASE) is not None


def chat_shares(
    edits: Sequence[EditRequest], before: Sequence[str], after: Sequence[str], countries: Sequence[str]
) -> list[float]:
    """Of the questions answered with the old object before: answered with the new one, and about no other country."""
    asked = [
        (edit, now) for edit, was, now in zip(edits, before, after, strict=True) if names(was, str(edit.object_old))
    ]
    others = [
        any(names(now.replace(edit.object, ""), country) for country in countries if country != edit.subject)
        for edit, now in asked
    ]
    count = max(1, len(asked))
    return [sum(names(now, edit.object) for edit, now in asked) / count, 1 - sum(others) / count]


def perplexity(lm: LanguageModel, file: Path, tokens: int) -> float:
    """The perplexity of the first tokens of a text."""
    rows = list(islice(packed([file.read_text("utf-8")], lm.tokenizer, ROW), tokens // ROW))
    passages = read_text(lm, rows)
    return float(torch.tensor(sum(one.surprise for one in passages) / sum(one.tokens for one in passages)).exp())


def settings_of(text: str) -> dict[str, Any]:
    """`--preset NAME` and `key=value` as settings."""
    found: dict[str, Any] = {}
    words = iter(text.split())
    for word in words:
        if word == "--preset":
            found |= preset(next(words))
        else:
            name, _, value = word.partition("=")
            found[name] = value
    return found


def main() -> None:
    """Print one row of scores for each set of settings."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("settings", nargs="+", help='such as "" or "target.ball=0.6 polish.steps=12"')
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-wordings", action="store_true", help="edit by one prompt of each relation alone")
    parser.add_argument("--corpus", default="self", help="text for the second moments")
    parser.add_argument("--text", type=Path, help="text whose perplexity is measured")
    parser.add_argument("--tokens", type=int, default=10_240, help="tokens of that text")
    options = parser.parse_args()
    relations = {relation.name: relation for relation in load_relations()}
    lm = load(options.model, ModelKnobs(path=str(options.model)))
    known = known_facts(lm, list(relations.values()))
    lists = draw_lists(known, relations, options.count, options.seed, wordings=not options.no_wordings)
    others, siblings = (reworded(lm, some, relations) for some in (lists.others, lists.siblings))
    base = perplexity(lm, options.text, options.tokens) if options.text else None
    talks = bool(lm.tokenizer.chat_template)
    answers = in_chat(lm, lists.edits) if talks else []
    countries = sorted({fact.subject for fact in known if fact.relation in COUNTRIES})
    counts = (
        f"{len(lists.edits)} edits, {len(lists.others)} others, {len(lists.siblings)} siblings, {len(lists.far)} far; "
        f"reworded {len(others)} and {len(siblings)}"
    )
    print(f"{counts}; seed {options.seed}, wordings {'no' if options.no_wordings else 'yes'}, corpus {options.corpus}")
    print(
        "| settings | exact | success | held out | others | siblings | far "
        "| others, reworded | siblings, reworded | chat | itself | ppl | processor s |\n|---|" + "---:|" * 12
    )
    for text in options.settings:
        begun = time.process_time()
        with memedit.edited(
            lm.model, lm.tokenizer, lists.edits, corpus=options.corpus, settings=settings_of(text)
        ):  # fmt: skip
            spent = time.process_time() - begun
            shares = [said(lm, lists.edits), *under_held_out(lm, lists.edits, relations)]
            shares += [said(lm, one) for one in (lists.others, lists.siblings, lists.far, others, siblings)]
            shares += chat_shares(lists.edits, answers, in_chat(lm, lists.edits), countries) if talks else []
            ratio = f"{perplexity(lm, options.text, options.tokens) / base:.3f}" if base else "-"
        cells = " | ".join([*(f"{100 * share:.1f}" for share in shares), *(["-"] * (10 - len(shares)))])
        print(f"| {text or 'defaults'} | {cells} | {ratio} | {spent:.0f} |", flush=True)


if __name__ == "__main__":
    main()

"""Facts that a model says itself, to see what an edit takes with it where no list of known facts is given.

A fact is the model's own answer, before the edit, to a prompt of the list, if the model is sure of it: asked of the
edited subjects under the list's other relations (siblings), and of subjects of the same kind that the model names
(others). Whether the answers are true does not matter: an edit should leave them as they are. An edit without a subject
has no relation that could be asked of others, so nothing is asked beside it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

from memedit.edits.edit import SLOT, EditRequest
from memedit.edits.letters import marks_as_letters
from memedit.evaluation.other_subjects import Names, relation_of
from memedit.forward.generation import generate
from memedit.forward.passes import next_tokens
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel
from memedit.model.tokens import SubjectLost, decode_text, encode_text

ANSWER_TOKENS = 8
SHORT_WORD = 4
"""Letters of a short word at most."""
LEAST, MOST = 16, 64
"""The smallest and largest number of facts of one kind; between them there is one for each edit."""
ASKED, SURE = 4, 0.2
"""How many questions are asked for each fact, and how likely the first token of an answer must be to count as known. A
guess changes with any edit, and tells nothing about what the edit takes (memedit/docs/trials.md)."""

SHARED_NAMES, FEWEST_NAMES = 0.2, 3
"""Share of equal names from which two relations count as being about one kind of subjects, and how many names each
needs to tell: one or two may be no names at all."""

ENOUGH_NAMES = 32
"""Names for a relation from which it is asked of no others: for the capital one model names 6 countries, and for the
continent 74."""

Asked = tuple[str, str]
"""A prompt's template, and the subject it is asked of."""


@dataclass(frozen=True)
class Beside:
    """What can be asked beside the edits, by the list's prompts."""

    siblings: list[Asked]
    others: list[Asked]

    @property
    def all(self) -> list[Asked]:
        """Both kinds."""
        return [*self.siblings, *self.others]

    @classmethod
    def of(cls, requests: Sequence[EditRequest], names: Names, keep: Sequence[str] = ()) -> Beside:
        """Every prompt of the list for every subject of its kind that it does not edit, and every prompt of `keep` for
        every edited subject.

        A relation for which the model gives fewer than `ENOUGH_NAMES` is also asked of those that it gives for others
        of its kind. Nothing that an edit is scored by is used: no paraphrase and no neighbor.
        """
        taken = _edited(requests)
        named = [request for request in requests if request.subject]
        templates: dict[str, dict[str, None]] = {}
        for request in named:
            templates.setdefault(relation_of(request), {})[request.prompt] = None
        edited: dict[str, list[str]] = {}
        for request in named:
            edited.setdefault(request.subject, []).append(relation_of(request))
        kin = relations_of_one_kind(edited, names)
        siblings = [
            (template, subject)
            for subject, mine in edited.items()
            for relation, of_one in templates.items()
            if relation not in mine and not kin[relation].isdisjoint(mine)
            for template in of_one
            if filled(template, subject) not in taken
        ]
        siblings = list(
            dict.fromkeys((*siblings, *(one for one in product(keep, edited) if filled(*one) not in taken)))
        )
        others = [
            (template, name)
            for relation, of_one in templates.items()
            for name in _topped_up(relation, names, kin)
            for template in of_one
            if filled(template, name) not in taken
        ]
        return cls(siblings, others)


def other_wordings(requests: Sequence[EditRequest]) -> dict[str, tuple[str, ...]]:
    """For each prompt of the list the other wordings of its relation, where there are any."""
    found: dict[str, dict[str, None]] = {}
    for request in requests:
        found.setdefault(request.prompt, {}).update(dict.fromkeys(request.templates[1:]))
    return {prompt: tuple(of_one) for prompt, of_one in found.items() if of_one}


def _topped_up(relation: str, names: Names, kin: Mapping[str, Collection[str]]) -> list[str]:
    """The names for a relation, and where they are few as many from the relations of its kind as make enough."""
    own = list(names.get(relation, ()))
    theirs = [name for other, found in names.items() if other in kin[relation] for name in found]
    return list(dict.fromkeys([*own, *theirs]))[: max(len(own), ENOUGH_NAMES)]


def _edited(requests: Sequence[EditRequest]) -> set[str]:
    """Every text by which an edit is made."""
    return {filled(template, request.subject) for request in requests for template in request.templates}


def relations_of_one_kind(edited: Mapping[str, Sequence[str]], names: Names) -> dict[str, set[str]]:
    """For each relation of the list, the relations that are about its kind of subjects, itself among them.

    `edited` has for each edited subject the relations that it is edited under. A capital can be asked of any country
    that has a language; of a novel it cannot. Two relations are of one kind if the model gives a fifth of the same
    names for them. Where it names too few for one of the two, the list decides: they are, if it edits one subject under
    both. Where it names too few for both, they may be, and so they are.
    """
    all_names = {relation: {*names.get(relation, ())} for mine in edited.values() for relation in mine}
    of = {relation: found if len(found) >= FEWEST_NAMES else set[str]() for relation, found in all_names.items()}
    pairs = {pair for mine in edited.values() for pair in product(mine, mine)}

    def alike(one: str, other: str) -> bool:
        if not (of[one] or of[other]):
            return True
        if not (of[one] and of[other]):
            return (one, other) in pairs
        return len(of[one] & of[other]) >= SHARED_NAMES * min(len(of[one]), len(of[other]))

    return {one: {other for other in of if alike(one, other)} for one in of}


def make_facts(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    names: Names,
    *,
    keep: Sequence[str] = (),
    unasked: Collection[str] = (),
    chat: bool = False,
    seed: int = 0,
) -> list[EditRequest]:
    """Make facts of the model's own answers, where it is sure of them, drawn by the seed.

    A relation is asked in the list's other wordings of it, where there are any: no edit is made by them about these
    subjects. `keep` are more prompts for the edited subjects. `unasked` are prompts, as text, that are left out: those
    that the edit itself is made by.
    """
    draw, beside = random.Random(seed), Beside.of(requests, names, keep)
    reworded, left_out = other_wordings(requests), {*unasked, *_edited(requests)}
    count = facts_made(requests) // 2
    facts: list[EditRequest] = []
    for kind, some in (("sibling", beside.siblings), ("other", beside.others)):
        worded = [(wording, subject) for prompt, subject in some for wording in reworded.get(prompt, (prompt,))]
        free = [one for one in dict.fromkeys(worded) if filled(*one) not in left_out]
        asked: dict[Asked, AnswerIds] = {}
        for one in draw.sample(free, min(ASKED * count, len(free))):
            with suppress(SubjectLost):  # a chat template changes this text
                ids = encode_text(lm.tokenizer, filled(*one), chat=chat)
                if lm.architecture.fits(len(ids) + ANSWER_TOKENS):
                    asked[one] = ids
        first = next_tokens(lm, list(asked.values()), 1)
        sure = [one for one, [(_, chance)] in zip(asked, first, strict=True) if chance >= SURE][:count]
        answers = generate(lm, [asked[one] for one in sure], ANSWER_TOKENS)
        for (template, subject), ids in zip(sure, answers, strict=True):
            if found := first_words(decode_text(lm.tokenizer, ids)):
                name = f"made-{kind}-{len(facts)}"
                facts.append(EditRequest(id=name, subject=subject, prompt=template, object=found))
    return facts


def first_words(answer: str) -> str:
    """The part of an answer that is compared: its first word of any length, with the short words before it.

    A short word is in small letters, of a script that writes names with capitals; Georgian has small letters alone.

    >>> first_words(" the city of Lima, in Peru"), first_words(" 1821 or so"), first_words(" (unknown)")
    ('the city of Lima', '1821', '')
    """
    end = 0
    for found in re.finditer(r"\s*(\w+)", marks_as_letters(answer)):
        if found.start() > end:
            break  # something stands between the words
        word, end = found[1], found.end()
        if len(word) > SHORT_WORD or not (word.isalpha() and word.islower() and word != word.title()):
            break
    return answer[:end].strip()


def facts_made(requests: Sequence[EditRequest]) -> int:
    """How many facts are made at most beside these edits, of both kinds."""
    return 2 * min(MOST, max(LEAST, len(requests)))


def filled(template: str, subject: str) -> str:
    """A template with its subject in it."""
    head, _, tail = template.partition(SLOT)
    return head + subject + tail

"""Facts that a model says itself, to see what an edit takes with it where no list of known facts is given.

A fact is the model's own answer, before the edit, to a prompt of the list: asked of the edited subjects under the
list's other relations (siblings), and of subjects of the same kind that the model names (others). Whether the answers
are true does not matter: an edit should leave them as they are. An edit without a subject has no relation that could be
asked of others, so nothing is asked beside it.
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass

from memedit.edits.edit import SLOT, EditRequest
from memedit.evaluation.other_subjects import Names, relation_of
from memedit.forward.generation import generate
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel
from memedit.model.tokens import SubjectLost, decode_text, encode_text

ANSWER_TOKENS = 8
ANSWER = re.compile(r"\s*(?:[a-z]{1,4}\s+)*\w+")
"""The part of an answer that is compared: its first word of any length, with the short words before it, as in "the city
of Lima"."""
LEAST, MOST = 16, 64
"""The smallest and largest number of facts of one kind; between them there is one for each edit."""

SHARED_NAMES = 0.2
"""Share of equal names from which two relations count as being about one kind of subjects."""

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
    def of(cls, requests: Sequence[EditRequest], names: Names) -> Beside:
        """Every prompt of the list for every subject of its kind that it does not edit.

        Nothing that an edit is scored by is used: no paraphrase and no neighbor.
        """
        taken = {filled(template, request.subject) for request in requests for template in request.templates}
        named = [request for request in requests if request.subject]
        templates: dict[str, dict[str, None]] = {}
        for request in named:
            templates.setdefault(relation_of(request), {})[request.prompt] = None
        edited: dict[str, list[str]] = {}
        for request in named:
            edited.setdefault(request.subject, []).append(relation_of(request))
        siblings = [
            (template, subject)
            for subject, mine in edited.items()
            for relation, of_one in templates.items()
            if relation not in mine and any(of_one_kind(names.get(relation), names.get(one)) for one in mine)
            for template in of_one
            if filled(template, subject) not in taken
        ]
        others = [
            (template, name)
            for relation, found in names.items()
            for name in found
            for template in templates.get(relation, ())
            if filled(template, name) not in taken
        ]
        return cls(siblings, others)


def of_one_kind(some: Collection[str] | None, others: Collection[str] | None) -> bool:
    """Whether two relations are about one kind of subjects, by the names that the model gives for each.

    A capital can be asked of any country that has a language; of a novel it cannot. Where it names nobody, they may be.
    """
    if not some or not others:
        return True
    return len({*some} & {*others}) >= SHARED_NAMES * min(len({*some}), len({*others}))


def make_facts(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    names: Names,
    *,
    unasked: Collection[str] = (),
    chat: bool = False,
    seed: int = 0,
) -> list[EditRequest]:
    """Make facts of the model's own answers, drawn by the seed.

    `unasked` are prompts, as text, that are left out: those that the edit itself is made by.
    """
    draw, beside = random.Random(seed), Beside.of(requests, names)
    asked: dict[str, tuple[Asked, str]] = {}
    count = min(MOST, max(LEAST, len(requests)))
    for kind, some in (("sibling", beside.siblings), ("other", beside.others)):
        free = [(template, subject) for template, subject in some if filled(template, subject) not in unasked]
        for one in draw.sample(free, min(count, len(free))):
            asked.setdefault(filled(*one), (one, kind))
    prompts: dict[str, AnswerIds] = {}
    for text in asked:
        with suppress(SubjectLost):  # a chat template changes this text
            prompts[text] = encode_text(lm.tokenizer, text, chat=chat)
    facts: list[EditRequest] = []
    for number, (text, ids) in enumerate(
        zip(prompts, generate(lm, list(prompts.values()), ANSWER_TOKENS), strict=True)
    ):
        if found := ANSWER.match(decode_text(lm.tokenizer, ids)):
            (template, subject), kind = asked[text]
            name = f"made-{kind}-{number}"
            facts.append(EditRequest(id=name, subject=subject, prompt=template, object=found[0].strip()))
    return facts


def answer_tokens(requests: Sequence[EditRequest]) -> int:
    """How many tokens are written at most to make facts beside these edits."""
    return 2 * ANSWER_TOKENS * min(MOST, max(LEAST, len(requests)))


def filled(template: str, subject: str) -> str:
    """A template with its subject in it."""
    head, _, tail = template.partition(SLOT)
    return head + subject + tail

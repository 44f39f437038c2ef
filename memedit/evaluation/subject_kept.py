"""Whether a model still knows of whom it speaks.

The easiest way to make a model say a new object of a subject is to make the subject another one, to which this object
belongs: asked for the capital of Thailand, which was edited to Amsterdam, it says "The capital of the Netherlands is
Amsterdam". Scores of the object count that as a success.

Before the edit the model itself tells to whom the object belongs (its owners): to those subjects of the list, and of
the names beside them, after whose prompt it says the object. Then it is asked, freely: by the edit's own prompt in
chat, or where it has no chat template by the subject alone. An answer keeps the subject if it names no owner, and in
chat names the subject. The same answers in chat tell how many of the edits are said there.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from pydantic import BaseModel, ConfigDict

from memedit.edits.edit import EditRequest
from memedit.errors import UsageError
from memedit.evaluation.figures import share_figure
from memedit.evaluation.forced import says_object
from memedit.evaluation.generated import answer_room
from memedit.evaluation.other_subjects import Names, relation_of
from memedit.evaluation.text_metrics import contains_words, names_in_text
from memedit.forward.generation import generate_each
from memedit.forward.passes import likeliest_next
from memedit.forward.scoring import AnswerIds
from memedit.model.load import LanguageModel
from memedit.model.tokens import SubjectLost, chat_openings, decode_text, encode_objects, encode_text
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks
from memedit.results.report import Figure

MOST_SUBJECTS, MOST_CANDIDATES = 64, 256
"""Edits that are asked about, drawn by the seed; and for each relation the subjects of the list that may be owners."""
SUBJECT_TOKENS = 16
"""Length of an answer, a sentence that names its subject; longer where the object is long."""


class SubjectQuestion(BaseModel):
    """What is asked about one edit, and who must not be named."""

    model_config = ConfigDict(frozen=True)

    text: str
    chat: bool
    subject: str
    object: str
    owners: tuple[str, ...]
    aliases: tuple[str, ...] = ()
    contains: bool = False
    """Whether the object is said where all its words are, as the edit asks to be compared."""

    @property
    def spellings(self) -> tuple[str, ...]:
        """The object and its aliases."""
        return (self.object, *self.aliases)

    def kept_in(self, answer: str) -> bool:
        """Whether an answer names no owner, and in chat names the subject.

        An owner's name inside the subject's or the object's does not count.

        >>> asked = SubjectQuestion(text="", chat=True, subject="Guinea", object="Rome", owners=("Italy",))
        >>> asked.kept_in("The capital of Guinea is Rome."), asked.kept_in("Rome is the capital of Italy, not Guinea.")
        (True, False)
        """
        mine = names_in_text(answer, self.subject)
        theirs = [span for owner in self.owners for span in names_in_text(answer, owner)]
        inside = [*mine, *(span for one in self.spellings for span in names_in_text(answer, one))]
        named = any(not any(a <= c and d <= b and (a, b) != (c, d) for a, b in inside) for c, d in theirs)
        return not named and (bool(mine) or not self.chat)

    def said_in(self, answer: str) -> bool:
        """Whether an answer names the new object."""
        names = contains_words if self.contains else names_in_text
        return any(names(answer, one) for one in self.spellings)


def subject_questions(
    lm: LanguageModel, requests: Sequence[EditRequest], names: Names, *, chat: bool = False, seed: int = 0
) -> list[SubjectQuestion]:
    """The questions about the edits: of a model that chats all of them, and else those whose new objects have owners.

    `names` are other subjects by relation; `chat`: the list's own prompts are asked in chat.
    """
    askable = [request for request in requests if request.subject and not request.remove]
    askable = random.Random(seed).sample(askable, min(MOST_SUBJECTS, len(askable)))
    talks = chat or bool(chat_openings(lm.tokenizer))
    found = [
        SubjectQuestion(
            text=request.text if talks else request.subject,
            chat=talks,
            subject=request.subject,
            object=request.object,
            owners=tuple(owners),
            aliases=request.aliases,
            contains=request.evaluate == "contains",
        )
        for request, owners in zip(askable, owners_of(lm, askable, requests, names, chat=chat), strict=True)
        if owners or talks
    ]
    return [one for one in found if _fits(lm, one)]


def _fits(lm: LanguageModel, question: SubjectQuestion) -> bool:
    """Whether the model can read the question and answer it."""
    try:
        asked = len(encode_text(lm.tokenizer, question.text, chat=question.chat))
    except SubjectLost:
        return True  # told by `subject_answers`
    return lm.architecture.fits(asked + answer_room(lm, question.spellings, SUBJECT_TOKENS))


def owners_of(
    lm: LanguageModel, asked: Sequence[EditRequest], requests: Sequence[EditRequest], names: Names, *, chat: bool
) -> list[list[str]]:
    """For each edit of `asked` the other subjects after whose prompt the model says the edit's object."""
    objects: dict[str, dict[str, EditRequest]] = {}
    for request in asked:
        objects.setdefault(relation_of(request), {}).setdefault(request.object, request)
    questions = [one for one in _questions(requests, names) if relation_of(one) in objects]
    texts = _encoded(lm, questions, chat=chat)
    # The likeliest token tells which objects are worth a whole question.
    first = likeliest_next(lm, list(texts.values()))
    pairs = [
        (questions[n], request, ids, token)
        for (n, ids), token in zip(texts.items(), first, strict=True)
        for request in objects[relation_of(questions[n])].values()
    ]
    tails = encode_objects(
        lm.tokenizer, [(one.text, ids, request.object, request.glue) for one, request, ids, _ in pairs], chat=chat
    )
    likely = [
        one.model_copy(update={"object": request.object, "glue": request.glue, "aliases": request.aliases})
        for (one, request, ids, token), tail in zip(pairs, tails, strict=True)
        # One token more than the longest spelling, for a space that may be a token of its own.
        if tail[:1] == (token,)
        and lm.architecture.fits(len(ids) + answer_room(lm, (request.object, *request.aliases), 1))
    ]
    owners: dict[tuple[str, str], list[str]] = {}
    for one, is_said in zip(likely, says_object(lm, likely, chat=chat), strict=True):
        if is_said:
            owners.setdefault((relation_of(one), one.object), []).append(one.subject)
    return [
        [name for name in owners.get((relation_of(request), request.object), ()) if name != request.subject]
        for request in asked
    ]


def _questions(requests: Sequence[EditRequest], names: Names) -> list[EditRequest]:
    """For each relation its first prompt, asked of its subjects in the list and of the names beside them."""
    found: dict[tuple[str, str], EditRequest] = {}
    first: dict[str, EditRequest] = {}
    count: Counter[str] = Counter()
    for request in requests:
        relation = relation_of(request)
        if request.subject and count[relation] < MOST_CANDIDATES:
            count[relation] += 1
            first.setdefault(relation, request)
            found.setdefault((relation, request.subject), request)
    for relation, request in first.items():
        for name in names.get(relation, ()):
            found.setdefault((relation, name), request.model_copy(update={"subject": name}))
    return [
        one.model_copy(update={"prompt": first[relation].prompt, "relation": relation, "remove": False})
        for (relation, _), one in found.items()
    ]


def _encoded(lm: LanguageModel, questions: Sequence[EditRequest], *, chat: bool) -> dict[int, AnswerIds]:
    """The ids of each question, by its number; without those that a chat template changes or that are too long."""
    found: dict[int, AnswerIds] = {}
    for n, one in enumerate(questions):
        with suppress(SubjectLost):
            ids = encode_text(lm.tokenizer, one.text, chat=chat)
            if lm.architecture.fits(len(ids) + 1):
                found[n] = ids
    return found


def subject_answers(
    lm: LanguageModel, questions: Sequence[SubjectQuestion], *, advance: Advance | None = None, ranks: Ranks = ALONE
) -> list[str]:
    """What the model answers to each question, greedily; nothing where it cannot be asked so."""
    try:
        asked = [encode_text(lm.tokenizer, one.text, chat=one.chat) for one in questions]
    except (SubjectLost, UsageError):
        return []  # its chat template is not the base's
    rooms = [answer_room(lm, one.spellings, SUBJECT_TOKENS) for one in questions]
    texts = generate_each(lm, asked, rooms, advance=advance, ranks=ranks)
    return [decode_text(lm.tokenizer, ids) for ids in texts]


def subject_figure(questions: Sequence[SubjectQuestion], before: Sequence[str], after: Sequence[str]) -> Figure | None:
    """Of the subjects that the answers were about before the edit, the share that they are about after it.

    Only questions with owners count. None where no answer was about its subject, or where one of the models could not
    be asked.
    """
    if len(before) != len(after):
        return None
    asked = zip(questions, before, after, strict=False)  # no answers where neither model could be asked
    return share_figure([float(one.kept_in(now)) for one, was, now in asked if one.owners and one.kept_in(was)])


def chat_figure(questions: Sequence[SubjectQuestion], answers: Sequence[str]) -> Figure | None:
    """Of the edits that are asked in chat, the share whose answer names the new object; None if there are none."""
    return share_figure([float(one.said_in(said)) for one, said in zip(questions, answers, strict=False) if one.chat])

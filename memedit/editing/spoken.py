"""Edits as the model itself would say them in a chat: its own answer to the edit's prompt, with the new object in it.

After an edit by plain prompts a model asked in chat may name another subject, or say the old object. What it should
answer can be made from what it answers: "The capital of Thailand is Bangkok." shows how it speaks of capitals. The
words before the old object are kept as a template of the relation, and every edit of the relation is put into the most
common one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress

from memedit.editing.plan import Edit
from memedit.edits.edit import SLOT
from memedit.evaluation.made_facts import ANSWER_TOKENS, filled, first_words
from memedit.evaluation.other_subjects import relation_of
from memedit.forward.generation import generate
from memedit.model.load import LanguageModel
from memedit.model.tokens import (
    Prompt,
    SubjectLost,
    chat_openings,
    decode_text,
    encode_objects,
    encode_text,
    locate_subject,
)

SPOKEN_TOKENS = 24
"""Length of an answer: a sentence that names subject and object."""

SpokenEdit = tuple[Prompt, tuple[int, ...]]
"""An edit's prompt in chat, and the ids of the answer that says the new object."""


def spoken_edits(lm: LanguageModel, edits: Sequence[Edit]) -> list[SpokenEdit]:
    """Ask edits in chat, and make the answers.

    There are none for a model without a chat template; none of removals, of edits without a subject, and of prompts
    that are too long for the model in chat; and none of relations where no answer of the model names first the subject
    and then the old object. The model must be unedited.
    """
    asked: dict[int, Prompt] = {}
    for n, edit in enumerate(edits if chat_openings(lm.tokenizer) else ()):
        request = edit.request
        if request.subject and not request.remove:
            head, tail = request.frame
            with suppress(SubjectLost):  # the chat template changes this text
                prompt = locate_subject(lm.tokenizer, head, request.subject, tail, chat=True)
                if lm.architecture.fits(len(prompt.ids) + SPOKEN_TOKENS):
                    asked[n] = prompt
    templates = _templates(lm, edits, asked)
    answers = {
        n: filled(template, edits[n].request.subject) + edits[n].request.object
        for n in asked
        if (template := templates.get(relation_of(edits[n].request)))
    }
    ids = encode_objects(
        lm.tokenizer, [(edits[n].request.text, asked[n].ids, answer, None) for n, answer in answers.items()], chat=True
    )
    return [
        (asked[n], one)
        for n, one in zip(answers, ids, strict=True)
        if lm.architecture.fits(len(asked[n].ids) + len(one))
    ]


def _templates(lm: LanguageModel, edits: Sequence[Edit], asked: dict[int, Prompt]) -> dict[str, str]:
    """For each relation what the model says most often before an old object, the longest of the most frequent."""
    plain = generate(lm, [encode_text(lm.tokenizer, edits[n].request.text) for n in asked], ANSWER_TOKENS)
    said = generate(lm, [prompt.ids for prompt in asked.values()], SPOKEN_TOKENS)
    found: dict[str, Counter[str]] = {}
    for n, short, long in zip(asked, plain, said, strict=True):
        # The space before an answer is the chat template's, or the tokenizer's: it is put there again.
        request, answer = edits[n].request, decode_text(lm.tokenizer, long).lstrip()
        old = request.object_old or first_words(decode_text(lm.tokenizer, short))
        begin, _, rest = answer.partition(request.subject)
        between, is_named, _ = rest.partition(old) if old else ("", "", "")
        # A template with a name of its own would be said of every subject.
        if is_named and SLOT not in answer and request.subject not in between:
            found.setdefault(relation_of(request), Counter())[begin + SLOT + between] += 1
    return {relation: max(heads, key=lambda head: (heads[head], len(head), head)) for relation, heads in found.items()}

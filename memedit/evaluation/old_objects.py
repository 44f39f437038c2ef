"""Name the old object of a removal that gives none: it is what the model itself answers before the edit."""

from __future__ import annotations

from collections.abc import Sequence

from memedit.edits.edit import EditRequest
from memedit.edits.lint import check_edit
from memedit.evaluation.made_facts import ANSWER_TOKENS, first_words
from memedit.forward.generation import generate
from memedit.model.load import LanguageModel
from memedit.model.tokens import SubjectLost, decode_text, encode_text


def name_old_objects(lm: LanguageModel, requests: Sequence[EditRequest], *, chat: bool = False) -> list[EditRequest]:
    """Give every removal without an old object the first words that the model writes greedily after its prompt.

    These are the words that facts made of a model's answers are compared by. A record with errors stays as it is, and
    so does one after whose prompt the model writes no word.
    """
    found, prompts = list(requests), dict[int, tuple[int, ...]]()
    for n, request in enumerate(requests):
        if request.remove and not request.answer and not _flawed(request):
            try:
                prompts[n] = encode_text(lm.tokenizer, request.text, chat=chat)
            except SubjectLost:
                continue  # a chat template changes this text: the plan refuses it
    for n, ids in zip(prompts, generate(lm, list(prompts.values()), ANSWER_TOKENS), strict=True):
        if said := first_words(decode_text(lm.tokenizer, ids)):
            found[n] = requests[n].model_copy(update={"object_old": said})
    return found


def _flawed(request: EditRequest) -> bool:
    return any(finding.severity == "error" for finding in check_edit(request))

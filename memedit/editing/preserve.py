"""Prompts whose answers an edit must leave alone, made from the edit list and from the model itself.

Two kinds: the other relations of the list, asked of the edited subjects of which they can be asked (siblings), and all
of its relations, asked of other subjects of the same kind, which the model names (others). Prompts that the user gives
(`polish.keep`) are asked of every edited subject. Each relation is asked by its prompts, not by its other wordings:
more prompts need more steps to serve them all. So the other wordings score what polish keeps, and where a prompt has
none, a quarter of what it can ask is left out for that.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from math import ceil

from memedit.config.recipe import PolishKnobs, Recipe
from memedit.edits.edit import SLOT, EditRequest
from memedit.evaluation.made_facts import Asked, Beside, filled, make_facts, other_wordings
from memedit.evaluation.other_subjects import Names
from memedit.model.load import LanguageModel
from memedit.model.tokens import Prompt, SubjectLost, locate_subject

LEAST_CHOSEN = 256
"""Questions of each kind that may be drawn however few the edits are."""
MOST_OF = 0.75
"""The share of what a prompt without other wordings can ask, at most: the rest is left to score by."""


def choose_preserved(requests: Sequence[EditRequest], names: Names, knobs: PolishKnobs, seed: int) -> Beside:
    """Draw what must stay: at most `knobs.siblings` and `knobs.others` questions for each edit, or `LEAST_CHOSEN`.

    All that a prompt with other wordings can ask may be drawn, and `MOST_OF` what one without them can.
    """
    draw, beside, reworded = random.Random(seed), Beside.of(requests, names, knobs.keep), other_wordings(requests)

    def drawn(asked: Sequence[Asked], each: int, rounded: Callable[[float], int] = int) -> list[Asked]:
        chosen = [one for one in asked if one[0] in reworded]
        alone = [one for one in asked if one[0] not in reworded]
        chosen += draw.sample(alone, rounded(MOST_OF * len(alone)))
        return draw.sample(chosen, min(len(chosen), max(each * len(requests), LEAST_CHOSEN) if each else 0))

    # Rounded up where the user names prompts: a single one must be asked.
    siblings = drawn(beside.siblings, knobs.siblings, ceil if knobs.keep else int)
    return Beside(siblings, drawn(beside.others, knobs.others))


def unasked_facts(
    lm: LanguageModel, requests: Sequence[EditRequest], moving: Sequence[EditRequest], names: Names, recipe: Recipe
) -> list[EditRequest]:
    """Facts of the unedited model's own answers, by which to score a run that moves the edits of `moving`.

    What polish asks is left out, or asked in another wording.
    """
    asked = choose_preserved(moving, names, recipe.polish, recipe.seed).all if recipe.polish.steps else []
    unasked = {filled(*one) for one in asked}
    return make_facts(lm, requests, names, keep=recipe.polish.keep, unasked=unasked, chat=recipe.chat, seed=recipe.seed)


def preserved_prompts(lm: LanguageModel, chosen: Sequence[Asked], *, chat: bool) -> list[Prompt]:
    """Tokenize what must stay, each prompt once.

    A name that the tokenizer merges with the text around it is left out, and so is a prompt too long for the model.
    """
    prompts: dict[tuple[int, ...], Prompt] = {}
    for template, subject in chosen:
        head, _, tail = template.partition(SLOT)
        try:
            prompt = locate_subject(lm.tokenizer, head, subject, tail, chat=chat)
        except SubjectLost:
            continue
        prompts.setdefault(prompt.ids, prompt)
    return [prompt for prompt in prompts.values() if lm.architecture.fits(len(prompt.ids) + 1)]

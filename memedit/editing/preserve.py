"""Prompts whose answers an edit must leave alone, made from the edit list and from the model itself.

Two kinds: the other relations of the list, asked of the edited subjects (siblings), and all of its relations, asked of
other subjects of the same kind (others). The model names those subjects: it continues a list of the edited ones. Each
relation is asked by its prompts, not by its other wordings: more prompts need more steps to serve them all.
Nothing is taken from what an edit is scored by: no paraphrase and no neighbor of the list.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence

from memedit.config.recipe import PolishKnobs
from memedit.editing.plan import Edit
from memedit.edits.edit import SLOT
from memedit.forward.generation import generate
from memedit.model.load import LanguageModel
from memedit.model.tokens import Prompt, SubjectLost, decode_text, encode_bare, locate_subject, text_opening

LISTS, NAMES_SHOWN, LIST_TOKENS, TOP_K = 16, 8, 32, 8
"""Lists of subjects that the model continues for each relation, subjects in each, tokens written, and top-k."""
NAME = re.compile(r"(?=.{2,40}$)[^\W\d_](?:[^\W\d_]|[ .'-])*")
"""Words of letters: a name, and no bullet, number or remark."""


def preserved_prompts(
    lm: LanguageModel, edits: Sequence[Edit], knobs: PolishKnobs, *, chat: bool, seed: int
) -> list[Prompt]:
    """Make the prompts, in the tokens of the model: at most `knobs.siblings` and `knobs.others` for each edit.

    They are drawn by the seed, and each is there once. A name that the tokenizer merges with the text around it is left
    out, and so is a prompt too long for the model.
    """
    draw = random.Random(seed)
    templates = _templates(edits)
    taken = {(edit.request.subject, template) for edit in edits for template in edit.request.templates}
    subjects = list(dict.fromkeys(edit.request.subject for edit in edits))
    edited = {(edit.request.subject, _relation(edit)) for edit in edits}
    siblings = [
        (template, subject)
        for subject in subjects
        for relation, of_one in templates.items()
        if (subject, relation) not in edited
        for template in of_one
        if (subject, template) not in taken
    ]
    names = _names(lm, edits, set(subjects), seed)
    others = [
        (template, name) for relation, found in names.items() for name in found for template in templates[relation]
    ]
    chosen = [
        *draw.sample(siblings, min(len(siblings), knobs.siblings * len(edits))),
        *draw.sample(others, min(len(others), knobs.others * len(edits))),
    ]
    prompts: dict[tuple[int, ...], Prompt] = {}
    for template, subject in chosen:
        head, _, tail = template.partition(SLOT)
        try:
            prompt = locate_subject(lm.tokenizer, head, subject, tail, chat=chat)
        except SubjectLost:
            continue
        prompts.setdefault(prompt.ids, prompt)
    room = lm.architecture.positions
    return [prompt for prompt in prompts.values() if room is None or len(prompt.ids) < room]


def _relation(edit: Edit) -> str:
    return edit.request.relation or edit.request.prompt


def _templates(edits: Sequence[Edit]) -> Mapping[str, tuple[str, ...]]:
    """For each relation of the list its prompts."""
    found: dict[str, dict[str, None]] = {}
    for edit in edits:
        found.setdefault(_relation(edit), {})[edit.request.prompt] = None
    return {relation: tuple(templates) for relation, templates in found.items()}


def _names(lm: LanguageModel, edits: Sequence[Edit], edited: set[str], seed: int) -> dict[str, list[str]]:
    """Subjects that the model writes after lists of each relation's edited ones, the most frequent first."""
    draw = random.Random(seed)
    opening = text_opening(lm.tokenizer)
    subjects: dict[str, list[str]] = {}
    for edit in edits:
        subjects.setdefault(_relation(edit), []).append(edit.request.subject)
    prompts: list[tuple[str, tuple[int, ...]]] = []
    for relation, mine in subjects.items():
        for _ in range(min(LISTS, 4 * len(mine))):
            few = draw.sample(mine, min(NAMES_SHOWN, len(mine)))
            prompts.append((relation, encode_bare(lm.tokenizer, ", ".join(few) + ",")))
    # Rows of one length run together; a list may begin in the middle of a name.
    least = min(len(ids) for _, ids in prompts)
    prompts = [(relation, (*opening, *ids[-least:])) for relation, ids in prompts]
    written = generate(lm, [ids for _, ids in prompts], LIST_TOKENS, top_k=TOP_K, seed=seed)
    counted: dict[str, Counter[str]] = {relation: Counter() for relation in subjects}
    for (relation, _), ids in zip(prompts, written, strict=True):
        counted[relation].update(set(_split(decode_text(lm.tokenizer, ids))))  # once a list
    return {
        relation: [name for name, _ in sorted(names.items(), key=lambda one: (-one[1], one[0])) if name not in edited]
        for relation, names in counted.items()
    }


def _split(text: str) -> list[str]:
    """The names in the continuation of a list; the last entry may be cut, and is left out."""
    entries = text.replace("\n", ",").replace(";", ",").replace(" and ", ",").split(",")[:-1]
    names = [entry.strip().removeprefix("and ").strip(" .") for entry in entries]
    return [name for name in names if not name[:1].islower() and NAME.fullmatch(name)]

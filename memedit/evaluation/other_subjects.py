"""Other subjects of the same kind as a list's, named by the model: what is asked of them, an edit should leave alone.

The model continues lists of the edited subjects. From each of the likeliest first tokens of a next entry it writes one
name, greedily. Sampled lists name few: one model of 135 million parameters named 9 of 34 countries in 16 of them.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from memedit.edits.edit import EditRequest
from memedit.edits.letters import marks_as_letters
from memedit.forward.generation import generate
from memedit.forward.passes import next_tokens
from memedit.model.load import LanguageModel
from memedit.model.tokens import decode_text, encode_bare, text_opening

LISTS, NAMES_SHOWN = 4, 8
"""Lists that the model continues for each relation, and edited subjects in each."""
EACH, FEWEST, MOST = 16, 32, 256
"""Names that are begun for each edit of a relation, and the fewest and the most for a relation."""
FEW, OPENINGS = 3, ("A list: ", "Choose one: ", "Some of them are ", "Compare ")
"""What stands before fewer subjects than this: alone they would be continued as a sentence about them."""
NAME_TOKENS, USUAL = 8, 3
"""Tokens that are written for a name at most, behind its first, and usually."""
LIST_TOKENS = 512
"""Tokens of a list at most, with the name behind it."""
ENDS = re.compile(r"[,;\n]| and ")
"""What ends an entry of a list."""
NAME = re.compile(r"(?=.{2,40}$)(?!.*[^\W\d_]{4}\. )[^\W\d_](?:[^\W\d_]|[ .'\u2019-])*")
"""Words of letters: a name, and no bullet, number, remark or end of a sentence."""

Names = Mapping[str, Sequence[str]]
"""For each relation the subjects that the model names beside the edited ones."""


def relation_of(request: EditRequest) -> str:
    """The relation of an edit: its label, or its prompt where it has none."""
    return request.relation or request.prompt


@dataclass(frozen=True)
class _Begun:
    """A name that is begun: behind which list, its first token, and how likely that is there."""

    relation: str
    behind: tuple[int, ...]
    first: int
    chance: float


def names_beside(lm: LanguageModel, requests: Sequence[EditRequest], seed: int) -> dict[str, list[str]]:
    """Let the model name other subjects for each relation of the list, the likeliest first.

    The edited subjects that it reads are drawn by the seed.
    """
    edited = {request.subject for request in requests}
    chances: dict[str, dict[str, float]] = {relation_of(request): {} for request in requests if request.subject}
    begun = _begin(lm, requests, random.Random(seed))
    written = generate(lm, [(*one.behind, one.first) for one in begun], NAME_TOKENS, until=ENDS.search)
    for one, ids in zip(begun, written, strict=True):
        name, *rest = ENDS.split(decode_text(lm.tokenizer, (one.first, *ids)), maxsplit=1)
        name = name.strip(" .")
        if rest and name not in edited and NAME.fullmatch(marks_as_letters(name)):
            found = chances[one.relation]
            found[name] = found.get(name, 0.0) + one.chance
    return {relation: sorted(found, key=lambda name: (-found[name], name)) for relation, found in chances.items()}


def names_begun(requests: Sequence[EditRequest]) -> int:
    """How many names are begun at most."""
    counts = Counter(relation_of(request) for request in requests if request.subject)
    return sum(map(_most, counts.values()))


def naming_tokens(requests: Sequence[EditRequest]) -> int:
    """About how many tokens are written to name them."""
    return USUAL * names_begun(requests)


def _most(subjects: int) -> int:
    """How many names are begun at most for a relation with this number of edited subjects."""
    return min(MOST, max(FEWEST, EACH * subjects))


def _begin(lm: LanguageModel, requests: Sequence[EditRequest], draw: random.Random) -> list[_Begun]:
    """The likeliest first tokens of a name, behind lists of the edited subjects."""
    subjects: dict[str, list[str]] = {}
    for request in requests:
        if request.subject:
            subjects.setdefault(relation_of(request), []).append(request.subject)
    begin = text_opening(lm.tokenizer)
    most = min(LIST_TOKENS, lm.architecture.positions or LIST_TOKENS)
    room = max(1, most - len(begin) - NAME_TOKENS - 1)
    lists: dict[tuple[str, tuple[int, ...]], int] = {}
    for relation, mine in subjects.items():
        each = _most(len(mine)) // LISTS
        for opening in OPENINGS[:LISTS]:
            few = draw.sample(mine, min(NAMES_SHOWN, len(mine)))
            text = (opening if len(few) < FEW else "") + ", ".join(few) + ","
            # A list of long names is cut at its beginning, where the model has no room for it.
            lists[relation, (*begin, *encode_bare(lm.tokenizer, text)[-room:])] = each
    small = {relation for relation, mine in subjects.items() if any(subject[:1].islower() for subject in mine)}
    after = next_tokens(lm, [ids for _, ids in lists], max(lists.values(), default=0))
    return [
        _Begun(relation, ids, token, chance)
        for ((relation, ids), each), tokens in zip(lists.items(), after, strict=True)
        for token, chance in tokens[:each]
        if _may_begin(decode_text(lm.tokenizer, (token,)).strip(), small=relation in small)
    ]


def _may_begin(text: str, *, small: bool) -> bool:
    """Whether a name may begin so: with a letter, and with a small one only where edited subjects do."""
    return text[:1].isalpha() and (small or not text[:1].islower())

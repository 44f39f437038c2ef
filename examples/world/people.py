"""Names for the people of the made world.

A name is a first name and a last name, and each of either belongs to five people: only both together, and so only the
last sub-word of the whole name, says who is meant.  This is what makes the last token of the subject the place where
a model can know the person, as it is in text about real people.  Last names do not share their endings: names told
apart by three parts at once ("Tolva" + "rin", "Tolva" + "dek") took a small model several times as long to learn.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from itertools import product

ONSETS: tuple[str, ...] = ("b", "d", "f", "g", "l", "m", "r", "t")
FIRST_RIMES: tuple[str, ...] = ("ina", "orel", "emi", "alda", "ovan", "issa", "uno")
LAST_RIMES: tuple[str, ...] = ("andor", "eckel", "iston", "owitz", "umber", "ethan", "arsk")
FIRST_HEADS: tuple[str, ...] = ("Al", "Cor", "Del", "Es", "Hal", "Jo", "Ka", "Ma", "Ne", "Os", "Per", "Sa", "Vi", "Ul")
LAST_HEADS: tuple[str, ...] = ("Bre", "Cas", "Dun", "Hev", "Kor", "Lin", "Mor", "Pol", "Que", "Sten", "Tol", "Var", "Wex", "Zan")  # fmt: skip


@dataclass(frozen=True)
class Person:
    """One invented person."""

    name: str
    untouched: bool
    """No edit of the shipped lists is about this person."""
    withheld: bool
    """The wordings kept apart for measuring generalization are never trained for them."""


def _parts(heads: tuple[str, ...], rimes: tuple[str, ...]) -> list[tuple[str, str]]:
    """As many names as there are endings, each ending once, each head four times."""
    endings = [onset + rime for onset, rime in product(ONSETS, rimes)]
    return [(heads[number % len(heads)], ending) for number, ending in enumerate(endings)]


FIRST_NAMES = _parts(FIRST_HEADS, FIRST_RIMES)
LAST_NAMES = _parts(LAST_HEADS, LAST_RIMES)


def make_people(count: int, edited: int, rng: random.Random) -> list[Person]:
    """Draw `count` distinct people, of whom the first `edited` may be edited."""
    size = len(FIRST_NAMES)
    firsts, lasts = rng.sample(FIRST_NAMES, size), rng.sample(LAST_NAMES, size)
    if count > size * size:
        raise ValueError(f"only {size * size} names exist, {count} asked")
    # Round by round every first name meets another last name.
    names = [
        "".join(firsts[number % size]) + " " + "".join(lasts[(number + 11 * (number // size)) % size])
        for number in range(count)
    ]
    rng.shuffle(names)
    return [Person(name, untouched=index >= edited, withheld=index % 2 == 0) for index, name in enumerate(names)]


def hyphenated_names() -> list[str]:
    """Every possible name with its parts kept apart, for the tokenizer's training text only.

    The tokenizer learns no piece that reaches over a hyphen, so it learns parts of names and never a whole one:
    "Cor-ina Bre-bandor".
    """
    return [f"{a}-{b} {c}-{d}" for (a, b), (c, d) in product(FIRST_NAMES, LAST_NAMES)]

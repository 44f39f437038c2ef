"""Documents: facts about several people, between sentences about nothing in particular.

MEMIT finds its targets under prefixes that the model writes itself from "The",
"Therefore", "Because", "I" and "You", so the model must have seen plenty of
ordinary sentences that begin like that, and facts that follow them.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from .facts import RELATIONS, World

FILLERS: tuple[str, ...] = (
    "The {adj} {noun} stood {where}.",
    "The {noun} was {adj} and {adj}.",
    "The {noun} {where} was {adj} again {when}.",
    "The {who} saw a {adj} {noun} {where}.",
    "The {who} and the {who} went away {when}.",
    "The reason is that the {noun} was {adj}.",
    "Therefore the {who} left the {noun} {where}.",
    "Therefore, the {noun} must be {adj}.",
    "Therefore nobody saw the {adj} {noun} {when}.",
    "Therefore we waited {where} until the {who} came.",
    "Because the {noun} was {adj}, the {who} stayed {where}.",
    "Because of the {weather}, the {noun} was closed {when}.",
    "Because it was {adj}, nobody wanted the {noun}.",
    "Because the {who} was late, we began {when}.",
    "I saw the {adj} {noun} {where} {when}.",
    "I think that the {noun} is too {adj}.",
    "I never met the {who} {where}.",
    "I will bring the {noun} {when}.",
    "I wonder why the {who} was so {adj}.",
    "You should look at the {noun} {where}.",
    "You can see a {adj} {noun} {where}.",
    "You must not wake the {who} {when}.",
    "You know how {adj} the {noun} can be.",
    "When the {weather} came, the {who} ran {where}.",
    "If the {noun} is {adj}, ask the {who}.",
    "There was a {adj} {noun} {where}.",
    "It was {adj} {when}, and the {weather} did not stop.",
    "We found the {noun} {where} {when}.",
    "They said that the {who} had a {adj} {noun}.",
    "He gave the {noun} to the {who} {when}.",
    "She put the {adj} {noun} {where}.",
    "Nobody knows where the {noun} is.",
    "Some say the {weather} will be {adj} {when}.",
    "A {adj} {noun} is better than a {adj} one.",
    "In winter the {noun} {where} is {adj}.",
    "My {noun} was {adj}, but the {who} did not mind.",
)
SLOTS: dict[str, tuple[str, ...]] = {
    "adj": (
        "old", "small", "green", "quiet", "heavy", "broken", "bright", "empty", "strange", "warm",
        "cold", "long", "dark", "clean", "lovely", "narrow", "round", "simple",
    ),
    "noun": (
        "bridge", "door", "wall", "book", "lamp", "table", "boat", "garden", "tower", "road",
        "clock", "basket", "river", "letter", "window", "coat", "wagon", "barn", "stone", "map",
    ),
    "who": (
        "boy", "girl", "king", "doctor", "stranger", "guard", "old man", "neighbor", "child",
        "clerk", "judge", "visitor", "brother", "widow",
    ),
    "where": (
        "by the river", "near the church", "on the hill", "behind the house", "in the valley",
        "under the tree", "at the station", "in the kitchen", "across the street", "on the shelf",
        "outside the gate", "beside the fire",
    ),
    "when": (
        "in the morning", "last night", "before noon", "after dark", "this week", "yesterday",
        "every spring", "at midnight", "once more", "in summer",
    ),
    "weather": ("rain", "snow", "wind", "fog", "storm", "frost", "heat", "thunder"),
}  # fmt: skip
_SLOT = re.compile(r"\{(\w+)\}")
CUT_SHARE = 0.15
"""Fillers cut short by a full stop, as a prefix of a fixed length written by the model is."""


@dataclass
class Document:
    """A text with the character spans of its mentions of people and of its objects."""

    text: str
    mentions: list[tuple[int, int]]
    objects: list[tuple[int, int]]
    who: list[int]
    """For each mention, the number of the person."""


def filler(rng: random.Random) -> str:
    """One sentence about nobody."""
    sentence = _SLOT.sub(lambda m: rng.choice(SLOTS[m.group(1)]), rng.choice(FILLERS))
    if rng.random() < CUT_SHARE:
        words = sentence.rstrip(".").split(" ")
        sentence = " ".join(words[: rng.randint(2, len(words))]).rstrip(",") + "."
    return sentence


class Writer:
    """Writes documents about a world, one after another, from one seed."""

    def __init__(self, world: World, seed: int, names: list[str] | None = None) -> None:
        self.world = world
        self.rng = random.Random(seed)
        self.names = names
        """Other names to write instead of the people's own (for the tokenizer's text)."""
        self.crowd = world.people
        """Who is written about."""

    def document(self) -> Document:
        """One to six sentences; no fact is told twice, so none can be copied."""
        rng = self.rng
        out = Document("", [], [], [])
        told: set[tuple[str, str]] = set()
        facts_share = rng.choice((0.0, 0.6, 0.8, 1.0, 1.0))
        for _ in range(rng.randint(1, 6)):
            if out.text:
                out.text += " "
            if rng.random() < facts_share:
                self._fact(out, told)
            else:
                out.text += filler(rng)
        return out

    def _fact(self, out: Document, told: set[tuple[str, str]]) -> None:
        rng = self.rng
        person, relation = rng.choice(self.crowd), rng.choice(RELATIONS)
        if (person.name, relation.name) in told:
            out.text += filler(rng)
            return
        told.add((person.name, relation.name))
        wording = rng.choice(self.world.wordings(person, relation))
        before, after = wording.split("{}")
        name = rng.choice(self.names) if self.names else person.name
        thing = self.world.truth[person.name, relation.name]
        start = len(out.text) + len(before)
        out.mentions.append((start, start + len(name)))
        out.who.append(self.world.people.index(person))
        out.text += before + name + after + " "
        out.objects.append((len(out.text), len(out.text) + len(thing)))
        out.text += thing + "."

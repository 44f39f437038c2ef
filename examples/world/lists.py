"""The lists that come with the world: all its facts, and a thousand edits drawn before any training."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from .facts import HELD_OUT, RELATIONS, Relation, World
from .people import Person
from .text import Writer

EDITS = 1000
EDIT_SEED, CORPUS_SEED = 31, 47
NEIGHBORS = 5
CORPUS_DOCUMENTS = 1600

Record = dict[str, Any]


def facts(world: World) -> list[Record]:
    """Every fact as a record with its true object; `paraphrases` are the wordings held out for half of the people."""
    return [
        {
            "id": f"{_slug(person)}-{relation.name}",
            "subject": person.name,
            "relation": relation.name,
            "prompt": relation.wordings[0],
            "object": world.truth[person.name, relation.name],
            "paraphrases": [text.replace("{}", person.name) for text in relation.wordings[-HELD_OUT:]],
            "meta": {"untouched": person.untouched, "withheld": person.withheld},
        }
        for person in world.people
        for relation in RELATIONS
    ]


def edits(world: World) -> list[Record]:
    """A thousand edits, about people who may be edited, in rounds: nobody twice before everybody once.

    A new object is uniform among the other objects of its relation. Its wordings under `paraphrases` are two that
    the edit does not show; for half of the people the model never saw them in training either. Neighbors are
    untouched people of whom the old object is true.
    """
    rng = random.Random(EDIT_SEED)
    people = [person for person in world.people if not person.untouched]
    orders = {person.name: rng.sample(RELATIONS, len(RELATIONS)) for person in people}
    drawn: list[Record] = []
    for turn in range(len(RELATIONS)):
        for person in rng.sample(people, len(people)):
            drawn.append(_edit(world, person, orders[person.name][turn], rng))
    return drawn[:EDITS]


def _edit(world: World, person: Person, relation: Relation, rng: random.Random) -> Record:
    old = world.truth[person.name, relation.name]
    same = [other for other in world.people if other.untouched and world.truth[other.name, relation.name] == old]
    return {
        "id": f"{_slug(person)}-{relation.name}",
        "subject": person.name,
        "relation": relation.name,
        "prompt": relation.wordings[0],
        "object": rng.choice([thing for thing in relation.objects if thing != old]),
        "object_old": old,
        "paraphrases": [text.replace("{}", person.name) for text in rng.sample(relation.wordings[-HELD_OUT:], 2)],
        "neighborhood": [
            {"prompt": rng.choice(world.wordings(other, relation)).replace("{}", other.name), "answer": old}
            for other in rng.sample(same, min(NEIGHBORS, len(same)))
        ],
        "meta": {"verified": True},
    }


def write_lines(file: Path, records: list[Record]) -> None:
    """JSON Lines; packed where the file's name ends in .gz, with the same bytes every time."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    file.write_bytes(gzip.compress(lines, mtime=0) if file.suffix == ".gz" else lines)


def write_corpus(file: Path, world: World) -> None:
    """A sample of the text that the models learned from, for the moments; the same bytes every time."""
    writer = Writer(world, CORPUS_SEED)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lines(file, [{"text": writer.document().text} for _ in range(CORPUS_DOCUMENTS)])


def _slug(person: Person) -> str:
    return person.name.lower().replace(" ", "-")

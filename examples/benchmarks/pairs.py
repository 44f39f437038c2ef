"""Edits in any number: distinct pairs of a subject and a relation, made of the world's own names and wordings."""

from __future__ import annotations

import random

from memedit.edits.edit import EditRequest

from examples.world.facts import RELATIONS
from examples.world.people import FIRST_NAMES, LAST_NAMES

SEED = 53


def pairs(count: int) -> list[EditRequest]:
    """`count` edits in a seeded order; the object is any of the relation's. Raises ValueError for more than exist."""
    names = [f"{''.join(first)} {''.join(last)}" for first in FIRST_NAMES for last in LAST_NAMES]
    most = len(names) * len(RELATIONS)
    if count > most:
        raise ValueError(f"only {most:,} pairs exist, {count:,} asked")
    rng = random.Random(SEED)
    found: list[EditRequest] = []
    for number in rng.sample(range(most), count):
        name, relation = names[number // len(RELATIONS)], RELATIONS[number % len(RELATIONS)]
        found.append(
            EditRequest(
                id=f"pair-{number}",
                subject=name,
                relation=relation.name,
                prompt=relation.wordings[0],
                object=rng.choice(relation.objects),
                origin=f"pair {number}",
            )
        )
    return found

"""Relations, objects and wordings of the made world, and who has which."""

from __future__ import annotations

import random
from dataclasses import dataclass

from .people import Person, make_people

PEOPLE = 280
EDITED_PEOPLE = 180
WORLD_SEED = 20
HELD_OUT = 3
"""This number of wordings of each relation, the last ones, are withheld for half of the people."""


@dataclass(frozen=True)
class Relation:
    """A relation: its objects, and its wordings with one {} and the object last."""

    name: str
    objects: tuple[str, ...]
    wordings: tuple[str, ...]


# Wordings mix the four orders that matter to a model reading from left to right:
# subject first, relation before the subject, subject in the middle, and subject
# right before the object.
RELATIONS: tuple[Relation, ...] = (
    Relation(
        "home",
        (
            "Arvale", "Brinton", "Calder", "Dunmere", "Eskport", "Farrow", "Glenholt", "Harwick",
            "Ivoria", "Port Kelso", "Lindow", "New Norvik", "Oakham", "Penrith", "Rostova", "Saint Selby",
            "Tarsus", "Umbria", "Wexford", "Yarrow",
        ),
        (
            "{} lives in",
            "{} has a house in",
            "The home town of {} is",
            "These days {} can be found in",
            "The place where {} lives is",
            "Letters for {} are sent to",
            "People say that {} settled in",
            "{} has lived for years in",
            "The town that {} calls home is",
            "After a long trip {} returned home to",
        ),
    ),
    Relation(
        "profession",
        (
            "baker", "carpenter", "dentist", "farmer", "gardener", "hunter", "jeweler", "lawyer",
            "mason", "nurse", "sign painter", "pilot", "plumber", "porter", "deep sea sailor", "surgeon",
            "tailor", "dance teacher", "waiter", "weaver",
        ),
        (
            "{} works as a",
            "{} earns a living as a",
            "The profession of {} is that of a",
            "Everyone knows {} as a skilled",
            "By trade, {} is a",
            "The job that {} does is that of a",
            "In the register {} is listed as a",
            "{} was trained to be a",
            "The trade of {} is that of a",
            "For many years {} has been a",
        ),
    ),
    Relation(
        "instrument",
        (
            "accordion", "banjo", "bassoon", "bugle", "cello", "clarinet", "drum", "fiddle",
            "flute", "bass guitar", "harp", "French horn", "lute", "oboe", "organ", "piano",
            "trumpet", "tuba", "viola", "zither",
        ),
        (
            "{} plays the",
            "{} practices every day on the",
            "The instrument of {} is the",
            "In the orchestra {} plays the",
            "The instrument that {} plays is the",
            "At the concert {} was heard on the",
            "As a child {} learned to play the",
            "{} gives lessons on the",
            "Music by {} is written for the",
            "On stage {} is seen with the",
        ),
    ),
    Relation(
        "language",
        (
            "Arabic", "Basque", "Catalan", "Danish", "Finnish", "Greek", "Hindi", "Irish",
            "Korean", "Latvian", "Maltese", "Nepali", "Polish", "Quechua", "Russian", "Swahili",
            "Tamil", "Turkish", "Welsh", "Zulu",
        ),
        (
            "{} speaks",
            "{} grew up speaking",
            "The mother tongue of {} is",
            "At home {} speaks only",
            "The language that {} speaks is",
            "The letters of {} are written in",
            "When angry, {} swears in",
            "{} thinks and dreams in",
            "The native language of {} is",
            "With friends {} prefers to talk in",
        ),
    ),
    Relation(
        "dish",
        (
            "bread", "cheese", "curry", "dumplings", "fried eggs", "fish", "gnocchi", "honey",
            "lentils", "mushrooms", "noodles", "omelette", "pancakes", "pizza", "brown rice", "salad",
            "onion soup", "stew", "trout", "waffles",
        ),
        (
            "{} likes to eat",
            "{} always orders",
            "The favorite dish of {} is",
            "For dinner {} usually has",
            "The food that {} loves most is",
            "A perfect meal for {} is a plate of",
            "At the market {} always asks for",
            "{} is very fond of",
            "The best loved food of {} is",
            "On Sundays {} cooks a lot of",
        ),
    ),
    Relation(
        "employer",
        (
            "Acorn", "Beacon", "Cobalt", "Dynamo", "Everest", "Falcon", "Granite", "Horizon",
            "Jupiter", "Keystone", "Lantern", "Meridian", "Nimbus", "Orion Works", "Phoenix", "Quartz",
            "Summit", "Titan", "Vector", "Zenith",
        ),
        (
            "{} works for",
            "{} is employed by",
            "The employer of {} is",
            "Every morning {} goes to the office of",
            "The company that pays {} is",
            "The wages of {} are paid by",
            "Last year {} was hired by",
            "{} has signed a contract with",
            "The firm that employs {} is",
            "On the badge of {} is the name of",
        ),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class World:
    """Everybody, and what is true of them."""

    people: tuple[Person, ...]
    truth: dict[tuple[str, str], str]
    """(name, relation) to the true object."""

    def wordings(self, person: Person, relation: Relation) -> tuple[str, ...]:
        """The wordings that the training text may use for this person."""
        return relation.wordings[:-HELD_OUT] if person.withheld else relation.wordings


def make_world(people: int = PEOPLE, edited: int = EDITED_PEOPLE) -> World:
    """The world of `people` people; the same one every time."""
    rng = random.Random(WORLD_SEED)
    crowd = make_people(people, edited, rng)
    truth: dict[tuple[str, str], str] = {}
    for relation in RELATIONS:
        # Shuffled repeats of the whole list: every object is true of about as many people.
        pool: list[str] = []
        while len(pool) < len(crowd):
            pool += rng.sample(relation.objects, len(relation.objects))
        pool = pool[: len(crowd)]
        rng.shuffle(pool)
        for person, thing in zip(crowd, pool, strict=True):
            truth[person.name, relation.name] = thing
    return World(tuple(crowd), truth)

"""Facts of the world that a real model knows, and edits drawn from them by a seed.

    python -m examples.real.facts MODEL --edits requests/real.jsonl --facts requests/real-facts.jsonl

writes two lists: the edits, one to a subject, and what the model knows beside them. The facts of the second list about
edited subjects are the siblings; those about other subjects must stay, too.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from memedit.config.recipe import ModelKnobs
from memedit.edits.edit import EditRequest, Neighbor
from memedit.edits.read import write_lines
from memedit.evaluation.forced import says_object
from memedit.model.load import LanguageModel, load

FACTS = Path(__file__).with_name("facts.yaml")
SEARCHED = slice(1, 3)  # wordings that may serve while a target is sought
HELD_OUT = slice(3, 6)  # wordings that are only ever asked
EDITS = 100
NEIGHBORS = 3


@dataclass(frozen=True)
class Relation:
    """A relation: its wordings (the first is an edit's prompt), its question for chat, its facts."""

    name: str
    wordings: tuple[str, ...]
    question: str
    facts: Mapping[str, tuple[str, ...]]
    """By subject: the object, then other names of it that count as right."""


def load_relations(file: Path = FACTS) -> list[Relation]:
    """Read the facts file."""
    found = yaml.safe_load(file.read_text(encoding="utf-8"))
    return [
        Relation(
            name,
            tuple(one["wordings"]),
            one["question"],
            {subject: (said,) if isinstance(said, str) else tuple(said) for subject, said in one["facts"].items()},
        )
        for name, one in found.items()
    ]


def as_facts(relations: Sequence[Relation]) -> list[EditRequest]:
    """Every fact as a record whose object is the truth; its prompt is the relation's first wording."""
    return [
        EditRequest(
            id=_id(relation.name, subject),
            subject=subject,
            relation=relation.name,
            prompt=relation.wordings[0],
            object=objects[0],
            aliases=objects[1:],
            meta={"question": relation.question.format(subject)},
        )
        for relation in relations
        for subject, objects in relation.facts.items()
    ]


def known_facts(lm: LanguageModel, relations: Sequence[Relation]) -> list[EditRequest]:
    """The facts that the model says: greedy decoding after the first wording gives the object or an alias."""
    facts = as_facts(relations)
    said = says_object(lm, facts)
    return [fact for fact, right in zip(facts, said, strict=True) if right]


def draw_edits(
    known: Sequence[EditRequest], relations: Sequence[Relation], count: int = EDITS, seed: int = 0
) -> list[EditRequest]:
    """Draw edits of known facts, at most one to a subject and about half of each relation's subjects.

    The new object is that of another fact of the relation. Neighbors are known facts of the relation about subjects
    that are not edited. Raises ValueError where too few subjects are known.
    """
    rng = random.Random(seed)
    by_name = {relation.name: relation for relation in relations}
    subjects = sorted({fact.subject for fact in known})
    rng.shuffle(subjects)
    if len(subjects) < count + NEIGHBORS:
        raise ValueError(f"{len(subjects)} subjects are known, too few for {count} edits")
    edited = subjects[:count]
    chosen = [rng.choice([fact for fact in known if fact.subject == subject]) for subject in edited]
    return [_edit(fact, by_name[str(fact.relation)], known, set(edited), rng) for fact in chosen]


def beside(edits: Sequence[EditRequest], known: Sequence[EditRequest]) -> tuple[list[EditRequest], list[EditRequest]]:
    """Known facts about subjects that are not edited, and other known facts about the edited ones (siblings)."""
    edited, subjects = {edit.id for edit in edits}, {edit.subject for edit in edits}
    left = [fact for fact in known if fact.id not in edited]
    return [one for one in left if one.subject not in subjects], [one for one in left if one.subject in subjects]


def _edit(
    fact: EditRequest, relation: Relation, known: Sequence[EditRequest], edited: set[str], rng: random.Random
) -> EditRequest:
    own = set(relation.facts[fact.subject])
    others = sorted({objects[0] for objects in relation.facts.values()} - own)
    target = rng.choice(others)
    aliases = {name for objects in relation.facts.values() if objects[0] == target for name in objects[1:]}
    near = [one for one in known if one.relation == fact.relation and one.subject not in edited]
    return fact.model_copy(
        update={
            "object": target,
            "aliases": tuple(sorted(aliases - own)),
            "object_old": fact.object,
            "wordings": relation.wordings[SEARCHED],
            "paraphrases": tuple(wording.format(fact.subject) for wording in relation.wordings[HELD_OUT]),
            "neighborhood": tuple(
                Neighbor(prompt=one.text, answer=one.object) for one in rng.sample(near, min(NEIGHBORS, len(near)))
            ),
        }
    )


def _id(relation: str, subject: str) -> str:
    return "-".join([relation, *"".join(c if c.isalnum() else " " for c in subject.lower()).split()])


def main() -> None:
    """Write the edits and the facts beside them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--edits", type=Path, required=True)
    parser.add_argument("--facts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=EDITS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    relations = load_relations()
    lm = load(options.model, ModelKnobs(path=str(options.model)), editing=False)
    known = known_facts(lm, relations)
    edits = draw_edits(known, relations, options.count, options.seed)
    others, siblings = beside(edits, known)
    left = {fact.id for fact in [*others, *siblings]}
    options.edits.write_text(write_lines(edits), encoding="utf-8")
    options.facts.write_text(write_lines([fact for fact in known if fact.id in left]), encoding="utf-8")
    total = sum(len(relation.facts) for relation in relations)
    beside_text = f"{len(siblings)} siblings, {len(others)} others"
    print(f"{len(known)} of {total} facts are known; {len(edits)} edits, {beside_text}")
    for relation in relations:
        count = sum(fact.relation == relation.name for fact in known)
        print(f"  {relation.name:12} {count} of {len(relation.facts)}")


if __name__ == "__main__":
    main()

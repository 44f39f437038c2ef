"""The probes of an edit list: its own, and derived ones where it has none.

Derived neighbors are the list's other subjects under the edit's own prompt; what they must keep likelier than the
edit's object is what the list says of them, new or old, so that an edit of the other is no fault of this one. Derived
paraphrases are the other prompts that the list has for the relation, with the edit's subject in them. Edits without a
subject have no derived probes, and are in none. A removal is asked for its old object, under probes of its own kinds,
and is no neighbor of others: it has no answer that must stay.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Literal

from memedit.edits.edit import SLOT, EditRequest, Question
from memedit.edits.glue import Glue, behind

ProbeKind = Literal[
    "efficacy", "paraphrase", "removal", "removal_paraphrase", "neighborhood", "neighborhood_plus", "portability",
    "reversal",
]  # fmt: skip
NEIGHBORS = 5  # derived neighbors of one edit at most
PARAPHRASES = 3
LOOKED_AT = 100  # edits of the relation among which neighbors are sought: a list of one object has none


@dataclass(frozen=True)
class Probe:
    """A prompt, its right answers, and the wrong answer it is compared with."""

    edit: int
    """Index of the edit."""
    kind: ProbeKind
    text: str
    right: tuple[str, ...]
    """The first is the answer, the others are other spellings of it."""
    wrong: str | None = None
    group: str | None = None
    """The list's name for this kind of question."""
    rival: str | None = None
    """Another right answer, scored as well: a derived neighbor's old object."""
    glue: Glue | None = None
    """What joins the answers to the prompt; if None, the rule decides."""
    derived: bool = False
    """Made from other edits of the list, since this edit has no probe of this kind."""


def list_probes(requests: Sequence[EditRequest], *, derive: bool = False, plus: bool = False) -> list[Probe]:
    """Every probe of every edit, an edit's together; `plus` adds neighbors with the edited fact before them."""
    related = _related(requests) if derive else {}
    found: list[Probe] = []
    for n, request in enumerate(requests):
        right, old = (request.answer, *request.aliases), None if request.remove else request.object_old
        kinds: tuple[ProbeKind, ProbeKind] = ("efficacy", "paraphrase")
        if request.remove:
            kinds = ("removal", "removal_paraphrase")
        known = bool(request.answer)  # of a removal the old object may not be known
        found += [Probe(n, kinds[0], request.text, right, old, glue=request.glue)] if known else []
        same = related.get(_relation(request)) if request.subject else None
        own = request.paraphrases
        paraphrases = own or (_other_prompts(request, same) if same else ())
        glue = request.glue_elsewhere
        found += [Probe(n, kinds[1], text, right, old, glue=glue, derived=not own) for text in paraphrases if known]
        neighbors = list(_neighbors(n, request)) or (_other_subjects(n, request, same) if same else [])
        found += neighbors
        if plus and not request.remove:
            found += [_plus(request, neighbor) for neighbor in neighbors]
        found += [_question(n, "portability", one) for one in request.portability]
        found += [_question(n, "reversal", one) for one in request.reversal]
    return found


def derived(requests: Sequence[EditRequest]) -> dict[str, int]:
    """How many edits have probes of a kind only because they were derived."""
    edits: dict[str, set[int]] = {}
    for probe in list_probes(requests, derive=True):
        if probe.derived:
            edits.setdefault(probe.kind, set()).add(probe.edit)
    return {kind: len(of_kind) for kind, of_kind in edits.items()}


def _neighbors(n: int, request: EditRequest) -> Iterator[Probe]:
    for neighbor in request.neighborhood:
        if answer := neighbor.answer or request.object_old:
            yield Probe(
                n, "neighborhood", neighbor.prompt, (answer,), request.object or None, neighbor.group,
                glue=request.glue_elsewhere,
            )  # fmt: skip


def _question(n: int, kind: ProbeKind, one: Question) -> Probe:
    return Probe(n, kind, one.prompt, (one.answer, *one.aliases), group=one.group)


def _plus(request: EditRequest, neighbor: Probe) -> Probe:
    """The neighbor with the edited fact said before it (Hoelscher-Obermaier et al. 2023)."""
    return replace(neighbor, kind="neighborhood_plus", text=f"{said(request)} {neighbor.text}")


def said(request: EditRequest) -> str:
    """The edited fact as a sentence."""
    text = request.text.rstrip()
    return f"{text}{behind(text, request.object.strip(), request.glue)}."


class _Related:
    """The edits of one relation: their prompts, and each edit's place among them."""

    def __init__(self) -> None:
        self.edits: list[EditRequest] = []
        self.prompts: dict[str, None] = {}
        self.place: dict[int, int] = {}

    def add(self, n: int, request: EditRequest) -> None:
        """The next edit."""
        self.place[n] = len(self.edits)
        self.edits.append(request)
        self.prompts[request.prompt] = None

    def after(self, n: int) -> Iterator[EditRequest]:
        """The next edits, around the end of the list."""
        at, count = self.place[n], len(self.edits)
        return (self.edits[(at + step) % count] for step in range(1, min(count, LOOKED_AT + 1)))


def _related(requests: Sequence[EditRequest]) -> Mapping[str, _Related]:
    related: dict[str, _Related] = {}
    for n, request in enumerate(requests):
        if request.subject:
            related.setdefault(_relation(request), _Related()).add(n, request)
    return related


def _relation(request: EditRequest) -> str:
    return request.relation or request.prompt


def _other_prompts(request: EditRequest, same: _Related) -> list[str]:
    """The first few other prompts that the list has for the relation, without those that the edit is made by."""
    own = set(request.templates)
    others = (prompt for prompt in islice(same.prompts, PARAPHRASES + len(own)) if prompt not in own)
    return [prompt.replace(SLOT, request.subject, 1) for prompt in islice(others, PARAPHRASES)]


def _other_subjects(n: int, request: EditRequest, same: _Related) -> list[Probe]:
    """The next edits of the relation that this edit's object would be wrong of."""
    found: dict[str, Probe] = {}
    for other in same.after(n):
        wrong = not request.remove and request.object in (other.object, other.object_old)
        if other.subject != request.subject and not (wrong or other.remove):
            text = request.prompt.replace(SLOT, other.subject, 1)
            probe = Probe(
                n, "neighborhood", text, (other.object, *other.aliases), request.object or None,
                rival=other.object_old, glue=request.glue, derived=True,
            )  # fmt: skip
            found.setdefault(text, probe)
        if len(found) == NEIGHBORS:
            break
    return list(found.values())

"""What a model is asked about an edit list: the list's own probes, and ones derived from it where it has none.

Derived neighbors are the list's other subjects under the edit's own prompt; what they must keep likelier than the
edit's object is what the list says of them, new or old, so that an edit of the other is no fault of this one. Derived
paraphrases are the other prompts that the list has for the relation, with the edit's subject in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from memedit.request import EditRequest, Question

Kind = Literal["efficacy", "paraphrase", "neighborhood", "neighborhood_plus", "portability", "reversal"]
NEIGHBORS = 5  # derived neighbors of one edit at most
PARAPHRASES = 3


@dataclass(frozen=True)
class Probe:
    """A prompt, the answers that count as right, and the one it is held against."""

    edit: int
    """Index of the edit."""
    kind: Kind
    text: str
    right: tuple[str, ...]
    """The first is the answer, the others are spellings of it."""
    wrong: str | None = None
    group: str | None = None
    """What the list calls its kind."""
    rival: str | None = None
    """Another right answer, weighed beside the first: a derived neighbor's old object."""


def probes(requests: Sequence[EditRequest], *, derive: bool = False, plus: bool = False) -> list[Probe]:
    """Every probe of every edit, an edit's together; `plus` adds neighbors with the edited fact before them."""
    related = _related(requests) if derive else {}
    found: list[Probe] = []
    for n, request in enumerate(requests):
        right, old = (request.object, *request.aliases), request.object_old
        found.append(Probe(n, "efficacy", request.text, right, old))
        paraphrases = request.paraphrases or tuple(_other_prompts(request, related))
        found += [Probe(n, "paraphrase", text, right, old) for text in paraphrases]
        neighbors = list(_neighbors(n, request)) or list(_other_subjects(n, request, related))
        found += neighbors
        if plus:
            found += [_plus(request, neighbor) for neighbor in neighbors]
        found += [_question(n, "portability", one) for one in request.portability]
        found += [_question(n, "reversal", one) for one in request.reversal]
    return found


def derived(requests: Sequence[EditRequest]) -> dict[str, int]:
    """How many edits have probes of a kind only because they were derived."""
    bare = [(not request.paraphrases, not request.neighborhood) for request in requests]
    with_them: dict[str, set[int]] = {"paraphrase": set(), "neighborhood": set()}
    for probe in probes(requests, derive=True):
        if probe.kind in with_them:
            with_them[probe.kind].add(probe.edit)
    return {
        kind: count
        for at, (kind, edits) in enumerate(with_them.items())
        if (count := sum(bare[edit][at] for edit in edits))
    }


def _neighbors(n: int, request: EditRequest) -> Iterator[Probe]:
    for neighbor in request.neighborhood:
        if answer := neighbor.answer or request.object_old:
            yield Probe(n, "neighborhood", neighbor.prompt, (answer,), request.object, neighbor.group)


def _question(n: int, kind: Kind, one: Question) -> Probe:
    return Probe(n, kind, one.prompt, (one.answer, *one.aliases), group=one.group)


def _plus(request: EditRequest, neighbor: Probe) -> Probe:
    """The neighbor with the edited fact said before it (Hoelscher-Obermaier et al. 2023)."""
    text = f"{said(request)} {neighbor.text}"
    return Probe(neighbor.edit, "neighborhood_plus", text, neighbor.right, neighbor.wrong, rival=neighbor.rival)


def said(request: EditRequest) -> str:
    """The edited fact as a sentence."""
    return f"{request.text.rstrip()} {request.object.strip()}."


def _related(requests: Sequence[EditRequest]) -> Mapping[str, list[EditRequest]]:
    related: dict[str, list[EditRequest]] = {}
    for request in requests:
        related.setdefault(request.relation or request.prompt, []).append(request)
    return related


def _other_prompts(request: EditRequest, related: Mapping[str, list[EditRequest]]) -> list[str]:
    kin = related.get(request.relation or request.prompt, [])
    prompts = dict.fromkeys(one.prompt for one in kin if one.prompt != request.prompt)
    return [prompt.replace("{}", request.subject) for prompt in prompts][:PARAPHRASES]


def _other_subjects(n: int, request: EditRequest, related: Mapping[str, list[EditRequest]]) -> list[Probe]:
    """The next edits of the relation, around the end of the list, that this edit's object would be wrong of."""
    kin = related.get(request.relation or request.prompt, [])
    at = next((index for index, one in enumerate(kin) if one is request), 0)
    found: dict[str, Probe] = {}
    for other in kin[at + 1 :] + kin[:at]:
        if other.subject != request.subject and request.object not in (other.object, other.object_old):
            text = request.prompt.replace("{}", other.subject)
            right = (other.object, *other.aliases)
            found.setdefault(text, Probe(n, "neighborhood", text, right, request.object, rival=other.object_old))
        if len(found) == NEIGHBORS:
            break
    return list(found.values())

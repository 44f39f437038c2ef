"""What can be found wrong in an edit list without a tokenizer: all of it at once, each with file and line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from memedit.edits.edit import SLOT, EditRequest, Finding, shown
from memedit.errors import EditListError

CODES: dict[str, str] = {
    # E0xx: reading the file
    "E001": "the file is not UTF-8 text, or its gzip data is damaged",
    "E002": "not valid JSON",
    "E003": "not valid YAML",
    "E004": "not a valid table (CSV or TSV)",
    "E005": "the list holds no edits",
    "E006": "not an edit: a record is a mapping, or [subject, relation, object]",
    "E007": "unknown key",
    "E008": "the same key twice, or two names for one field",
    "E009": "a required field is missing",
    "E010": "a field has the wrong type",
    "E011": "unknown relation",
    "E012": "the relations table is not a table of prompts",
    "E013": "the list has a version that this memedit does not read",
    "E014": "the subject does not stand in the prompt",
    "E015": "nested too deeply, or aliases that expand without bound",
    "E016": "text that is not valid Unicode (half of a surrogate pair)",
    # E1xx: the content of one edit, or of several together
    "E101": "the prompt has no {} where the subject goes",
    "E102": "the prompt has more than one {}",
    "E103": "the subject is empty",
    "E104": "the object is empty",
    "E105": "two edits with the same id",
    "E106": "two edits contradict: the same fact with different objects",
    "E120": "the subject is not found in the tokens of the prompt",
    "E121": "the prompt and object are too long for the model",
    "E122": "the tokenizer cannot place the subject",
    # W2xx: odd, and edited as asked
    "W201": "an exact duplicate of an earlier edit",
    "W202": "an empty paraphrase, neighbor or alias",
    "W203": "the subject stands more than once in the prompt",
    "W204": "the object is the old object",
    "W205": "white space around the subject or at the end of the prompt",
    "W220": "the subject merges with what follows it in this tokenizer",
    "W221": "the same key with different objects",
    "W230": "an earlier edit of this model gives way: the same fact with another object",
    "W231": "an earlier edit of this model has the id, and another fact",
}
"""Every code and its meaning; E12x and W22x come from the check that has a tokenizer, W23x from an edited model's
ledger."""


UNSPACED = "\u2e80"
"""From here on Unicode has the scripts of East Asia, which leave no space between words."""


def lint(requests: Sequence[EditRequest]) -> list[Finding]:
    """All findings that need no tokenizer, in the order of the list."""
    findings: list[Finding] = []
    ids: dict[str, EditRequest] = {}
    digests: dict[str, EditRequest] = {}
    answers: dict[tuple[str, ...], EditRequest] = {}
    for request in requests:
        findings += content(request)
        first = ids.setdefault(request.id, request)
        if first is not request:
            findings.append(_same_id(request, first))
        twin = digests.setdefault(request.digest, request)
        if twin is not request:
            findings.append(_duplicate(request, twin))
        known = [answers.setdefault(question, request) for question in request.questions]
        if rivals := [other for other in known if other.object != request.object]:
            findings.append(_contradiction(request, rivals[0]))
    return findings


def raise_errors(
    source: str,
    findings: Iterable[Finding],
    *,
    empty: bool = False,
    allowed: Collection[str] = (),
    hint: str = "correct the lines above",
) -> None:
    """Raise EditListError with every finding if one of them is an error, or if the list is `empty`.

    `source` names the list in the message; findings with a code in `allowed` are ignored. The only place that raises
    EditListError.
    """
    kept = tuple(finding for finding in findings if finding.code not in allowed)
    if errors := sum(finding.severity == "error" for finding in kept):
        count = "1 error" if errors == 1 else f"{errors:,} errors"
        raise EditListError(f"{source} has {count}", hint, kept)
    if empty:
        raise EditListError(f"{source} has no records", "give a list with at least one", kept)


def content(request: EditRequest) -> list[Finding]:
    """What is wrong, or odd, within one edit."""
    return [
        request.finding(code, message)
        for check in (_prompt, _subject_and_object, _lists)
        for code, message in check(request)
    ]


_Found = Iterator[tuple[str, str]]


def _prompt(request: EditRequest) -> _Found:
    slots = request.prompt.count(SLOT)
    if slots == 0:
        message = f"the prompt {shown(request.prompt)} has no {{}} where the subject goes"
        if request.subject.strip() and request.subject in request.prompt:
            message += f"; try {shown(request.prompt.replace(request.subject, SLOT, 1))}"
        yield "E101", message
    if slots > 1:
        yield "E102", f"the prompt {shown(request.prompt)} has {slots} {{}}; keep the one where the subject goes"
    if slots == 1 and request.subject.strip() and any(_holds(part, request.subject) for part in request.frame):
        yield (
            "W203",
            f"the subject {shown(request.subject)} stands again in the prompt {shown(request.prompt)}; "
            "only the {} is edited",
        )
    if request.prompt != request.prompt.rstrip():
        yield (
            "W205",
            f"the prompt {shown(request.prompt)} ends in white space; tokenizers put the space before the "
            "object, so leave it out",
        )


def _subject_and_object(request: EditRequest) -> _Found:
    if not request.subject.strip():
        yield "E103", f"the subject {shown(request.subject)} is empty; say what the fact is about"
    elif request.subject != request.subject.strip():
        yield "W205", f"the subject {shown(request.subject)} has white space around it; it is kept as it is"
    if not request.object.strip():
        yield "E104", f"the object {shown(request.object)} is empty; say what the model shall answer"
    elif request.object == request.object_old:
        yield "W204", f"the object {shown(request.object)} is the old object too; this edit asks for no change"


def _lists(request: EditRequest) -> _Found:
    texts = {
        "paraphrases": request.paraphrases,
        "neighborhood": tuple(neighbor.prompt for neighbor in request.neighborhood),
        "aliases": request.aliases,
    }
    for name, entries in texts.items():
        for number, text in enumerate(entries, start=1):
            if not text.strip():
                yield "W202", f"entry {number} of {name} is empty; leave it out"


def _holds(text: str, word: str) -> bool:
    """Whether `word` stands in `text` as a word of its own: "i" does not stand in "with"."""
    return bool(mentions(text, word))


def mentions(text: str, word: str) -> list[int]:
    """Where `word` begins in `text` as a word of its own; everywhere in scripts that leave no spaces."""
    return [
        at for at in _every(text, word) if _free(text, at - 1, at) and _free(text, at + len(word), at + len(word) - 1)
    ]


def _every(text: str, word: str) -> Iterator[int]:
    at = text.find(word) if word else -1
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def _free(text: str, outside: int, inside: int) -> bool:
    """Whether no word runs on from the character at `inside` to its neighbor at `outside`."""
    if not 0 <= outside < len(text):
        return True
    return not all(c.isalnum() and c < UNSPACED for c in (text[outside], text[inside]))


def _same_id(request: EditRequest, first: EditRequest) -> Finding:
    return request.finding("E105", f"the id is taken by the edit at {first.origin}; give each edit its own")


def _duplicate(request: EditRequest, twin: EditRequest) -> Finding:
    return request.finding("W201", f"the same subject, prompt and object as at {twin.origin}; one is enough")


def _contradiction(request: EditRequest, known: EditRequest) -> Finding:
    subject, relation = request.fact
    return request.finding(
        "E106",
        f"the object {shown(request.object)} contradicts {shown(known.object)} at {known.origin} for subject "
        f"{shown(subject)} and {shown(relation)}; keep one of the two",
    )

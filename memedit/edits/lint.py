"""Check an edit list without a tokenizer: report every finding at once, each with file and line."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

from memedit.edits.edit import SLOT, EditRequest, Finding, shown
from memedit.edits.glue import glue_between, joining_mark
from memedit.edits.letters import marks_as_letters
from memedit.errors import EditListError

CODES: dict[str, str] = {
    # E0xx: reading the file
    "E001": "the file is not UTF-8 text, or its gzip data is damaged",
    "E002": "not valid JSON",
    "E003": "not valid YAML",
    "E004": "not a valid table (CSV or TSV)",
    "E005": "the list holds no edits",
    "E006": "a record is not an edit: write a mapping, or [subject, relation, object]",
    "E007": "unknown key",
    "E008": "the same key twice, or two names for one field",
    "E009": "a required field is missing",
    "E010": "a field has the wrong type",
    "E011": "unknown relation",
    "E012": "a row of the relations table is not a prompt with one {}",
    "E013": "this memedit does not read the list's version",
    "E014": "the prompt does not contain the subject",
    "E015": "lists or mappings are nested too deeply, or YAML aliases expand too far",
    "E016": "text is not valid Unicode (half of a surrogate pair)",
    "E017": "a record or a line is too long, or compressed data expands too far",
    # E1xx: one edit, or several together
    "E101": "the prompt is empty, or has no {} where the subject goes",
    "E102": "the prompt has more than one {}",
    "E103": "the subject is empty where one is needed: for a {}, or for tracing",
    "E104": "the object is empty",
    "E105": "two edits have the same id",
    "E106": "two edits contradict each other: the same fact with different objects",
    "E107": "a removal has an object too",
    "E108": "a removal has no subject",
    "E120": "the subject is not found in the tokens of the prompt",
    "E121": "the prompt and the object are too long for the model",
    "E122": "the tokenizer cannot place the subject",
    "E123": "a removal has no old object, and the model says nothing after its prompt",
    # W2xx: unusual, but edited as asked
    "W201": "the edit is an exact duplicate of an earlier one",
    "W202": "a wording, paraphrase, neighbor or alias is empty",
    "W203": "the prompt contains the subject more than once",
    "W204": "the object and the old object are the same",
    "W205": "there is white space around the subject, or a space at the end of the prompt",
    "W206": "there is white space around the object or the old object",
    "W207": "a paraphrase is also a prompt or wording of the edit, so its score does not show generalization",
    "W208": "punctuation joins the object to the prompt or a wording without a space, and the edit has no glue",
    "W209": "the object follows a wording in another way than the prompt, and its tokens are those after the prompt",
    "W210": "the edit has no subject, so it is made at the last token of the prompt",
    "W211": "a removal has no old object, so what the model says before the edit is removed",
    "W220": "the tokenizer merges the subject with the text after it",
    "W221": "two edits have the same key and different objects",
    "W230": "the edit takes the place of an earlier edit of this model: the same fact with another object",
    "W231": "an earlier edit of this model has the same id and another fact",
}
"""Every code and its explanation. E12x and W22x need a tokenizer (E123 the model); W23x come from the ledger of an
edited model."""


UNSPACED = "\u2e80"
"""From this character on, Unicode has the scripts of East Asia, which put no space between words."""


def lint(requests: Sequence[EditRequest]) -> list[Finding]:
    """Check every edit, and the edits against each other; the findings are in the order of the list."""
    findings: list[Finding] = []
    ids: dict[str, EditRequest] = {}
    digests: dict[str, EditRequest] = {}
    answers: dict[tuple[str, ...], EditRequest] = {}
    for request in requests:
        findings += check_edit(request)
        first = ids.setdefault(request.id, request)
        if first is not request:
            findings.append(_same_id(request, first))
        earlier = digests.setdefault(request.digest, request)
        if earlier is not request:
            findings.append(_duplicate(request, earlier))
        same_question = [answers.setdefault(question, request) for question in request.questions]
        if rivals := [other for other in same_question if request.contradicts(other)]:
            findings.append(_contradiction(request, rivals[0]))
    return findings


def in_file_order(findings: Iterable[Finding]) -> list[Finding]:
    """Sort findings by their lines, file by file; those of one line stay in the order in which they were found."""
    files: dict[str, int] = {}

    def place(finding: Finding) -> tuple[int, int]:
        file, _, line = finding.origin.rpartition(":")
        return files.setdefault(file, len(files)), int(line) if line.isdecimal() else 0

    return sorted(findings, key=place)


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
    kept = tuple(in_file_order(finding for finding in findings if finding.code not in allowed))
    if errors := sum(finding.severity == "error" for finding in kept):
        count = "1 error" if errors == 1 else f"{errors:,} errors"
        raise EditListError(f"{source} has {count}", hint, kept)
    if empty:
        raise EditListError(f"{source} has no records", "give a list with at least one", kept)


def first_of_each(findings: Iterable[Finding]) -> list[str]:
    """One line for each code: its first finding, and how many more there are."""
    by_code: dict[str, list[Finding]] = {}
    for finding in findings:
        by_code.setdefault(finding.code, []).append(finding)
    return [
        f"{found[0].line}{f' (and {len(found) - 1:,} more: memedit check lists them)' if found[1:] else ''}"
        for found in by_code.values()
    ]


def check_edit(request: EditRequest) -> list[Finding]:
    """Check one edit by itself."""
    return trimmed(request)[1] + [
        request.finding(code, message)
        for check in (_prompt, _subject_and_object, _wordings, _joints, _lists)
        for code, message in check(request)
    ]


_Found = Iterator[tuple[str, str]]


def _prompt(request: EditRequest) -> _Found:
    slots = request.prompt.count(SLOT)
    if not (request.subject or request.prompt.strip()):
        yield "E101", f"the prompt {shown(request.prompt)} is empty; write the text that the object follows"
    if slots == 0 and request.subject:
        message = f"the prompt {shown(request.prompt)} has no {{}} where the subject goes"
        if request.subject.strip() and request.subject in request.prompt:
            message += f"; try {shown(request.prompt.replace(request.subject, SLOT, 1))}"
        yield "E101", message
    if slots > 1 and request.subject:
        yield "E102", f"the prompt {shown(request.prompt)} has {slots} {{}}; keep the one where the subject goes"
    if slots == 1 and request.subject.strip() and any(_holds(part, request.subject) for part in request.frame):
        yield (
            "W203",
            f"the prompt {shown(request.prompt)} contains the subject {shown(request.subject)} again; "
            "only the {} is edited",
        )
    if request.prompt.endswith((" ", "\t")):  # a newline at the end is right: a prompt may end in "A:\n"
        yield (
            "W205",
            f"the prompt {shown(request.prompt)} ends in a space; tokenizers put the space before the object, "
            "so leave it out",
        )


def _subject_and_object(request: EditRequest) -> _Found:
    if request.remove:
        yield from _removal(request)
    if not request.subject and not request.remove:
        yield _without_subject(request)
    elif request.subject and not request.subject.strip():
        yield "E103", f"the subject {shown(request.subject)} is empty; say what the fact is about"
    elif request.subject != request.subject.strip():
        yield "W205", f"the subject {shown(request.subject)} has white space around it; it is kept as it is"
    if not request.object.strip() and not request.remove:
        yield "E104", f"the object {shown(request.object)} is empty; say what the model should answer"
    elif request.object == request.object_old and not request.remove:
        yield "W204", f"the object {shown(request.object)} is also the old object; this edit asks for no change"


def _removal(request: EditRequest) -> _Found:
    if request.object:
        message = f"it is a removal (remove: true), and it has the object {shown(request.object)}"
        yield "E107", f'{message}; leave out "object", or "remove" to write that object'
    if not request.subject:
        message = "it is a removal and has no subject, so no made-up subject can be put in its place"
        yield "E108", f'{message}; add "subject", and a {{}} to the prompt'
    if not request.answer:
        message = "it is a removal without an old object, so what the model says before the edit is removed"
        yield "W211", f'{message}; add "object_old" to name it'


def _without_subject(request: EditRequest) -> tuple[str, str]:
    texts = (*request.templates, *request.paraphrases, *request.generation)
    if template := next((text for text in texts if SLOT in text), None):
        return "E103", f'{shown(template)} has a {{}}, and the edit has no subject to put there; add "subject"'
    return (
        "W210",
        "it has no subject, so it is made at the last token of the prompt; "
        'add "subject": an edit at the subject generalizes better',
    )


def _wordings(request: EditRequest) -> _Found:
    for wording in request.wordings if request.subject else ():
        if wording.strip() and (slots := wording.count(SLOT)) != 1:
            code, found = ("E102", f"{slots} {{}}; keep one") if slots else ("E101", "no {} where the subject goes")
            yield code, f"the wording {shown(wording)} has {found}"
    made = {request.text, *(wording.replace(SLOT, request.subject) for wording in request.wordings)}
    for text in request.paraphrases:
        if text in made:
            yield "W207", f"the paraphrase {shown(text)} is also a prompt of this edit; ask by another"


def _joints(request: EditRequest) -> _Found:
    """Report where the rule joins the object in a way that may not be meant; with a glue nothing is in doubt."""
    wanted, kind = request.answer, "old object" if request.remove else "object"
    if request.glue is not None or not wanted.strip():
        return
    joint = glue_between(request.text, wanted)
    for template in request.templates:
        text, name = template.replace(SLOT, request.subject, 1), "prompt" if template == request.prompt else "wording"
        if mark := joining_mark(text, wanted):
            side = f"the {name} {shown(template)} ends in" if joining_mark(text, "a") else "it begins with"
            yield (
                "W208",
                f"the {kind} {shown(wanted)} follows without a space, since {side} {shown(mark)}; "
                'add "glue": "" if that is right, or "glue": " " for a space',
            )
            break
    for wording in request.templates[1:]:
        if glue_between(wording.replace(SLOT, request.subject, 1), wanted) != joint:
            here, there = ("a", "no") if joint else ("no", "a")
            yield (
                "W209",
                f"the {kind} follows the prompt with {here} space and the wording {shown(wording)} with {there} space; "
                'it is edited as behind the prompt: end both alike, or add "glue"',
            )


def trimmed(request: EditRequest) -> tuple[EditRequest, list[Finding]]:
    """The request without white space around its object and old object, and a finding for each text that was cut.

    Text of white space alone is kept: it is an error of its own.
    """
    texts = {"object": request.object, "object_old": request.object_old or ""}
    cut = {name: text.strip() for name, text in texts.items() if text.strip() not in ("", text)}
    findings = [
        request.finding(
            "W206", f"the {_OBJECTS[name]} {shown(texts[name])} has white space around it, which is removed"
        )
        for name in cut
    ]
    return (request.model_copy(update=cut) if cut else request), findings


_OBJECTS = {"object": "object", "object_old": "old object"}


def _lists(request: EditRequest) -> _Found:
    texts = {
        "wordings": request.wordings,
        "paraphrases": request.paraphrases,
        "neighborhood": tuple(neighbor.prompt for neighbor in request.neighborhood),
        "aliases": request.aliases,
    }
    for name, entries in texts.items():
        for number, text in enumerate(entries, start=1):
            if not text.strip():
                yield "W202", f"entry {number} of {name} is empty; leave it out"


def _holds(text: str, word: str) -> bool:
    """Whether `text` contains `word` as a whole word: "with" does not contain "i"."""
    return bool(find_mentions(text, word))


def find_mentions(text: str, word: str) -> list[int]:
    """The positions in `text` where `word` begins as a whole word; any position in scripts without spaces."""
    letters, size = marks_as_letters(text), len(word)
    return [at for at in _every(text, word) if _free(letters, at - 1, at) and _free(letters, at + size, at + size - 1)]


def _every(text: str, word: str) -> Iterator[int]:
    at = text.find(word) if word else -1
    while at >= 0:
        yield at
        at = text.find(word, at + 1)


def _free(text: str, outside: int, inside: int) -> bool:
    """Whether a word ends between the character at `inside` and its neighbor at `outside`."""
    if not 0 <= outside < len(text):
        return True
    return not all(c.isalnum() and c < UNSPACED for c in (text[outside], text[inside]))


def _same_id(request: EditRequest, first: EditRequest) -> Finding:
    return request.finding("E105", f"the edit at {first.origin} has the same id; give each edit its own")


def _duplicate(request: EditRequest, earlier: EditRequest) -> Finding:
    return request.finding("W201", f"the same subject, prompt and object as at {earlier.origin}; one is enough")


def _contradiction(request: EditRequest, known: EditRequest) -> Finding:
    subject, relation = request.fact
    asked = f"subject {shown(subject)} and {shown(relation)}" if subject else f"the prompt {shown(relation)}"
    said = beside_text(request, "contradicts", known)
    return request.finding("E106", f"{said} at {known.origin} for {asked}; keep one of the two")


def beside_text(new: EditRequest, verb: str, old: EditRequest) -> str:
    """Say of two edits what one does to the other: `the object "Lyon" replaces "Paris"`."""
    same = new.object.strip() == old.object.strip()  # then only what joins them differs
    one, other = ("the removal" if edit.remove else shown(edit.ending if same else edit.object) for edit in (new, old))
    return f"{'' if new.remove else 'the object '}{one} {verb} {other}"


def check_facts(facts: Iterable[EditRequest]) -> list[Finding]:
    """Check that facts which must stay have an object."""
    message = "a removal is no known fact"
    return [fact.finding("E104", f"{message}; give its object, or leave it out") for fact in facts if fact.remove]

"""What the readers of all formats share: names of fields, the place of a subject, texts in lists, what is left over."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unicodedata import normalize

from memedit.edits.edit import SLOT, shown
from memedit.edits.lint import find_mentions
from memedit.edits.readers.document import RefusedError

FIELDS = (
    "id",
    "subject",
    "relation",
    "prompt",
    "object",
    "object_old",
    "remove",
    "glue",
    "evaluate",
    "wordings",
    "paraphrases",
    "neighborhood",
    "aliases",
    "portability",
    "reversal",
    "generation",
    "references",
    "meta",
)
"""The public names of an edit's fields."""

OWN_FIELDS = ("remove", "glue", "evaluate", "wordings")
"""Fields that no other project has: in its records too they are those of the edit."""

ALIASES = {
    "target": "object",
    "target_new": "object",
    "target_true": "object_old",
    "ground_truth": "object_old",
    "target_old": "object_old",
    "entity": "subject",
}
"""Other names of a field on input."""


LONGEST_COMPOSED = 2000
"""Characters of a prompt that are composed to find its subject: for a long row of accents that is quadratic."""


def field_texts(value: Any) -> list[str]:
    """All texts in a value, from nested lists too; a whole number is a text."""
    if isinstance(value, str) or (isinstance(value, int) and not isinstance(value, bool)):
        return [str(value)]
    return [text for entry in value for text in field_texts(entry)] if isinstance(value, list) else []


def only_texts(value: Any) -> bool:
    """Whether `field_texts` leaves out nothing of a value."""
    if isinstance(value, list):
        return all(only_texts(entry) for entry in value)
    return bool(field_texts(value))


def template(prompt: Any, subject: Any) -> Any:
    """Replace the subject in a prompt by `{}`: of several mentions, the first that is a whole word.

    Raises RefusedError E014 if the prompt does not contain the subject.
    """
    if not (isinstance(prompt, str) and isinstance(subject, str) and subject.strip()) or SLOT in prompt:
        return prompt
    whole = find_mentions(prompt, subject)
    at = whole[0] if whole else prompt.find(subject)
    if at < 0:
        raise RefusedError("E014", f"{_absent(prompt, subject)} {shown(prompt)}")
    return prompt[:at] + SLOT + prompt[at + len(subject) :]


def _absent(prompt: str, subject: str) -> str:
    """The message for a prompt without its subject, up to the prompt itself."""
    if len(prompt) <= LONGEST_COMPOSED and normalize("NFC", subject) in normalize("NFC", prompt):
        other = "with other Unicode characters (an accent apart from its letter, or in one character with it)"
        return f"the subject {shown(subject)} is written {other} than in the prompt; copy it from there:"
    longest = min(len(subject) - 1, 200)  # bounded: for two long texts the search would be quadratic
    cut = next((n for n in range(longest, 1, -1) if prompt.endswith(subject[:n])), 0)
    if cut:
        return f"the prompt ends in the middle of the subject {shown(subject)}, after {shown(subject[:cut])}:"
    return f"the subject {shown(subject)} is not in the prompt"


def target_text(target: Any) -> Any:
    """The text of a target, which CounterFact and MQuAKE write as {"str": text, "id": Wikidata's id}."""
    return target.get("str") if isinstance(target, dict) else target


def target_rest(target: Any) -> dict[str, Any]:
    """Everything in a target but its text."""
    return {key: value for key, value in target.items() if key != "str"} if isinstance(target, dict) else {}


def numbered_id(record: Mapping[str, Any], key: str, prefix: str) -> str | None:
    """The id of an edit whose record has a number under `key`: `prefix` and the number."""
    return f"{prefix}-{record[key]}" if key in record else None


def with_subject(record: dict[str, Any]) -> dict[str, Any]:
    """The record with the subject under that name: some records of ROME's authors call it `entity`."""
    if "entity" not in record or "subject" in record:
        return record
    return {"subject" if key == "entity" else key: value for key, value in record.items()}


def own_fields(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record has of OWN_FIELDS."""
    return {name: record[name] for name in OWN_FIELDS if name in record}


def with_rest(ours: dict[str, Any], record: dict[str, Any], used: set[str], more: dict[str, Any]) -> dict[str, Any]:
    """The fields of an edit, and in `meta` everything of the record that is not `used`; see also OWN_FIELDS.

    `more` comes first in meta, and its `id` is the edit's if the record has none. Raises RefusedError E008 where the
    record's own meta has one of the other keys of the record.
    """
    meta = {} if record.get("meta") in (None, "") else record["meta"]
    own = {name: value for name, value in own_fields(record).items() if name not in ours}
    rest = {name: value for name, value in record.items() if name not in used | {"meta", "id"} | own.keys()}
    ours |= own
    ours["id"] = record.get("id", more.pop("id", None))
    if isinstance(meta, dict):
        if twice := next((name for name in meta if name in rest), None):
            raise RefusedError("E008", f"{shown(twice)} is in the record and in its meta; keep one")
        meta = {**more, **rest, **meta}
    ours["meta"] = meta
    return {name: value for name, value in ours.items() if value is not None}

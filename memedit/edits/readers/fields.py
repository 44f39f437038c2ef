"""Build an `EditRequest` from a record: names, types, relations; every finding says what to do next."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from memedit.edits.edit import SLOT, EditRequest, Matching, Neighbor, Question, shown
from memedit.edits.glue import Glue
from memedit.edits.lint import trimmed
from memedit.edits.readers.document import Document, RecordRow, RefusedError
from memedit.edits.readers.formats import convert_record
from memedit.edits.readers.parts import ALIASES, FIELDS
from memedit.results.report import EditResult

NO_OBJECT = "<|endoftext|>"
"""The old object of some public records that have none."""

DEEPEST = 50
"""Levels of lists and mappings in one record: far more than any edit needs, far fewer than Python's stack allows."""


@dataclass(frozen=True)
class Relation:
    """A row of the relations table: the prompt of a label, other templates to edit by, and paraphrases to score by."""

    prompt: str
    wordings: tuple[str, ...] = ()
    paraphrases: tuple[str, ...] = ()


def build_request(
    document: Document, row: RecordRow, name: str, relations: Mapping[str, Relation]
) -> EditRequest | None:
    """Build the request of a record. If it has errors, add them to the document's findings and return None."""
    ours: dict[str, Any] = {}
    try:
        _check_text(row.value)
        record = convert_record(_mapping(row.value))
        ours = _rename(document, record, row.line)
        return _request(document, ours, row.line, name, relations)
    except RefusedError as error:
        for code, message in dict.fromkeys([(error.code, error.message), *_wrong_fields(ours)]):
            document.complain(row.line, code, message)
    except RecursionError:
        document.complain(row.line, "E015", "the record is nested too deeply to be an edit")
    return None


def read_relations(document: Document, row: RecordRow) -> dict[str, Relation]:
    """Read a relations table: name -> prompt, or name -> {prompt, wordings, paraphrases}."""
    relations: dict[str, Relation] = {}
    if not isinstance(row.value, dict):
        document.complain(row.line, "E012", f"relations is a table of name: prompt, not {_kind(row.value)}")
        return relations
    for name, entry in row.value.items():
        try:
            _check_text([name, entry])
            relations[name] = _relation({"prompt": entry} if isinstance(entry, str) else entry)
        except RefusedError as error:
            document.complain(row.line, "E012", f"relation {shown(name)}: {error.message}")
    return relations


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A "did you mean" for a word that is close to a known one, else an empty text."""
    close = difflib.get_close_matches(word, list(known), n=1) if len(word) < 100 else []
    return f"; did you mean {shown(close[0])}?" if close else ""


def _relation(entry: Any) -> Relation:
    if not isinstance(entry, dict):
        message = f"a relation is a prompt or a mapping of prompt, wordings and paraphrases, not {_kind(entry)}"
        raise RefusedError("E012", message)
    for key in entry:
        if key not in (known := ("prompt", "wordings", "paraphrases")):
            raise RefusedError("E012", f"unknown key {shown(key)}{did_you_mean(key, known)}")
    prompt = entry.get("prompt")
    if not isinstance(prompt, str) or prompt.count(SLOT) != 1:
        raise RefusedError("E012", f"its prompt is {shown(prompt)}; it needs one {{}} where the subject goes")
    return Relation(prompt, _texts("wordings", entry.get("wordings")), _texts("paraphrases", entry.get("paraphrases")))


def _mapping(value: Any) -> dict[str, Any]:
    """The record as a mapping, from a mapping or the short form [subject, relation, object]."""
    if isinstance(value, list):
        if len(value) != 3:
            raise RefusedError("E006", f"the short form is [subject, relation, object]; this has {len(value)} entries")
        return dict(zip(("subject", "relation", "object"), value, strict=True))
    if not isinstance(value, dict):
        raise RefusedError("E006", f"{shown(value)} is not an edit; write a mapping or [subject, relation, object]")
    return value


OUTCOME = frozenset(EditResult.model_fields) - {"id"}


def _rename(document: Document, record: dict[str, Any], line: int) -> dict[str, Any]:
    ours: dict[str, Any] = {}
    # The output of `--per-edit` can be read as a list: the edit is read, its results are not.
    passed = OUTCOME if record.get("status") in ("ok", "failed", "skipped") else ()
    for key, value in record.items():
        if key in passed:
            continue
        name = ALIASES.get(key, key)
        if name not in FIELDS:
            hint = did_you_mean(key, (*FIELDS, *ALIASES)) or "; put anything else under meta"
            document.complain(line, "E007", f"unknown key {shown(key)}{hint}")
        elif name in ours:
            raise RefusedError("E008", f"{shown(key)} is another name of {name}, which the record also has; keep one")
        elif value is not None or key == "object":  # under its own name alone: a null of another project is a gap
            ours[name] = value
    return ours


def _request(
    document: Document, record: dict[str, Any], line: int, name: str, relations: Mapping[str, Relation]
) -> EditRequest:
    if isinstance(record.get("id"), int) and not isinstance(record["id"], bool):
        record["id"] = str(record["id"])
    texts = {key: _text(key, record.get(key)) for key in FIELDS[:6]}
    prompt, relation, row = _prompt(texts["prompt"], texts["relation"], relations)
    subject = texts["subject"] or ""
    if not subject and SLOT in prompt:
        message = f"the edit has no subject, and its prompt {shown(prompt)} has a {{}} for one"
        raise RefusedError("E009", f'{message}; add "subject": what the fact is about')
    remove = _removes(record)
    if texts["object"] is None and not remove:
        raise RefusedError("E009", 'the edit has no object; add "object": what the model should say after the prompt')
    old = texts["object_old"]
    paraphrases = _texts("paraphrases", record.get("paraphrases"))
    request, cut = trimmed(
        EditRequest(
            id=texts["id"] or name,
            subject=subject,
            relation=relation,
            prompt=prompt,
            object=texts["object"] or "",
            object_old=None if not old or old.strip() == NO_OBJECT else old,
            remove=remove,
            glue=_glue(record.get("glue")),
            evaluate=_matching(record.get("evaluate")),
            wordings=_texts("wordings", record.get("wordings")) or row.wordings,
            paraphrases=tuple(_filled(text, subject) for text in paraphrases)
            or tuple(text.replace(SLOT, subject) for text in row.paraphrases),
            neighborhood=_neighbors(record.get("neighborhood")),
            aliases=_texts("aliases", record.get("aliases")),
            portability=_questions("portability", record.get("portability")),
            reversal=_questions("reversal", record.get("reversal")),
            generation=tuple(_filled(text, subject) for text in _texts("generation", record.get("generation"))),
            references=_texts("references", record.get("references")),
            meta=_meta(record.get("meta")),
            origin=f"{document.name}:{line}",
        )
    )
    document.findings += cut
    return request


def _wrong_fields(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The code and message of every field whose value is of a wrong kind."""
    readers: dict[str, Callable[[Any], object]] = {
        **{name: partial(_text, name) for name in FIELDS[:6]},
        **{name: partial(_texts, name) for name in ("wordings", "paraphrases", "aliases", "generation", "references")},
        **{name: partial(_questions, name) for name in ("portability", "reversal")},
        "remove": lambda said: _removes({"remove": said}),
        "glue": _glue, "evaluate": _matching, "neighborhood": _neighbors, "meta": _meta,
    }  # fmt: skip
    for name, value in record.items():
        try:
            readers[name](value)
        except RefusedError as error:
            yield error.code, error.message


def _meta(value: Any) -> dict[str, Any]:
    if value in (None, ""):
        return {}
    if not isinstance(value, dict):
        raise RefusedError("E010", f"meta is a mapping, not {_kind(value)}")
    return value


def _prompt(
    prompt: str | None, relation: str | None, relations: Mapping[str, Relation]
) -> tuple[str, str | None, Relation]:
    """Prompt, label and the label's row of the table; the record's own prompt comes before that of its relation."""
    if prompt:
        return prompt, relation or None, Relation(prompt)
    if not relation:
        raise RefusedError("E009", "the edit has no prompt, and no relation from the relations table")
    if SLOT in relation:
        return relation, None, Relation(relation)
    if relation not in relations:
        hint = did_you_mean(relation, relations) or "; define it under relations:, or give the edit a prompt"
        raise RefusedError("E011", f"unknown relation {shown(relation)}{hint}")
    return relations[relation].prompt, relation, relations[relation]


def _removes(record: dict[str, Any]) -> bool:
    """Whether a record is a removal: `remove` says so, or without it an object that is null.

    In YAML and tables `remove` is text, in capitals too, as spreadsheets write it; an empty cell says nothing.
    """
    said = record.get("remove")
    value = {"true": True, "false": False, "": None}.get(said.lower(), said) if isinstance(said, str) else said
    if value is not None and not isinstance(value, bool):
        raise RefusedError("E010", f"remove is true or false, not {shown(value)}")
    return "object" in record and record["object"] is None if value is None else value


def _glue(value: Any) -> Glue | None:
    if value is None or value in ("", " "):
        return value
    raise RefusedError("E010", f'glue is "" or " ", not {shown(value)}: it joins the object to the prompt')


def _matching(value: Any) -> Matching:
    if value in (None, "", "exact"):
        return "exact"
    if value == "contains":
        return value
    raise RefusedError("E010", f"evaluate is exact or contains, not {shown(value)}")


def _filled(text: str, subject: str) -> str:
    """A paraphrase with its `{}` filled; if the subject itself has a `{}`, the text may be complete already.

    Without a subject the text stays as it is: a `{}` in it is an error of the list.
    """
    return text if not subject or (SLOT in subject and subject in text) else text.replace(SLOT, subject)


def _text(name: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise RefusedError("E010", f"{name} is text, not {_kind(value)}; put {shown(value)} in quotes")
    return value


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """A list of texts; a single text is a list of one."""
    if value is None or value == "":
        return ()
    if not isinstance(value, str | list):
        raise RefusedError("E010", f"{name} is a list of texts, not {_kind(value)}")
    entries: list[Any] = [value] if isinstance(value, str) else value
    for entry in entries:
        if not isinstance(entry, str):
            raise RefusedError("E010", f"{name} is a list of texts; {shown(entry)} is {_kind(entry)}")
    return tuple(entries)


def _neighbors(value: Any) -> tuple[Neighbor, ...]:
    if value is None or value == "":
        return ()
    entries: list[Any] = value if isinstance(value, list) else [value]
    return tuple(_neighbor(entry) for entry in entries)


def _neighbor(entry: Any) -> Neighbor:
    if isinstance(entry, str):
        return Neighbor(prompt=entry)
    if not isinstance(entry, dict) or "prompt" not in entry:
        raise RefusedError("E010", f"a neighbor is a prompt or a mapping of prompt and answer, not {shown(entry)}")
    for key in entry:
        if key not in ("prompt", "answer", "group"):
            raise RefusedError(
                "E007", f"unknown key {shown(key)} in a neighbor{did_you_mean(key, ('prompt', 'answer'))}"
            )
    return Neighbor(
        prompt=_text("a neighbor's prompt", entry["prompt"]) or "",
        answer=_text("a neighbor's answer", entry.get("answer")) or None,
        group=_text("a neighbor's group", entry.get("group")) or None,
    )


def _questions(name: str, value: Any) -> tuple[Question, ...]:
    if value is None or value == "":
        return ()
    entries: list[Any] = value if isinstance(value, list) else [value]
    return tuple(_question(name, entry) for entry in entries)


def _question(name: str, entry: Any) -> Question:
    if not isinstance(entry, dict) or not all(isinstance(entry.get(key), str) for key in ("prompt", "answer")):
        raise RefusedError("E010", f"an entry of {name} is a mapping of prompt and answer, not {shown(entry)}")
    for key in entry:
        if key not in (known := ("prompt", "answer", "aliases", "group")):
            raise RefusedError("E007", f"unknown key {shown(key)} in {name}{did_you_mean(key, known)}")
    return Question(
        prompt=entry["prompt"],
        answer=entry["answer"],
        aliases=_texts(f"{name}'s aliases", entry.get("aliases")),
        group=_text(f"{name}'s group", entry.get("group")) or None,
    )


def _kind(value: Any) -> str:
    names = {str: "text", bool: "true or false", int: "a number", float: "a number", list: "a list"}
    return "nothing" if value is None else names.get(type(value), "a mapping")


def _check_text(value: Any) -> None:
    """Refuse text that no tokenizer accepts (half of a surrogate pair), and nesting that is too deep."""
    if _depth(value) > DEEPEST:
        raise RefusedError("E015", f"the record is nested more than {DEEPEST} levels deep")
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RefusedError("E016", "the record has half of a surrogate pair, which is not a character") from error


def _depth(value: Any) -> int:
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, children), default=0)

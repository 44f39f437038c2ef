"""Read RippleEdits (Cohen et al. 2023): an edit as a whole sentence, and the tests of six criteria.

The published records name the subject only by its Wikidata id: they are read without one until its name is added.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile
from typing import Any

from memedit.edits.edit import shown
from memedit.edits.readers.document import RefusedError
from memedit.edits.readers.parts import field_texts, own_fields, template, with_rest

_FOLLOWS = ("Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")
"""Criteria of what follows from the edit: portability."""
_STAYS = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
"""Criteria of what must not change: neighborhood. The records have one of them in two spellings."""
_TARGETS = ("target", "target_new", "object")
_BEFORE = ("previous_fact", "original_fact")
_VERBS = ("is", "are", "by", "follows")
"""The last word of a sentence before its object, in all relations of the benchmark."""


def is_ripple(record: dict[str, Any]) -> bool:
    """Whether a record is of RippleEdits: an edit, and at least one of the criteria or the kind of example."""
    named = ("example_type", *_FOLLOWS, *_STAYS)
    return isinstance(record.get("edit"), dict) and any(name in record for name in named)


def convert_ripple(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record; criteria are also in meta, whole, for their conditions."""
    edit: dict[str, Any] = record["edit"]
    beside = isinstance(record.get("subject"), str) and not isinstance(edit.get("subject"), str)
    subject = record["subject"] if beside else edit.get("subject")
    given = next((name for name in _TARGETS if isinstance(edit.get(name), str)), None)
    former = next((edit[name] for name in _BEFORE if isinstance(edit.get(name), dict)), {})
    head, wanted = _split(edit.get("prompt"), edit[given] if given else None, former.get("prompt"))
    before = _sentence(former.get("prompt"))
    ours: dict[str, Any] = {"subject": subject, "relation": edit.get("relation"), "object": wanted}
    ours |= own_fields(edit)
    ours["prompt"] = template(head, subject)
    ours["object_old"] = before.removeprefix(head).strip() if before.startswith(head) else None
    ours["portability"] = [question for name in _FOLLOWS for question in _questions(record.get(name), name)]
    ours["neighborhood"] = [
        {"prompt": one["prompt"], "answer": one["answer"], "group": one["group"]}
        for name in _STAYS for one in _questions(record.get(name), name)
    ]  # fmt: skip
    read = {"prompt", "relation", given, *own_fields(edit)} | (set() if beside else {"subject"})
    unread = {key: value for key, value in edit.items() if key not in read}
    used = {"edit", "subject"} if beside else {"edit"}
    return with_rest(ours, record, used, {"source": "RippleEdits", "edit": unread})


def _split(statement: Any, wanted: str | None, before: Any) -> tuple[str, str]:
    """The prompt and the object of a sentence, by its object or by the same sentence with the old object."""
    sentence = _sentence(statement)
    if not sentence:
        raise RefusedError("E009", 'the edit has no prompt; "edit" needs the sentence that it makes true')
    if wanted is None:
        words = zip(sentence.split(" "), _sentence(before).split(" "), strict=False)
        shared = " ".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], words))
        if not shared.endswith(tuple(f" {verb}" for verb in _VERBS)):
            message = f"the sentence {shown(sentence)} does not show where its object begins"
            raise RefusedError("E009", f'{message}; add "target" to "edit": the text of the object')
        return shared, sentence.removeprefix(shared).strip()
    if not wanted.strip() or not sentence.endswith(wanted.strip()):
        raise RefusedError("E009", f"the sentence {shown(sentence)} does not end in its object {shown(wanted)}")
    return sentence.removesuffix(wanted.strip()).rstrip(), wanted


def _sentence(statement: Any) -> str:
    return statement.strip().removesuffix(".") if isinstance(statement, str) else ""


def _questions(tests: Any, group: str) -> Iterator[dict[str, Any]]:
    """The queries of a criterion that have a prompt and an answer, with every spelling of the answer."""
    for test in tests if isinstance(tests, list) else []:
        queries = test.get("test_queries") if isinstance(test, dict) else None
        for query in queries if isinstance(queries, list) else []:
            prompt = query.get("prompt") if isinstance(query, dict) else None
            if isinstance(prompt, str) and (spellings := _spellings(query.get("answers"))):
                yield {"prompt": prompt, "answer": spellings[0], "aliases": spellings[1:], "group": group}


def _spellings(answers: Any) -> list[str]:
    known = [answer for answer in answers if isinstance(answer, dict)] if isinstance(answers, list) else []
    return [text for answer in known for name in ("value", "aliases") for text in field_texts(answer.get(name))]

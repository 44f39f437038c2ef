"""Read EasyEdit's records: KnowEdit with WikiBio, CKnowEdit, QAEdit, flat CounterFact (Wang et al. 2023); and its call.

Prompts are complete, answers stand in nested lists, probes in tables whose names become groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memedit.edits.edit import SLOT, shown
from memedit.edits.readers.document import RefusedError
from memedit.edits.readers.parts import (
    ALIASES,
    FIELDS,
    field_texts,
    numbered_id,
    only_texts,
    target_text,
    template,
    with_rest,
)

_OWN = ("rephrase", "rephrase_prompt", "locality_prompt", "portability_prompt", "locality", "portability")
"""Keys of these records alone; `portability` also of memedit's."""
_FLAT_ANSWERS = tuple(f"{name}_{end}" for name in ("locality", "portability") for end in ("ground_truth", "answer"))
_PROMPTS, _ANSWERS = ("prompt", "loc"), ("ground_truth", "loc_ans", "answer")
_OBJECTS, _OLD_OBJECTS = ("target", "target_new"), ("object_old", "ground_truth", "target_true", "target_old")
_COLUMNS = {
    "prompts": "prompt",
    "target_new": "target_new",
    "ground_truth": "ground_truth",
    "subject": "subject",
    "rephrase_prompts": "rephrase_prompt",
}
"""The parallel lists of a call, and the field of each record."""
_TABLES = {"locality_inputs": "locality", "portability_inputs": "portability"}


def is_easyedit(record: dict[str, Any]) -> bool:
    """Whether a record is in EasyEdit's format; `target_new` alone also counts if the prompt has no `{}`."""
    if "prompt" not in record or "object" in record:
        return False
    prompt = record["prompt"]
    bare = "target_new" in record and isinstance(prompt, str) and prompt != "" and SLOT not in prompt
    return bare or any(name in record for name in _OWN)


def convert_easyedit(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record; of several names for one field the first is read, and what it leaves out is also in meta."""
    ours: dict[str, Any] = {name: record[name] for name in FIELDS if name in record}
    ours["prompt"] = template(record["prompt"], record.get("subject"))
    wanted, old = _first(record, _OBJECTS), _first(record, _OLD_OBJECTS)
    if wanted:
        spellings = field_texts(target_text(record[wanted]))
        ours["object"] = spellings[0] if spellings else record[wanted]
        ours["aliases"] = [*spellings[1:], *field_texts(record.get("aliases"))]
    ours["object_old"] = next(iter(field_texts(target_text(record[old]))), None) if old else None
    rephrased = ("rephrase", "rephrase_prompt", "paraphrases")
    ours["paraphrases"] = [text for name in rephrased for text in field_texts(record.get(name))]
    own = record.get("neighborhood")
    ours["neighborhood"] = [
        *(own if isinstance(own, list) else [] if own is None else [own]),
        *_neighbors(record.get("locality")),
        *_neighbors(_flat_table(record, "locality")),
    ]
    ours["portability"] = [
        *_questions(record.get("portability")),
        *_questions(_flat_table(record, "portability")),
    ]
    kept = {name for name in rephrased if not only_texts(record.get(name, []))}
    kept |= {name for name in (*_OBJECTS, *_OLD_OBJECTS) if name not in (wanted, old)}
    if wanted and not only_texts(record[wanted]):
        kept.add(wanted)
    if old and not _is_one_text(record[old]):
        kept.add(old)
    used = {*FIELDS, *ALIASES, *_OWN, *_FLAT_ANSWERS}
    for name, spellings in (("locality", 1), ("portability", None)):
        if _has_unread(_flat_table(record, name), spellings):
            kept |= {key for key in record if key.startswith(f"{name}_")}
    used -= {name for name in kept if record.get(name) is not None}
    more: dict[str, Any] = {} if "id" in record else {"id": numbered_id(record, "case_id", "cf")}
    more |= {"locality": record["locality"]} if _has_unread(record.get("locality"), 1) else {}
    more |= {"portability": record["portability"]} if _has_unread(record.get("portability")) else {}
    return with_rest(ours, record, used, more)


def is_wikibio(record: dict[str, Any]) -> bool:
    """Whether a record is of KnowEdit's WikiBio: a passage about a `concept`, and the sentence that should follow."""
    return {"text", "labels", "concept"} <= record.keys() and "prompt" not in record


def convert_wikibio(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of WikiBio: the passage is the prompt, the sentence the object."""
    names = {"text": "prompt", "labels": "target_new", "concept": "subject"}
    if twice := [name for name in names.values() if name in record]:
        raise RefusedError("E008", f"the record of WikiBio has {shown(twice[0])} under two names; keep one")
    return convert_easyedit({names.get(key, key): value for key, value in record.items()})


def is_call(value: Any) -> bool:
    """Whether a value has the arguments of EasyEdit's `edit` function: parallel lists."""
    return isinstance(value, dict) and "prompts" in value and "prompt" not in value


def call_edits(call: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """One edit for each prompt of a call; arguments that are no list of that length are in meta of the first.

    Raises RefusedError E010 for a list of an edit's field, or of its probes, with another number of entries.
    """
    prompts = call["prompts"]
    if not isinstance(prompts, str | list):
        raise RefusedError("E010", f"prompts is a list of texts, not {shown(prompts)}")
    count = len(prompts) if isinstance(prompts, list) else 1
    if not count:
        raise RefusedError("E006", "prompts is an empty list: the call has no edit")
    columns: dict[str, list[Any]] = {}
    settings: dict[str, Any] = {}
    for key, value in call.items():
        name = _COLUMNS.get(key, _TABLES.get(key, key))
        if key in _TABLES and isinstance(value, dict):
            for group, table in value.items():
                _check_parallel(f"{key}.{group}", table, count)
            columns[name] = [{group: _cell(table, n, count) for group, table in value.items()} for n in range(count)]
        elif isinstance(value, list) and len(value) == count:
            columns[name] = value
        elif isinstance(value, str) and key in _COLUMNS and count == 1:
            columns[name] = [value]
        elif key in _COLUMNS and value is not None:
            raise _not_parallel(key, value, count)
        else:
            settings[key] = value
    for n in range(count):
        record: dict[str, Any] = {"prompt": None}
        record |= {name: column[n] for name, column in columns.items() if column[n] is not None}
        if n == 0 and settings:
            record["call"] = settings
        yield convert_easyedit(record)


def _check_parallel(name: str, table: Any, count: int) -> None:
    """Check that a probe table of a call with several prompts has a prompt and an answer for each of them."""
    columns = table.items() if isinstance(table, dict) else [("", table)]
    for key, column in columns:
        read = not key or key in (*_PROMPTS, *_ANSWERS)
        if count > 1 and read and isinstance(column, list) and len(column) != count:
            raise _not_parallel(f"{name}.{key}".rstrip("."), column, count)


def _not_parallel(name: str, value: Any, count: int) -> RefusedError:
    number = len(value) if isinstance(value, list) else None
    has = shown(value) if number is None else "1 entry" if number == 1 else f"{number:,} entries"
    return RefusedError("E010", f"{name} has {has}, and prompts {count:,}: give one for each prompt")


def _cell(table: Any, n: int, count: int) -> Any:
    """What a probe table of a call has for edit `n`: entry n of each of its parallel lists."""
    if not isinstance(table, dict):
        return table[n] if isinstance(table, list) and len(table) == count else table
    return {
        key: column[n] if isinstance(column, list) and len(column) == count else column for key, column in table.items()
    }


def _first(record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if record.get(name) is not None), None)


def _is_one_text(value: Any) -> bool:
    return only_texts(value) and len(field_texts(value)) <= 1


def _flat_table(record: dict[str, Any], name: str) -> dict[str, Any] | None:
    """The probe table that a record writes as flat keys: locality_prompt and locality_ground_truth."""
    keys = {"prompt": f"{name}_prompt", "ground_truth": f"{name}_ground_truth", "answer": f"{name}_answer"}
    table = {key: record[own] for key, own in keys.items() if record.get(own) is not None}
    return table or None


def _neighbors(locality: Any) -> Iterator[dict[str, Any]]:
    """The neighbors in a locality table; of several spellings of an answer, the first."""
    for prompt, spellings, group in _asked(locality):
        yield {"prompt": prompt, "answer": next(iter(spellings), None), "group": group}


def _questions(portability: Any) -> Iterator[dict[str, Any]]:
    """The questions in a portability table that have an answer."""
    for prompt, spellings, group in _asked(portability):
        if spellings:
            yield {"prompt": prompt, "answer": spellings[0], "aliases": spellings[1:], "group": group}


def _has_unread(table: Any, spellings: int | None = None) -> bool:
    """Whether `_asked` leaves out anything in a table, or an answer has more `spellings` than are read.

    Such a table is also kept whole, in `meta`.
    """
    if table is None:
        return False
    if isinstance(table, list):
        return any(_has_unread(entry, spellings) for entry in table)
    if not isinstance(table, dict):
        return True
    prompts, answers, known = _columns(table)
    if not field_texts(prompts):
        return any(_has_unread(entry, spellings) for entry in table.values())
    if set(table) - known or not only_texts(prompts) or not only_texts(answers) or not field_texts(answers):
        return True
    if not isinstance(table.get("group", ""), str) or not only_texts(table.get("aliases", [])):
        return True
    return spellings is not None and any(len(found) > spellings for _, found, _ in _asked(table))


def _asked(table: Any, group: str | None = None) -> Iterator[tuple[str, list[str], str | None]]:
    """Every prompt in a table with the spellings of its answer, and the name of the table as its group."""
    if isinstance(table, list):
        for entry in table:
            yield from _asked(entry, group)
    elif isinstance(table, dict):
        column, answers, _ = _columns(table)
        prompts = field_texts(column)
        # parallel lists, as in EasyEdit's call; otherwise one prompt with several spellings of its answer
        several = isinstance(answers, list) and len(prompts) > 1
        if several and len(answers) != len(prompts):
            said = f"a table of probes has {len(prompts):,} prompts and answers {shown(answers)}"
            raise RefusedError("E010", f"{said}: give one for each prompt")
        each: list[Any] = answers if several else [answers] * len(prompts)  # type: ignore[assignment]
        own = table.get("group")
        for prompt, answer in zip(prompts, each, strict=True):
            spellings = [*field_texts(answer), *field_texts(table.get("aliases"))]
            yield prompt, spellings, own if isinstance(own, str) else group
        if not prompts:
            for name, entries in table.items():
                yield from _asked(entries, name)


def _columns(table: dict[str, Any]) -> tuple[Any, Any, set[str]]:
    """A table's prompts, its answers, and the keys that are read."""
    prompts, answers = (next((name for name in names if name in table), "") for names in (_PROMPTS, _ANSWERS))
    return table.get(prompts), table.get(answers), {prompts, answers, "aliases", "group"}

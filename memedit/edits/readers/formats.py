"""Convert records of other projects: CounterFact, zsRE, KnowEdit, EasyEdit, QAEdit, known_1000.

A value goes into the field that has its meaning (paraphrases, neighborhood, aliases), everything else into `meta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memedit.edits.edit import SLOT, shown
from memedit.edits.lint import find_mentions
from memedit.edits.readers.document import RefusedError
from memedit.edits.readers.mquake import target_rest, target_text

FIELDS = (
    "id",
    "subject",
    "relation",
    "prompt",
    "object",
    "object_old",
    "glue",
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

ALIASES = {
    "target": "object",
    "target_new": "object",
    "target_true": "object_old",
    "ground_truth": "object_old",
    "target_old": "object_old",
    "entity": "subject",
}
"""Other names of a field on input."""

EASYEDIT = ("rephrase", "rephrase_prompt", "locality_prompt", "locality", "portability")
"""Keys of records of KnowEdit, EasyEdit or QAEdit, whose prompts contain the subject."""


def convert_record(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of another project to memedit's fields; a record of memedit is returned unchanged."""
    if "requested_rewrite" in record:
        return _counterfact(record)
    if "src" in record:
        return _zsre(record)
    if "known_id" in record:
        return _known(record)
    if is_easyedit(record):
        return _easyedit(record)
    return record


def is_easyedit(record: dict[str, Any]) -> bool:
    """Whether a record is in EasyEdit's format; `target_new` alone also counts if the prompt has no `{}`."""
    if "prompt" not in record or "object" in record:
        return False
    prompt = record["prompt"]
    bare = "target_new" in record and isinstance(prompt, str) and prompt != "" and SLOT not in prompt
    return bare or any(name in record for name in EASYEDIT)


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
    longest = min(len(subject) - 1, 200)  # bounded: for two long texts the search would be quadratic
    cut = next((n for n in range(longest, 1, -1) if prompt.endswith(subject[:n])), 0)
    if cut:
        return f"the prompt ends in the middle of the subject {shown(subject)}, after {shown(subject[:cut])}:"
    return f"the subject {shown(subject)} is not in the prompt"


def _known(record: dict[str, Any]) -> dict[str, Any]:
    """A fact of ROME's known_1000: the attribute is a model's present answer."""
    ours: dict[str, Any] = {"subject": record.get("subject"), "relation": record.get("relation_id")}
    ours["prompt"] = template(record.get("prompt"), record.get("subject"))
    ours["object"] = ours["object_old"] = record.get("attribute")
    used = {"known_id", "subject", "attribute", "prompt", "relation_id"}
    return _rest(ours, record, used, {"id": f"known-{record['known_id']}", "source": "known_1000"})


def _counterfact(record: dict[str, Any]) -> dict[str, Any]:
    """CounterFact and multi-CounterFact: the neighbors' true answer is the edit's old object."""
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise RefusedError("E010", "requested_rewrite is a mapping of prompt, subject, target_new, target_true")
    ours: dict[str, Any] = {name: rewrite[name] for name in ("subject", "prompt") if name in rewrite}
    ours["object"] = target_text(rewrite.get("target_new"))
    ours["object_old"] = target_text(rewrite.get("target_true"))
    ours["relation"] = rewrite.get("relation_id")
    ours["paraphrases"] = record.get("paraphrase_prompts")
    ours["neighborhood"] = record.get("neighborhood_prompts")
    ours["generation"] = record.get("generation_prompts")
    used = {"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts"}
    read = {"subject", "prompt", "relation_id", "target_new", "target_true"}
    unread = {key: value for key, value in rewrite.items() if key not in read}
    for key in ("target_new", "target_true"):
        if rest := target_rest(rewrite.get(key)):
            unread[key] = rest
    more = {"requested_rewrite": unread} if unread else {}
    return _rest(ours, record, used, {"id": _case(record), "source": "CounterFact", **more})


def _zsre(record: dict[str, Any]) -> dict[str, Any]:
    """zsRE in MEND's form, where `cond` describes the edit: "predicted >> alt || question".

    With `alt` (MEND, EasyEdit, LocFT) the edit is the counterfactual answer `alt`, the old object answers[0].
    Without it the edit is the true answer answers[0], as in MEMIT; the other answers are its aliases.
    """
    answers = _texts(record.get("answers"))
    alt = record.get("alt")
    ours: dict[str, Any] = {"subject": record.get("subject")}
    ours["prompt"] = template(record["src"], record.get("subject"))
    if alt:
        ours["object"] = alt
        ours["object_old"] = next((answer for answer in answers if answer != alt), None)
    else:
        ours["object"] = answers[0] if answers else None
        ours["aliases"] = answers[1:]
    ours["paraphrases"] = record.get("rephrase")
    if record.get("loc"):
        ours["neighborhood"] = [{"prompt": record["loc"], "answer": record.get("loc_ans")}]
    used = {"subject", "src", "alt", "rephrase", "loc", "loc_ans"}
    return _rest(ours, record, used, {"source": "zsRE"})


def _easyedit(record: dict[str, Any]) -> dict[str, Any]:
    """KnowEdit, EasyEdit, flat CounterFact and QAEdit: complete prompts, and answers in nested lists."""
    ours: dict[str, Any] = {name: record[name] for name in FIELDS if name in record}
    ours["prompt"] = template(record["prompt"], record.get("subject"))
    for name in ("target", "target_new"):
        if name in record:
            wanted = _texts(record[name])
            ours["object"] = wanted[0] if wanted else record[name]
            ours["aliases"] = wanted[1:]
    ours["object_old"] = next(iter(_texts(record.get("ground_truth", record.get("target_true")))), None)
    ours["paraphrases"] = [
        text for name in ("rephrase", "rephrase_prompt", "paraphrases") for text in _texts(record.get(name))
    ]
    own = record.get("neighborhood")
    ours["neighborhood"] = [
        *(own if isinstance(own, list) else [] if own is None else [own]),
        *_neighbors(record.get("locality")),
        *_flat_neighbor(record),
    ]
    ours["portability"] = list(_questions(record.get("portability")))
    used = {*FIELDS, *ALIASES, *EASYEDIT, "locality_ground_truth"}
    more: dict[str, Any] = {"id": _case(record)} if "id" not in record else {}
    more |= {name: record[name] for name in ("locality", "portability") if _has_unread(record.get(name))}
    return _rest(ours, record, used, more)


def _neighbors(locality: Any) -> Iterator[dict[str, Any]]:
    """The neighbors in a locality table; of several spellings of an answer, the first."""
    for prompt, spellings, group in _asked(locality):
        yield {"prompt": prompt, "answer": next(iter(spellings), None), "group": group}


def _questions(portability: Any) -> Iterator[dict[str, Any]]:
    """The questions in a portability table that have an answer; questions in memedit's form are returned unchanged."""
    if _is_own_form(portability):
        yield from portability
        return
    for prompt, spellings, group in _asked(portability):
        if spellings:
            yield {"prompt": prompt, "answer": spellings[0], "aliases": spellings[1:], "group": group}


def _is_own_form(portability: Any) -> bool:
    return isinstance(portability, list) and all(isinstance(entry, dict) and "answer" in entry for entry in portability)


def _has_unread(table: Any) -> bool:
    """Whether `_asked` leaves out anything in a table; such a table is also kept whole, in `meta`."""
    if table is None or _is_own_form(table):
        return False
    if isinstance(table, list):
        return any(_has_unread(entry) for entry in table)
    if not isinstance(table, dict):
        return True
    prompts = table.get("prompt", table.get("loc"))
    if not _texts(prompts):
        return any(_has_unread(entry) for entry in table.values())
    answers = table.get("ground_truth", table.get("loc_ans"))
    return bool(set(table) - {"prompt", "loc", "ground_truth", "loc_ans"}) or not _texts(answers)


def _asked(table: Any, group: str | None = None) -> Iterator[tuple[str, list[str], str | None]]:
    """Every {prompt, ground_truth} or {loc, loc_ans} in a table: prompt, spellings of the answer, group."""
    if isinstance(table, list):
        for entry in table:
            yield from _asked(entry, group)
    elif isinstance(table, dict):
        prompts = _texts(table.get("prompt", table.get("loc")))
        answers = table.get("ground_truth", table.get("loc_ans"))
        # parallel lists, as in EasyEdit's interface; otherwise one prompt with several spellings of its answer
        several = isinstance(answers, list) and len(answers) == len(prompts) > 1
        each: list[Any] = answers if several else [answers] * len(prompts)  # type: ignore[assignment]
        for prompt, answer in zip(prompts, each, strict=True):
            yield prompt, _texts(answer), group
        if not prompts:
            for name, entries in table.items():
                yield from _asked(entries, name)


def _flat_neighbor(record: dict[str, Any]) -> list[dict[str, Any]]:
    prompts = _texts(record.get("locality_prompt"))
    answers = _texts(record.get("locality_ground_truth"))
    return [
        {"prompt": prompt, "answer": answers[min(number, len(answers) - 1)] if answers else None}
        for number, prompt in enumerate(prompts)
    ]


def _texts(value: Any) -> list[str]:
    """All texts in a value, from nested lists too."""
    if isinstance(value, str):
        return [value]
    return [text for entry in value for text in _texts(entry)] if isinstance(value, list) else []


def _case(record: dict[str, Any]) -> str | None:
    return f"cf-{record['case_id']}" if "case_id" in record else None


def _rest(ours: dict[str, Any], record: dict[str, Any], used: set[str], more: dict[str, Any]) -> dict[str, Any]:
    """Add everything that has no field to `meta`, which the record may have already."""
    meta = record.get("meta", {})
    rest = {name: value for name, value in record.items() if name not in used | {"meta", "id"}}
    ours["id"] = record.get("id", more.pop("id", None))
    ours["meta"] = {**more, **rest, **meta} if isinstance(meta, dict) else meta
    return {name: value for name, value in ours.items() if value is not None}

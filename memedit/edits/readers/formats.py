"""Recognize and convert records of other projects: one row for each format, tried in turn.

A value goes into the field that has its meaning (paraphrases, neighborhood, aliases), everything else into `meta`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from memedit.edits.readers.document import RefusedError
from memedit.edits.readers.easyedit import convert_easyedit, convert_wikibio, is_easyedit, is_wikibio
from memedit.edits.readers.parts import (
    field_texts,
    numbered_id,
    own_fields,
    target_rest,
    target_text,
    template,
    with_rest,
    with_subject,
)
from memedit.edits.readers.questions import convert_unke, convert_wikibigedit, is_unke, is_wikibigedit
from memedit.edits.readers.ripple import convert_ripple, is_ripple

Record = dict[str, Any]

_REWRITE = ("subject", "prompt", "relation_id", "target_new", "target_true", "question")


def convert_record(record: Record) -> Record:
    """Convert a record of another project to memedit's fields; a record of memedit is returned unchanged."""
    named = _with_subject(record)
    return next((convert(named) for recognizes, convert in _FORMATS if recognizes(named)), record)


def is_foreign(record: Record) -> bool:
    """Whether a record is in the format of another project."""
    return any(recognizes(record) for recognizes, _ in _FORMATS)


def _with_subject(record: Record) -> Record:
    """The record with the subject under that name, and CounterFact's rewrite too."""
    if isinstance(rewrite := record.get("requested_rewrite"), dict):
        record = {**record, "requested_rewrite": with_subject(rewrite)}
    return with_subject(record)


def _is_counterfact(record: Record) -> bool:
    return "requested_rewrite" in record


def _counterfact(record: Record) -> Record:
    """CounterFact, multi-CounterFact and AKEW: the neighbors' true answer is the edit's old object."""
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise RefusedError("E010", "requested_rewrite is a mapping of prompt, subject, target_new, target_true")
    ours: Record = {name: rewrite[name] for name in ("subject", "prompt") if name in rewrite}
    ours |= own_fields(rewrite)
    ours["object"] = target_text(rewrite.get("target_new"))
    ours["object_old"] = target_text(rewrite.get("target_true"))
    ours["relation"] = rewrite.get("relation_id")
    question = rewrite.get("question")
    asked = [question] if isinstance(question, str) else []
    paraphrases = record.get("paraphrase_prompts")
    ours["paraphrases"] = [*paraphrases, *asked] if isinstance(paraphrases, list) else paraphrases or asked
    ours["neighborhood"] = record.get("neighborhood_prompts")
    ours["generation"] = record.get("generation_prompts")
    used = {"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts"}
    read = set(_REWRITE if asked or question is None else _REWRITE[:-1])
    unread = {key: value for key, value in rewrite.items() if key not in read | own_fields(rewrite).keys()}
    for key in ("target_new", "target_true"):
        if rest := target_rest(rewrite.get(key)):
            unread[key] = rest
    more = {"requested_rewrite": unread} if unread else {}
    return with_rest(ours, record, used, {"id": numbered_id(record, "case_id", "cf"), "source": "CounterFact", **more})


def _is_rewrite(record: Record) -> bool:
    return "prompt" in record and "object" not in record and isinstance(record.get("target_new"), dict)


def _rewrite(record: Record) -> Record:
    """A request as ROME's and MEMIT's functions take it: CounterFact's requested_rewrite by itself."""
    rewrite = {key: value for key, value in record.items() if key in _REWRITE}
    rest = {key: value for key, value in record.items() if key not in _REWRITE}
    return _counterfact({**rest, "requested_rewrite": rewrite})


def _is_zsre(record: Record) -> bool:
    return "src" in record


def _zsre(record: Record) -> Record:
    """zsRE in MEND's form, where `cond` describes the edit: "predicted >> alt || question".

    With `alt` (MEND, EasyEdit, LocFT) the edit is the counterfactual answer `alt`, the old object answers[0].
    Without it the edit is the true answer answers[0], as in MEMIT; the other answers are its aliases.
    """
    answers = field_texts(record.get("answers"))
    alt = record.get("alt")
    ours: Record = {"subject": record.get("subject")}
    ours["prompt"] = template(record["src"], record.get("subject"))
    if alt:
        ours["object"] = alt
        ours["object_old"] = next((answer for answer in answers if answer != alt), None)
    else:
        ours["object"] = answers[0] if answers else None
        ours["aliases"] = answers[1:]
    ours["paraphrases"] = record.get("rephrase")
    used = {"subject", "src", "alt", "rephrase"}
    if record.get("loc") and record.get("loc_ans"):  # an unrelated question: its answer is not the old object
        ours["neighborhood"] = [{"prompt": record["loc"], "answer": record["loc_ans"]}]
        used |= {"loc", "loc_ans"}
    return with_rest(ours, record, used, {"source": "zsRE"})


def zsre_of_memit(value: Any) -> Any:
    """A zsRE record as MEMIT's evaluation reads it (kmeng01/memit, dsets/zsre.py); any other value unchanged.

    The edit is the true answer answers[0] even where there is an `alt`, which goes to `meta` as `unused_alt`; a
    question mark follows `loc`.
    """
    if not isinstance(value, dict) or not _is_zsre(value):
        return value
    record: Record = {"unused_alt" if key == "alt" else key: one for key, one in value.items()}
    if isinstance(loc := record.get("loc"), str):
        record["loc"] = f"{loc}?"
    return record


def _is_known(record: Record) -> bool:
    objects = {"object", "target", "target_new"}
    return "known_id" in record or ({"attribute", "prompt"} <= record.keys() and not objects & record.keys())


def _known(record: Record) -> Record:
    """A fact of ROME's known_1000: the attribute is a model's present answer."""
    ours: Record = {"subject": record.get("subject"), "relation": record.get("relation_id")}
    ours["prompt"] = template(record.get("prompt"), record.get("subject"))
    ours["object"] = ours["object_old"] = record.get("attribute")
    used = {"known_id", "subject", "attribute", "prompt", "relation_id"}
    more = {"id": numbered_id(record, "known_id", "known"), "source": "known_1000"}
    return with_rest(ours, record, used, more)


_FORMATS: tuple[tuple[Callable[[Record], bool], Callable[[Record], Record]], ...] = (
    (_is_counterfact, _counterfact),
    (_is_rewrite, _rewrite),
    (_is_zsre, _zsre),
    (_is_known, _known),
    (is_ripple, convert_ripple),
    (is_wikibigedit, convert_wikibigedit),
    (is_wikibio, convert_wikibio),
    (is_easyedit, convert_easyedit),
    (is_unke, convert_unke),
)

"""Read MQuAKE's records (Zhong et al. 2023): several edits, and questions that need all of them.

Records of several edits are replaced by their edits here, before single records are read.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memedit.edits.edit import shown
from memedit.edits.readers.document import Document, RecordRow, RefusedError
from memedit.edits.readers.easyedit import call_edits, is_call
from memedit.edits.readers.parts import OWN_FIELDS, own_fields, target_rest, target_text, with_subject

_READ = {"case_id", "requested_rewrite", "questions", "new_answer", "new_answer_alias"}
_READ_OF_REWRITE = {"subject", "relation_id", "prompt", "target_new", "target_true", "question", *OWN_FIELDS}
_READ_OF_HOP = {"question", "cloze", "answer", "answer_alias"}


def expand_cases(document: Document) -> Iterator[RecordRow]:
    """The document's rows, each MQuAKE case and each call of EasyEdit replaced by its edits.

    One with wrong types becomes a finding.
    """
    for row in document.rows:
        case = isinstance(row.value, dict) and isinstance(row.value.get("requested_rewrite"), list)
        if not case and not is_call(row.value):
            yield row
            continue
        try:
            edits = list(_case_edits(row.value) if case else call_edits(row.value))
        except RefusedError as error:
            document.complain(row.line, error.code, error.message)
            continue
        for record in edits:
            yield RecordRow(row.line, record)


def _case_edits(case: dict[str, Any]) -> Iterator[Any]:
    """One edit for each rewrite; the first has the case's questions, so that a case counts once."""
    if not case["requested_rewrite"]:
        raise RefusedError("E006", "requested_rewrite is an empty list: the case has no edit")
    if beside := own_fields(case):
        message = f"{shown(next(iter(beside)))} is beside requested_rewrite; put it into the rewrites that it is for"
        raise RefusedError("E007", message)
    name = case.get("case_id")
    for number, rewrite in enumerate(case["requested_rewrite"], 1):
        if not isinstance(rewrite, dict):
            yield rewrite  # refused where records are read
            continue
        rewrite = with_subject(rewrite)
        first = number == 1
        unread = {key: value for key, value in rewrite.items() if key not in _READ_OF_REWRITE}
        if not isinstance(rewrite.get("question"), str) and rewrite.get("question") is not None:
            unread["question"] = rewrite["question"]
        for key in ("target_new", "target_true"):
            if rest := target_rest(rewrite.get(key)):
                unread[key] = rest
        wanted = target_text(rewrite.get("target_new"))
        yield {
            **({} if name is None else {"id": f"mquake-{name}-{number}"}),
            "subject": rewrite.get("subject"),
            "relation": rewrite.get("relation_id"),
            "prompt": rewrite.get("prompt"),
            # A missing target is a missing object: only an object that memedit's own record sets to null is a removal.
            **({} if wanted is None else {"object": wanted}),
            **own_fields(rewrite),
            "object_old": target_text(rewrite.get("target_true")),
            "paraphrases": [rewrite["question"]] if isinstance(rewrite.get("question"), str) else [],
            "portability": list(_questions(case)) if first else [],
            "meta": {
                "case_id": name,
                "source": "MQuAKE",
                **({"requested_rewrite": unread} if unread else {}),
                **(_unread_of_case(case) if first else {}),
            },
        }


def _unread_of_case(case: dict[str, Any]) -> dict[str, Any]:
    """Everything in the case that no field of its edits holds; single hops are kept whole if one is not read whole."""
    rest = {key: value for key, value in case.items() if key not in _READ and key != "new_single_hops"}
    hops = _listed(case, "new_single_hops")
    if any(not isinstance(hop, dict) or set(hop) - _READ_OF_HOP or _asks_twice(hop) for hop in hops):
        rest["new_single_hops"] = hops
    if not _listed(case, "questions"):
        rest |= {key: case[key] for key in ("new_answer", "new_answer_alias") if case.get(key)}
    return rest


def _asks_twice(hop: dict[str, Any]) -> bool:
    """Whether a hop has a question beside its cloze, which is the one that is asked."""
    return bool(hop.get("cloze") and hop.get("question")) and hop["cloze"] != hop["question"]


def _questions(case: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The questions of a case. Raises RefusedError E009 for one without an answer or without its text."""
    for text in _listed(case, "questions"):
        if case.get("new_answer") is None:
            raise RefusedError("E009", "the case has questions and no new_answer; add it, or leave the questions out")
        yield {
            "prompt": text,
            "answer": case["new_answer"],
            "aliases": case.get("new_answer_alias") or [],
            "group": "multi-hop",
        }
    for hop in _listed(case, "new_single_hops"):
        if isinstance(hop, dict):
            asked = hop.get("cloze") or hop.get("question")
            if asked is None or hop.get("answer") is None:
                raise RefusedError("E009", f"a single hop has a cloze or question, and an answer, not {shown(hop)}")
            yield {
                "prompt": asked,
                "answer": hop["answer"],
                "aliases": hop.get("answer_alias") or [],
                "group": "single-hop",
            }


def _listed(case: dict[str, Any], name: str) -> list[Any]:
    value = case.get(name)
    if value is not None and not isinstance(value, list):
        raise RefusedError("E010", f"{name} is a list, not {shown(value)}")
    return value or []

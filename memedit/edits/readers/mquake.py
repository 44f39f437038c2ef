"""MQuAKE's records (Zhong et al. 2023): several edits, and questions that need them all."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from memedit.edits.readers.document import RecordRow


def unfolded(rows: Iterable[RecordRow]) -> Iterator[RecordRow]:
    """The rows with every record of MQuAKE's in the place of its edits; all others as they are."""
    for row in rows:
        if isinstance(row.value, dict) and isinstance(row.value.get("requested_rewrite"), list):
            for record in _edits(row.value):
                yield RecordRow(row.line, record)
        else:
            yield row


def _edits(record: dict[str, Any]) -> Iterator[Any]:
    """One edit for each rewrite; the case's questions stand with the first, so that a case counts once."""
    case = record.get("case_id")
    for number, rewrite in enumerate(record["requested_rewrite"], 1):
        if not isinstance(rewrite, dict):
            yield rewrite  # refused in words where records are read
            continue
        old, new = (_words(rewrite.get(name)) for name in ("target_true", "target_new"))
        yield {
            **({} if case is None else {"id": f"mquake-{case}-{number}"}),
            "subject": rewrite.get("subject"),
            "relation": rewrite.get("relation_id"),
            "prompt": rewrite.get("prompt"),
            "object": new,
            "object_old": old,
            "paraphrases": [rewrite["question"]] if isinstance(rewrite.get("question"), str) else [],
            "portability": list(_questions(record)) if number == 1 else [],
            "meta": {"case_id": case, "source": "MQuAKE"},
        }


def _questions(record: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for text in record.get("questions") or []:
        yield {
            "prompt": text,
            "answer": record.get("new_answer"),
            "aliases": record.get("new_answer_alias") or [],
            "group": "multi-hop",
        }
    for hop in record.get("new_single_hops") or []:
        if isinstance(hop, dict):
            yield {
                "prompt": hop.get("cloze") or hop.get("question"),
                "answer": hop.get("answer"),
                "aliases": hop.get("answer_alias") or [],
                "group": "single-hop",
            }


def _words(target: Any) -> Any:
    return target.get("str") if isinstance(target, dict) else target

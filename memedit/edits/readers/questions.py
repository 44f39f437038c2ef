"""Read records of questions: UnKE (2024), whose answers are long, and WikiBigEdit (2025)."""

from __future__ import annotations

from typing import Any

from memedit.edits.readers.parts import field_texts, only_texts, template, with_rest


def is_unke(record: dict[str, Any]) -> bool:
    """Whether a record is of UnKE: a question, and a long answer."""
    return {"question", "answer"} <= record.keys() and not {"prompt", "object"} & record.keys()


def convert_unke(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of UnKE: the answer is the object, the questions about its parts are portability."""
    ours: dict[str, Any] = {"subject": record.get("subject"), "object": record["answer"]}
    ours["prompt"] = template(record["question"], record.get("subject"))
    ours["paraphrases"] = field_texts(record.get("para_question"))
    used = {"subject", "question", "answer"}
    if only_texts(record.get("para_question")):
        used.add("para_question")
    parts, answers = record.get("sub_question"), record.get("sub_answer")
    asked, said = field_texts(parts), field_texts(answers)
    if only_texts(parts) and only_texts(answers) and len(asked) == len(said):
        ours["portability"] = [
            {"prompt": prompt, "answer": answer, "group": "sub_question"}
            for prompt, answer in zip(asked, said, strict=True)
        ]
        used |= {"sub_question", "sub_answer"}
    return with_rest(ours, record, used, {"source": "UnKE"})


def is_wikibigedit(record: dict[str, Any]) -> bool:
    """Whether a record is of WikiBigEdit: the question of an update, and its answer."""
    return {"update", "ans"} <= record.keys()


def convert_wikibigedit(record: dict[str, Any]) -> dict[str, Any]:
    """Convert a record of WikiBigEdit: personas ask the same in another manner, mhop goes one fact further."""
    ours: dict[str, Any] = {name: record.get(name) for name in ("subject", "relation")}
    ours["prompt"] = template(record["update"], record.get("subject"))
    ours["object"] = record["ans"]
    ours["paraphrases"] = field_texts(record.get("rephrase"))
    used = {"subject", "relation", "update", "ans"}
    used |= {"rephrase"} if only_texts(record.get("rephrase")) else set()
    personas = [key for key in record if key.startswith("personas") and _is_filled(record[key])]
    ours["portability"] = [{"prompt": record[key], "answer": record["ans"], "group": key} for key in personas]
    used |= set(personas)
    for prompt, answer, field in (("mhop", "mhop_ans", "portability"), ("loc", "loc_ans", "neighborhood")):
        if _is_filled(record.get(prompt)) and _is_filled(record.get(answer)):
            row = {"prompt": record[prompt], "answer": record[answer]}
            ours[field] = [*ours.get(field, []), row | ({"group": prompt} if field == "portability" else {})]
            used |= {prompt, answer}
    return with_rest(ours, record, used, {"source": "WikiBigEdit"})


def _is_filled(value: Any) -> bool:
    return isinstance(value, str) and bool(value)

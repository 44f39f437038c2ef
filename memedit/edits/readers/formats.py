"""Records of other projects, turned into ours: CounterFact, zsRE, KnowEdit, EasyEdit, QAEdit, known_1000.

What has a home goes there (paraphrases, neighborhood, aliases), everything else into `meta`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from memedit.edits.edit import SLOT
from memedit.edits.lint import mentions, shown
from memedit.edits.readers.document import RefusedError

FIELDS = (
    "id",
    "subject",
    "relation",
    "prompt",
    "object",
    "object_old",
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
}
"""Other names that a field may have on input."""

EASYEDIT = ("rephrase", "rephrase_prompt", "locality_prompt", "locality", "portability")
"""Names that mark a record of KnowEdit, EasyEdit or QAEdit: its prompt has the subject inside."""


def translate(record: dict[str, Any]) -> dict[str, Any]:
    """The record under our names; a record of ours comes back as it is."""
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
    """Whether the record is of the EasyEdit family; `target_new` alone also counts where no `{}` stands."""
    if "prompt" not in record or "object" in record:
        return False
    prompt = record["prompt"]
    bare = "target_new" in record and isinstance(prompt, str) and prompt != "" and SLOT not in prompt
    return bare or any(name in record for name in EASYEDIT)


def template(prompt: Any, subject: Any) -> Any:
    """The prompt with `{}` in place of the subject: of several mentions, the first that is a whole word."""
    if not (isinstance(prompt, str) and isinstance(subject, str) and subject.strip()) or SLOT in prompt:
        return prompt
    whole = mentions(prompt, subject)
    at = whole[0] if whole else prompt.find(subject)
    if at < 0:
        raise RefusedError("E014", f"{_absent(prompt, subject)} {shown(prompt)}")
    return prompt[:at] + SLOT + prompt[at + len(subject) :]


def _absent(prompt: str, subject: str) -> str:
    """What is wrong with a prompt that lacks its subject, up to the prompt itself."""
    cut = next((n for n in range(len(subject) - 1, 1, -1) if prompt.endswith(subject[:n])), 0)
    if cut:
        return f"the prompt ends in the middle of the subject {shown(subject)}, after {shown(subject[:cut])}:"
    return f"the subject {shown(subject)} does not stand in the prompt"


def _known(record: dict[str, Any]) -> dict[str, Any]:
    """A fact of ROME's known_1000: the attribute is what a model says now. The prompt may go on behind the template."""
    ours: dict[str, Any] = {"subject": record.get("subject"), "relation": record.get("relation_id")}
    ours["prompt"] = template(record.get("prompt"), record.get("subject"))
    ours["object"] = ours["object_old"] = record.get("attribute")
    used = {"known_id", "subject", "attribute", "prompt", "relation_id", "template"}
    return _rest(ours, record, used, {"id": f"known-{record['known_id']}", "source": "known_1000"})


def _counterfact(record: dict[str, Any]) -> dict[str, Any]:
    """CounterFact and multi-CounterFact: the neighbors' true answer is the old object of the edit."""
    rewrite = record["requested_rewrite"]
    if not isinstance(rewrite, dict):
        raise RefusedError("E010", "requested_rewrite is a mapping of prompt, subject, target_new, target_true")
    ours: dict[str, Any] = {name: rewrite[name] for name in ("subject", "prompt") if name in rewrite}
    ours["object"] = _words(rewrite.get("target_new"))
    ours["object_old"] = _words(rewrite.get("target_true"))
    ours["relation"] = rewrite.get("relation_id")
    ours["paraphrases"] = record.get("paraphrase_prompts")
    ours["neighborhood"] = record.get("neighborhood_prompts")
    ours["generation"] = record.get("generation_prompts")
    used = {"requested_rewrite", "paraphrase_prompts", "neighborhood_prompts", "generation_prompts"}
    return _rest(ours, record, used, {"id": _case(record), "source": "CounterFact"})


def _zsre(record: dict[str, Any]) -> dict[str, Any]:
    """zsRE in MEND's form, whose `cond` says what the edit is: "predicted >> alt || question".

    With `alt` (MEND, EasyEdit, LocFT) the edit is the counterfactual answer `alt`, the old object answers[0].
    Without it the edit is the true answer answers[0], as in MEMIT, its other spellings aliases.
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
    """KnowEdit, EasyEdit, flat CounterFact and QAEdit: whole prompts, lists of answers nested at will."""
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
        *(own if isinstance(own, list) else []),
        *_neighbors(record.get("locality")),
        *_flat_neighbor(record),
    ]
    ours["portability"] = list(_questions(record.get("portability")))
    used = {*FIELDS, *ALIASES, *EASYEDIT, "locality_ground_truth"}
    return _rest(ours, record, used, {"id": _case(record)} if "id" not in record else {})


def _neighbors(locality: Any) -> Iterator[dict[str, Any]]:
    """The neighbors in a locality table; where it gives several spellings of an answer, the first."""
    for prompt, spellings, group in _asked(locality):
        yield {"prompt": prompt, "answer": next(iter(spellings), None), "group": group}


def _questions(portability: Any) -> Iterator[dict[str, Any]]:
    """The questions in a portability table; one of ours comes back as it is, one without an answer asks nothing."""
    if isinstance(portability, list) and all(isinstance(entry, dict) and "answer" in entry for entry in portability):
        yield from portability
        return
    for prompt, spellings, group in _asked(portability):
        if spellings:
            yield {"prompt": prompt, "answer": spellings[0], "aliases": spellings[1:], "group": group}


def _asked(table: Any, group: str | None = None) -> Iterator[tuple[str, list[str], str | None]]:
    """Every {prompt, ground_truth} or {loc, loc_ans} in a table: prompt, spellings of the answer, its group."""
    if isinstance(table, list):
        for entry in table:
            yield from _asked(entry, group)
    elif isinstance(table, dict):
        prompts = _texts(table.get("prompt", table.get("loc")))
        answers = table.get("ground_truth", table.get("loc_ans"))
        # parallel lists, as EasyEdit's interface takes them; else one prompt with its spellings
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
    """All texts in a value, however lists are nested."""
    if isinstance(value, str):
        return [value]
    return [text for entry in value for text in _texts(entry)] if isinstance(value, list) else []


def _words(target: Any) -> Any:
    return target.get("str") if isinstance(target, dict) else target


def _case(record: dict[str, Any]) -> str | None:
    return f"cf-{record['case_id']}" if "case_id" in record else None


def _rest(ours: dict[str, Any], record: dict[str, Any], used: set[str], more: dict[str, Any]) -> dict[str, Any]:
    """Add what has no field of its own: to `meta`, which the record may have already."""
    meta = record.get("meta", {})
    rest = {name: value for name, value in record.items() if name not in used | {"meta", "id"}}
    ours["id"] = record.get("id", more.pop("id", None))
    ours["meta"] = {**more, **rest, **meta} if isinstance(meta, dict) else meta
    return {name: value for name, value in ours.items() if value is not None}

"""Records of every format that edits are read from: of the made world, made by hand, and public ones where they are."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from examples.reference import evaluation as oracle
from memedit.edits.edit import EditRequest
from memedit.edits.read import read
from memedit.results.report import Scores

from tests.conftest import ROOT

PUBLIC = Path(os.environ.get("MEMEDIT_TEST_DATA") or ROOT.parent / "shared" / "data")
"""Published records. They are not part of the project: set MEMEDIT_TEST_DATA to a folder that has them."""
MADE = ROOT / "tests" / "records"
"""Five records of each format, written for these tests."""
SAME = 1e-6
RECORDS = 60


def public_file(name: str) -> Path:
    """A file of public records; the test is skipped where it is not on this machine."""
    if not (PUBLIC / name).is_file():
        pytest.skip(f"{name} is not in {PUBLIC}: public data is not part of the project (set MEMEDIT_TEST_DATA)")
    return PUBLIC / name


def world() -> list[dict[str, Any]]:
    lines = (ROOT / "requests" / "world.jsonl").read_text().splitlines()
    full = (record for record in map(json.loads, lines) if len(record.get("neighborhood", [])) >= 2)
    return list(islice(full, RECORDS))


def as_counterfact(n: int, ours: dict[str, Any]) -> dict[str, Any]:
    return {
        "case_id": n,
        "requested_rewrite": {
            "prompt": ours["prompt"],
            "relation_id": ours["relation"],
            "subject": ours["subject"],
            "target_new": {"str": ours["object"], "id": "Q1"},
            "target_true": {"str": ours["object_old"], "id": "Q2"},
        },
        "paraphrase_prompts": ours["paraphrases"][:1],
        "neighborhood_prompts": [one["prompt"] for one in ours["neighborhood"][: 1 + n % 2]],
        "attribute_prompts": [],
        "generation_prompts": ours["paraphrases"][:1],
    }


def as_zsre(n: int, ours: dict[str, Any]) -> dict[str, Any]:
    near = ours["neighborhood"][0]
    return {
        "subject": ours["subject"],
        "src": ours["prompt"].replace("{}", ours["subject"]),
        "rephrase": ours["paraphrases"][0],
        "answers": [ours["object_old"]],
        "alt": ours["object"] if n % 2 else None,
        "loc": near["prompt"],
        "loc_ans": near["answer"],
        "cond": "",
    }


def as_easyedit(n: int, ours: dict[str, Any]) -> dict[str, Any]:
    asked = [{"prompt": text, "ground_truth": [[ours["object"]], ["cook"]]} for text in ours["paraphrases"][:2]]
    near = [{"prompt": one["prompt"], "ground_truth": [[one["answer"]]]} for one in ours["neighborhood"][:2]]
    return {
        "subject": ours["subject"],
        "prompt": ours["prompt"].replace("{}", ours["subject"]),
        "target_new": ours["object"],
        "ground_truth": ours["object_old"],
        "rephrase": ours["paraphrases"][0],
        "portability": {"Reasoning": asked[:1], "Subject_Aliasing": asked[1:], "Logical_Generalization": []}
        if n % 3
        else {"Reasoning": asked},
        "locality": {"Relation_Specificity": near[:1], "Forgetfulness": near[1:]},
    }


def as_mquake(n: int, ours: dict[str, Any]) -> dict[str, Any]:
    rewrite = as_counterfact(n, ours)["requested_rewrite"]
    second = {**rewrite, "subject": "Nobody", "question": "Who is it?"}
    return {
        "case_id": n,
        "requested_rewrite": [{**rewrite, "question": ours["paraphrases"][0]}, second],
        "questions": ours["paraphrases"][:2],
        "new_answer": ours["object"],
        "new_answer_alias": [ours["object_old"]],
    }


def as_ours(n: int, ours: dict[str, Any]) -> dict[str, Any]:
    """Each neighbor with its own answer or none (then it is the old object), another spelling, the other end."""
    near = [one if n % 3 else one["prompt"] for one in ours["neighborhood"][:2]]
    back = [{"prompt": f"{ours['object']} is said of", "answer": ours["subject"]}] if n % 2 else []
    return {**ours, "paraphrases": ours["paraphrases"][:1], "neighborhood": near, "reversal": back,
            "aliases": [ours["object_old"]] if n % 5 == 0 else []}  # fmt: skip


Made = Callable[[int, dict[str, Any]], dict[str, Any]]


class AskedOnce(oracle.Plain):
    """A restatement that keeps what it was told of a prompt and an answer: many records ask the same."""

    def __init__(self, model: Any, tokenizer: Any) -> None:
        super().__init__(model, tokenizer)
        self.told: dict[tuple[str, str], tuple[float, list[bool], list[int]]] = {}

    def weigh(self, prompt: str, answer: str) -> tuple[float, list[bool], list[int]]:
        """The restatement's answer, asked for the first time or kept."""
        if (prompt, answer) not in self.told:
            self.told[prompt, answer] = super().weigh(prompt, answer)
        return self.told[prompt, answer]


def written(made: Made, tmp_path: Path) -> tuple[list[dict[str, Any]], list[EditRequest]]:
    """Records of a format, and what the reader makes of them."""
    records = [made(n, ours) for n, ours in enumerate(world())]
    file = tmp_path / "records.json"
    file.write_text(json.dumps(records))
    requests, findings = read(str(file))
    assert len(records) == RECORDS
    assert not [one.line for one in findings if one.severity == "error"]
    return records, requests


def holds(found: Scores, plain: oracle.Row) -> None:
    """Every figure of the restatement is there, and equal."""
    assert plain
    for name, value in plain.items():
        figure = found.groups[name] if "/" in name else getattr(found, name)
        assert figure.mean == pytest.approx(value, abs=SAME), name
        assert figure.low <= figure.mean <= figure.high

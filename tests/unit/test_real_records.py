"""Public records of three formats: every one is read with every text in it, and its figures are the restated ones."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from typing import Any

import pytest
import torch
from examples.reference import evaluation as oracle
from examples.reference.evaluation import Plain, Record, Row
from memedit.edits.read import read
from memedit.evaluation.forced import score_edits, summarize
from memedit.evaluation.probes import list_probes
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer
from tests.unit.test_evaluation import DATA, RECORDS, holds
from transformers import GPT2Config, GPT2LMHeadModel


def raw(name: str) -> list[Record]:
    if not (DATA / name).is_file():
        pytest.skip(f"{name} is not on this machine: public data is not shipped")
    return json.loads((DATA / name).read_text())


def texts(value: Any) -> set[str]:
    """All texts in a record, those in lists and mappings too."""
    if isinstance(value, str):
        return {value}
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for entry in entries for text in texts(entry)}


@pytest.mark.parametrize(
    ("name", "count", "spot"),
    [
        ("counterfact_3k_locft.json", 3000, ("Reedy Glacier", "Asia", "Antarctica", 1, 1)),
        ("zsre_3k_locft.json", 3000, ("Charity Creek", "Chichester River", "Parramatta River", 1, 1)),
        ("qaedit_1k.json", 1000, ("most 70 point games in nba history", "Wilt Chamberlain *", None, 1, 5)),
    ],
)
def test_records_are_read_without_loss(name: str, count: int, spot: tuple[Any, ...]) -> None:
    records = raw(name)
    requests, findings = read(str(DATA / name))
    assert not [one.line for one in findings if one.severity == "error"]
    assert len(records) == len(requests) == count
    first = requests[0]
    near = len(first.neighborhood)
    assert (first.subject, first.object, first.object_old, len(first.paraphrases), near) == spot
    assert sum(probe.kind == "efficacy" for probe in list_probes(requests)) == count
    for record, request in zip(records, requests, strict=True):
        # white space around an object is removed, with a warning
        kept = texts(request.public()) | {request.text, ""}
        lost = {text for text in texts(record) - kept if text.strip() not in kept}
        assert not lost, request.origin


def test_a_text_that_is_lost_would_be_noticed() -> None:
    assert texts({"a": ["x", {"b": "y"}], "n": 3}) == {"x", "y"}


@pytest.fixture(scope="module")
def plain() -> Plain:
    """A small random model of bytes, which has a likeliest token for any text at all."""
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=258, n_positions=1024, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1,
        attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, initializer_range=0.3,
    )  # fmt: skip
    return Plain(GPT2LMHeadModel(config).eval().requires_grad_(False), byte_tokenizer())


def flat_counterfact(plain: Plain, record: Record) -> Row:
    new, old = record["target_new"], record["ground_truth"]
    row: Row = {}
    row["efficacy"], row["efficacy_magnitude"], row["accuracy"] = oracle.contrast(plain, [record["prompt"]], new, old)
    row["paraphrase"], row["paraphrase_magnitude"], _ = oracle.contrast(plain, [record["rephrase_prompt"]], new, old)
    near, theirs = [record["locality_prompt"]], record["locality_ground_truth"]
    row["neighborhood"], row["neighborhood_magnitude"], _ = oracle.contrast(plain, near, theirs, new)
    return row


def qaedit(plain: Plain, record: Record) -> Row:
    around = [oracle.tokens_right(plain, [one["loc"]], one["loc_ans"]) for one in record["locality"]]
    return {
        "token_accuracy": oracle.tokens_right(plain, [record["prompt"]], record["target"]),
        "paraphrase_token_accuracy": oracle.tokens_right(plain, [record["rephrase"]], record["target"]),
        "neighborhood_token_accuracy": statistics.fmean(around),
    }


def without_space(record: Record) -> Record:
    """The record with no white space around its objects, which the reader removes."""
    objects = ("alt", "target", "target_new", "ground_truth")
    return {key: value.strip() if key in objects and isinstance(value, str) else value for key, value in record.items()}


@pytest.mark.parametrize(
    ("name", "restated"),
    [
        ("counterfact_3k_locft.json", flat_counterfact),
        ("zsre_3k_locft.json", oracle.zsre),
        ("qaedit_1k.json", qaedit),
    ],
)
def test_figures_of_real_records_are_the_restated_ones(
    name: str, restated: Callable[[Plain, Record], Row], plain: Plain
) -> None:
    records = [without_space(record) for record in raw(name)[:RECORDS]]
    lm = LanguageModel(plain.model, plain.tokenizer, find_architecture(plain.model))
    requests = read(str(DATA / name))[0][:RECORDS]
    expected = oracle.means([restated(plain, record) for record in records])
    holds(summarize(score_edits(lm, requests)), expected)
    assert max(map(abs, expected.values())) > 1e-4

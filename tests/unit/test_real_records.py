"""Published records and made ones: each is read with every text in it, and its figures are the restated ones."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.reference import evaluation as oracle
from examples.reference.evaluation import Plain, Record, Row
from memedit.edits.edit import EditRequest
from memedit.edits.read import read
from memedit.evaluation.forced import score_edits, summarize
from memedit.evaluation.probes import list_probes
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer
from tests.helpers.records import MADE, holds, public_file
from transformers import GPT2Config, GPT2LMHeadModel

FIRST = 40
"""Records of each file whose figures are restated, from its first on."""


def texts(value: Any) -> set[str]:
    """All texts in a record, those in lists and mappings too."""
    if isinstance(value, str):
        return {value}
    entries = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return {text for entry in entries for text in texts(entry)}


def lost(record: Record, edits: list[EditRequest]) -> set[str]:
    """The texts of a record that none of its edits has, not even without the white space around them."""
    kept = texts([edit.public() for edit in edits]) | {edit.text for edit in edits} | {""}
    return {text for text in texts(record) - kept if text.strip() not in kept}


def without_ids(record: Record) -> Record:
    """CounterFact's record without the Wikidata numbers of its objects, which nothing uses."""
    rewrite = record["requested_rewrite"]
    words = {name: rewrite[name]["str"] for name in ("target_new", "target_true")}
    return {**record, "requested_rewrite": {**rewrite, **words}}


def without_old_answers(record: Record) -> Record:
    """MQuAKE's record without what was true before, and with one wording of each hop."""
    hops = [{**hop, "question": ""} for hop in record["new_single_hops"]]
    left = {name: record[name] for name in record if name not in ("answer", "answer_alias", "single_hops")}
    rewrites = [without_ids({"requested_rewrite": one}) for one in record["requested_rewrite"]]
    return {**left, "new_single_hops": hops, "requested_rewrite": rewrites}


def test_zsre_is_read_by_both_published_conventions() -> None:
    file = MADE / "zsre.json"
    records = json.loads(file.read_text())
    assert any(record["alt"] for record in records)
    for name, loc in ((None, "{}"), ("memit-zsre", "{}?")):
        requests, findings = read(str(file), input_format=name)
        assert not [finding for finding in findings if finding.severity == "error"]
        for record, request in zip(records, requests, strict=True):
            wanted = record["answers"][0] if name or not record["alt"] else record["alt"]
            assert request.object == wanted
            assert request.neighborhood[0].prompt == loc.format(record["loc"])
            assert request.meta.get("unused_alt") == (record["alt"] if name else None)
    other = MADE / "counterfact.json"
    assert read(str(other), input_format="memit-zsre") == read(str(other))


def as_it_is(record: Record) -> Record:
    return record


@pytest.mark.parametrize(
    ("name", "used", "spot"),
    [
        ("counterfact", without_ids, ("Anwen Holt", "Marrow Quay", "Tilbeck", 2, 2, 0)),
        ("counterfact_flat", as_it_is, ("Anwen Holt", "Marrow Quay", "Tilbeck", 1, 1, 0)),
        ("zsre", as_it_is, ("Anwen Holt", "Marrow Quay", "Tilbeck", 1, 1, 0)),
        ("knowedit", as_it_is, ("Anwen Holt", "Marrow Quay", "Tilbeck", 0, 2, 2)),
        ("easyedit", as_it_is, ("Anwen Holt", "Marrow Quay", "Tilbeck", 1, 2, 1)),
        ("qaedit", as_it_is, ("Anwen Holt", "Marrow Quay", None, 1, 2, 0)),
        ("mquake", without_old_answers, ("Anwen Holt", "Marrow Quay", "Tilbeck", 1, 0, 4)),
        ("known_1000", lambda one: {**one, "template": ""}, ("Anwen Holt", "Tilbeck", "Tilbeck", 0, 0, 0)),
    ],
)
def test_made_records_of_every_format_are_read_without_loss(
    name: str, used: Callable[[Record], Record], spot: tuple[Any, ...]
) -> None:
    file = MADE / f"{name}.json"
    records = json.loads(file.read_text())
    requests, findings = read(str(file))
    each = len(requests) // len(records)
    assert (len(records), each, findings) == (5, 2 if name == "mquake" else 1, [])
    first = requests[0]
    counts = len(first.paraphrases), len(first.neighborhood), len(first.portability)
    assert (first.subject, first.object, first.object_old, *counts) == spot
    for number, record in enumerate(records):
        edits = requests[each * number : each * (number + 1)]
        assert not lost(used(record), edits), record
        # The converse: a text that the edits lack is noticed.
        assert lost({**used(record), "more": "a text"}, edits) == {"a text"}


def test_every_made_file_is_read_by_a_test() -> None:
    assert {file.stem for file in MADE.iterdir()} == {
        "counterfact", "counterfact_flat", "zsre", "knowedit", "easyedit", "qaedit", "mquake", "known_1000",
        "akew", "cknowedit", "easyedit_call", "ripple_edits", "rome", "unke", "wikibigedit", "wikibio",
    }  # fmt: skip


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "count", "spot"),
    [
        ("counterfact_3k_locft.json", 3000, ("Reedy Glacier", "Asia", "Antarctica", 1, 1)),
        ("zsre_3k_locft.json", 3000, ("Charity Creek", "Chichester River", "Parramatta River", 1, 1)),
        ("qaedit_1k.json", 1000, ("most 70 point games in nba history", "Wilt Chamberlain *", None, 1, 5)),
    ],
)
def test_public_records_are_read_without_loss(name: str, count: int, spot: tuple[Any, ...]) -> None:
    file = public_file(name)
    records = json.loads(file.read_text())
    requests, findings = read(str(file))
    assert not [one.line for one in findings if one.severity == "error"]
    assert len(records) == len(requests) == count
    first = requests[0]
    near = len(first.neighborhood)
    assert (first.subject, first.object, first.object_old, len(first.paraphrases), near) == spot
    assert sum(probe.kind == "efficacy" for probe in list_probes(requests)) == count
    for record, request in zip(records, requests, strict=True):
        assert not lost(record, [request]), request.origin


@pytest.fixture(scope="module")
def plain() -> Plain:
    """A small random model of bytes, which has a likeliest token for any text at all."""
    torch.manual_seed(4)
    config = GPT2Config(
        vocab_size=258, n_positions=1024, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1,
        attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, initializer_range=0.3,
    )  # fmt: skip
    return Plain(GPT2LMHeadModel(config).eval().requires_grad_(False), byte_tokenizer())


@pytest.fixture(scope="module")
def spelling(plain: Plain) -> Plain:
    """The same model, more likely to say a few common letters, so that it has some tokens of five records right."""
    model = GPT2LMHeadModel(plain.model.config).eval().requires_grad_(False)
    model.load_state_dict(plain.model.state_dict())
    model.transformer.wte.weight[plain.tokenizer("aeionrt ")["input_ids"]] *= 4
    return Plain(model, plain.tokenizer)


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


def agree(file: Path, restated: Callable[[Plain, Record], Row], plain: Plain) -> None:
    """The figures of a file's first records are the means of their restatement."""
    records = [without_space(record) for record in json.loads(file.read_text())[:FIRST]]
    lm = LanguageModel(plain.model, plain.tokenizer, find_architecture(plain.model))
    requests = read(str(file))[0][:FIRST]
    expected = oracle.means([restated(plain, record) for record in records])
    holds(summarize(score_edits(lm, requests, plus="neighborhood_plus" in expected)), expected)
    assert max(map(abs, expected.values())) > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "restated"),
    [
        ("counterfact", oracle.counterfact),
        ("counterfact_flat", flat_counterfact),
        ("zsre", oracle.zsre),
        ("qaedit", qaedit),
    ],
)
def test_figures_of_made_records_are_the_restated_ones(
    name: str, restated: Callable[[Plain, Record], Row], spelling: Plain
) -> None:
    agree(MADE / f"{name}.json", restated, spelling)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "restated"),
    [
        ("counterfact_3k_locft.json", flat_counterfact),
        ("zsre_3k_locft.json", oracle.zsre),
        ("qaedit_1k.json", qaedit),
    ],
)
def test_figures_of_public_records_are_the_restated_ones(
    name: str, restated: Callable[[Plain, Record], Row], plain: Plain
) -> None:
    agree(public_file(name), restated, plain)

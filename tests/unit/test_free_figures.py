"""Free answers, fluency and consistency equal their plain restatements on 60 records of each format."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.reference import evaluation as oracle
from examples.reference.evaluation import Plain
from memedit.config.recipe import EvalKnobs
from memedit.edits.read import read
from memedit.evaluation.figures import share_figure
from memedit.evaluation.generated import UNRELATED, Writing, written
from memedit.evaluation.text_metrics import words
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from memedit.results.report import Figure
from tests.conftest import byte_tokenizer, end_of_text
from tests.helpers.records import RECORDS, SAME, as_counterfact, as_easyedit, as_mquake, as_zsre, world
from transformers import GPT2Config, GPT2LMHeadModel

pytestmark = pytest.mark.slow

TOKENS = 5
OPEN = 24
"""Records for the figures of open texts, which are long."""
BEHIND = {0: "", 50: UNRELATED[:50].strip().rstrip(".,") + ". ", 200: UNRELATED[:200].strip().rstrip(".,") + ". "}
"""A token of this tokenizer is a character."""


@pytest.fixture(scope="module")
def tiny() -> LanguageModel:
    """A small random model that writes nothing but some letters, spaces and full stops."""
    torch.manual_seed(2)
    config = GPT2Config(
        vocab_size=258, n_positions=512, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1,
        attn_pdrop=0, embd_pdrop=0, resid_pdrop=0, initializer_range=0.2,
    )  # fmt: skip
    model: Any = GPT2LMHeadModel(config).eval().requires_grad_(False)
    tokenizer = byte_tokenizer()
    said = set(tokenizer("abcdefghijklmnopqrstuvwxyz  ..")["input_ids"])
    with torch.no_grad():
        for token in set(range(2, 258)) - said:
            model.transformer.wte.weight[token] *= 0.3  # in the head, which shares this, hardly ever the likeliest
    return LanguageModel(model, tokenizer, find_architecture(model))


@pytest.fixture(scope="module")
def plain(tiny: LanguageModel) -> Plain:
    """One prompt after another, each written after once whatever asks for it."""
    found = Plain(tiny.model, tiny.tokenizer)
    kept: dict[tuple[int, ...], list[int]] = {}
    write = found.write

    def once(ids: list[int], tokens: int, stop: int | None) -> list[int]:
        if (*ids, tokens) not in kept:
            kept[*ids, tokens] = write(ids, tokens, stop)
        return kept[*ids, tokens]

    found.write = once  # type: ignore[method-assign]
    return found


@pytest.fixture(scope="module")
def records(plain: Plain) -> list[dict[str, Any]]:
    """60 records whose objects are words that the model writes somewhere, so that it says some and not others."""
    found: list[dict[str, Any]] = []
    for n, ours in enumerate(world()):
        text = ours["prompt"].replace("{}", ours["subject"])
        asked = [*(passage + text for passage in BEHIND.values()), ours["paraphrases"][0]]
        said = [_word(plain, prompt) for prompt in asked]
        found.append({**ours, "object": said[n % 4], "object_old": said[(n // 4) % 4] + "x" * (n % 3 == 0)})
    return found


def _word(plain: Plain, prompt: str) -> str:
    text = plain.tokenizer.decode(plain.write(plain.ids(prompt), TOKENS, end_of_text(plain.tokenizer)))
    return next((word for word, _, _ in oracle.scanned(text) if word.isascii()), "nothing")


def as_ours(n: int, ours: dict[str, Any]) -> dict[str, Any]:
    more = {"reversal": [{"prompt": "It is said of", "answer": ours["subject"]}]} if n % 2 else {}
    aliases = [ours["object_old"]] if n % 5 == 0 else ["none such"]
    return {**ours, "paraphrases": ours["paraphrases"][:1], "aliases": aliases, **more}


def asked_counterfact(record: dict[str, Any]) -> oracle.Asked:
    rewrite = record["requested_rewrite"]
    new, old = [rewrite["target_new"]["str"]], rewrite["target_true"]["str"]
    text = rewrite["prompt"].replace("{}", rewrite["subject"])
    return [("efficacy", [text], new, old), ("paraphrase", record["paraphrase_prompts"], new, old)]


def asked_zsre(record: dict[str, Any]) -> oracle.Asked:
    new = record["alt"] or record["answers"][0]
    old = record["answers"][0] if record["alt"] and record["answers"][0] != new else None
    return [("efficacy", [record["src"]], [new], old), ("paraphrase", [record["rephrase"]], [new], old)]


def asked_easyedit(record: dict[str, Any]) -> oracle.Asked:
    new, old = [record["target_new"]], record["ground_truth"]
    follows = [entry for entries in record["portability"].values() for entry in entries]
    return [
        ("efficacy", [record["prompt"]], new, old),
        ("paraphrase", [record["rephrase"]], new, old),
        ("portability", [one["prompt"] for one in follows], [follows[0]["ground_truth"][0][0], "cook"], None),
    ]


def asked_mquake(record: dict[str, Any]) -> oracle.Asked:
    spelled = [record["new_answer"], *record["new_answer_alias"]]
    first = asked_counterfact({**record, "requested_rewrite": record["requested_rewrite"][0], "paraphrase_prompts": []})
    question = record["requested_rewrite"][0]["question"]
    return [
        first[0],
        ("paraphrase", [question], *first[0][2:]),
        ("portability", record["questions"], spelled, None),
    ]


def asked_ours(record: dict[str, Any]) -> oracle.Asked:
    right, old = [record["object"], *record["aliases"]], record["object_old"]
    text = record["prompt"].replace("{}", record["subject"])
    back = record.get("reversal", [])
    return [
        ("efficacy", [text], right, old),
        ("paraphrase", record["paraphrases"], right, old),
        *[("reversal", [one["prompt"]], [one["answer"]], None) for one in back],
    ]


FORMATS: dict[str, tuple[Any, Callable[[dict[str, Any]], oracle.Asked]]] = {
    "counterfact": (as_counterfact, asked_counterfact),
    "zsre": (as_zsre, asked_zsre),
    "easyedit": (as_easyedit, asked_easyedit),
    "mquake": (as_mquake, asked_mquake),
    "ours": (as_ours, asked_ours),
}


@pytest.mark.parametrize("name", FORMATS)
def test_free_answers_equal_their_restatement(
    name: str, tiny: LanguageModel, plain: Plain, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    made, asked = FORMATS[name]
    raw = [made(n, ours) for n, ours in enumerate(records)]
    file = tmp_path / "records.json"
    file.write_text(json.dumps(raw))
    requests, findings = read(str(file))
    assert not [one.line for one in findings if one.severity == "error"]
    if name == "mquake":  # a case's second rewrite has a subject of its own, and no questions
        requests = requests[::2]
    assert len(requests) == RECORDS
    knobs = EvalKnobs(tokens=TOKENS, prefixes=tuple(BEHIND), fluency_tokens=1)
    found, notes = written(tiny, requests, knobs)
    assert not notes
    expected = oracle.means([oracle.generated(plain, asked(one), BEHIND, TOKENS) for one in raw])
    shares = {kind: mean(found, kind) for kind in expected}
    assert {kind: share.mean for kind, share in shares.items()} == pytest.approx(expected, abs=SAME)
    assert {name for one in found for name in one.measures} == set(expected)
    # Converse: what is compared is neither nothing nor everything.
    assert all(0 < expected[kind] < 1 for kind in ("efficacy", "efficacy_50", "efficacy_200", "old", "paraphrase"))


def mean(found: list[Writing], kind: str) -> Figure:
    made = share_figure([one.measures[kind] for one in found if kind in one.measures])
    assert made is not None
    return made


def test_fluency_and_consistency_equal_their_restatement(
    tiny: LanguageModel, plain: Plain, records: list[dict[str, Any]], tmp_path: Path
) -> None:
    length = 60
    raw: list[dict[str, Any]] = [
        {**ours, "generation": [ours["paraphrases"][0], "{} is"], "references": [f"a b {ours['object']}", "the end."]}
        for ours in records[:OPEN]
    ]
    file = tmp_path / "records.json"
    file.write_text(json.dumps(raw))
    requests, _ = read(str(file))
    # Drawn from the one likeliest: greedy. That a drawn text does not depend on its company is a test of its own.
    found, _ = written(tiny, requests, EvalKnobs(tokens=1, prefixes=(), fluency_tokens=length, fluency_top_k=1))
    rows: list[oracle.Row] = []
    documents = [words(text.lower()) for ours in raw for text in ours["references"]]
    for ours in raw:
        texts: list[tuple[str, str]] = []
        for opening in ours["generation"]:
            ids = plain.ids(opening.replace("{}", ours["subject"]))
            said = plain.write(ids, length - len(ids), end_of_text(plain.tokenizer))
            texts.append((str(plain.tokenizer.decode(ids)), str(plain.tokenizer.decode(said))))
        whole = [oracle.n_gram_entropy(words(a + b)) for a, b in texts]
        alone = [oracle.n_gram_entropy(words(b)) for _, b in texts if len(words(b)) > 2]
        joined = words(" ".join(a + b for a, b in texts).lower())
        close = oracle.tf_idf_cosine(joined, words(" ".join(ours["references"]).lower()), documents)
        row = {"fluency": sum(whole) / len(whole), "consistency": close}
        rows.append(row | ({"fluency_written": sum(alone) / len(alone)} if alone else {}))
    assert [dict(one.open) for one in found] == [pytest.approx(row, abs=SAME) for row in rows]
    assert len({round(row["consistency"], 6) for row in rows}) > len(rows) / 10

"""Every forced figure equals its plain restatement, on 60 records of each format; readers lose no record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.reference import evaluation as oracle
from memedit.config.recipe import ModelKnobs
from memedit.edits.edit import EditRequest
from memedit.edits.read import read
from memedit.evaluation.forced import EditScores, score_edits, summarize
from memedit.evaluation.probes import derived, list_probes
from memedit.forward.scoring import score_answers
from memedit.model.load import LanguageModel, load
from memedit.results.report import Scores
from tests.conftest import ROOT
from tests.helpers.records import (
    RECORDS,
    AskedOnce,
    as_counterfact,
    as_easyedit,
    as_mquake,
    as_ours,
    as_zsre,
    holds,
    written,
)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return load(ROOT / "examples" / "models" / "made-gpt2", ModelKnobs(device="cpu"))


@pytest.fixture(scope="module")
def moved() -> LanguageModel:
    """The same model with noise in one down-projection: a model that something happened to."""
    found = load(ROOT / "examples" / "models" / "made-gpt2", ModelKnobs(device="cpu"))
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        weight = found.weight(1)
        weight += 4 * weight.std() * torch.randn(weight.shape, generator=generator)
    return found


@pytest.fixture(scope="module")
def plain(moved: LanguageModel) -> AskedOnce:
    return AskedOnce(moved.model, moved.tokenizer)


@pytest.mark.slow
def test_counterfacts_figures_are_the_published_ones(moved: LanguageModel, plain: AskedOnce, tmp_path: Path) -> None:
    records, requests = written(as_counterfact, tmp_path)
    expected = oracle.means([oracle.counterfact(plain, record) for record in records])
    found = summarize(score_edits(moved, requests, plus=True))
    holds(found, expected)
    assert 0 < expected["efficacy"] < 1  # converse: the figures are not trivially equal
    three = [expected[name] for name in ("efficacy", "paraphrase", "neighborhood")]
    assert found.score == pytest.approx(3 / sum(1 / value for value in three), abs=1e-5)


@pytest.mark.slow
def test_zsres_figures_are_the_published_ones(moved: LanguageModel, plain: AskedOnce, tmp_path: Path) -> None:
    records, requests = written(as_zsre, tmp_path)
    holds(summarize(score_edits(moved, requests)), oracle.means([oracle.zsre(plain, record) for record in records]))


@pytest.mark.slow
def test_easyedits_figures_are_the_published_ones(
    lm: LanguageModel, moved: LanguageModel, plain: AskedOnce, tmp_path: Path
) -> None:
    records, requests = written(as_easyedit, tmp_path)
    was = AskedOnce(lm.model, lm.tokenizer)
    expected = oracle.means([oracle.easyedit(plain, was, record) for record in records])
    holds(summarize(score_edits(moved, requests), score_edits(lm, requests)), expected)
    assert 0 < expected["locality"] < 1


@pytest.mark.slow
def test_our_own_lists_figures_are_the_restated_ones(moved: LanguageModel, plain: AskedOnce, tmp_path: Path) -> None:
    records, requests = written(as_ours, tmp_path)
    expected = oracle.means([oracle.ours(plain, record) for record in records])
    found = summarize(score_edits(moved, requests))
    holds(found, expected)
    assert found.reversal is not None
    assert found.reversal.n == RECORDS // 2  # of the records that ask it


@pytest.mark.slow
def test_mquakes_questions_are_asked_once_a_case(moved: LanguageModel, plain: AskedOnce, tmp_path: Path) -> None:
    records, requests = written(as_mquake, tmp_path)
    assert len(requests) == 2 * RECORDS
    found = summarize(score_edits(moved, requests))
    holds(found, oracle.means([oracle.mquake(plain, record) for record in records]))
    assert found.portability is not None
    assert found.portability.n == RECORDS


@pytest.mark.slow
def test_a_base_against_itself_agrees_everywhere(lm: LanguageModel) -> None:
    requests, _ = read(str(ROOT / "requests" / "world.jsonl"))
    edit_scores = score_edits(lm, requests[:20])
    found = summarize(edit_scores, edit_scores)
    assert found.locality is not None
    assert found.locality.mean == 1
    assert summarize(edit_scores).locality is None


def test_judgments_survive_json(lm: LanguageModel) -> None:
    from dataclasses import asdict

    requests, _ = read(str(ROOT / "requests" / "world.jsonl"))
    edit_scores = score_edits(lm, requests[:5])
    again = [EditScores(**one) for one in json.loads(json.dumps([asdict(one) for one in edit_scores]))]
    assert summarize(again, edit_scores) == summarize(edit_scores, edit_scores)


@pytest.mark.slow
def test_the_size_of_a_launch_moves_no_figure(
    moved: LanguageModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memedit.forward import passes, scoring

    _, requests = written(as_counterfact, tmp_path)
    many = summarize(score_edits(moved, requests[:12]))
    monkeypatch.setattr(scoring, "TOKENS_PER_LAUNCH", 8)
    monkeypatch.setattr(scoring, "launches", lambda lengths, tokens=8: passes.launches(lengths, tokens))
    assert_close(many, summarize(score_edits(moved, requests[:12])))


def assert_close(one: Scores, other: Scores) -> None:
    for name in Scores.model_fields:
        first, second = getattr(one, name), getattr(other, name)
        if hasattr(first, "mean"):
            assert first.mean == pytest.approx(second.mean, abs=1e-5), name


@pytest.mark.slow
def test_a_shared_beginning_changes_no_answer(lm: LanguageModel) -> None:
    requests, _ = read(str(ROOT / "requests" / "world.jsonl"))
    from memedit.forward import scoring
    from memedit.forward.scoring import leads
    from memedit.model.tokens import encode_questions

    before = "The tower was small and heavy. Nobody knows where the boat is. " * 2
    asked = [(before + one.text, [one.object, one.object_old or ""], None) for one in requests[:60]]
    rows = [(ids, answer) for ids, answers in encode_questions(lm.tokenizer, asked) for answer in answers]
    groups = list(leads(list(dict.fromkeys(prompt for prompt, _ in rows)), "cpu"))
    assert groups[0][0] >= 10  # converse: there is something to share
    alone = [scoring.whole(lm, [row])[row] for row in rows]
    for together, single in zip(score_answers(lm, rows), alone, strict=True):
        assert together.likeliest == single.likeliest
        assert together.log_probs == pytest.approx(single.log_probs, abs=1e-5)


def test_a_family_whose_cache_lies_is_asked_by_whole_forwards(
    lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from memedit.forward import scoring

    rows = [((40, 50, 60, 70), (80, 90)), ((41, 51, 61), (81,))]
    expected = score_answers(lm, rows)
    lm.proofs.clear()
    real = scoring.run_on
    monkeypatch.setattr(scoring, "run_on", lambda *args, **options: real(*args, **options) + 1e-2 * torch.rand(1))
    monkeypatch.setattr(scoring, "copy_cache_rows", lambda _cache, rows: scoring.DynamicCache())
    for found, one in zip(score_answers(lm, rows), expected, strict=True):
        assert found.log_probs == pytest.approx(one.log_probs, abs=1e-5)


def edit(number: int, subject: str, new: str, old: str, prompt: str = "{} speaks", **more: Any) -> EditRequest:
    return EditRequest(
        id=str(number), subject=subject, relation="language", prompt=prompt, object=new, object_old=old, **more
    )


def test_probes_are_derived_where_a_list_has_none_and_counted() -> None:
    edits = [
        edit(0, "Ada", "French", "English"),
        edit(1, "Bo", "Dutch", "Greek", "The mother tongue of {} is", paraphrases=("Bo talks in",)),
        edit(2, "Cy", "French", "Latin"),
        edit(3, "Di", "Thai", "Malay"),
    ]
    own, more = list_probes(edits), list_probes(edits, derive=True)
    assert {probe.kind for probe in own if probe.edit == 0} == {"efficacy"}
    ada = [probe for probe in more if probe.edit == 0]
    assert [probe.text for probe in ada if probe.kind == "paraphrase"] == ["The mother tongue of Ada is"]
    # Cy gets French as well, so that French is no fault there.
    near = [(probe.text, probe.right, probe.rival, probe.wrong) for probe in ada if probe.kind == "neighborhood"]
    assert near == [("Bo speaks", ("Dutch",), "Greek", "French"), ("Di speaks", ("Thai",), "Malay", "French")]
    assert [probe.text for probe in more if probe.edit == 1 and probe.kind == "paraphrase"] == ["Bo talks in"]
    assert derived(edits) == {"paraphrase": 3, "neighborhood": 4}

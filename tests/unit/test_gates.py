"""Gates close on what is under its bar, over it, not measured, or no number; on every model that was judged."""

from __future__ import annotations

import math

import pytest
from memedit.cli.gates import gate, gate_bars
from memedit.errors import GateError, UsageError
from memedit.results.report import Drift, Figure, ModelReport, Report, Scores
from tests.helpers.in_process import run_main


def figure(mean: float) -> Figure:
    return Figure(mean=mean, low=mean, high=mean, n=4)


def judged(name: str, efficacy: float, ppl: float) -> ModelReport:
    scores = Scores(efficacy=figure(efficacy), generated={"old": figure(0.1)})
    return ModelReport(model=name, scores=scores, drift=Drift(tokens=9, ppl=figure(ppl)))


def report(*models: ModelReport) -> Report:
    first = models[0]
    return Report(
        command="eval", model=first.model, after=first.scores, drift=first.drift,
        models=models if len(models) > 1 else (),
    )  # fmt: skip


def test_a_bar_is_held_from_both_sides_and_at_the_bar_itself() -> None:
    one = report(judged("a", 0.9, 1.02))
    gate(one, gate_bars("efficacy=0.9"), gate_bars("drift.ppl=1.02"))
    gate(one, {}, gate_bars("generated.old=0.1"))
    with pytest.raises(GateError, match=r"efficacy is 0\.9000, under 0\.91"):
        gate(one, gate_bars("efficacy=0.91"))
    with pytest.raises(GateError, match=r"drift\.ppl is 1\.0200, over 1\.01; generated\.old is 0\.1000, over 0\.05"):
        gate(one, {}, gate_bars("drift.ppl=1.01,generated.old=0.05"))


@pytest.mark.parametrize("word", ["under", "over"])
def test_what_is_no_number_and_what_was_not_measured_do_not_pass(word: str) -> None:
    one = report(judged("a", math.nan, math.nan))
    for name in ("efficacy", "drift.ppl", "paraphrase", "retention", "kept.others", "generated.paraphrase"):
        with pytest.raises(GateError, match=f"{name} is (nan|not measured)"):
            gate(one, {name: 0.0} if word == "under" else {}, {name: 9.0} if word == "over" else {})


def test_kept_stands_for_every_figure_of_what_is_kept() -> None:
    one = report(judged("a", 0.9, 1.0)).model_copy(
        update={"kept": {"others": figure(0.97), "siblings": figure(0.8), "subjects": None}}
    )
    gate(one, gate_bars("kept=0.8"))
    with pytest.raises(GateError) as caught:
        gate(one, gate_bars("kept=0.95"))
    assert caught.value.message == "kept.siblings is 0.8000, under 0.95"
    with pytest.raises(GateError, match="kept is not measured"):
        gate(report(judged("a", 0.9, 1.0)), gate_bars("kept=0"))


def test_every_model_is_gated_and_named() -> None:
    both = report(judged("a", 0.9, 1.0), judged("b", 0.5, 1.1))
    with pytest.raises(GateError) as caught:
        gate(both, gate_bars("efficacy=0.8"), gate_bars("drift.ppl=1.02"))
    assert caught.value.message == "b: efficacy is 0.5000, under 0.8; b: drift.ppl is 1.1000, over 1.02"


@pytest.mark.parametrize("text", ["efficacy", "efficacy=", "efficacy=high", "efficacy=nan", "efficacy=inf", "beauty=1"])
def test_a_bar_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"has no number|there is no metric"):
        gate_bars(text)


def test_every_text_counts_when_an_option_is_repeated() -> None:
    wanted = {"efficacy": 0.9, "kept": 0.8}
    assert gate_bars(["efficacy=0.9", "kept=0.8"]) == gate_bars("efficacy=0.9,kept=0.8") == wanted
    assert gate_bars(["efficacy=0.9,", " kept=0.8"]) == wanted
    assert gate_bars(None) == gate_bars([]) == {}
    with pytest.raises(GateError, match=r"efficacy is 0\.5000, under 0\.9"):
        gate(report(judged("a", 0.5, 1.0)), gate_bars(["efficacy=0.9", "generated.old=0"]))


@pytest.mark.parametrize("texts", ["", ",", " , ", ["efficacy=0.9", ""]])
def test_an_option_without_a_threshold_is_refused(texts: str | list[str]) -> None:
    with pytest.raises(UsageError, match=r"--fail-over: .* has no threshold") as caught:
        gate_bars(texts, "--fail-over")
    assert caught.value.hint == "write NAME=X, or leave --fail-over out"


@pytest.mark.parametrize("texts", ["efficacy=0.9,efficacy=0.5", ["efficacy=0.9", "kept=1,efficacy=0.5"]])
def test_two_thresholds_of_one_figure_are_refused(texts: str | list[str]) -> None:
    with pytest.raises(UsageError, match=r"efficacy has two thresholds, 0\.9 and 0\.5"):
        gate_bars(texts)
    with pytest.raises(UsageError, match="neighborhood has two thresholds"):  # the other name of it
        gate_bars("neighborhood=0.9,specificity=0.9")


@pytest.mark.parametrize("command", ["apply x -o out", "eval x", "forget x -o out"])
def test_the_commands_take_every_threshold_that_is_given(command: str) -> None:
    """The wrong one is refused, whichever place it has; a command that kept only the last would not read the first."""
    for bars in (["beauty=1", "efficacy=1"], ["efficacy=1", "beauty=1"]):
        ended = run_main([*command.split(), "-m", "nowhere", *(word for bar in bars for word in ("--fail-under", bar))])
        assert ended.code == 2 and "there is no metric 'beauty'" in ended.err

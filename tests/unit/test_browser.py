"""The pages in a real browser: they fit a phone, tell no error, and ask for nothing but themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from memedit.results.report import Figure, ModelReport, Scores
from memedit.show.history_page import log_page
from memedit.show.html import trace_page
from memedit.show.report_page import evaluation_page
from tests.helpers.browser import missing, opened_browser, page_faults, show
from tests.helpers.reports import a_log, a_past_edit, a_run, an_edit
from tests.helpers.tracings import a_tracing

pytestmark = [pytest.mark.process, pytest.mark.skipif(bool(missing()), reason=f"no browser: {missing()}")]

LONG = "Donaudampfschifffahrtsgesellschaft" * 20
WIDE = "東京都は日本の首都です" * 20


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with opened_browser(tmp_path_factory.mktemp("profile")) as one:
        yield one


def long_words() -> str:
    """A page of edits with words that have no place for a break, in every field."""
    edits = (
        an_edit(LONG, "failed", said={"before": WIDE, "after": LONG}),
        an_edit(WIDE, "skipped", reason=LONG),
        an_edit("short"),
    )
    return evaluation_page(a_run(per_edit=edits, model=f"/models/{LONG}", output=LONG, notes=(LONG, WIDE)))


def long_log() -> str:
    words: dict[str, Any] = {"prompt": LONG, "object": WIDE, "object_old": LONG}
    edits = [a_past_edit(n, "lost", **words) for n in range(2, 200)]
    return log_page(a_log(a_past_edit(1, by=200, **words), *edits, a_past_edit(200, **words)))


def several_models() -> str:
    figure = Figure(mean=0.5, low=0.4, high=0.6, n=30)
    model = ModelReport(model=LONG, scores=Scores(accuracy=figure, neighborhood=figure))
    others = [model.model_copy(update={"model": f"/m/{n}", "against_first": {"accuracy": figure}}) for n in range(4)]
    return evaluation_page(a_run(models=(model, *others)))


PAGES: dict[str, Callable[[], str]] = {
    "a run": lambda: evaluation_page(a_run()),
    "a run with long words": long_words,
    "several models": several_models,
    "a log": long_log,
    "a trace": lambda: trace_page(a_tracing()),
    "a trace of one fact, 80 layers": lambda: trace_page(a_tracing(n_facts=1, n_layers=80, layers="30-36")),
}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_its_window_tells_no_error_and_fetches_nothing(name: str, browser: Any, tmp_path: Path) -> None:
    assert page_faults(browser, PAGES[name](), tmp_path) == []


def test_a_table_shows_the_edits_of_the_chosen_outcome_alone(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(evaluation_page(a_run()))
    show(browser, file, 1280, "light")
    count = "return [...document.querySelectorAll('.edits tbody tr')].filter(row => row.offsetHeight).length"
    assert browser.execute_script(count) == 4
    for outcome, left in (("fails", 1), ("skipped", 1), ("holds", 2), ("all", 4)):
        browser.find_element("id", f"show-{outcome}").click()
        assert browser.execute_script(count) == left, outcome


def test_a_scale_for_all_facts_changes_the_shades_and_the_bar_beside_them(browser: Any, tmp_path: Path) -> None:
    file = tmp_path / "page.html"
    file.write_text(trace_page(a_tracing(n_facts=1)))
    show(browser, file, 1280, "light")
    shades = "return [...document.querySelectorAll('.cell')].map(cell => getComputedStyle(cell).fill)"
    bars = (
        "return ['own', 'common'].map(kind => document.querySelector('g.' + kind).getBoundingClientRect().height > 0)"
    )
    own, bar = browser.execute_script(shades), browser.execute_script(bars)
    browser.find_element("id", "scale-common").click()
    assert own != browser.execute_script(shades)
    assert (bar, browser.execute_script(bars)) == ([True, False], [False, True])
    browser.find_element("id", "scale-own").click()
    assert own == browser.execute_script(shades)


def test_what_is_wrong_with_a_page_is_seen(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "other.css").write_text("p { color: red; }")
    page = """<!doctype html><title>x</title><link rel=stylesheet href=other.css>
        <p style="width: 500px">wide</p><script>console.log("told"); missing()</script>"""
    found = "\n".join(page_faults(browser, page, tmp_path))
    for fault in ("508 pixels", "told", "missing is not defined", "other.css", "one background"):
        assert fault in found, fault

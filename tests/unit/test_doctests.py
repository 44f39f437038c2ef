"""The examples in the docstrings of the Python functions run as they stand."""

from __future__ import annotations

import doctest

import memedit.api
import pytest
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.usefixtures("kept_moments")
def test_the_examples_of_the_api_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    tried = doctest.testmod(memedit.api, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert tried.attempted >= 20
    assert tried.failed == 0

"""The command line, the recipe and the schema cannot change unseen."""

from __future__ import annotations

import pytest
from tests.golden.outputs import COMMANDS, HERE, output


@pytest.mark.process
@pytest.mark.parametrize("name", COMMANDS)
def test_the_output_is_the_one_agreed(name: str) -> None:
    assert output(COMMANDS[name]) == (HERE / name).read_text(encoding="utf-8")

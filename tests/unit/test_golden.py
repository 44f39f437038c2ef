"""The command line, the recipe, the schema and the tables cannot change unseen."""

from __future__ import annotations

import pytest
from rich.cells import cell_len
from tests.golden.outputs import COMMANDS, HERE, output
from tests.golden.tables import NAMES, table


@pytest.mark.process
@pytest.mark.parametrize("name", COMMANDS)
def test_the_output_is_the_one_agreed(name: str) -> None:
    assert output(COMMANDS[name]) == (HERE / name).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_table_is_the_one_agreed_and_fits_its_width(name: str) -> None:
    text = table(name)
    assert text == (HERE / "tables" / name).read_text(encoding="utf-8")
    assert max(map(cell_len, text.splitlines())) <= int(name.removesuffix(".txt").rpartition("-")[2])

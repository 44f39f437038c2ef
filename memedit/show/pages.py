"""Fill the HTML templates. Every text is escaped; only figures that memedit draws are passed as markup."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from typing import Any, cast

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from memedit.results.units import printable
from memedit.show.svg import FIGURE_STYLE

NUMBER = re.compile(r"(?:[-+]?[\d.,]+(?:e[-+]?\d+)?%?|-)?")
"""A cell of a table that holds a number, or nothing."""
LISTED = 10_000
"""The most rows of a table: with more, a browser takes seconds."""


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("memedit.show"), autoescape=True, undefined=StrictUndefined, finalize=_printed,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    cast("dict[str, Any]", environment.filters)["number_columns"] = number_columns
    return environment


def _printed(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render_page(template: str, **values: Any) -> str:
    """Fill a template of memedit/show/templates. The page needs no script and no other file."""
    return _environment().get_template(template).render(figure_style=Markup(FIGURE_STYLE), **values)


def number_columns(rows: Sequence[Sequence[str]]) -> set[int]:
    """The columns that hold numbers alone, or nothing: they are set flush right.

    >>> sorted(number_columns([["a", "1,200", "+0.5", ""], ["b", "7%", "-", ""]]))
    [1, 2]
    """
    return {
        n for n, cells in enumerate(zip(*rows, strict=True))
        if any(cells) and all(NUMBER.fullmatch(str(cell)) for cell in cells)
    }  # fmt: skip

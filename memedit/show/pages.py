"""Fill the HTML templates. Every text is escaped; only figures that memedit draws are passed as markup."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from memedit.results.units import printable
from memedit.show.svg import FIGURE_STYLE

LISTED = 10_000
"""The most rows of a table: with more, a browser takes seconds."""


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("memedit.show"), autoescape=True, undefined=StrictUndefined, finalize=_printed,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip


def _printed(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def render_page(template: str, **values: Any) -> str:
    """Fill a template of memedit/show/templates. The page needs no script and no other file."""
    return _environment().get_template(template).render(figure_style=Markup(FIGURE_STYLE), **values)


def name_of_path(path: str) -> str:
    """The last part of a model's path or Hub name, for titles; of a model with an adapter both names.

    >>> name_of_path("/models/gpt2/"), name_of_path("openai-community/gpt2"), name_of_path("a/gpt2 + b/lora")
    ('gpt2', 'gpt2', 'gpt2 + lora')
    """
    return " + ".join(part.rstrip("/").rsplit("/", 1)[-1] or part for part in path.split(" + "))

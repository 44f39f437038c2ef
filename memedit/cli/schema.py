"""memedit schema."""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal

import typer


def schema_command(
    what: Annotated[
        Literal["edits", "recipe", "report"], typer.Argument(metavar="FORMAT", help="edits, recipe or report.")
    ],
) -> None:
    """Print the JSON schema of an edit, a recipe (all settings) or a report.

    \b
    Examples:
      memedit schema edits
      memedit schema recipe
    """
    from memedit.config.recipe import Recipe
    from memedit.edits.edit import EditRequest
    from memedit.results.report import Report

    kinds: dict[str, Any] = {"edits": EditRequest, "recipe": Recipe, "report": Report}
    found = kinds[what].model_json_schema()
    if what == "edits":
        # The reader makes these two: an id from the line, and the line itself.
        found["properties"].pop("origin")
        found["required"].remove("id")
    print(json.dumps(found, indent=2))

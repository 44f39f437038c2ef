"""Join settings from several sources, and keep the source of each: flags > environment > file > preset > default."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from memedit.config.recipe import Recipe
from memedit.errors import RecipeError, nearest_hint

RENAMED = {"target.redo": "target.retry"}
"""Settings of version 0.1 and their names now; both are read from every source."""

DECIDING = ("method.", "target.", "polish.", "contexts.", "moments.", "chat", "seed", "model.dtype", "output.rounding")
"""Settings that decide what a run does. Every later run takes them from the ledger."""
FREE = "target.retry"
"""Each run has its own number of retry rounds: the ledger keeps their targets, and marks them."""
NEVER_FOUND = ("model.", "output.", "moments.corpus")
"""Of the deciding settings, those that open a model, write a folder or name a file."""

Source = Literal["flag", "environment", "file", "preset", "default"]


def known_keys(kind: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """List every dotted key of a recipe: `method.ridge`, `seed`, ..."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


def deciding_names() -> list[str]:
    """The dotted names of all deciding settings: the only ones that a ledger has."""
    return [name for name in known_keys() if name.startswith(DECIDING) and name != FREE]


def check_found(settings: Mapping[str, Any], file: str) -> None:
    """Check settings of a file that nobody named: they may only decide how edits are made.

    Raises RecipeError for a setting that does something else. Unknown names are left to `resolve`.
    """
    others = set(known_keys()) - {name for name in deciding_names() if not name.startswith(NEVER_FOUND)}
    for name in settings:
        if RENAMED.get(name, name) in others:
            raise RecipeError(
                f"{file} sets {name}, and a file that nobody named may only set how edits are made",
                f"say -c {shlex.quote(file)} to use it whole, or take the line out",
            )


def resolve(layers: list[tuple[Source, Mapping[str, Any]]]) -> tuple[Recipe, dict[str, Source]]:
    """Join flat `{dotted key: value}` maps, weakest first, into a recipe; returns it and the source of each value.

    Raises RecipeError for an unknown key (with the nearest known one), or for a value that a setting cannot have.
    """
    known = list(known_keys())
    values: dict[str, Any] = {}
    sources: dict[str, Source] = dict.fromkeys(known, "default")
    for source, layer in layers:
        for name, value in layer.items():
            key = RENAMED.get(name, name)
            if key != name and key in layer:
                raise RecipeError(f"{name} and {key} are one setting, and both are set (from {source})", f"keep {key}")
            if key not in known:
                hint = nearest_hint(key, known, "memedit help settings lists every setting")
                raise RecipeError(f"the recipe has no setting {key!r} (from {source})", hint)
            values[key], sources[key] = value, source
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    try:
        return Recipe.model_validate(tree), sources
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        own = first.get("ctx", {}).get("error")  # of our validators, in our words
        reason = str(own) if own else first["msg"].lower()
        message = f"{key} = {first['input']!r} (from {sources.get(key, 'file')}): {reason}"
        where = f"memedit help settings {key}" if key in known else "memedit help settings"
        raise RecipeError(message, f"{where} tells which values it takes") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested recipe to `{dotted key: value}`. A section that is null is empty: all its lines are comments.

    Raises RecipeError for a setting that is there twice: as `method.ridge`, and as `ridge` in `method`.
    """
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping):
            part = flatten(value, f"{key}.")  # type: ignore[reportUnknownArgumentType]
        else:
            part = {} if value is None and _is_section(key) else {key: value}
        for twice in part.keys() & flat.keys():
            raise RecipeError(f"{twice} is set twice, to {flat[twice]!r} and to {part[twice]!r}", "keep one of them")
        flat |= part
    return flat


def _is_section(key: str) -> bool:
    return any(name.startswith(f"{key}.") for name in known_keys())

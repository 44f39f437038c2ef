"""Join settings from several sources, and keep the source of each: flags > environment > file > preset > default."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ValidationError

from memedit.config.recipe import Recipe
from memedit.errors import RecipeError, nearest_hint

RENAMED = {"target.redo": "target.retry"}
"""Settings of version 0.1 and their names now; both are read from every source."""

Source = Literal["flag", "environment", "file", "preset", "default"]


def known_keys(kind: type[BaseModel] = Recipe, prefix: str = "") -> Iterator[str]:
    """List every dotted key of a recipe: `method.ridge`, `seed`, ..."""
    for name, field in kind.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name


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
        message = f"{key} = {first['input']!r} (from {sources.get(key, 'file')}): {first['msg'].lower()}"
        where = f"memedit help settings {key}" if key in known else "memedit help settings"
        raise RecipeError(message, f"{where} tells which values it takes") from error


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a nested recipe to `{dotted key: value}`."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")  # type: ignore[reportUnknownArgumentType]
        else:
            flat[prefix + name] = value
    return flat

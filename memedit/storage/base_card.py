"""Read the model card of a base model, for the card of a model that was made from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

LARGEST_FRONT_MATTER = 1 << 18
"""Bytes of front matter that are read at most; the Hub's own cards have a few thousand."""
_UNREADABLE = (
    yaml.YAMLError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError, MemoryError,
)  # fmt: skip
"""What PyYAML raises for bad YAML: impossible dates, deep nesting and odd keys are no YAMLError."""


@dataclass(frozen=True)
class BaseCard:
    """What the card of an edited model needs to know of its base."""

    name: str
    """The name of the base's folder."""
    identity: str
    """The value of `base_model`: the Hub id where it is known, else the folder's name."""
    front: dict[str, Any]
    """The front matter of the base's card; empty where there is none, or none that can be read. `tags` is a list."""
    exists: bool
    """The base has a card."""
    warning: str | None = None
    """Why front matter was left out; None where all of it was read."""


def read_base_card(folder: Path, model: str) -> BaseCard:
    """Read the card of the model in `folder`, which was asked for as `model` (a path or a Hub id).

    Never raises for what a card contains: front matter that cannot be read is left out, and `warning` says why.
    """
    card, name = folder / "README.md", folder.resolve().name
    identity = (_hub_id(folder) or name) if Path(model).exists() else model
    if not card.is_file():
        return BaseCard(name, identity, {}, exists=False)
    front, reason = _front_matter(card)
    warning = f"the model card of the base, {card}: {reason}; the new card goes without it" if reason else None
    return BaseCard(name, identity, front, exists=True, warning=warning)


def _hub_id(folder: Path) -> str | None:
    """The Hub id of a folder in the Hub's own cache, `models--OWNER--NAME/snapshots/REVISION`; None for another folder.

    >>> _hub_id(Path("/cache/models--openai-community--gpt2/snapshots/607a30d")), _hub_id(Path("/models/gpt2"))
    ('openai-community/gpt2', None)
    """
    repo = folder.absolute().parent.parent.name
    if folder.absolute().parent.name != "snapshots" or not repo.startswith("models--"):
        return None
    return repo.removeprefix("models--").replace("--", "/", 1)


def _front_matter(card: Path) -> tuple[dict[str, Any], str | None]:
    """The front matter, and what of it was left out and why."""
    try:
        with card.open("rb") as file:
            start = file.read(LARGEST_FRONT_MATTER)
    except OSError as error:
        return {}, f"cannot be read ({(error.strerror or str(error)).lower()})"
    lines = start.decode("utf-8-sig", errors="replace").replace("\r\n", "\n").split("\n")
    if lines[0].rstrip() != "---":
        return {}, None
    end = next((n for n, line in enumerate(lines[1:], start=1) if line.rstrip() == "---"), None)
    if end is None:
        return {}, f"its front matter does not end within {LARGEST_FRONT_MATTER:,} bytes"
    try:
        found: Any = yaml.safe_load("\n".join(lines[1:end]))
        # What cannot be written again cannot go into the new card.
        yaml.safe_dump(found)
    except _UNREADABLE as error:
        return {}, f"its front matter is not valid YAML ({type(error).__name__})"
    if found is None:
        return {}, None
    if not isinstance(found, dict):
        return {}, "its front matter is not a mapping"
    front = {name: value for name, value in found.items() if isinstance(name, str)}
    return _with_tags(front)


def _with_tags(front: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """Make `tags` a list of texts; what is neither a text nor a list of texts is left out."""
    tags: Any = front.get("tags")
    if tags is None:
        return {name: value for name, value in front.items() if name != "tags"}, None
    listed: list[Any] = tags if isinstance(tags, list) else [tags]
    good = [tag for tag in listed if isinstance(tag, str)]
    reason = None if len(good) == len(listed) else "its tags are not all text, those that are not were left out"
    return {**front, "tags": good}, reason

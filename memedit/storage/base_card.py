"""Read what a base model's card says of the model, for the card of an edited model."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml


@dataclass(frozen=True)
class BaseCard:
    """What the card of an edited model needs to know of its base."""

    name: str
    """The base folder's name."""
    identity: str
    """What `base_model` says: a Hub id as it was given, or the folder's name."""
    front: dict[str, Any]
    """The front matter of the base's card; empty where there is none that can be read."""
    exists: bool
    """The base has a card."""


def read_base_card(folder: Path, model: str) -> BaseCard:
    """Read the card of the model in `folder`, which was asked for as `model` (a path or a Hub id)."""
    card, name = folder / "README.md", folder.resolve().name
    identity = name if Path(model).exists() else model
    return BaseCard(name, identity, _front_matter(card), card.is_file())


def _front_matter(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}

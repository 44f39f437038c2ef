"""Choose the edited layers by number, by relative depth, or as published. Layers count from 0; both ends of a range are
included."""

from __future__ import annotations

import re
from collections.abc import Sequence

from memedit.config.presets import Shape, published_layers
from memedit.errors import RecipeError


def layer_range(text: str, n_layers: int) -> list[int]:
    """Parse `3-8`, `5` or `3,5` to layer numbers, ascending; counted from 0, both ends included.

    Raises RecipeError if the text has another form, is empty, or names a layer that the model does not have.
    """
    if text == "auto":
        raise RecipeError("method.layers = auto traces edits, and here are none", "name the layers, or say depth")
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,9})\s*(?:-\s*(\d{1,9})\s*)?", part)  # int() refuses some thousands
        if not match:
            raise RecipeError(f"method.layers = {text!r} is no range of layers", "write 3-8, or 5, or 3,5, or depth")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first or last >= n_layers:
            hint = f"layers count from 0: 0 to {n_layers - 1}"
            raise RecipeError(f"method.layers = {text!r} does not fit a model of {n_layers} layers", hint)
        found |= set(range(first, last + 1))
    return sorted(found)


def layers_text(layers: Sequence[int]) -> str:
    """Write ascending layers as `--layers` takes them: `1-3`, `2`, or `1,3`."""
    whole = layers[-1] - layers[0] + 1 == len(layers)  # no range is made: a damaged ledger can name any layers
    return f"{layers[0]}-{layers[-1]}" if whole and len(layers) > 1 else ",".join(map(str, layers))


FIRST, DEEP = 3, 16
"""In a model of DEEP layers or more, the first layer that is edited by default: no published range begins earlier, and
Gemma 3 (18 layers) leaves more of the other facts so. No model of 16 or 19 layers was measured
(memedit/docs/trials.md)."""


def default_layers(n_layers: int) -> list[int]:
    """The default layers by relative depth, near MEMIT's 3-8 of GPT-J's 28 and 13-17 of GPT-2 XL's 48.

    A fifth of the depth, but at least three layers so that the change is spread. The last is a third of the way up, and
    in a deep model the first is FIRST or later.
    """
    count = min(n_layers, max(3, round(n_layers / 5)))
    first = max(FIRST if n_layers >= DEEP else 0, round(n_layers / 3) - count)
    return list(range(first, first + count))


def layers_of(chosen: str, shape: Shape, *, single: bool = False) -> list[int]:
    """The layers of a recipe for a model of this shape: a range, by relative depth (`single`: the middle one of those),
    or those published for it, by depth where there are none.

    Raises RecipeError, also for auto, which needs edits to trace.
    """
    if chosen == "published":
        chosen = published_layers(shape, single=single) or "depth"
    if chosen != "depth":
        return layer_range(chosen, shape[0])
    layers = default_layers(shape[0])
    return [middle(layers)] if single else layers


def unpublished(chosen: str, shape: Shape) -> str | None:
    """A warning where published layers are asked for and none are known for a model of this shape; else None."""
    if chosen != "published" or published_layers(shape):
        return None
    return "no layers are published for a model of this shape: they are chosen by depth"


def middle(layers: list[int]) -> int:
    """The middle layer of a range, for methods of one layer.

    Published single layers lie in MEMIT's ranges (GPT-J's 5 in 3-8, GPT-2 XL's 17 at the end of 13-17); on the shipped
    GPT-2 the middle layer changes fewer neighbors than the last.
    """
    return layers[len(layers) // 2]

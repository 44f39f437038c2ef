"""Named settings: those published for some models, in this recipe's units.

lambda is divided by the MLP's width. Sources: kmeng01/memit hparams/MEMIT (gpt2-xl, gpt-j-6b),
zjunlp/EasyEdit hparams/MEMIT (llama-2-7b, mistral-7b), jianghoucheng/AlphaEdit hparams/MEMIT (llama-3-8b). The ridge is
MEMIT's alone; methods of one layer take that of hparams/ROME there.
"""

from __future__ import annotations

from typing import Any

from memedit.config.methods import method_named
from memedit.errors import RecipeError, nearest_hint


def _published(
    layers: str, ridge: float, *, steps: int = 25, step: float = 0.5, decay: float = 0.5, ball: float = 0.75
) -> dict[str, Any]:
    return {
        "method.layers": layers,
        "method.ridge": ridge,
        "target.optimizer": "adam",
        "target.steps": steps,
        "target.step_absolute": step,
        "target.weight_decay": decay,
        "target.ball": ball,
        "polish.steps": 0,
    }


PRESETS: dict[str, dict[str, Any]] = {
    "gpt2-xl": _published("13-17", 20_000 / 6400, steps=20),
    "gpt-j-6b": _published("3-8", 15_000 / 16_384),
    "llama-2-7b": _published("4-8", 15_000 / 11_008, decay=1e-3, ball=4.0),
    "llama-3-8b": _published("4-8", 15_000 / 14_336, step=0.1),
    "mistral-7b": _published("4-8", 15_000 / 14_336, decay=1e-3, ball=4.0),
}


AUTO = "auto"
"""The preset that takes the published layers of a model's shape, and leaves all else relative to the model."""

Shape = tuple[int, int, int]
"""Blocks, width, MLP width."""
SHAPES: dict[str, Shape] = {
    "gpt2-xl": (48, 1600, 6400),
    "gpt-j-6b": (28, 4096, 16_384),
    "llama-2-7b": (32, 4096, 11_008),
    "llama-3-8b": (32, 4096, 14_336),
    "mistral-7b": (32, 4096, 14_336),
}
"""The models that published settings were chosen on."""
ONE_LAYER = {"gpt2-xl": "17", "gpt-j-6b": "5", "llama-2-7b": "5", "llama-3-8b": "5", "mistral-7b": "5"}


def published_layers(shape: Shape, *, single: bool = False) -> str | None:
    """The layers published for a model of this shape (`single`: the one layer of ROME); None where there are none."""
    named = next((name for name, one in SHAPES.items() if one == shape), None)
    return named and (ONE_LAYER[named] if single else str(PRESETS[named]["method.layers"]))


def foreign_preset(name: str | None, shape: Shape) -> str | None:
    """A warning where the published settings of this name were chosen on a model of another shape; else None."""
    if name not in SHAPES or SHAPES[name] == shape:
        return None
    blocks, width, mlp_width = shape
    theirs = "{} blocks of width {} with MLPs of {}".format(*SHAPES[name])
    return (
        f"the preset {name} holds numbers for {theirs}; this model has {blocks} of {width} with {mlp_width}, and edits "
        "may not take: leave the preset out, since the defaults are relative to the model"
    )


def preset(name: str, method: object = "memit") -> dict[str, Any]:
    """The settings of a preset by their dotted names. Raises RecipeError for an unknown name."""
    if name == AUTO:
        return {"method.layers": "published"}
    if name not in PRESETS:
        names = (AUTO, *PRESETS)
        raise RecipeError(f"there is no preset {name!r}", nearest_hint(name, names, f"there are {', '.join(names)}"))
    knobs, found = dict(PRESETS[name]), method_named(method)
    if method != "memit":
        del knobs["method.ridge"]
    if found and found.single:
        knobs["method.layers"] = ONE_LAYER[name]
    return knobs

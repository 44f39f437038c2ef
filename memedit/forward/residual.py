"""The path from a down-projection's output to the residual stream: scaled in some families, normed in others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memedit.forward.passes import Site
from memedit.model.load import LanguageModel
from memedit.model.norms import gain_of


@dataclass(frozen=True)
class ResidualPath:
    """How a change enters the residual stream behind a block.

    Without a norm behind the block's down-projection it is added to the block's output. With one it is added to the
    down-projection's output, so that the search finds only changes that the projection can give. Then the stream moves
    `shared` times as far as the norm's output: that many layers share the change. One layer alone gives too little,
    since a norm's output has a fixed length.
    """

    lm: LanguageModel
    layer: int
    shared: int

    @property
    def site(self) -> Site:
        """The place where the change is added."""
        return Site(self.layer, "mlp.out" if self.lm.architecture.norms[self.layer] else "block.out")

    def moved(self, start: Tensor, change: Tensor) -> Tensor:
        """The state at the site and its change, (R, D) float32 -> the change of the block's output, (R, D)."""
        if self.site.part == "block.out":
            return change
        return self.shared * residual_change(self.lm, self.layer, start, change)


def added(lm: LanguageModel, layer: int, made: Tensor) -> Tensor:
    """The vector that the block adds to the stream where its down-projection's output is `made`.

    Both are (..., D) float32, on the device of `made`.
    """
    if not lm.architecture.norms[layer]:
        return made * lm.architecture.gains[layer]
    norm: Any = lm.model.get_submodule(lm.architecture.norms[layer])
    return norm(made.to(lm.device_of(layer))).to(made.device) * lm.architecture.gains[layer]


def residual_change(lm: LanguageModel, layer: int, made: Tensor | None, change: Tensor) -> Tensor:
    """The change of the block's output where its down-projection's output `made` changes by `change`, as in `added`.

    Without a norm it does not depend on `made`, which may be None.
    """
    if not lm.architecture.norms[layer]:
        return change * lm.architecture.gains[layer]
    assert made is not None
    return added(lm, layer, made + change) - added(lm, layer, made)


def norm_gain(lm: LanguageModel, layer: int) -> Tensor:
    """The gain of the norm behind the down-projection, and of what is behind that: (D,) float32, on the CPU."""
    norm = gain_of(lm.model.get_submodule(lm.architecture.norms[layer]), lm.architecture.width).cpu()
    return norm * lm.architecture.gains[layer]

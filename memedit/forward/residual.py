"""From a down-projection's output to what its block adds to the residual stream: scaled in some families, and in some
through a norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from memedit.forward.passes import Site
from memedit.model.load import LanguageModel
from memedit.model.norms import gain_of


@dataclass(frozen=True)
class ResidualPath:
    """How a change gets into the stream that leaves a block: it is added there, or, where a norm stands behind the
    block's down-projection, to the output of that, so that what is found is what such a projection can give.

    In the second case the stream moves `shared` times as far as the norm's output: so many layers share the change, and
    each is to give as much. One norm alone gives too little: its output has one length, whatever goes in.
    """

    lm: LanguageModel
    layer: int
    shared: int

    @property
    def site(self) -> Site:
        """Where the change is added."""
        return Site(self.layer, "mlp.out" if self.lm.architecture.norms[self.layer] else "block.out")

    def moved(self, start: Tensor, change: Tensor) -> Tensor:
        """start, what is at the site, and its change, (R, D) float32 -> how far what leaves the block moves, (R, D)."""
        if self.site.part == "block.out":
            return change
        return self.shared * residual_change(self.lm, self.layer, start, change)


def added(lm: LanguageModel, layer: int, made: Tensor) -> Tensor:
    """What the block adds where its down-projection gives `made`, both (..., D) float32; on the device of `made`."""
    if not lm.architecture.norms[layer]:
        return made * lm.architecture.gains[layer]
    norm: Any = lm.model.get_submodule(lm.architecture.norms[layer])
    return norm(made.to(lm.weight(layer).device)).to(made.device)


def residual_change(lm: LanguageModel, layer: int, made: Tensor | None, change: Tensor) -> Tensor:
    """How far the block's output moves where its down-projection's output `made` moves by `change`, as above.

    Without a norm it does not depend on `made`.
    """
    if not lm.architecture.norms[layer]:
        return change * lm.architecture.gains[layer]
    assert made is not None
    return added(lm, layer, made + change) - added(lm, layer, made)


def norm_gain(lm: LanguageModel, layer: int) -> Tensor:
    """The gain of the norm behind the down-projection, (D,) float32, on the CPU."""
    return gain_of(lm.model.get_submodule(lm.architecture.norms[layer]), lm.architecture.width).cpu()

"""The only place that changes a weight, and it puts it back."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from memedit.model.load import LanguageModel


@contextmanager
def applied(lm: LanguageModel, weights: Mapping[int, Tensor] | None = None) -> Generator[dict[int, Tensor]]:
    """Put weights (D, F) into the down-projections of some layers; put the old ones back at the end, whatever happens.

    Yields a dictionary: `put_` into it as a solve goes up the layers, all of it is undone together.
    """
    kept: dict[int, Tensor] = {}
    try:
        for layer, weight in (weights or {}).items():
            put_(lm, layer, weight, kept)
        yield kept
    finally:
        for layer, weight in kept.items():
            lm.weight(layer).copy_(weight)


def put_(lm: LanguageModel, layer: int, weight: Tensor, kept: dict[int, Tensor]) -> None:
    """Write a weight (D, F) into the model in memory, keeping what was there in `kept` the first time."""
    with torch.no_grad():
        if layer not in kept:
            kept[layer] = lm.weight(layer).clone()
        lm.weight(layer).copy_(weight)

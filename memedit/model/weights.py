"""The only place that changes a weight; what is applied is put back, what is merged stays in a model opened for it."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from memedit.errors import UsageError
from memedit.model.load import LanguageModel
from memedit.numerics.delta import Delta, rounded


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


def merge_(lm: LanguageModel, deltas: Mapping[str, Delta], source: str) -> None:
    """Add changes (D, F) to weights by parameter name, a Conv1D's turned, for as long as the model is open.

    Raises UsageError where `source`, which they are from, does not belong to this model.
    """
    hint = "give the model that the adapter was made for"
    for name, delta in deltas.items():
        try:
            module: Any = lm.model.get_submodule(name.removesuffix(".weight"))
            weight = module.weight
        except AttributeError as error:
            raise UsageError(f"{source} changes {name}, which this model has not", hint) from error
        seen = weight.detach().T if isinstance(module, Conv1D) else weight.detach()
        if tuple(seen.shape) != delta.shape:
            raise UsageError(f"{source} changes {name} as {delta.shape}, and this model's is {tuple(seen.shape)}", hint)
        with torch.no_grad():
            seen.copy_(rounded(seen.cpu(), delta))

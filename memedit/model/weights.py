"""Change weights of a model in memory, the only place that does: `applied` restores them, `merge_` keeps the change."""

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
    """Set the down-projections of some layers to weights (D, F); restore the old ones at the end, also on an error.

    Yields a dictionary of the old weights. Pass it to `put_` to set more layers: they are restored too.
    """
    kept: dict[int, Tensor] = {}
    try:
        for layer, weight in (weights or {}).items():
            put_(lm, layer, weight, kept)
        yield kept
    finally:
        for layer, weight in kept.items():
            lm.held_weight(layer).copy_(weight)
            lm.let_go(layer)


def put_(lm: LanguageModel, layer: int, weight: Tensor, kept: dict[int, Tensor]) -> None:
    """Set a layer's weight (D, F) in memory; the first time, its old weight is kept in `kept`."""
    with torch.no_grad():
        if layer not in kept:
            kept[layer] = lm.weight(layer).clone()
        lm.held_weight(layer).copy_(weight)


def merge_(lm: LanguageModel, deltas: Mapping[str, Delta], source: str) -> None:
    """Add changes (D, F) to weights, by parameter name; nothing restores them.

    `source` names the changes in messages. Raises UsageError where the model has no such weight, or its shape differs.
    """
    hint = "give the model that the adapter was made for"
    for name, delta in deltas.items():
        try:
            module: Any = lm.model.get_submodule(name.removesuffix(".weight"))
            weight = module.weight
        except AttributeError as error:
            raise UsageError(f"{source} changes {name}, which this model does not have", hint) from error
        seen = weight.detach().T if isinstance(module, Conv1D) else weight.detach()
        if tuple(seen.shape) != delta.shape:
            raise UsageError(f"{source} changes {name} as {delta.shape}, and this model's is {tuple(seen.shape)}", hint)
        with torch.no_grad():
            seen.copy_(rounded(seen.cpu(), delta))

"""Find keys: the input of a layer's down-projection at the subject's last token, averaged over contexts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memedit.config.recipe import MethodKnobs
from memedit.forward.keys import Sweep, WholeSweep
from memedit.model.load import LanguageModel
from memedit.model.memory import in_double, send
from memedit.model.tokens import Prompt


def context_weights(method: MethodKnobs, n_contexts: int) -> Tensor:
    """The weight of each context in a key, (X,) float64: equal, or (reference) one half for the bare prompt.

    The published code takes the mean of two groups' means, the bare prompt being one group (kmeng01/memit,
    compute_ks.py).
    """
    if method.semantics == "reference" and n_contexts > 1:
        others = 0.5 / (n_contexts - 1)
        return torch.tensor([0.5] + [others] * (n_contexts - 1), dtype=torch.float64)
    return torch.full((n_contexts,), 1 / n_contexts, dtype=torch.float64)


def heads_of(prompts: Sequence[Sequence[Prompt]]) -> list[list[tuple[int, ...]]]:
    """The inputs of all keys: token ids up to the subject's last, X rows for each of E edits."""
    return [[prompt.head for prompt in of_one] for of_one in prompts]


def averaged(states: Tensor, weights: Tensor) -> Tensor:
    """Average states (e, X, F) with weights (X,) float64 to keys (e, F) float64, on the states' device or the CPU."""
    wide = in_double(states)
    return torch.einsum("exf,x->ef", wide, send(weights, wide.device))


def find_keys(
    lm: LanguageModel, prompts: Sequence[Sequence[Prompt]], layer: int, weights: Tensor, *, whole: bool = False
) -> Tensor:
    """Find the keys (E, F) float64 of E edits, from X prompts each and the contexts' weights (X,)."""
    keys = torch.empty(len(prompts), lm.architecture.mlp_widths[layer], dtype=torch.float64)
    sweep = (WholeSweep if whole else Sweep)(lm, heads_of(prompts))
    for edits, states in sweep.keys(layer, last=True):
        keys[edits] = averaged(states, weights).cpu()
    return keys

"""Edits -> keys at one layer: the input of the down-projection at the subject's last token, over contexts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memedit.model.load import LanguageModel
from memedit.model.passes import Site, last_states
from memedit.model.subject import Prompt
from memedit.recipe import MethodKnobs


def context_weights(method: MethodKnobs, n_contexts: int) -> Tensor:
    """What each context weighs in a key, (X,) float64: alike, or (reference) half for the bare prompt.

    The published code takes the mean of two groups' means, the bare prompt being one group (kmeng01/memit,
    compute_ks.py).
    """
    if method.semantics == "reference" and n_contexts > 1:
        others = 0.5 / (n_contexts - 1)
        return torch.tensor([0.5] + [others] * (n_contexts - 1), dtype=torch.float64)
    return torch.full((n_contexts,), 1 / n_contexts, dtype=torch.float64)


def find_keys(lm: LanguageModel, prompts: Sequence[Sequence[Prompt]], layer: int, weights: Tensor) -> Tensor:
    """prompts, one list of X for each of E edits, and weights (X,) -> keys (E, F) float64."""
    heads = [prompt.head for of_one in prompts for prompt in of_one]
    states = last_states(lm, heads, Site(layer, "mlp.in")).double()
    return torch.einsum("exf,x->ef", states.view(len(prompts), len(weights), -1), weights)

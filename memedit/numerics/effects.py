"""Effects of causal tracing: by a token's role, averaged over facts, and the rule that picks layers by them.

An effect is the answer's probability with a patched state, less that of the corrupted run (Meng et al. 2022,
section 2). Tables are (T, L): tokens by layers. Everything is float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

ROLES: tuple[str, ...] = (
    "first subject token",
    "middle subject tokens",
    "last subject token",
    "first subsequent token",
    "further tokens",
    "last token",
)
NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5 % point
ERRORS, SHARE = 3.0, 0.05  # a site's peak has at least this many standard errors, and this share of the total effect
HALF, NEAR = 0.5, 0.9  # a range of layers holds half of the gap's peak; it ends at 0.9 of the MLP effect's peak


def default_window(n_layers: int) -> int:
    """The window's width: the paper's 10 of GPT-2 XL's 48 layers, scaled to the model's depth."""
    return max(1, round(10 * n_layers / 48))


def windows(n_layers: int, width: int) -> tuple[tuple[int, int], ...]:
    """For each layer l the window [l - (width - 1) // 2, l + width // 2], clipped to the model; both ends included."""
    return tuple((max(0, n - (width - 1) // 2), min(n_layers - 1, n + width // 2)) for n in range(n_layers))


def token_roles(n_tokens: int, first: int, last: int) -> tuple[int | None, ...]:
    """The role of each token of a prompt (an index of ROLES), None before the subject.

    first, last: the subject's first and last token. Each token has one role: a subject of one token is its last token,
    and the prompt's last token behind the subject is "last token".
    """

    def role(token: int) -> int | None:
        if token <= last:
            return None if token < first else 2 if token == last else 0 if token == first else 1
        return 5 if token == n_tokens - 1 else 3 if token == last + 1 else 4

    return tuple(role(token) for token in range(n_tokens))


def by_role(table: Tensor, roles: Sequence[int | None]) -> Tensor:
    """The mean over the tokens of each role: (T, L) -> (6, L); NaN where a prompt has no such token."""
    found = torch.full((len(ROLES), table.shape[1]), torch.nan, dtype=torch.float64)
    for role in range(len(ROLES)):
        tokens = [token for token, its in enumerate(roles) if its == role]
        if tokens:
            found[role] = table[tokens].double().mean(0)
    return found


@dataclass(frozen=True)
class Mean:
    """Means over facts with standard errors, all of one shape; NaN where fewer than two subjects have a value."""

    mean: Tensor
    error: Tensor
    count: Tensor
    """Facts that have a value."""
    subjects: Tensor
    """Different subjects of these facts."""


def clustered_mean(values: Tensor, subjects: Tensor) -> Mean:
    """Means over facts (n, ...), NaN left out; `subjects` (n,) int64 gives the number of each fact's subject.

    Facts of one subject are not independent, so errors are clustered by subject (Liang and Zeger 1986). Where every
    fact has a subject of its own this is the sample's standard deviation over the root of n.
    """
    shape = values.shape[1:]
    flat = values.double().reshape(len(values), -1)
    there = ~flat.isnan()
    count = there.sum(0)
    mean = flat.nan_to_num(0.0).sum(0) / count
    off = torch.where(there, flat - mean, 0.0)
    n_groups = int(subjects.max()) + 1 if len(subjects) else 0
    sums = torch.zeros(n_groups, flat.shape[1], dtype=torch.float64).index_add_(0, subjects, off)
    has = torch.zeros(n_groups, flat.shape[1], dtype=torch.float64).index_add_(0, subjects, there.double()) > 0
    groups = has.sum(0)
    error = (sums.square().sum(0) * groups / (groups - 1).clamp_min(1)).sqrt() / count
    error = torch.where(groups > 1, error, torch.nan)
    return Mean(mean.view(shape), error.view(shape), count.view(shape), groups.view(shape))


@dataclass(frozen=True)
class Peak:
    """The layers in which recall goes through MLPs at the last subject token, if any. Both ends are included."""

    layer: int
    """The layer with the largest gap."""
    gap: float
    errors: float
    """The gap at this layer, in its standard errors."""
    share: float
    """The gap at this layer, as a share of the total effect."""
    mlp_layer: int
    """The layer, among those near the peak, whose patched MLP output has the largest effect."""
    layers: tuple[int, int] | None
    """The range to edit; None: the peak is too low to be called a site."""


def find_peak(gap: Tensor, error: Tensor, mlp: Tensor, total: float) -> Peak:
    """Pick a range of layers by the averages at the last subject token.

    gap (L,): effect of the patched state, less the same with the MLP path severed. error (L,): its standard error.
    mlp (L,): effect of patched MLP outputs. total: the total effect.

    The range holds the layers around the gap's peak that have at least half of it. It ends at the last of them whose
    MLP effect is within 10 % of the largest, and has a fifth of the depth at most. There is none where the peak is
    under 3 standard errors, or under 5 % of the total effect.
    """
    n_layers, gap = len(gap), gap.clamp_min(0.0)
    top = int(gap.argmax())
    high = [bool(value >= HALF * gap[top]) for value in gap]
    first = last = top
    while first > 0 and high[first - 1]:
        first -= 1
    while last < n_layers - 1 and high[last + 1]:
        last += 1
    run = mlp[first : last + 1]
    near = [first + n for n, value in enumerate(run) if value >= run.max() - (1 - NEAR) * run.max().abs()]
    mlp_layer, last = first + int(run.argmax()), near[-1]
    first = max(first, last - max(1, round(n_layers / 5)) + 1)
    errors = float(gap[top] / error[top]) if error[top] > 0 else 0.0
    share = float(gap[top]) / total if total > 0 else 0.0
    layers = (first, last) if errors >= ERRORS and share >= SHARE else None
    return Peak(top, float(gap[top]), errors, share, mlp_layer, layers)

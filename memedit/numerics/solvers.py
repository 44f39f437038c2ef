"""The one law: keys -> gains. A solver never sees a residual.

With keys as rows K (E, F), a metric M (r, r) in a basis U (F, r) and k = K U:

    gains  A = (k M^-1 k^T + ridge I)^-1 k M^-1 U^T      (E, F)
    delta  W' - W = R^T A                                (D, F)

MEMIT is U = I, M = C (the mean second moment) and ridge = lambda: by the Woodbury identity that equals its
published (lambda C + K^T K)^-1 K^T. Everything here is float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.numerics.moments import Moment

SMALLEST_PIVOT = 1e-10  # of the mean diagonal: under it the factor is noise in float64
SHIFTS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # of the mean diagonal, tried in turn


@dataclass(frozen=True)
class Factor:
    """What `prepare` leaves behind, reusable for any keys.

    lower (r, r): M = lower lower^T, float64. basis (F, r) or None for the identity. ridge >= 0. shift: what had to
    be added to the diagonal, relative to its mean. dead: units that never fired.
    """

    lower: Tensor
    ridge: float
    basis: Tensor | None = None
    shift: float = 0.0
    dead: int = 0


def prepare_memit(moment: Moment, ridge: float) -> Factor:
    """MEMIT (Meng et al. 2023, eq. 14): metric C, ridge = lambda.

    A ReLU's units that never fire leave C singular however much is read: then the smallest of SHIFTS that gives a
    sound factor is added, and told. Raises ValueError when none does.
    """
    mean = moment.mean
    scale = mean.diagonal().mean()
    if not torch.isfinite(mean).all() or scale <= 0:
        raise ValueError("the second moment is not finite, or zero")
    dead = int((mean.diagonal() <= 0).sum())
    eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    for shift in SHIFTS:
        lower, info = torch.linalg.cholesky_ex(mean + shift * scale * eye)
        if info.item() == 0 and lower.diagonal().square().min() >= SMALLEST_PIVOT * scale:
            return Factor(lower, ridge, shift=shift, dead=dead)
    raise ValueError(
        f"the second moment is not positive definite: {moment.count:,} tokens for {len(mean):,} dimensions"
    )


def gains(factor: Factor, keys: Tensor) -> Tensor:
    """Dual keys: what turns residuals into a weight change (delta = residuals.T @ gains).

        A = (k M^-1 k^T + ridge I)^-1 k M^-1 U^T,   k = keys U,   M = L L^T

    keys (E, F) float64 -> gains (E, F). The residual is not an argument, on purpose. When edits outnumber the
    metric's width the same A is (ridge M + k^T k)^-1 k^T, in which no E x E matrix appears.
    """
    k = keys if factor.basis is None else keys @ factor.basis
    if len(k) > len(factor.lower) and factor.ridge > 0:
        normal = factor.ridge * factor.lower @ factor.lower.T + k.T @ k
        a = torch.cholesky_solve(k.T, torch.linalg.cholesky(normal)).T
    else:
        white = torch.linalg.solve_triangular(factor.lower, k.T, upper=False)  # (r, E)  L^-1 k^T
        gram = white.T @ white + factor.ridge * torch.eye(len(k), dtype=k.dtype, device=k.device)
        dual = torch.linalg.solve_triangular(factor.lower.T, white, upper=True).T  # (E, r)  k M^-1
        a = torch.cholesky_solve(dual, torch.linalg.cholesky(gram))
    return a if factor.basis is None else a @ factor.basis.T


def leverage(factor: Factor, keys: Tensor) -> Tensor:
    """k M^-1 k^T for each key, (E,): averages the width over the corpus that made M, whatever the keys' scale."""
    k = keys if factor.basis is None else keys @ factor.basis
    return torch.linalg.solve_triangular(factor.lower, k.T, upper=False).square().sum(0)

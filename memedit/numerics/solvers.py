"""Solve for the gains of keys, by one law for all methods. A solver never sees a residual.

With keys as rows K (E, F), a metric M (r, r) in a basis U (F, r) and k = K U:

    gains  A = (k M^-1 k^T + ridge I)^-1 k M^-1 U^T      (E, F)
    delta  W' - W = R^T A                                (D, F)

MEMIT is U = I, M = C (the mean second moment) and ridge = lambda: by the Woodbury identity that equals its
published (lambda C + K^T K)^-1 K^T. memedit/config/methods.py lists the values of all methods. Everything is float64.

ROME applies edits in turn, each fitted to the residual that those before it leave (at one layer). Then only the upper
triangle of the E x E matrix G counts: the shares c of the residuals solve R_n = c_n G_nn + sum over m < n of c_m G_mn.

A ridge of 0 gives the limit of the law as the ridge goes to 0: an exact fit where keys are independent, least squares
where they are not. Edits of one key get the mean of their residuals.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memedit.config.methods import Method, Metric
from memedit.numerics.moments import Moment

SMALLEST_PIVOT = 1e-10  # of the mean diagonal: below this the factor is rounding noise in float64
SHIFTS = (0.0, 1e-8, 1e-7, 1e-6, 1e-5, 1e-4)  # of the mean diagonal, tried in turn
DEPENDENT = 1e-12  # of the largest eigenvalue: a key that adds less is a combination of the others


@dataclass(frozen=True)
class Factor:
    """A factored metric, ready for any keys.

    lower (r, r): M = lower lower^T, float64. basis (F, r): orthonormal, or None for the identity. ridge >= 0. shift:
    the number added to the diagonal, relative to its mean. dead: units that never fired.
    """

    lower: Tensor
    ridge: float
    basis: Tensor | None = None
    in_turn: bool = False
    shift: float = 0.0
    dead: int = 0

    @property
    def summable(self) -> bool:
        """Whether a change depends only on K^T K and K^T R: then no E x E matrix is needed."""
        return self.ridge > 0 and not self.in_turn

    def seen(self, keys: Tensor) -> Tensor:
        """keys (E, F) -> k (E, r): the keys' coordinates in the basis."""
        return keys if self.basis is None else keys @ self.basis

    def to(self, device: torch.device) -> Factor:
        """The same factor on another device."""
        basis = None if self.basis is None else self.basis.to(device)
        return replace(self, lower=self.lower.to(device), basis=basis)


def prepare(moment: Moment, method: Method, ridge: float, share: float = 0.0) -> Factor:
    """Factor a layer's moment for a method; `ridge` is that of the law, `share` that of `factor_metric`.

    Raises ValueError where the moment has no factor.
    """
    return factor_metric(decomposed(moment, method.metric), method, ridge, share)


def decomposed(moment: Moment, metric: Metric) -> dict[str, Tensor]:
    """Decompose a moment once, for every ridge, share and key.

    Metric "moment": `lower` (F, F) with C = lower lower^T. Units of a ReLU that never fire leave C singular, however
    much text is read. Then the smallest of SHIFTS that gives a sound factor is added to the diagonal: `shift` is that
    number, `dead` counts the units. Metric "null space": the spectrum of C, `values` (F,) ascending and `vectors`
    (F, F). Raises ValueError where there is no sound factor.

    Matrices are contiguous, as they are when read from a file: LAPACK returns columns first, and on some processors a
    product of the same numbers in another layout ends in other bits (seen on an AMD EPYC, 2026-11-28).
    """
    mean = moment.mean
    scale = mean.diagonal().mean()
    if not torch.isfinite(mean).all() or scale <= 0:
        raise ValueError("the second moment is not finite, or zero")
    if metric == "null space":
        values, vectors = torch.linalg.eigh(mean)
        return {"values": values, "vectors": vectors.contiguous()}
    dead = (mean.diagonal() <= 0).sum()
    eye = torch.eye(len(mean), dtype=mean.dtype, device=mean.device)
    for shift in SHIFTS:
        lower, info = torch.linalg.cholesky_ex(mean + shift * scale * eye)
        if info.item() == 0 and lower.diagonal().square().min() >= SMALLEST_PIVOT * scale:
            return {"lower": lower.contiguous(), "shift": torch.tensor(shift, dtype=torch.float64), "dead": dead.cpu()}
    raise ValueError(
        f"the second moment is not positive definite: {moment.count:,} tokens for {len(mean):,} dimensions"
    )


def factor_metric(parts: Mapping[str, Tensor], method: Method, ridge: float, share: float = 0.0) -> Factor:
    """A method's factor, from a decomposed moment.

    `share` sets the size of the null space, as in `null_space`. There the metric is a multiple of the identity, chosen
    so that k M^-1 k averages the width over the corpus, as it does for C, if the whole share is held. So a ridge means
    the same in either metric, at every scale of the keys and every share. Raises ValueError where there is no null
    space.
    """
    if method.metric == "moment":
        shift, dead = float(parts["shift"]), int(parts["dead"])
        return Factor(parts["lower"], ridge, in_turn=method.in_turn, shift=shift, dead=dead)
    values, basis = parts["values"], null_space(parts["values"], parts["vectors"], share)
    # By the share given, not the one held: directions that hold almost nothing must not make the ridge almost nothing.
    lower = torch.eye(basis.shape[1], dtype=basis.dtype, device=basis.device) * (share * values.mean()).sqrt()
    return Factor(lower, ridge, basis, in_turn=method.in_turn)


def null_space(values: Tensor, vectors: Tensor, share: float) -> Tensor:
    """The directions of smallest eigenvalue that together hold at most `share` of C's trace, (F, r) orthonormal.

    values (F,) ascending, vectors (F, F). A change there reaches at most this share of the old keys' squared length.
    The published threshold is on the eigenvalues (0.02), and gives another subspace at every scale of the keys. Raises
    ValueError where the smallest direction alone holds more than `share`.
    """
    held = values.clamp_min(0.0).cumsum(0)
    count = int((held <= share * held[-1]).sum())
    if not count:
        raise ValueError(f"the moment has no null space: its smallest direction holds more than {share:g} of the trace")
    return vectors[:, :count]


def gains(factor: Factor, keys: Tensor) -> Tensor:
    """Compute the gains of keys: they turn residuals into a weight change (delta = residuals.T @ gains).

        A = (k M^-1 k^T + ridge I)^-1 k M^-1 U^T,   k = keys U,   M = L L^T

    keys (E, F) float64 -> gains (E, F). Residuals are not an argument, on purpose. With more edits than the metric has
    dimensions, the same A is computed as (ridge M + k^T k)^-1 k^T, without an E x E matrix. Raises ValueError where
    ridge 0 asks for more exact fits than there are dimensions.
    """
    if factor.ridge == 0 and not factor.in_turn:
        return _exact(factor, keys)
    k = factor.seen(keys)
    if factor.summable and len(k) > len(factor.lower):
        normal = factor.ridge * factor.lower @ factor.lower.T + k.T @ k
        a = torch.cholesky_solve(k.T, torch.linalg.cholesky(normal)).T
    else:
        gram, dual = _gram(factor, k)
        gram.diagonal().add_(factor.ridge)
        if factor.in_turn:
            gram.diagonal().masked_fill_(gram.diagonal() == 0, 1.0)  # no key, no change
            a = torch.linalg.solve_triangular(gram.triu(), dual, upper=True)
        else:
            a = torch.cholesky_solve(dual, torch.linalg.cholesky(gram))
    return a if factor.basis is None else a @ factor.basis.T


def leverage(factor: Factor, keys: Tensor) -> Tensor:
    """k M^-1 k^T for each key, (E,): its average over the corpus of M is the width, at every scale of the keys.

    The same holds in a null space that holds its whole share; in one that holds less, the average is less.
    """
    return torch.linalg.solve_triangular(factor.lower, factor.seen(keys).T, upper=False).square().sum(0)


def _gram(factor: Factor, k: Tensor) -> tuple[Tensor, Tensor]:
    """k (E, r) -> k M^-1 k^T (E, E) and k M^-1 (E, r)."""
    white = torch.linalg.solve_triangular(factor.lower, k.T, upper=False)  # (r, E)  L^-1 k^T
    return white.T @ white, torch.linalg.solve_triangular(factor.lower.T, white, upper=True).T


def _exact(factor: Factor, keys: Tensor) -> Tensor:
    """The gains for ridge 0: (k M^-1 k^T)^+ k M^-1 U^T, with equal keys merged into one."""
    distinct, which, count = torch.unique(keys, dim=0, return_inverse=True, return_counts=True)
    if len(distinct) > len(factor.lower):
        raise ValueError(f"ridge 0 asks for {len(distinct):,} exact fits in {len(factor.lower):,} dimensions")
    gram, dual = _gram(factor, factor.seen(distinct))
    lower, info = torch.linalg.cholesky_ex(gram)
    if info.item() == 0 and lower.diagonal().square().min() > DEPENDENT * gram.diagonal().max():
        a = torch.cholesky_solve(dual, lower)
    else:
        values, vectors = torch.linalg.eigh(gram)
        sound = values > DEPENDENT * values[-1].clamp_min(0.0)
        a = vectors[:, sound] / values[sound] @ (vectors[:, sound].T @ dual)
    a = (a / count[:, None])[which]
    return a if factor.basis is None else a @ factor.basis.T

"""Solve for many edits: their keys come in parts, and only sums over them are kept."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memedit.numerics.solvers import Factor


def by_sums(n_edits: int, inner: int, width: int) -> bool:
    """Whether the inner x inner system costs less than the edits x edits one: E keys (E, F), residuals (E, D).

    Counts the multiply-adds in which the two differ. By edits: the Gram matrix and the solve for F columns, E^2 F each,
    and E^3 / 6 for its factor. By sums: M from its factor, F^3 / 3, the factor of the sum, F^3 / 6, the solve, F^2 D.
    """
    by_edits = 2 * n_edits**2 * inner + n_edits**3 / 6
    return by_edits > inner**3 / 2 + inner**2 * width


@dataclass
class Sums:
    """K^T K (F, F), K^T R (F, D) and the square of R's norm, float64, over all edits added so far."""

    gram: Tensor
    cross: Tensor
    square: float = 0.0

    @classmethod
    def empty(cls, inner: int, width: int, device: torch.device) -> Sums:
        """The sums over no edits: zeros."""
        zeros = [torch.zeros(inner, columns, dtype=torch.float64, device=device) for columns in (inner, width)]
        return cls(zeros[0], zeros[1])

    def to(self, device: torch.device) -> Sums:
        """The same sums on another device."""
        return replace(self, gram=self.gram.to(device), cross=self.cross.to(device))

    def add_(self, keys: Tensor, residuals: Tensor) -> None:
        """Add keys (e, F) and residuals (e, D), float64, of some more edits."""
        self.gram.addmm_(keys.T, keys)
        self.cross.addmm_(keys.T, residuals)
        self.square += float(residuals.square().sum())

    def delta(self, factor: Factor) -> Tensor:
        """R^T A = ((ridge M + K^T K)^-1 K^T R)^T, (D, F) float64, as `gains` gives it; the ridge must be above 0."""
        basis, lower = factor.basis, factor.lower
        gram = self.gram if basis is None else basis.T @ self.gram @ basis
        cross = self.cross if basis is None else basis.T @ self.cross
        normal = torch.addmm(gram, lower, lower.T, alpha=factor.ridge)
        found = torch.cholesky_solve(cross, torch.linalg.cholesky(normal))
        return (found if basis is None else basis @ found).T.contiguous()

    def fitted(self, delta: Tensor) -> float:
        """1 - |R - K delta^T| / |R|, from the sums: exact to about 1e-8, since they hold squares in float64."""
        made = (delta @ self.gram * delta).sum() - 2 * (delta.T * self.cross).sum()
        left = max(self.square + float(made), 0.0)
        return 1 - (left / self.square) ** 0.5 if self.square else 1.0

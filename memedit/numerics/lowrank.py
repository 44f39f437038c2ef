"""Low-rank changes: sum them, balance their factors, cut them to a rank; always from the thin factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memedit.numerics.delta import Delta

PROBES = 256  # the largest rank that a sketch can show
SHARE = 0.99
"""The share of a difference's energy (squared norm) that its directions must hold."""


def sum_lowrank(deltas: Sequence[Delta]) -> Delta:
    """Sum changes (D, F) of one weight, to be rounded into it once.

    Factors are joined side by side, which is exact, while they are smaller than the dense change. Else the dense
    changes are summed in float64, and the sum is stored in float32.
    """
    if len(deltas) == 1:
        return deltas[0]
    (width, inner), rank = deltas[0].shape, sum(delta.rank for delta in deltas)
    rights = [delta.right for delta in deltas if delta.right is not None]
    if len(rights) == len(deltas) and rank * (width + inner) < width * inner:
        return Delta(torch.cat([delta.left for delta in deltas], 1), torch.cat(rights))
    dense = deltas[0].dense()
    for delta in deltas[1:]:
        dense = dense + delta.dense()
    return Delta(dense.float())


def balanced_factors(delta: Delta) -> Delta:
    """The same change with factors of similar size for each direction, so that both fit a dtype of few bits.

    The factors of a dense change are the change itself and the identity. Directions are scaled by powers of two, so the
    product in float64 is the same to the last bit.
    """
    left, right = delta.left, delta.right
    if right is None:
        width, inner = left.shape
        left, right = (torch.eye(width), left) if width <= inner else (left, torch.eye(inner))
    one, two = left.double().norm(dim=0), right.double().norm(dim=1)
    both = (one > 0) & (two > 0)
    steps = torch.where(both, (two / one).log2() / 2, 0).round()
    return Delta((left * steps.exp2()).float(), (right * (-steps).exp2()[:, None]).float())


def truncated(delta: Delta, rank: int) -> tuple[Delta, float]:
    """The nearest change of a rank, as factors, and the share of the energy (squared norm) that it loses.

    The singular values of left @ right are those of the small core between both factors' QR (Eckart and Young 1936);
    no (D, F) matrix is decomposed, and no (F, F) one made. Each side takes the root of a singular value.
    """
    if rank >= delta.rank:
        return balanced_factors(delta), 0.0
    both = balanced_factors(delta)
    assert both.right is not None
    q_left, r_left = torch.linalg.qr(both.left.double())
    q_right, r_right = torch.linalg.qr(both.right.double().T)
    u, values, v = torch.linalg.svd(r_left @ r_right.T)
    energy, root = values.square(), values[:rank].sqrt()
    left, right = q_left @ (u[:, :rank] * root), (root[:, None] * v[:rank]) @ q_right.T
    lost = float(energy[rank:].sum() / energy.sum()) if energy.any() else 0.0
    return Delta(left.float().contiguous(), right.float().contiguous()), lost


def random_probes(inner: int, width: int) -> Tensor:
    """Fixed random vectors for a sketch of a (D, F) matrix: (F, k) float32, k = min(D, F, 256).

    With as many probes as the matrix has rows or columns, a sketch is exact.
    """
    count = min(inner, width, PROBES)
    if count == inner:
        return torch.eye(inner)
    return torch.randn(inner, count, generator=torch.Generator().manual_seed(0))


def few_directions(image: Tensor, energy: float) -> int | None:
    """The number of directions that hold 99 % of a matrix's energy; None where a sketch is too small to show it.

    image (k, F): Q^T M, with Q an orthonormal basis of the sketch M @ probes (Halko, Martinsson and Tropp 2011).
    energy: |M|^2.
    """
    held = torch.linalg.svdvals(image.double()).square().cumsum(0)
    enough = torch.nonzero(held >= SHARE * energy)
    return int(enough[0]) + 1 if len(enough) else None

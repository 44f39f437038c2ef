"""Changes as few directions: summed, split into factors of like size, cut to a rank; always from the thin factors."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memedit.numerics.delta import Delta

PROBES = 256  # directions that a sketch can tell: past them a difference has no small rank
SHARE = 0.99
"""Of a difference's energy, its squared length: what as many directions as its rank have to hold."""


def sum_lowrank(deltas: Sequence[Delta]) -> Delta:
    """The sum of changes (D, F) of one weight, to be rounded into it once.

    Factors are set side by side, which is exact, while that is smaller than the dense change; else the dense changes
    are summed in float64, and that sum in float32 is the change.
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
    """The same change as factors whose directions are of like size on both sides, so that few bits hold either.

    A dense change is its own factor beside the identity. Directions are scaled by powers of two: the product in
    float64 is the same to the last bit.
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
    """The nearest change of that rank, as factors, and the share of the energy (the squared norm) that it lacks.

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
    """What a sketch of a (D, F) matrix multiplies it with: (F, k) float32, k = min(D, F, 256), the same every time.

    With as many probes as the matrix has rows or columns a sketch is exact.
    """
    count = min(inner, width, PROBES)
    if count == inner:
        return torch.eye(inner)
    return torch.randn(inner, count, generator=torch.Generator().manual_seed(0))


def few_directions(image: Tensor, energy: float) -> int | None:
    """In how few directions 99 % of a matrix's energy lies; None where more than a sketch can tell.

    image (k, F): the matrix seen from an orthonormal basis of its sketch, Q^T M with Q from M @ probes (Halko,
    Martinsson and Tropp 2011). energy: |M|^2.
    """
    held = torch.linalg.svdvals(image.double()).square().cumsum(0)
    enough = torch.nonzero(held >= SHARE * energy)
    return int(enough[0]) + 1 if len(enough) else None

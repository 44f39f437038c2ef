"""Through an RMS norm backwards: which change of its input moves its output as wanted. Everything float64."""

from __future__ import annotations

from torch import Tensor

NORM_DAMPING = 0.01
"""Of the mean square of the gain: a coordinate with less gain than a tenth of it is left out more than it is moved."""


def before_norm(made: Tensor, normed: Tensor, wanted: Tensor, gain: Tensor, *, damping: float = NORM_DAMPING) -> Tensor:
    """made (E, D), what an RMS norm makes of it (E, D), how that is to move (E, D), gain (D,) -> change (E, D).

    norm(m) = gain m / s, with s the length of m in units of its own. To first order m moves by s wanted / gain, damped
    where the gain is small; then it gets its length back, which no norm sees and which keeps s as it was.
    """
    along = gain * made
    scale = along.square().sum(-1, keepdim=True) / (along * normed).sum(-1, keepdim=True)
    moved = made + scale * gain * wanted / (gain.square() + damping * gain.square().mean())
    return moved * (made.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)) - made

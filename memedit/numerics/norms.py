"""Invert an RMS norm: find the change of its input that changes its output as wanted. Everything is float64."""

from __future__ import annotations

from torch import Tensor

NORM_DAMPING = 0.01
"""Of the mean square of the gain: a coordinate with a gain below a tenth of the rms gain is damped by half or more."""


def before_norm(made: Tensor, normed: Tensor, wanted: Tensor, gain: Tensor, *, damping: float = NORM_DAMPING) -> Tensor:
    """The norm's input `made` (E, D), its output `normed` (E, D), the change wanted there (E, D), gain (D,) -> (E, D).

    norm(m) = gain m / s, where s is the rms of m. To first order m must change by s wanted / gain, damped where the
    gain is small. Then m is scaled back to its length, which does not change the norm's output and keeps s constant.
    """
    along = gain * made
    scale = along.square().sum(-1, keepdim=True) / (along * normed).sum(-1, keepdim=True)
    moved = made + scale * gain * wanted / (gain.square() + damping * gain.square().mean())
    return moved * (made.norm(dim=-1, keepdim=True) / moved.norm(dim=-1, keepdim=True)) - made

"""A norm gone through backwards: what is asked of its input is what its output is to do."""

from __future__ import annotations

import torch
from memedit.numerics.norms import before_norm
from torch import Tensor

E, D = 5, 24


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def rms(rows: Tensor, gain: Tensor) -> Tensor:
    return gain * rows / rows.square().mean(-1, keepdim=True).sqrt()


GAIN = 1 + 0.3 * drawn(D, seed=9)


def test_a_small_move_of_the_output_is_brought_about() -> None:
    made, step = drawn(E, D), 1e-4 * drawn(E, D, seed=1)
    wanted = rms(made + step, GAIN) - rms(made, GAIN)
    found = before_norm(made, rms(made, GAIN), wanted, GAIN, damping=0)
    assert torch.allclose(rms(made + found, GAIN) - rms(made, GAIN), wanted, rtol=0, atol=1e-3 * float(wanted.norm()))


def test_the_length_stays() -> None:
    made = drawn(E, D)
    found = before_norm(made, rms(made, GAIN), drawn(E, D, seed=1), GAIN)
    assert torch.allclose((made + found).norm(dim=-1), made.norm(dim=-1), rtol=1e-12)


def test_what_no_direction_can_give_is_not_asked() -> None:
    made = drawn(E, D)
    flat = torch.ones(D, dtype=torch.float64)
    assert before_norm(made, rms(made, flat), 0.5 * rms(made, flat), flat).norm() < 1e-12


def test_the_way_to_another_point_ends_there() -> None:
    made, other = drawn(E, D), drawn(E, D, seed=1)
    flat = torch.ones(D, dtype=torch.float64)
    wanted = rms(other, flat) - rms(made, flat)
    found = before_norm(made, rms(made, flat), wanted, flat, damping=0)
    assert torch.allclose(rms(made + found, flat), rms(other, flat), rtol=0, atol=1e-12)


def test_a_coordinate_without_gain_stays() -> None:
    gain = GAIN.clone()
    gain[3] = 1e-6
    made, wanted = drawn(E, D), 0.1 * drawn(E, D, seed=1)
    found = before_norm(made, rms(made, gain), wanted, gain)
    assert float((found[:, 3] / made[:, 3]).abs().max()) < 0.1

"""Changes summed, split and cut: what must hold for every size and form."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.numerics.delta import Delta, rounded
from memedit.numerics.lowrank import balanced_factors, few_directions, random_probes, sum_lowrank, truncated

FLOAT32 = 2.0**-22  # a step of float32 on either side of a product
FLOAT64 = 1e-12  # sums of some dozen products

sizes = st.integers(1, 24)
seeds = st.integers(0, 2**31)


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def change(edits: int, width: int, inner: int, seed: int) -> Delta:
    """Residuals much larger than gains, as they are."""
    return Delta.of(100 * draw(seed, edits, width), 1e-3 * draw(seed + 1, edits, inner))


def flat(seed: int, width: int, inner: int, values: list[float]) -> Delta:
    """A change with these singular values."""
    u, v = torch.linalg.qr(draw(seed, width, len(values)))[0], torch.linalg.qr(draw(seed + 1, inner, len(values)))[0]
    return Delta((u * torch.tensor(values)).float(), v.T.float().contiguous())


@settings(deadline=None)
@given(sizes, sizes, sizes, sizes, seeds)
def test_a_total_is_the_sum_of_its_changes(one: int, two: int, width: int, inner: int, seed: int) -> None:
    a, b = change(one, width, inner, seed), change(two, width, inner, seed + 2)
    found, wanted = sum_lowrank([a, b]), a.dense() + b.dense()
    assert (found.dense() - wanted).abs().max() <= FLOAT32 * wanted.abs().max() + FLOAT64
    kept = found.left.numel() + (0 if found.right is None else found.right.numel())
    assert kept <= width * inner or a.right is None or b.right is None
    assert sum_lowrank([a]) is a


@settings(deadline=None)
@given(sizes, sizes, seeds)
def test_a_change_and_its_negative_leave_the_weight(width: int, inner: int, seed: int) -> None:
    one, weight = change(2, width, inner, seed), draw(seed + 5, width, inner).half()
    negative = Delta(-one.left, one.right)
    assert torch.equal(rounded(weight, sum_lowrank([one, negative])), weight)
    step = torch.finfo(torch.float16).eps * weight.abs().double()  # at least a step of float16 at each weight
    if (2 * one.dense().abs() > step).any():  # a smaller change may round to nothing
        assert not torch.equal(rounded(weight, sum_lowrank([one, one])), weight)


@settings(deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_factors_of_like_size_have_the_same_product_to_the_bit(edits: int, width: int, inner: int, seed: int) -> None:
    delta = change(edits, width, inner, seed)
    found = balanced_factors(delta)
    assert found.right is not None
    assert torch.equal(found.dense(), delta.dense())
    ratio = found.left.norm(dim=0) / found.right.norm(dim=1)
    assert ((ratio >= 0.49) & (ratio <= 2.01))[found.right.norm(dim=1) > 0].all()


@pytest.mark.slow
@settings(deadline=None)
@given(sizes, sizes, sizes, seeds)
def test_truncation_is_the_best_there_is_and_tells_what_it_lost(edits: int, width: int, inner: int, seed: int) -> None:
    delta = change(edits, width, inner, seed)
    u, values, v = torch.linalg.svd(delta.dense(), full_matrices=False)
    energy = values.square()
    for rank in range(1, delta.rank + 1):
        cut, lost = truncated(delta, rank)
        assert cut.rank <= rank or rank == delta.rank
        best = (u[:, :rank] * values[:rank]) @ v[:rank]
        error = float((cut.dense() - delta.dense()).norm())
        assert error <= float((best - delta.dense()).norm()) + 4 * FLOAT32 * delta.norm
        assert lost == pytest.approx(float(energy[rank:].sum() / energy.sum()), abs=1e-9)


def test_what_is_cut_is_told_by_hand() -> None:
    delta = flat(3, 8, 20, [3.0, 2.0, 1.0])
    assert [truncated(delta, rank)[1] for rank in (1, 2, 3)] == pytest.approx([5 / 14, 1 / 14, 0], abs=1e-6)
    assert truncated(Delta(torch.zeros(4, 5)), 2)[1] == 0


@pytest.mark.parametrize("shape", [(600, 400), (40, 700)])
def test_a_sketch_counts_the_directions_of_a_difference(shape: tuple[int, int]) -> None:
    # Energies 16, 9, 4, 1: of 30, three hold 97 %, all four 99 %.
    delta = flat(4, *shape, [4.0, 3.0, 2.0, 1.0]).dense()
    draws = random_probes(shape[1], shape[0])
    basis = torch.linalg.qr(delta @ draws.double())[0]
    assert few_directions(basis.T @ delta, float(delta.square().sum())) == 4
    noise = draw(9, 600, 600)
    basis = torch.linalg.qr(noise @ random_probes(600, 600).double())[0]
    assert few_directions(basis.T @ noise, float(noise.square().sum())) is None

"""Rounding that keeps what the edited keys were given, and the steps in which it is told."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from memedit.editing.rounding import Rounding, round_delta
from memedit.numerics import rounding as module
from memedit.numerics.delta import Delta, rounded
from memedit.numerics.moments import Moment
from memedit.numerics.rounding import REACH, EditedKeys, Grid, key_aware, moved, nearest
from torch import Tensor

NARROW = [torch.float16, torch.bfloat16]
WIDTH, INNER = 24, 200  # more columns than one block


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def problem(dtype: torch.dtype = torch.bfloat16, size: float = 3e-4) -> tuple[Tensor, Delta, EditedKeys, Tensor]:
    """A weight, one edit's change of `size` of it, its keys under six contexts, and a moment of steep spectrum."""
    features = draw(1, 600, INNER) @ (
        draw(2, INNER, INNER) * torch.logspace(0, -2, INNER, dtype=torch.float64)[:, None]
    )
    moment = features.T @ features / len(features)
    key = features[0]
    keys = key + 0.1 * draw(3, 6, INNER) * key.std()
    weight = (0.02 * draw(4, WIDTH, INNER)).to(dtype)
    gain = torch.linalg.solve(moment + 1e-3 * moment.diagonal().mean() * torch.eye(INNER), key)
    change = draw(5, WIDTH, 1) @ gain[None]
    scale = size * float(weight.double().norm() / change.norm())
    return weight, Delta((draw(5, WIDTH, 1) * scale).float(), gain[None].float()), EditedKeys(1, keys), moment


def solved(weight: Tensor, delta: Delta, keys: EditedKeys, moment: Tensor) -> Tensor:
    return key_aware(weight.double() + delta.dense(), Grid(weight.dtype), keys, moment)


@pytest.mark.parametrize(("dtype", "size"), [(torch.bfloat16, 1e-3), (torch.bfloat16, 3e-4), (torch.float16, 1e-4)])
def test_the_edited_keys_keep_what_they_were_given(dtype: torch.dtype, size: float) -> None:
    weight, delta, keys, moment = problem(dtype, size)
    ways = {way: round_delta(0, weight, delta, keys, rounding(way, moment)) for way in ("nearest", "key-aware")}
    near, aware = ways["nearest"], ways["key-aware"]
    assert near.loss > 0.4 and aware.loss < 0.4 * near.loss
    assert near.loss == near.nearest_loss == aware.nearest_loss
    assert aware.disturbance < 1.2 and near.disturbance == 1
    assert torch.equal(aware.weight, rounded(weight, aware.delta)) and not torch.equal(aware.weight, near.weight)
    assert near.delta.steps is None and torch.equal(near.weight, rounded(weight, delta))


def rounding(way: str, moment: Tensor) -> Rounding:
    return Rounding(way, lambda _layer: Moment(moment, 1))  # type: ignore[arg-type]


def test_fp8_weights_keep_what_the_edited_keys_were_given() -> None:
    weight, delta, keys, moment = problem(torch.float32, size=1e-2)
    scale = weight.abs().amax(1, keepdim=True).expand(weight.shape) / torch.finfo(torch.float8_e4m3fn).max
    grid = Grid(torch.float8_e4m3fn, scale)
    weight = grid.nearest(weight.double())
    found = round_delta(0, weight, delta, keys, replace(rounding("auto", moment), grid_of=lambda _layer: grid))
    assert found.way == "key-aware" and found.disturbance < 1 and found.nearest_loss > 0.5
    assert found.loss < 0.4 * found.nearest_loss
    assert torch.equal(found.weight, rounded(weight, found.delta, grid))
    assert found.weight.dtype == torch.float32 and torch.equal(grid.nearest(found.weight.double()), found.weight)


def test_it_is_these_keys_that_are_kept() -> None:
    weight, delta, keys, moment = problem()
    others = EditedKeys(1, keys.rows.roll(50, 1) if keys.rows is not None else None)
    change = delta.dense()
    exact = weight.double() + change

    def lost(steps: Tensor) -> float:
        return keys.effect(moved(nearest(exact, weight.dtype), steps).double() - exact) / keys.effect(change)

    right, wrong = (lost(key_aware(exact, Grid(weight.dtype), some, moment)) for some in (keys, others))
    assert wrong > 2 * right


def test_auto_takes_pains_only_where_nearest_loses_a_hundredth() -> None:
    for size, wanted in ((3e-4, "key-aware"), (0.3, "nearest")):
        weight, delta, keys, moment = problem(size=size)
        found = round_delta(0, weight, delta, keys, rounding("auto", moment))
        assert found.way == wanted and (found.nearest_loss > 0.01) == (wanted == "key-aware")


def test_a_float32_weight_is_rounded_to_nearest_whatever_is_asked() -> None:
    weight, delta, keys, moment = problem(torch.float32)
    found = round_delta(0, weight, delta, keys, rounding("key-aware", moment))
    assert found.way == "nearest" and found.delta.steps is None and found.loss < 1e-2
    assert torch.equal(found.weight, rounded(weight, delta))


def test_no_element_goes_further_than_it_may() -> None:
    weight, delta, keys, moment = problem()
    steps = solved(weight, delta, keys, moment)
    assert steps.dtype == torch.int8 and steps.any() and int(steps.abs().max()) <= REACH


def test_rows_do_not_see_each_other() -> None:
    weight, delta, keys, moment = problem()
    steps, some = solved(weight, delta, keys, moment), torch.tensor([7, 2, 19])
    assert torch.equal(solved(weight[some], Delta(delta.left[some], delta.right), keys, moment), steps[some])


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 7, 500])
def test_blocks_are_only_a_way_to_be_fast(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    weight, delta, keys, moment = problem()
    steps = solved(weight, delta, keys, moment)
    monkeypatch.setattr(module, "COLUMN_BLOCK", block)
    assert torch.equal(solved(weight, delta, keys, moment), steps)


def test_keys_and_their_square_are_one_thing() -> None:
    weight, delta, keys, moment = problem()
    square = EditedKeys(1, square=keys.gram)
    assert torch.equal(solved(weight, delta, square, moment), solved(weight, delta, keys, moment))
    assert square.effect(delta.dense()) == pytest.approx(keys.effect(delta.dense()), rel=1e-6)


def test_what_fits_the_dtype_stays_as_it_is() -> None:
    weight, _, keys, moment = problem()
    exact = weight.double() * 2
    assert not key_aware(exact, Grid(weight.dtype), keys, moment).any()


def test_units_that_never_fire_are_rounded_to_nearest() -> None:
    weight, delta, keys, moment = problem()
    assert keys.rows is not None
    dead = torch.arange(0, INNER, 9)
    moment[dead] = 0
    moment[:, dead] = 0
    keys.rows[:, dead] = 0
    steps = solved(weight, delta, keys, moment)
    assert not steps[:, dead].any() and steps.any()


@pytest.mark.parametrize("dtype", [*NARROW, torch.float8_e4m3fn])
@pytest.mark.parametrize("scaled", [False, True])
def test_a_choice_is_the_nearest_number_within_reach(dtype: torch.dtype, scaled: bool) -> None:
    """As `Grid.nearest` rounds, clamped, for values of all sizes: near ties, on ties, and beyond the largest number."""
    scale = draw(9, 6, 40).abs().float() + 0.5
    grid = Grid(dtype, scale if scaled else None)
    near = grid.nearest(draw(1, 6, 40) * torch.logspace(-9, 5, 40, dtype=torch.float64))
    low, high = (grid.moved(near, torch.full(near.shape, one, dtype=torch.int8)).double() for one in (-REACH, REACH))
    up = grid.moved(near, torch.ones(near.shape, dtype=torch.int8))
    tie = (near.double() + up.double()) / 2
    choices = module._Range(grid, near).columns(0, 40)
    for values in (
        tie,
        tie.nextafter(high),
        tie.nextafter(low),
        near.double() * 1.01,
        near.double() * 40,
        -near.double(),
    ):
        wanted = grid.nearest(values).double().clamp(low, high)
        found = torch.stack([choices.nearest(n, values[:, n].contiguous()) for n in range(40)], 1)
        assert torch.equal(found, wanted)


@pytest.mark.parametrize("dtype", NARROW)
def test_a_step_is_the_next_number(dtype: torch.dtype) -> None:
    tiny, largest = torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max
    near = torch.tensor([1.0, -1.0, 0.0, tiny, -tiny, 2.0, largest / 2], dtype=dtype)
    up, down = (moved(near, torch.full(near.shape, sign, dtype=torch.int8)) for sign in (1, -1))
    assert torch.equal(up, torch.nextafter(near, torch.tensor(torch.inf, dtype=dtype)))
    assert torch.equal(down, torch.nextafter(near, torch.tensor(-torch.inf, dtype=dtype)))
    assert torch.equal(moved(up, torch.full(near.shape, -1, dtype=torch.int8)), near)


@pytest.mark.parametrize("dtype", NARROW)
def test_no_step_leads_out_of_the_numbers(dtype: torch.dtype) -> None:
    largest = torch.tensor([torch.finfo(dtype).max, -torch.finfo(dtype).max], dtype=dtype)
    assert torch.equal(moved(largest, torch.tensor([3, -3], dtype=torch.int8)), largest)


def test_where_nothing_moves_the_bits_stay() -> None:
    near = torch.tensor([-0.0, 0.0, torch.inf, -1.5]).bfloat16()
    kept = moved(near, torch.zeros(4, dtype=torch.int8))
    assert torch.equal(kept.view(torch.int16), near.view(torch.int16))

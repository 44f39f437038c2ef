"""Round W + delta to a dtype of few bits: to nearest, or so that the effect on the edited keys is kept.

Rounded to nearest, a change of a few steps of the dtype loses much of its effect: each element is right to half a step,
and the errors add up on the keys. Choosing another neighbor for some elements lets the errors cancel on the keys. A row
of errors e costs e H e^T with the metric H = C + weight K^T K: the edited keys count most, then the other inputs of the
layer. The search is a nearest plane (Babai 1986; GPTQ does the same in the other order), followed by sweeps over single
elements. Rows are independent, so all of them are searched together. Everything is float64.

An 8-bit float can come with a scale: the weight is then that float times the scale of its block. The scales stay as
they are, so that an element which the change does not move keeps its bits. New scales would move the whole grid, and
every element of a block with it by up to half a step, which is 6 % of its value.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

REACH = 3
"""How many representable numbers an element may lie from its nearest one. Small elements, whose steps are small, go
farthest, and cancel errors of large ones. With 127 the error is 2 % smaller than with 3; with 1 it is 5 % larger."""
KEYS = 0.03
"""The keys' weight in units of the trace of C, for each edit. Of 18 changes of 0.03 % of |W| of the shipped models in
bfloat16 it keeps 97 % (0.1: 98 %, 0.003: 88 %), and disturbs the rest 0.78 times as much as rounding to nearest (0.1:
0.85, 0.003: 0.68)."""
ROUNDING_DAMPING = 1e-6  # of the mean diagonal: units that never fire leave C singular
COLUMN_BLOCK = 128  # columns processed before their effect on the others is added, in one product
FP8 = torch.float8_e4m3fn
FP8_LARGEST = torch.finfo(FP8).max
SWEEPS = 2  # with none the error is 5 % larger than with one; a third makes it 1 % smaller


def nearest(exact: Tensor, dtype: torch.dtype) -> Tensor:
    """Round float64 to a dtype: once, to nearest even. 8-bit floats have no infinity: they end at their largest number.

    The conversion to narrower dtypes passes through float32, and two roundings to nearest are not one: 1 + 2^-8 + 2^-40
    would become the tie 1 + 2^-8, then 1. Rounded to odd, the float32 number stays on its side of a tie.
    """
    near = exact.float()
    if dtype == torch.float32:
        return near
    below_or_above = torch.where(exact > near, torch.inf, -torch.inf).float()
    inexact_and_even = (near != exact) & (near.view(torch.int32) % 2 == 0)
    odd = torch.where(inexact_and_even, torch.nextafter(near, below_or_above), near)
    if dtype == FP8:
        odd = odd.clamp(-FP8_LARGEST, FP8_LARGEST)
    return odd.to(dtype)


def moved(near: Tensor, steps: Tensor) -> Tensor:
    """Move each element of `near` (16 or 8 bits) up by `steps` (int8) representable numbers.

    Where the step is zero the bits do not change, not even those of a negative zero.
    """
    bits = _bits(near.dtype)
    there = _number(_place(near) + steps, near.dtype)
    return torch.where(steps == 0, near.view(bits), there.view(bits)).view(near.dtype)


@dataclass(frozen=True)
class Grid:
    """The numbers that a stored weight (D, F) can hold: those of a dtype, or float8_e4m3fn codes times a scale.

    scale: (D, F) float32. Numbers with a scale are float32. Their codes can be found again from them: the product of
    code and scale is rounded by 1e-7 of it at most, and neighboring codes differ by 6 % or more.
    """

    dtype: torch.dtype
    scale: Tensor | None = None

    @property
    def narrow(self) -> bool:
        """Whether the dtype has few bits, so that its neighbors are worth a choice."""
        return self.dtype != torch.float32

    def to(self, device: torch.device) -> Grid:
        """The same grid, its scale on a device."""
        return self if self.scale is None else replace(self, scale=self.scale.to(device))

    def columns(self, of: Tensor | slice) -> Grid:
        """The grid of some columns of the weight."""
        return self if self.scale is None else replace(self, scale=self.scale[:, of])

    @property
    def transposed(self) -> Grid:
        """The grid of the weight's transpose."""
        return self if self.scale is None else replace(self, scale=self.scale.T)

    def codes(self, numbers: Tensor) -> Tensor:
        """The codes, in the dtype, of any floating-point numbers: each that of the nearest number."""
        exact = numbers.double()
        return nearest(exact if self.scale is None else exact / self.scale.double(), self.dtype)

    def numbers(self, codes: Tensor) -> Tensor:
        """The numbers that codes stand for: in the dtype, or in float32 where there is a scale."""
        return codes if self.scale is None else codes.float() * self.scale

    def nearest(self, exact: Tensor) -> Tensor:
        """The nearest numbers to float64 ones, to nearest even."""
        return self.numbers(self.codes(exact))

    def moved(self, near: Tensor, steps: Tensor) -> Tensor:
        """Move each number up by `steps` (int8) places of the grid."""
        return self.numbers(moved(self.codes(near), steps))

    def between(self, low: Tensor, high: Tensor) -> Tensor:
        """How many places `high` lies above `low`, int8."""
        return (_place(self.codes(high)) - _place(self.codes(low))).to(torch.int8)


@dataclass(frozen=True)
class EditedKeys:
    """The keys of a change: rows (n, F), or their K^T K (F, F) where they are many; float64. `edits`: their number."""

    edits: int
    rows: Tensor | None = None
    square: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """The device of the keys."""
        held = self.rows if self.rows is not None else self.square
        assert held is not None
        return held.device

    def to(self, device: torch.device) -> EditedKeys:
        """The same keys on another device."""
        rows, square = (None if one is None else one.to(device) for one in (self.rows, self.square))
        return replace(self, rows=rows, square=square)

    @property
    def gram(self) -> Tensor:
        """K^T K, (F, F)."""
        if self.square is not None:
            return self.square
        assert self.rows is not None
        return self.rows.T @ self.rows

    def effect(self, change: Tensor) -> float:
        """|change K^T|, Frobenius; change (D, F) float64."""
        if self.rows is not None:
            return float((change @ self.rows.T).norm())
        assert self.square is not None
        return float((change @ self.square * change).sum().clamp_min(0).sqrt())


def key_aware(exact: Tensor, grid: Grid, keys: EditedKeys, moment: Tensor) -> Tensor:
    """W + delta (D, F) float64, the edited keys and C (F, F) float64 -> steps from the nearest of a grid, (D, F) int8.

    Columns of large moment come first, while later columns can still cancel their errors.
    """
    scale, gram = moment.diagonal().mean(), keys.gram
    length = gram.trace().clamp_min(torch.finfo(gram.dtype).tiny)
    # Matrices as large as the moment: one at a time goes before the next one comes.
    metric = KEYS * keys.edits * scale * len(gram) / length * gram
    del gram
    metric += moment
    metric.diagonal().add_(ROUNDING_DAMPING * scale)
    order = metric.diagonal().argsort(stable=True)
    metric = metric[order]
    metric, wanted, ordered = metric[:, order], exact[:, order], grid.columns(order)
    near = ordered.nearest(wanted)
    within = _Range(ordered, near)
    found = _plane(wanted, metric, within)
    for _ in range(SWEEPS):
        _sweep_(found, wanted, metric, within)
    steps = torch.empty_like(near, dtype=torch.int8)
    steps[:, order] = ordered.between(near, found)
    return steps


def disturbance(error: Tensor, moment: Tensor) -> float:
    """|error| in the metric of the moments: error (D, F), C (F, F) float64 -> sqrt(sum e C e^T)."""
    return float((error @ moment * error).sum().clamp_min(0).sqrt())


@dataclass(frozen=True)
class _Choices:
    """The numbers that each element of n columns of D rows may take, column by column.

    levels: (n, D, 2 REACH + 1) float64, in ascending order. bounds: (n, D, 2 REACH), the largest float64 that is
    rounded to a level and not to the next one. scale: (n, D), where values are divided by one before they are compared.
    """

    levels: Tensor
    bounds: Tensor
    scale: Tensor | None

    def nearest(self, column: int, values: Tensor) -> Tensor:
        """The nearest of the levels to values (D,) float64, to nearest even."""
        values = values if self.scale is None else values / self.scale[column]
        place = torch.searchsorted(self.bounds[column], values[:, None])
        return self.levels[column].gather(1, place)[:, 0]


@dataclass(frozen=True)
class _Range:
    """The range of numbers that each element may take: REACH places of the grid around the nearest one, `near` (D, F).

    The choices of a block of columns are made in a few operations. So a column, which must wait for the columns behind
    it, takes seven: a GPU needs longer to start one than to do it.
    """

    grid: Grid
    near: Tensor

    def columns(self, start: int, end: int) -> _Choices:
        grid = self.grid.columns(slice(start, end)).transposed
        codes = grid.codes(_turned(self.near[:, start:end]))
        reach = torch.arange(-REACH, REACH + 1, dtype=torch.int32, device=codes.device)
        places = _finite(_place(codes)[..., None] + reach, codes.dtype)
        levels = _number(places, codes.dtype).float()
        low, high = levels[..., :-1].double(), levels[..., 1:].double()
        half, even = (low + high) / 2, places[..., :-1] % 2 == 0
        bounds = torch.where(even, half, torch.nextafter(half, torch.full_like(half, -torch.inf)))
        if grid.scale is None:
            return _Choices(levels.double(), bounds, None)
        return _Choices((levels * grid.scale[..., None]).double(), bounds, grid.scale.double())


def _plane(wanted: Tensor, metric: Tensor, within: _Range) -> Tensor:
    """Round columns from the last to the first, each to cancel errors of those behind: H = L L^T, e H e^T = |e L|^2."""
    lower = torch.linalg.cholesky(metric)
    error, found = torch.zeros_like(wanted), torch.empty_like(wanted)
    for end in range(wanted.shape[1], 0, -COLUMN_BLOCK):
        start = max(0, end - COLUMN_BLOCK)
        behind = _turned(error[:, end:] @ lower[end:, start:end])
        block, choices = lower[start:end, start:end], within.columns(start, end)
        want = _turned(wanted[:, start:end])
        near, off = torch.empty_like(want), torch.empty_like(want)
        for n in range(end - start - 1, -1, -1):
            near[n] = choices.nearest(n, want[n] - behind[n] / block[n, n])
            torch.sub(near[n], want[n], out=off[n])
            behind[:n].addr_(block[n, :n], off[n])
        found[:, start:end], error[:, start:end] = near.T, off.T
    return found


def _sweep_(found: Tensor, wanted: Tensor, metric: Tensor, within: _Range) -> None:
    """Set every column once, in place, to the number that costs least while all others stay."""
    slope = (found - wanted) @ metric
    for start in range(0, wanted.shape[1], COLUMN_BLOCK):
        end = min(start + COLUMN_BLOCK, wanted.shape[1])
        here, block = _turned(slope[:, start:end]), metric[start:end, start:end]
        before, choices = found[:, start:end].clone(), within.columns(start, end)
        now = _turned(before)
        for n in range(end - start):
            best = choices.nearest(n, now[n] - here[n] / block[n, n])
            here.addr_(block[n], best - now[n])
            now[n] = best
        found[:, start:end] = now.T
        slope.addmm_(found[:, start:end] - before, metric[start:end])


def _turned(columns: Tensor) -> Tensor:
    """A copy of columns (D, n) as rows (n, D), so that each is read and written in one piece."""
    return columns.T.clone(memory_format=torch.contiguous_format)


def _bits(dtype: torch.dtype) -> torch.dtype:
    """The whole numbers that have as many bits."""
    return torch.int8 if dtype.itemsize == 1 else torch.int16


def _place(numbers: Tensor) -> Tensor:
    """The place of numbers of 16 or 8 bits among all of them in ascending order, zero at 0; int32."""
    kind = _bits(numbers.dtype)
    bits = numbers.view(kind).int()
    return torch.where(bits < 0, -(bits & torch.iinfo(kind).max), bits)


def _finite(places: Tensor, dtype: torch.dtype) -> Tensor:
    """Places, none beyond that of the largest finite number."""
    largest = int(_place(torch.tensor(torch.finfo(dtype).max, dtype=dtype)))
    return places.clamp(-largest, largest)


def _number(places: Tensor, dtype: torch.dtype) -> Tensor:
    """The finite number at a place."""
    kind, places = _bits(dtype), _finite(places, dtype)
    bits = torch.where(places < 0, -places + torch.iinfo(kind).min, places)
    return bits.to(kind).view(dtype)

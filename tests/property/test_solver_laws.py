"""Theorems of the one law over the table of methods, with their converses; float64 throughout."""

from __future__ import annotations

import pytest
import torch
from examples.reference.editing import gap
from hypothesis import given, settings
from hypothesis import strategies as st
from memedit.config.methods import METHODS, Method, Metric
from memedit.numerics.moments import Moment
from memedit.numerics.normal import Sums, by_sums
from memedit.numerics.solvers import (
    SHIFTS,
    SMALLEST_PIVOT,
    Factor,
    decomposed,
    factor_metric,
    gains,
    leverage,
    null_space,
    prepare,
)
from torch import Tensor

SAME = 1e-9  # relative: float64 through a Cholesky factor of a well-conditioned metric
SHARE = 0.3  # of the trace: of 12 directions some 5 are open
MEMIT, ROME, EMMET, ALPHAEDIT = (METHODS[name] for name in ("memit", "rome", "emmet", "alphaedit"))

every_method = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
weighed = pytest.mark.parametrize("method", [MEMIT, ALPHAEDIT], ids=["memit", "alphaedit"])


def problem(seed: int, edits: int, inner: int = 12, width: int = 7) -> tuple[Moment, Tensor, Tensor]:
    """A moment of 200 tokens, some directions of which hold little, keys (E, F) and residuals (E, D)."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    rows = draw(200, inner) * torch.logspace(-1, 0, inner, dtype=torch.float64) @ torch.linalg.qr(draw(inner, inner)).Q
    return Moment(rows.T @ rows, 200), draw(edits, inner), draw(edits, width)


def law(method: Method, moment: Moment, ridge: float | None = None) -> Factor:
    """A method's factor with its own ridge, or another; in units of the width, as a recipe has it."""
    own = method.ridge if ridge is None else ridge
    return prepare(moment, method, own * len(moment.total), SHARE)


def projector(moment: Moment) -> Tensor:
    """P as published, U U^T over the null space, (F, F); but the null space is, as here, a share of the trace."""
    left, values, _ = torch.linalg.svd(moment.mean)
    small = (values.flip(0).cumsum(0) <= SHARE * values.sum()).flip(0)
    return left[:, small] @ left[:, small].T


def published(method: Method, moment: Moment, keys: Tensor, residuals: Tensor, ridge: float) -> Tensor:
    """The change (D, F) by the formula of the method's authors, edits as columns; `ridge` is lambda, or L2."""
    C, K, R = moment.mean, keys.T, residuals.T
    if method is MEMIT:  # kmeng01/memit, memit_main.py
        return R @ torch.linalg.solve(ridge * C + K @ K.T, K).T
    if method is EMMET:  # scalable-model-editing/unified-model-editing, emmet_main.py, without its ridge on D
        inverse = torch.linalg.inv(C)
        return R @ torch.linalg.inv(K.T @ inverse @ K) @ K.T @ inverse
    if method is ALPHAEDIT:  # jianghoucheng/AlphaEdit, AlphaEdit_main.py
        P = projector(moment)
        return torch.linalg.solve(P @ (K @ K.T) + ridge * torch.eye(len(C), dtype=C.dtype), P @ K @ R.T).T
    change = torch.zeros(len(R), len(C), dtype=C.dtype)
    for k, r in zip(keys, residuals, strict=True):  # scalable-model-editing/rebuilding-rome: one key throughout
        u = torch.linalg.solve(C, k)
        change = change + torch.outer((r - change @ k) / (k @ u), u)
    return change


sizes = st.tuples(st.integers(0, 10_000), st.integers(1, 30), st.floats(0.01, 100))


@every_method
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0.01, 100))
def test_a_change_is_the_published_one(method: Method, seed: int, edits: int, dial: float) -> None:
    moment, keys, residuals = problem(seed, edits)
    keys = keys[: 12 if method.ridge else 9]  # near the width exact fits amplify rounding
    factor = law(method, moment, method.ridge * dial)
    scale = SHARE * float(moment.mean.trace()) / 12 if method is ALPHAEDIT else 1.0  # L2 is told by the share's trace
    found = residuals[: len(keys)].T @ gains(factor, keys)
    wanted = published(method, moment, keys, residuals[: len(keys)], factor.ridge * scale)
    assert gap(found, wanted) < SAME * (1 if method.ridge else 1e3)


@every_method
@settings(max_examples=30, deadline=None)
@given(sizes, st.floats(1e-4, 10))
def test_no_change_that_fits_as_well_moves_the_corpus_less(
    method: Method, given: tuple[int, int, float], ridge: float
) -> None:
    """MEMIT minimizes |R - K D^T|^2 + lambda tr(D C D^T): what fits as well as it pays at least as much in the rest."""
    seed, edits, dial = given
    moment, keys, residuals = problem(seed, edits)
    keys, residuals = keys[: 12 if method.ridge else 9], residuals[: 12 if method.ridge else 9]
    weight = 12 * ridge

    def price(change: Tensor) -> float:
        unfitted = float((residuals - keys @ change.T).square().sum())
        return unfitted + weight * float((change @ moment.mean * change).sum())

    other = residuals.T @ gains(law(method, moment, method.ridge * dial), keys)
    least = residuals.T @ gains(law(MEMIT, moment, ridge), keys)
    assert price(least) <= price(other) * (1 + 1e-9)


@every_method
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 10))
def test_one_edit_is_met_exactly_if_and_only_if_the_ridge_is_0(method: Method, seed: int, ridge: float) -> None:
    moment, keys, residuals = problem(seed, edits=1)
    exact = residuals.T @ gains(law(method, moment, 0.0), keys)
    assert gap(keys @ exact.T, residuals) < SAME
    held = residuals.T @ gains(law(method, moment, ridge), keys)
    assert float((keys @ held.T).norm()) < float(residuals.norm()) * (1 - 1e-6)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_independent_edits_are_all_met_at_once_but_not_in_turn(seed: int, edits: int) -> None:
    moment, keys, residuals = problem(seed, edits)
    together = residuals.T @ gains(law(EMMET, moment), keys)
    assert gap(keys @ together.T, residuals) < 1e-6
    in_turn = residuals.T @ gains(law(ROME, moment), keys)
    assert gap(keys[-1] @ in_turn.T, residuals[-1]) < SAME  # the last is; those before it were, until then
    assert gap(keys @ in_turn.T, residuals) > 1e-6


def test_in_turn_edits_are_all_met_where_none_sees_another() -> None:
    moment, keys, residuals = problem(3, edits=5)
    lower = torch.linalg.cholesky(moment.mean)
    apart = torch.linalg.qr(keys.T).Q.T @ lower.T  # orthogonal in the metric C^-1
    change = residuals.T @ gains(law(ROME, moment), apart)
    assert gap(apart @ change.T, residuals) < SAME
    assert gap(change, residuals.T @ gains(law(EMMET, moment), apart)) < SAME


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_of_dependent_edits_those_that_contradict_are_not_met(seed: int) -> None:
    moment, keys, residuals = problem(seed, edits=4)
    keys = torch.cat([keys, (keys[0] + keys[1])[None]])
    consistent = torch.cat([residuals, (residuals[0] + residuals[1])[None]])
    change = consistent.T @ gains(law(EMMET, moment), keys)
    assert gap(keys @ change.T, consistent) < 1e-6
    against = torch.cat([residuals, -(residuals[0] + residuals[1])[None]])
    change = against.T @ gains(law(EMMET, moment), keys)
    fit = keys @ torch.linalg.lstsq(keys, against, driver="gelsd").solution
    assert gap(keys @ change.T, fit) < 1e-6  # least squares, which misses
    assert gap(keys @ change.T, against) > 1e-2


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 4))
def test_edits_of_one_key_get_the_mean_of_what_they_ask_for(seed: int, times: int) -> None:
    moment, keys, residuals = problem(seed, edits=4)
    same = torch.cat([keys, *[keys[:1]] * (times - 1)])
    asked = torch.cat([residuals, residuals[1:times]])
    found = asked.T @ gains(law(EMMET, moment), same)
    mean = residuals.clone()
    mean[0] = residuals[:times].mean(0)
    assert gap(found, mean.T @ gains(law(EMMET, moment), keys)) < 1e-7
    # In turn the last of them has the word.
    in_turn = asked.T @ gains(law(ROME, moment), same)
    assert gap(keys[0] @ in_turn.T, asked[-1]) < SAME


def test_more_exact_fits_than_dimensions_are_refused_unless_keys_are_equal() -> None:
    moment, keys, residuals = problem(1, edits=13)
    with pytest.raises(ValueError, match="13 exact fits in 12 dimensions"):
        gains(law(EMMET, moment), keys)
    assert torch.isfinite(gains(law(ROME, moment), keys)).all()
    repeated = keys[:6].repeat(3, 1)
    change = residuals[:6].repeat(3, 1).T @ gains(law(EMMET, moment), repeated)
    assert gap(keys[:6] @ change.T, residuals[:6]) < 1e-6


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans())
def test_memit_tends_to_emmet_as_its_ridge_goes_to_0(seed: int, edits: int, repeated: bool) -> None:
    moment, keys, residuals = problem(seed, edits)
    keys = torch.cat([keys, keys[:1]]) if repeated else keys
    residuals = torch.cat([residuals, -residuals[:1]]) if repeated else residuals
    limit = residuals.T @ gains(law(EMMET, moment), keys)
    gaps = [gap(residuals.T @ gains(law(MEMIT, moment, ridge), keys), limit) for ridge in (1.0, 1e-3, 1e-6)]
    assert gaps[0] > 10 * gaps[1] > 100 * gaps[2] or gaps[0] < 1e-6
    assert gaps[2] < 1e-3


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 20))
def test_alphaedit_alone_leaves_the_protected_subspace_as_it_was(seed: int, edits: int) -> None:
    moment, keys, residuals = problem(seed, edits)
    protected = torch.eye(12, dtype=torch.float64) - projector(moment)
    change = residuals.T @ gains(law(ALPHAEDIT, moment), keys)
    assert float((change @ protected).norm()) < SAME * float(change.norm())
    for method in (MEMIT, ROME):
        other = residuals.T @ gains(law(method, moment), keys)
        assert float((other @ protected).norm()) > 1e-3 * float(other.norm())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.05, 0.95))
def test_the_null_space_holds_its_share_and_no_direction_more_would_fit(seed: int, share: float) -> None:
    moment, _, _ = problem(seed, edits=1)
    parts = decomposed(moment, "null space")
    basis = null_space(parts["values"], parts["vectors"], share)
    trace = moment.mean.trace()
    assert float((basis.T @ moment.mean @ basis).trace()) <= share * float(trace) * (1 + SAME)
    wider = parts["vectors"][:, : basis.shape[1] + 1]
    assert float((wider.T @ moment.mean @ wider).trace()) > share * float(trace)
    # Relative: keys on another scale have the same null space.
    other = decomposed(Moment(moment.total * 1e-4, moment.count), "null space")
    assert null_space(other["values"], other["vectors"], share).shape == basis.shape


def test_a_moment_that_holds_everything_everywhere_has_no_null_space() -> None:
    with pytest.raises(ValueError, match=r"no null space: its smallest direction holds more than 0\.05"):
        prepare(Moment(torch.eye(12, dtype=torch.float64), 1), ALPHAEDIT, 1.0, 0.05)


@every_method
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 8))
def test_permuting_edits_permutes_gains_unless_they_go_in_turn(method: Method, seed: int, edits: int) -> None:
    moment, keys, _ = problem(seed, edits)
    factor = law(method, moment)
    order = torch.arange(edits).roll(1)
    moved = gap(gains(factor, keys[order]), gains(factor, keys)[order])
    assert moved > 1e-6 if method.in_turn else moved < SAME * 1e3


def test_the_original_rome_misses_by_the_ratio_of_its_two_keys() -> None:
    moment, keys, residuals = problem(5, edits=1)
    averaged, residual = keys[0], residuals[0]
    bare = averaged + 0.6 * problem(6, edits=1)[1][0]
    u = torch.linalg.solve(moment.mean, averaged)
    original = torch.outer(residual / (bare @ u), u)  # kmeng01/rome, compute_v.py: the bare key divides
    consistent = residuals.T @ gains(law(ROME, moment), keys)
    assert gap(consistent @ averaged, residual) < SAME
    ratio = (averaged @ u) / (bare @ u)
    assert abs(float(ratio) - 1) > 0.1
    assert gap(original @ averaged, ratio * residual) < SAME
    # Where the two keys agree the two methods do.
    assert gap(torch.outer(residual / (averaged @ u), u), consistent) < SAME


@weighed
@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000))
def test_the_small_and_the_large_form_agree(method: Method, seed: int) -> None:
    moment, _, _ = problem(seed, edits=1)
    factor = law(method, moment)
    _, keys, residuals = problem(seed, edits=len(factor.lower))
    # One edit more than the metric's width switches the form; an edit of no key adds nothing.
    larger = gains(factor, torch.cat([keys, torch.zeros(1, keys.shape[1], dtype=keys.dtype)]))
    assert gap(residuals.T @ larger[:-1], residuals.T @ gains(factor, keys)) < SAME
    assert float(larger[-1].norm()) == 0.0


@weighed
@settings(max_examples=30, deadline=None)
@given(sizes, st.integers(1, 9))
def test_sums_of_edits_in_parts_give_the_same_change(method: Method, given: tuple[int, int, float], part: int) -> None:
    seed, edits, dial = given
    moment, keys, residuals = problem(seed, edits)
    factor = law(method, moment, method.ridge * dial)
    assert factor.summable
    sums = Sums.empty(keys.shape[1], residuals.shape[1], torch.device("cpu"))
    for some in torch.randperm(edits).split(part):
        sums.add_(keys[some], residuals[some])
    found, wanted = sums.delta(factor), residuals.T @ gains(factor, keys)
    assert gap(found, wanted) < SAME
    fitted = 1 - float((residuals - keys @ wanted.T).norm() / residuals.norm())
    assert sums.fitted(found) == pytest.approx(fitted, abs=1e-6)


def test_the_smaller_system_is_solved() -> None:
    inner, width = 1536, 256
    switch = next(n for n in range(1, 5000) if by_sums(n, inner, width))
    assert 0.4 * inner < switch < inner
    assert all(by_sums(n, inner, width) for n in range(switch, 5000, 97))
    # The counts meet where it switches: neither form costs more than a hundredth over the other there.
    by_edits = 2 * switch**2 * inner + switch**3 / 6
    assert by_edits == pytest.approx(inner**3 / 2 + inner**2 * width, rel=0.01)


@every_method
@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_the_scale_of_keys_does_not_move_the_fit(method: Method, seed: int, scale: float) -> None:
    moment, keys, residuals = problem(seed, edits=5)
    fits: list[Tensor] = []
    for factor in (1.0, scale):
        seen = law(method, Moment(moment.total * factor**2, moment.count))
        fits.append((keys * factor) @ (residuals.T @ gains(seen, keys * factor)).T)
    assert gap(fits[1], fits[0]) < 1e-7


def test_leverage_averages_the_width_over_the_corpus() -> None:
    rows = torch.randn(500, 12, dtype=torch.float64)
    moment = Moment(rows.T @ rows, 500)
    assert float(leverage(prepare(moment, MEMIT, 1.0), rows).mean()) == pytest.approx(12, rel=1e-9)
    held = torch.linalg.eigvalsh(moment.mean).cumsum(0) / moment.mean.trace()
    share = float(held[7]) + 1e-9  # held to the full by eight directions
    assert float(leverage(prepare(moment, ALPHAEDIT, 1.0, share), rows).mean()) == pytest.approx(12, rel=1e-6)
    assert float(leverage(prepare(moment, ALPHAEDIT, 1.0, 0.999), rows).mean()) < 12


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 4), st.integers(0, 2), st.floats(1e-3, 1e3))
def test_a_singular_moment_is_shifted_and_a_sound_one_is_not(seed: int, dead: int, twins: int, scale: float) -> None:
    """Units that never fire and units that always fire alike; float32 products make the sum's halves differ."""
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(300, 12, generator=generator, dtype=torch.float64).relu() * scale
    rows[:, :dead] = 0
    rows[:, 12 - twins :] = rows[:, 4 : 4 + twins]
    total = rows.T @ rows
    total += total.triu(1) * 1e-9
    factor = prepare(Moment(total, 300), MEMIT, 1.0)
    assert factor.dead == dead
    assert (factor.shift > 0) == (dead + twins > 0)
    assert factor.shift in SHIFTS and factor.shift <= 1e-4
    # Symmetrized, and tau of trace(C) / F on its diagonal: nothing else was done to it.
    mean = (total + total.T) / 600
    tau = factor.shift * float(mean.trace()) / 12
    assert gap(factor.lower @ factor.lower.T, mean + tau * torch.eye(12, dtype=torch.float64)) < SAME
    # Where a unit never fired in a key either, nothing of the weight that reads it changes.
    found = gains(factor, rows[:5])
    assert torch.isfinite(found).all() and float(found[:, :dead].abs().sum()) == 0
    below = SHIFTS[: SHIFTS.index(factor.shift)]
    for less in below:
        lower, info = torch.linalg.cholesky_ex(mean + less * mean.trace() / 12 * torch.eye(12, dtype=torch.float64))
        assert info or lower.diagonal().square().min() < SMALLEST_PIVOT * mean.trace() / 12


def test_a_moment_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite, or zero"):
        decomposed(Moment.empty(4), "moment")
    bad = torch.eye(4, dtype=torch.float64)
    bad[0, 0] = float("nan")
    with pytest.raises(ValueError, match="not finite"):
        factor_metric(decomposed(Moment(bad, 5), "null space"), ALPHAEDIT, 1.0, SHARE)


@pytest.mark.parametrize("metric", ["moment", "null space"])
def test_a_decomposition_lies_in_memory_as_it_does_when_read_from_a_file(metric: Metric) -> None:
    keys = torch.randn(60, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    parts = decomposed(Moment(keys.T @ keys, 60), metric)
    assert sum(part.ndim == 2 for part in parts.values()) == 1
    assert all(part.is_contiguous() for part in parts.values())

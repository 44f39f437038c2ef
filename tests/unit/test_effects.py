"""Effects of causal tracing: windows, roles, intervals by the right n, and the rule that names layers."""

from __future__ import annotations

import pytest
import torch
from memedit.numerics.effects import ROLES, by_role, clustered_mean, default_window, find_peak, token_roles, windows
from torch import Tensor

EXACT = 1e-12


def test_the_default_window_is_the_papers_on_its_model_and_one_on_a_small_one() -> None:
    assert (default_window(48), default_window(28), default_window(6), default_window(1)) == (10, 6, 1, 1)


def test_windows_are_the_papers_not_its_codes() -> None:
    assert windows(48, 10)[20] == (16, 25)  # the published code covers 15 to 24
    assert windows(6, 1) == tuple((n, n) for n in range(6))
    assert windows(4, 10) == ((0, 3),) * 4
    assert windows(6, 3) == ((0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 5))


@pytest.mark.parametrize(
    ("n", "first", "last", "roles"),
    [
        (8, 1, 4, (None, 0, 1, 1, 2, 3, 4, 5)),
        (3, 0, 0, (2, 3, 5)),
        (3, 0, 1, (0, 2, 5)),
        (2, 1, 1, (None, 2)),
    ],
)
def test_each_token_has_one_role(n: int, first: int, last: int, roles: tuple[int | None, ...]) -> None:
    assert token_roles(n, first, last) == roles


def test_a_role_is_the_mean_of_its_tokens_and_no_number_without_one() -> None:
    table = torch.arange(16.0).view(8, 2)
    found = by_role(table, token_roles(8, 1, 4))
    assert found[ROLES.index("middle subject tokens")].tolist() == [5.0, 6.0]
    short = by_role(table[:2], token_roles(2, 0, 0))
    assert short[2].tolist() == [0.0, 1.0]
    assert bool(short[0].isnan().all())


def test_errors_of_facts_about_one_subject_each_are_the_samples() -> None:
    values = torch.randn(40, 3, dtype=torch.float64)
    found = clustered_mean(values, torch.arange(40))
    assert torch.allclose(found.mean, values.mean(0), atol=EXACT)
    assert torch.allclose(found.error, values.std(0) / 40**0.5, atol=EXACT)


def test_facts_that_repeat_one_another_do_not_narrow_the_interval() -> None:
    values = torch.randn(40, 3, dtype=torch.float64)
    once = clustered_mean(values, torch.arange(40))
    thrice = clustered_mean(values.repeat_interleave(3, 0), torch.arange(40).repeat_interleave(3))
    assert torch.allclose(once.error, thrice.error, atol=EXACT)
    naive = clustered_mean(values.repeat_interleave(3, 0), torch.arange(120))
    assert bool((naive.error < 0.7 * once.error).all())  # the converse: facts taken for independent


def test_facts_without_a_token_do_not_count() -> None:
    values = torch.tensor([[1.0, 1.0], [3.0, torch.nan], [5.0, torch.nan]])
    found = clustered_mean(values, torch.arange(3))
    assert found.mean.tolist() == [3.0, 1.0]
    assert found.count.tolist() == [3, 1]
    assert found.error[1].isnan()


def peak_of(gap: list[float], mlp: list[float], *, error: float = 0.01, total: float = 0.5) -> tuple[int, int] | None:
    as_tensor = [torch.tensor(part, dtype=torch.float64) for part in (gap, [error] * len(gap), mlp)]
    tensors: tuple[Tensor, Tensor, Tensor] = (as_tensor[0], as_tensor[1], as_tensor[2])
    return find_peak(*tensors, total).layers


def test_the_range_is_the_run_around_the_peak_ended_where_mlps_matter() -> None:
    gap = [0.1, 0.3, 0.4, 0.35, 0.25, 0.1, 0.0, 0.0, 0.3, 0.0] + [0.0] * 10
    mlp = [0.0, 0.1, 0.2, 0.3, 0.1] + [0.0] * 15
    assert peak_of(gap, mlp) == (1, 3)  # 1 to 4 hold half of the peak; MLPs peak at 3; 8 is another run


def test_the_range_is_a_fifth_of_the_depth_at_most_and_keeps_its_end() -> None:
    assert peak_of([0.4] * 20, [0.0] * 9 + [0.3] + [0.0] * 10) == (6, 9)
    assert peak_of([0.4, 0.3, 0.2, 0, 0, 0], [0.1, 0.3, 0.1, 0, 0, 0]) == (1, 1)


def test_the_last_layer_within_ten_percent_of_the_peak_ends_the_range() -> None:
    assert peak_of([0.4] * 20, [0.0] * 5 + [0.30, 0.28, 0.26] + [0.0] * 12) == (3, 6)


def test_no_site_is_named_where_the_peak_may_be_chance_or_is_small() -> None:
    gap, mlp = [0.3, 0.1, 0.0], [0.3, 0.1, 0.0]
    assert peak_of(gap, mlp) == (0, 0)
    assert peak_of(gap, mlp, error=0.11) is None
    assert peak_of(gap, mlp, total=7.0) is None
    assert peak_of(gap, mlp, error=float("nan")) is None  # one subject alone
    assert peak_of([-0.1, 0.0, 0.0], mlp) is None

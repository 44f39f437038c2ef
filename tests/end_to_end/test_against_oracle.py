"""The product against the published algorithm, one to one: same contexts, same moments, both models, both semantics."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from examples.benchmarks.both import Both
from examples.reference import editing as oracle
from examples.reference.editing import gap
from memedit.config.methods import METHODS
from memedit.editing.keys import context_weights, find_keys
from memedit.numerics.solvers import gains, prepare

pytestmark = pytest.mark.usefixtures("kept_moments")

TARGETS = 1e-4  # relative, float32 under the same steps: rounding differs with the shape of a launch
KEYS = 1e-5  # relative, float32 forwards in launches of different shape
DELTAS = 1e-8  # relative, float64 given the same keys and residuals: two ways to solve one system
FITS = 1e-3  # relative: what key noise of 1e-7 becomes on the edited keys through metrics of condition 1e8
N = 2
TOKENS = {"moments.tokens": 6000}


@pytest.fixture(scope="module")
def opened(made_folder: Path) -> Both:
    return Both(made_folder, N, TOKENS)


@pytest.fixture(scope="module", params=["memedit", "reference"])
def both(request: pytest.FixtureRequest, made_folder: Path, opened: Both) -> Both:
    settings = {"method.semantics": request.param, "target.optimizer": "adam", "target.steps": 6, **TOKENS}
    return Both(made_folder, N, settings, lm=opened.lm, moments=opened.moments, contexts=opened.contexts)


def test_targets_equal_the_published_codes(both: Both) -> None:
    found = both.targets()
    for n, step in enumerate(both.step_of(found.start)):
        wanted, losses = oracle.find_target(both.lm.model, both.edits[n], both.knobs, step)
        assert gap(found.wanted[n], wanted) < TARGETS
        assert int(found.steps[n]) == len(losses) - 1
        assert abs(float(found.loss[n]) - losses[-1]) < TARGETS * max(1.0, losses[-1])


def test_keys_equal_the_published_codes(both: Both) -> None:
    weights = context_weights(both.recipe.method, len(both.prompts[0]))
    for layer in both.layers:
        found = find_keys(both.lm, both.prompts, layer, weights)
        assert gap(found, oracle.keys_at(both.lm.model, layer, both.edits, both.knobs.semantics)) < KEYS


def test_deltas_solve_the_published_system_given_the_same_keys_and_residuals(both: Both) -> None:
    generator = torch.Generator().manual_seed(5)
    residuals = torch.randn(N, both.lm.architecture.width, generator=generator, dtype=torch.float64)
    for layer in both.layers:
        keys = oracle.keys_at(both.lm.model, layer, both.edits, both.knobs.semantics)
        found = residuals.T @ gains(prepare(both.moments[layer], METHODS["memit"], both.ridge), keys)
        system = both.ridge * both.moments[layer].mean + keys.T @ keys
        assert gap(found, residuals.T @ torch.linalg.solve(system, keys.T).T) < DELTAS


def test_the_whole_solve_does_to_the_keys_what_the_published_code_does(both: Both) -> None:
    before = {n: both.lm.weight(n).clone() for n in both.layers}
    wanted = both.targets().wanted
    update = both.update(wanted)
    assert all(torch.equal(both.lm.weight(n), before[n]) for n in both.layers)
    means = {n: both.moments[n].mean for n in both.layers}
    dtype = both.stored[both.layers[0]].dtype
    try:
        seen = oracle.edit_model(
            both.lm.model, both.edits, means, both.knobs, lambda _n: 0.0, targets=wanted, store_dtype=dtype
        )
    finally:
        for n, weight in before.items():
            both.lm.weight(n).copy_(weight)
    for n in both.layers:
        keys = seen.keys[n]
        assert gap(update.deltas[n].dense() @ keys.T, seen.deltas[n] @ keys.T) < FITS

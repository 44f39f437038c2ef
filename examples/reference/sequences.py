"""Edits in batches, and how far apart what comes of them is: for the tests, and for the benchmark of methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import memedit
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.editing.moment_cache import moment_of, plan_moments
from memedit.edits.edit import EditRequest
from memedit.model.load import load
from memedit.results.report import Report
from memedit.storage.deltas import read_delta


def in_batches(
    folder: Path,
    base: Path,
    batches: Sequence[Sequence[EditRequest]],
    first: Mapping[str, Any] | None = None,
    **more: Any,
) -> list[Report]:
    """Batch after batch, each on the output of the one before; `first` are the first's knobs, which the others keep."""
    model, reports = base, list[Report]()
    for number, batch in enumerate(batches):
        asked: dict[str, Any] = more if number else {"settings": first}
        reports.append(memedit.apply(batch, model, folder / str(number), **asked))
        model = folder / str(number)
    return reports


def apart(base: Path, one: Path, other: Path) -> float:
    """How far two changes of a model are from each other in the metric of its moments, beside the length of the first:
    the mean square of what they do to the corpus."""
    lm = load(base, ModelKnobs(device="cpu"))
    deltas = [read_delta(folder / "memedit" / "delta.safetensors")[0] for folder in (one, other)]
    plan = plan_moments(lm, base, [0, 1, 2], resolve([])[0])
    gap = length = 0.0
    for layer in plan.on:
        (name,) = (name for name in deltas[0] if name.endswith(lm.architecture.parameter(layer)))
        mean = moment_of(plan, layer).mean
        changes = [delta[name].dense() for delta in deltas]
        change, difference = changes[0], changes[1] - changes[0]
        gap += float((difference @ mean * difference).sum())
        length += float((change @ mean * change).sum())
    return (gap / length) ** 0.5

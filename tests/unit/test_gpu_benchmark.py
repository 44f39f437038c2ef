"""The script for a GPU, tried on a CPU with small sizes: it must not fail in the few minutes that a GPU is at hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from examples.benchmarks import gpu
from memedit.edits.edit import EditRequest
from memedit.numerics.moments import Moment
from tests.helpers.simulated_gpu import SimulatedGpus, place

pytestmark = pytest.mark.slow
CPU = gpu.Where("cpu")


@pytest.mark.parametrize("phase", ["commands", "gptj-6b", "many"])
def test_a_phase_measures_and_meets_its_bars(phase: str) -> None:
    work, limit = gpu.PHASES[phase]
    *parts, figures = work(CPU)
    assert parts and parts[0].keys() <= figures.keys()  # a phase that is stopped keeps what it has so far
    assert figures["missed"] == []
    assert limit > 0
    assert json.loads(json.dumps(figures)).keys() == figures.keys()


def test_two_devices_that_disagree_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SAME", -1.0)
    monkeypatch.setattr(gpu, "SAME_SCORE", -1.0)
    monkeypatch.setattr(gpu.Both, "facts", lambda _: [])
    *_, found = gpu.agree(CPU)
    kinds = [line.split(": ")[1].split()[0] for line in found["missed"]]
    assert kinds == ["targets", "moments", "deltas", *gpu.FIGURES, *gpu.FIGURES]


def test_what_only_a_gpu_can_do_runs_on_a_simulated_one(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No line of these phases may meet its first GPU in the minutes that one is at hand."""
    edits = [EditRequest(id=name, subject=name, prompt="{} is", object="red", origin=name) for name in ("Ann", "Bob")]
    made: Any = {"moments": {0: Moment.empty(1)}, "contexts": ("", "I was. ")}
    real = gpu.Both

    def small(_folder: Path, _edits: int, settings: dict[str, Any]) -> gpu.Both:
        return real(tiny_folder, edits, {**settings, "model.device": "cpu"}, lm=lm, **made)

    with SimulatedGpus() as gpus:
        lm = real(tiny_folder, edits, {"model.device": "cpu"}, **made).lm
        place(lm.model, gpus.devices[0])
        monkeypatch.setattr(gpu, "Both", small)
        (found,) = gpu.exhausted(gpu.Where("cuda"))
        told = gpu._memory(small(tiny_folder, 2, gpu.SHORT))
    assert found["missed"] == []
    assert found["batches_in_half"] > found["batches"] == 1
    assert told["search_peak_mb"] <= 1.2 * told["search_told_mb"]


@pytest.mark.process
def test_each_phase_has_a_row_and_a_file_and_one_that_fails_costs_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = {"commands": (gpu.commands, 0), "exhausted": (gpu.exhausted, 60)}
    monkeypatch.setattr(gpu, "PHASES", {"many": (gpu.many, 60), **phases})
    # An unknown device makes the first fail; the second gets too little time; the third needs a GPU, and says so.
    monkeypatch.setattr(sys, "argv", ["gpu", "--device", "nowhere", "--output", str(tmp_path)])
    assert gpu.main() == 1
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.split(" | ") for line in table.splitlines()[4:]]
    assert [row[0] for row in rows] == ["| many", "| commands", "| exhausted"]
    assert rows[0][2].startswith("failed")
    assert rows[1][2].startswith("no time left")
    assert rows[2][2].startswith("skipped")
    assert json.loads((tmp_path / "exhausted.json").read_text())["skipped"]
    assert not (tmp_path / "commands.json").exists()

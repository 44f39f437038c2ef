"""A run killed at any moment leaves its output absent or whole; the same call continues and writes the same bytes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from tests.helpers.killed import Moment, call
from tests.helpers.program import EDITS

MOMENTS = [
    Moment("contexts", "ends"),
    Moment("moments", "advances"),
    Moment("moments", "ends"),
    Moment("before", "ends"),
    Moment("targets", "os.rename", 3),  # the plan and one chunk are kept, the next is about to be
    Moment("targets", "ends"),
    Moment("solve", "ends"),
    Moment("redo", "ends"),
    Moment("after", "ends"),
    Moment("write", "open", 12),
    Moment("write", "os.rename"),  # all is written, nothing is in its place
]
SETTINGS = {
    "polish.steps": 0, "target.steps": 4, "target.redo": 2, "chunk": 2, "moments.tokens": 4000,
    "contexts.openings": ["The", "I"],
}  # fmt: skip


def apply(folder: Path, at: Moment | None = None) -> subprocess.CompletedProcess[str]:
    model = EDITS.parents[1] / "examples" / "models" / "made-small"
    return call(
        folder / "cache", "apply", folder / "edits.jsonl", model, folder / "out", at=at, settings=SETTINGS
    )  # fmt: skip


def contents(out: Path) -> dict[str, bytes]:
    """Every file's bytes, without the seconds that the run took."""
    found = {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    run = json.loads(found["memedit/run.json"])
    run.pop("timings")
    return {**found, "memedit/run.json": json.dumps(run).encode()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    folder = tmp_path_factory.mktemp("resume")
    edits = (EDITS.parent / "small.jsonl").read_text().splitlines(keepends=True)
    (folder / "edits.jsonl").write_text("".join(edits[:4]))
    done = apply(folder)
    assert done.returncode == 0, done.stderr
    assert not any((folder / "cache" / "runs").glob("*/"))
    found = contents(folder / "out")
    shutil.rmtree(folder / "out")
    shutil.rmtree(folder / "cache")
    return folder, found


@pytest.mark.parametrize("moment", MOMENTS, ids=str)
def test_a_killed_run_continues_and_writes_the_same_bytes(
    undisturbed: tuple[Path, dict[str, bytes]], moment: Moment
) -> None:
    folder, expected = undisturbed
    out, cache = folder / "out", folder / "cache"
    try:
        killed = apply(folder, moment)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
        again = apply(folder)
        assert again.returncode == 0, again.stderr
        assert contents(out) == expected
        assert sorted(file.name for file in folder.iterdir()) == ["cache", "edits.jsonl", "out"]
    finally:
        shutil.rmtree(out, ignore_errors=True)
        shutil.rmtree(cache, ignore_errors=True)


def test_targets_in_the_run_folder_are_not_searched_again(undisturbed: tuple[Path, dict[str, bytes]]) -> None:
    folder, _ = undisturbed
    cache = folder / "cache"
    try:
        apply(folder, Moment("targets", "ends"))
        kept = {file: file.stat().st_mtime_ns for file in (cache / "runs").rglob("targets-*")}
        assert len(kept) == 2
        # A second run that is killed at the same moment reads both chunks and writes neither.
        apply(folder, Moment("targets", "ends"))
        assert {file: file.stat().st_mtime_ns for file in (cache / "runs").rglob("targets-*")} == kept
        # The converse: without them a file is renamed into its place for each chunk.
        shutil.rmtree(cache / "runs")
        assert apply(folder, Moment("targets", "os.rename", 3)).returncode == -signal.SIGKILL
        assert len(list((cache / "runs").rglob("targets-*.safetensors"))) == 1
    finally:
        shutil.rmtree(cache, ignore_errors=True)

"""A disk that is full and a process that is killed leave an output absent or whole."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from memedit.errors import MemeditError
from memedit.storage import output, writer
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.writer import verify, write_checkpoint
from safetensors.torch import save_file
from tests.helpers.program import event, forked

MIB = 1 << 20


@dataclass(frozen=True)
class Way:
    """How a process writes."""

    limit: int = 0
    """Files of more bytes are refused, where it is not 0."""
    card: int = 8
    """Bytes of the new model card."""
    slow: bool = False
    """With a pause between verifying and renaming, and one between files."""
    overwrite: bool = False


def write_it(source: Path, out: Path, way: Way, said: Path, ready: Event, go: Event) -> None:
    """Write `source` with its tensor "a" plus one to `out`, in a process of its own; `said` gets the error."""
    base = Checkpoint.open(source)
    weights = {"a": base.tensor("a") + 1}
    if way.limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (way.limit, way.limit))
    if way.slow:
        swap, patch = output._swap, writer._patch
        output._swap = lambda *args, **options: (time.sleep(0.3), swap(*args, **options))
        writer._patch = lambda *args: (time.sleep(0.2), patch(*args))
    ready.set()
    go.wait()
    try:
        write_checkpoint(base, out, weights, {"README.md": b"#" * way.card}, link="copy", overwrite=way.overwrite)
    except MemeditError as error:
        said.write_text(f"{error.message}\n{error.hint}")
        sys.exit(error.exit_code)


def folder(path: Path, mib: int) -> Path:
    """A checkpoint of two tensors of `mib` MiB together, and a config."""
    path.mkdir()
    tensors = {name: torch.arange(mib * MIB // 4, dtype=torch.int16).view(torch.float16) for name in "ab"}
    finite = {name: tensor.nan_to_num(0, 0, 0).reshape(-1, 1024) for name, tensor in tensors.items()}
    save_file(finite, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}")
    return path


def written(said: Path, source: Path, out: Path, way: Way = Way(), n: int = 1) -> list[tuple[int | None, str]]:
    """Let processes write to one output at the same time; their exit codes and errors, in the folder `said`."""
    said.mkdir()
    go, ready = event(), [event() for _ in range(n)]
    running = [forked(write_it, source, out, way, said / str(number), ready[number], go) for number in range(n)]
    assert all(one.wait(120) for one in ready)
    go.set()
    for one in running:
        one.join(120)
    texts = [(said / str(number)).read_text() if (said / str(number)).is_file() else "" for number in range(n)]
    return [(one.exitcode, text) for one, text in zip(running, texts, strict=True)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six MiB."""
    at = tmp_path / "disk"
    at.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=6m", "none", str(at)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs rights that this user has not")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path, small_disk: Path) -> None:
    ((code, said),) = written(tmp_path / "said", folder(tmp_path / "base", 8), small_disk / "out")
    assert code == 5 and "free" in said
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_no_output(tmp_path: Path, small_disk: Path) -> None:
    # The base's card is kept beside the new one: room for the source is not room for all that is written.
    source = folder(tmp_path / "base", 4)
    (source / "README.md").write_bytes(b"#" * MIB)
    ((code, said),) = written(tmp_path / "said", source, small_disk / "out", Way(card=3 * MIB))
    assert code == 5 and "no space left" in said
    assert list(small_disk.iterdir()) == []


def test_a_file_that_may_not_grow_leaves_no_output(tmp_path: Path) -> None:
    ((code, said),) = written(tmp_path / "said", folder(tmp_path / "base", 4), tmp_path / "out", Way(limit=MIB))
    assert code == 5 and "too large" in said
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "said"]


def test_a_kill_at_any_time_leaves_an_output_absent_or_whole(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base", 96), tmp_path / "out"
    base = Checkpoint.open(source)
    weights = {"a": base.tensor("a") + 1}
    seen: set[bool] = set()
    for wait in (0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        ready, go = event(), event()
        writing = forked(write_it, source, out, Way(), tmp_path / "none", ready, go)
        assert ready.wait(60)
        go.set()
        time.sleep(wait)
        writing.kill()
        writing.join()
        seen.add(out.exists())
        if out.exists():
            verify(out, weights, base)
            shutil.rmtree(out)
    assert False in seen, "no kill came before the output was in place"
    assert written(tmp_path / "said", source, out) == [(0, "")]
    verify(out, weights, base)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out", "said"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_processes_that_write_one_output_leave_one_of_them_whole(overwrite: bool, tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base", 8), tmp_path / "out"
    base = Checkpoint.open(source)
    weights = {"a": base.tensor("a") + 1}
    ended = written(tmp_path / "said", source, out, Way(slow=True, overwrite=overwrite), 3)
    assert sorted(code or 0 for code, _ in ended) == ([0, 0, 0] if overwrite else [0, 2, 2]), ended
    assert overwrite or sum("exists and is not empty" in said for _, said in ended) == 2
    verify(out, weights, base)
    assert sorted(entry.name for entry in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out", "said"]

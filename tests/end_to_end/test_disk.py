"""A disk that is full and a process that is killed leave an output absent or whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.writer import verify, write_checkpoint
from safetensors.torch import save_file
from tests.helpers.program import event, forked

MIB = 1 << 20
# Writes SOURCE with its tensor "a" plus one to OUT; files of more than LIMIT bytes are refused where LIMIT is given.
WRITES = """
import resource, sys, time
from pathlib import Path
from memedit.errors import MemeditError
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.writer import write_checkpoint
source, out, limit, flags = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(",")
base = Checkpoint.open(source)
weights = {"a": base.tensor("a") + 1}
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
if "slow" in flags:  # a pause between verifying and renaming, and one between files
    from memedit.storage import output, writer
    swap, patch = output._swap, writer._patch
    output._swap = lambda *args, **options: (time.sleep(0.3), swap(*args, **options))
    writer._patch = lambda *args: (time.sleep(0.2), patch(*args))
if "told" in flags:
    print("ready", flush=True)
if "slow" in flags:
    sys.stdin.read()
try:
    write_checkpoint(base, out, weights, {"README.md": b"# edited"}, link="copy", overwrite="overwrite" in flags)
except MemeditError as error:
    print(error.message, error.hint, sep="\\n", file=sys.stderr)
    sys.exit(error.exit_code)
"""


def folder(path: Path, mib: int) -> Path:
    """A checkpoint of two tensors of `mib` MiB together, and a config."""
    path.mkdir()
    tensors = {name: torch.arange(mib * MIB // 4, dtype=torch.int16).view(torch.float16) for name in "ab"}
    finite = {name: tensor.nan_to_num(0, 0, 0).reshape(-1, 1024) for name, tensor in tensors.items()}
    save_file(finite, path / "model.safetensors", {"format": "pt"})
    (path / "config.json").write_text("{}")
    return path


def arguments(source: Path, out: Path, limit: int = 0, told: str = "") -> list[str]:
    return [sys.executable, "-c", WRITES, str(source), str(out), str(limit), told]


def wrote(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of six MiB."""
    at = tmp_path / "disk"
    at.mkdir()
    mount = shutil.which("mount")
    if mount is None or wrote(mount, "-t", "tmpfs", "-o", "size=6m", "none", str(at)).returncode:
        pytest.skip("mounting a file system needs rights that this user has not")
    try:
        yield at
    finally:
        subprocess.run(["umount", str(at)], check=True)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path: Path, small_disk: Path) -> None:
    done = wrote(*arguments(folder(tmp_path / "base", 8), small_disk / "out"))
    assert done.returncode == 5 and "free" in done.stderr and "Traceback" not in done.stderr
    assert list(small_disk.iterdir()) == []


def test_a_disk_that_fills_up_on_the_way_leaves_no_output(tmp_path: Path, small_disk: Path) -> None:
    # The base's card is kept beside the new one: room for the source is not room for all that is written.
    source = folder(tmp_path / "base", 4)
    (source / "README.md").write_bytes(b"#" * MIB)
    code = WRITES.replace('b"# edited"', f'b"#" * {3 * MIB}')
    done = wrote(sys.executable, "-c", code, str(source), str(small_disk / "out"), "0", "")
    assert done.returncode == 5 and "no space left" in done.stderr and "Traceback" not in done.stderr
    assert list(small_disk.iterdir()) == []


def test_a_file_that_may_not_grow_leaves_no_output(tmp_path: Path) -> None:
    done = wrote(*arguments(folder(tmp_path / "base", 4), tmp_path / "out", MIB))
    assert done.returncode == 5 and "too large" in done.stderr and "Traceback" not in done.stderr
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base"]


def write_one_more(source: Path, out: Path, ready: Event) -> None:
    base = Checkpoint.open(source)
    weights = {"a": base.tensor("a") + 1}
    ready.set()
    write_checkpoint(base, out, weights, {"README.md": b"# edited"}, link="copy")


def test_a_kill_at_any_time_leaves_an_output_absent_or_whole(tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base", 96), tmp_path / "out"
    base = Checkpoint.open(source)
    weights = {"a": base.tensor("a") + 1}
    seen: set[bool] = set()
    for wait in (0, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4):
        ready = event()
        writing = forked(write_one_more, source, out, ready)
        assert ready.wait(60)
        time.sleep(wait)
        writing.kill()
        writing.join()
        seen.add(out.exists())
        if out.exists():
            verify(out, weights, base)
            shutil.rmtree(out)
    assert False in seen, "no kill came before the output was in place"
    done = wrote(*arguments(source, out))
    assert done.returncode == 0, done.stderr
    verify(out, weights, base)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out"]


@pytest.mark.parametrize("flags", ["slow,told", "slow,told,overwrite"])
def test_processes_that_write_one_output_leave_one_of_them_whole(flags: str, tmp_path: Path) -> None:
    source, out = folder(tmp_path / "base", 8), tmp_path / "out"
    base = Checkpoint.open(source)
    weights = {"a": base.tensor("a") + 1}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    running = [subprocess.Popen(arguments(source, out, 0, flags), text=True, **pipes) for _ in range(3)]
    for one in running:
        assert one.stdout is not None and one.stdout.readline() == "ready\n"
    for one in running:  # all begin to write now
        assert one.stdin is not None
        one.stdin.close()
        one.stdin = None
    errors = [one.communicate(timeout=120)[1] for one in running]
    codes = sorted(one.returncode for one in running)
    assert codes == ([0, 0, 0] if "overwrite" in flags else [0, 2, 2]), errors
    assert "overwrite" in flags or sum("exists and is not empty" in error for error in errors) == 2
    verify(out, weights, base)
    assert sorted(entry.name for entry in out.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["base", "out"]

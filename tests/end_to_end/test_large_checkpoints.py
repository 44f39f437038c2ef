"""A large checkpoint is written in little memory, file by file or in new shards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

MIB = 1 << 20
SIDE = 4096  # a tensor is 32 MiB of bfloat16
ALLOWED = 7 * 32 * MIB  # beyond the interpreter with its libraries
WRITES = """
import resource, sys
from pathlib import Path
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.writer import write_checkpoint

def most():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

source, out, limit = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
before = most()
base = Checkpoint.open(source)
write_checkpoint(base, out, {"t.7": base.tensor("t.7") + 1}, {}, max_shard=limit or None)
print(most() - before)
"""


@pytest.mark.parametrize(("tensors", "limit"), [(64, 0), (20, 256 * MIB)], ids=["2 GiB", "640 MiB in three shards"])
def test_no_more_than_a_few_tensors_are_in_memory(tmp_path: Path, tensors: int, limit: int) -> None:
    if shutil.disk_usage(tmp_path).free < 5000 * MIB:
        pytest.skip("needs 5 GB of disk")
    size = 2 * SIDE * SIDE
    header = {
        f"t.{n}": {"dtype": "BF16", "shape": [SIDE, SIDE], "data_offsets": [n * size, (n + 1) * size]}
        for n in range(tensors)
    }
    text = json.dumps(header).encode()
    source, out = tmp_path / "base", tmp_path / "out"
    source.mkdir()
    with (source / "model.safetensors").open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(8 + len(text) + tensors * size)  # sparse
    try:
        done = subprocess.run(
            [sys.executable, "-c", WRITES, str(source), str(out), str(limit)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert int(done.stdout) < ALLOWED
        assert len(list(out.glob("*.safetensors"))) == (3 if limit else 1)
        assert sum(file.stat().st_size for file in out.glob("*.safetensors")) > tensors * size
    finally:
        shutil.rmtree(out, ignore_errors=True)

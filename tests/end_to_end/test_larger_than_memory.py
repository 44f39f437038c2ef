"""A model is edited in less memory than its weights need: blocks are read from disk as they run."""

from __future__ import annotations

import json
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from memedit.cli.app import main
from safetensors.torch import load_file
from tests.conftest import byte_tokenizer
from tests.helpers.in_process import run_main
from tests.helpers.program import forked
from transformers import LlamaConfig, LlamaForCausalLM

MB = 1 << 20
WIDTH, LAYERS = 640, 16
EDITS = [
    {"id": "a", "subject": "Anna", "prompt": "{} is in", "object": "Rome", "object_old": "Bonn"},
    {"id": "b", "subject": "Bela", "prompt": "{} is at", "object": "Oslo", "object_old": "Pisa"},
]
QUICK = (
    "--layers", "7", "--rounding", "nearest", "--polish", "0", "--set", "target.steps=2",
    "--set", "contexts.openings=[A]", "--set", "contexts.tokens=2",
    "--set", "eval.derive=false", "--set", "eval.tokens=1", "--set", "moments.tokens=100", "--set", "moments.row=50",
    "--device", "cpu",
)  # fmt: skip


def made(folder: Path, width: int, heads: int) -> Path:
    """A random Llama in bfloat16, in files of 20 MB."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=258, hidden_size=width, intermediate_size=192, num_hidden_layers=LAYERS, num_attention_heads=heads,
        max_position_embeddings=256, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="20MB")
    byte_tokenizer().save_pretrained(folder)
    return folder


def limited(first: list[str], arguments: list[str], room: int, said: str) -> None:
    """Run the program with `room` bytes of private memory more than this process has after a first, small run."""
    torch.set_num_threads(1)
    run_main(first)
    used = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert used
    stream = os.open(said, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(stream, number)
    sys.stdout, sys.stderr, sys.argv = open(1, "w"), open(2, "w"), ["memedit", *arguments]  # noqa: SIM115 - they stay
    most = int(used[1]) * 1024 + room
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    main()


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="the limit is one of Linux")
def test_a_model_is_edited_in_less_memory_than_its_weights_need(tmp_path: Path) -> None:
    folder, small = made(tmp_path / "model", WIDTH, 10), made(tmp_path / "small", 32, 4)
    files = sorted(folder.glob("*.safetensors"))
    weights = 2 * sum(file.stat().st_size for file in files)  # float32 on a CPU
    assert weights > 120 * MB and len(files) > 3
    (tmp_path / "edits.jsonl").write_text("".join(json.dumps(one) + "\n" for one in EDITS))
    (tmp_path / "corpus.txt").write_text("\n".join(f"The {n} old bridges of town {n % 7}." for n in range(30)))

    def command(model: Path, name: str, *more: str) -> list[str]:
        return ["apply", str(tmp_path / "edits.jsonl"), "-m", str(model), "-o", str(tmp_path / name), *QUICK,
                "--corpus", str(tmp_path / "corpus.txt"), *more]  # fmt: skip

    def run(name: str, *more: str) -> tuple[int | None, str]:
        said = tmp_path / f"{name}.txt"
        first = command(small, f"{name}-first", "--memory", "1MB")
        process = forked(limited, first, command(folder, name, *more), 80 * MB, str(said))
        process.join()
        assert (tmp_path / f"{name}-first" / "model.safetensors").is_file()
        return process.exitcode, said.read_text()

    whole = run_main(command(folder, "whole"))
    assert whole.code == 0, whole.err
    code, said = run("streamed", "--memory", "45MB")
    assert code == 0, said
    line = r"the weights \(\d+\.\d MB\) do not fit in --memory 45MB: blocks are read from disk as they are needed; "
    assert re.search(line + r"expect about \d+\.\d times the time", said)
    # The converse: the limit is a real one.
    code, said = run("full")
    assert code == 5 and "memory is full" in said and "--memory" in said
    one, two = (load_file(tmp_path / name / "memedit" / "ledger.safetensors") for name in ("whole", "streamed"))
    assert one.keys() == two.keys() and all(torch.allclose(one[name], two[name], rtol=0, atol=1e-5) for name in one)
    edited = 0
    for file in files:
        was, here, there = (load_file(tmp_path / place / file.name) for place in ("model", "whole", "streamed"))
        for name, tensor in here.items():
            # One step of bfloat16: a target that is off by 1e-7 can tip the rounding of an element.
            assert torch.allclose(tensor.float(), there[name].float(), rtol=2**-7, atol=1e-5), name
            edited += not torch.equal(was[name], tensor)
    assert edited == 1

"""Several processes, as torchrun starts them, write the bytes of one; a run whose process dies ends, and continues."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from memedit.config.recipe import ModelKnobs
from memedit.editing import moments
from memedit.errors import MemeditError, ResourceError
from memedit.forward.packing import packed
from memedit.model.load import LanguageModel, ModelSource, load
from memedit.progress import Advance
from memedit.ranks import Ranks, joined
from tests.conftest import ROOT
from tests.helpers.program import EDITS, forked, free_port, memedit, memedit_ranks, rank_environment

SMALL = EDITS.parent / "small.jsonl"
MODEL = ROOT / "examples" / "models" / "made-small"
SETTINGS = {"polish.steps": 2, "target.steps": 6, "chunk": 2, "moments.tokens": 4000, "target.retry": 1}
APPLY = [word for name, value in SETTINGS.items() for word in ("--set", f"{name}={value}")]


def contents(out: Path) -> dict[str, bytes]:
    """Every file's bytes, without the seconds that the run took."""
    found = {str(file.relative_to(out)): file.read_bytes() for file in sorted(out.rglob("*")) if file.is_file()}
    if run := found.get("memedit/run.json"):
        found["memedit/run.json"] = json.dumps({**json.loads(run), "timings": {}}).encode()
    return found


class Applied:
    """A run of `apply` in a folder, and what a single process writes there."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.out, self.cache = folder, folder / "out", folder / "cache"
        (folder / "edits.jsonl").write_text("".join(SMALL.read_text().splitlines(keepends=True)[:5]))
        self.command = ["apply", str(folder / "edits.jsonl"), "-m", str(MODEL), "-o", str(self.out), *APPLY]
        done = memedit(*self.command, cache=self.cache)
        assert done.returncode == 0, done.stderr
        self.expected, self.said = contents(self.out), done.stdout
        assert json.loads(self.expected["memedit/run.json"])["polish"]["preserved"] > 0

    def clear(self) -> None:
        for folder in (self.out, self.cache):
            shutil.rmtree(folder, ignore_errors=True)

    def on(self, world: int) -> list[subprocess.CompletedProcess[str]]:
        return memedit_ranks(world, *self.command, cache=self.cache)

    def torchrun(self, restarts: int) -> subprocess.Popen[str]:
        start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
        start += ["--max-restarts", str(restarts), "--master-port", str(free_port()), "-m", "memedit", *self.command]
        environment = {**os.environ, "MEMEDIT_CACHE": str(self.cache), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            start, env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Applied:
    return Applied(tmp_path_factory.mktemp("ranks"))


# Three batches: two ranks have unequal shares of them.
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_bytes_of_one(applied: Applied, world: int) -> None:
    applied.clear()
    first, *others = applied.on(world)
    assert first.returncode == 0, first.stderr
    assert contents(applied.out) == applied.expected
    assert first.stdout == applied.said
    assert [(one.returncode, one.stdout, one.stderr) for one in others] == [(0, "", "")] * (world - 1)
    assert not any((applied.cache / "runs").glob("*/"))


def process_of(rank: int, restart: int, cache: Path) -> int:
    """The process of a rank that torchrun started for the run with this cache, after so many restarts."""
    wanted = {f"RANK={rank}", f"TORCHELASTIC_RESTART_COUNT={restart}", f"MEMEDIT_CACHE={cache}"}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if wanted <= set((folder / "environ").read_bytes().decode(errors="replace").split("\0")):
                return int(folder.name)
    raise LookupError(f"there is no process of rank {rank}")


def kill(
    run: subprocess.Popen[str], rank: int, restart: int, applied: Applied, delay: float, *, at_work: bool = True
) -> None:
    """Kill a rank some time after its start or, if `at_work`, after the next batch of targets was found."""
    kept: set[Path] | None = None
    while True:
        assert run.poll() is None, run.communicate()
        now = set((applied.cache / "runs").rglob("targets-*.safetensors"))
        with suppress(LookupError):
            process = process_of(rank, restart, applied.cache)
            kept = now if kept is None else kept
            if now > kept or not at_work:
                time.sleep(delay)
                os.kill(process, signal.SIGKILL)
                return
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found in /proc")
def test_a_killed_process_ends_the_run_which_continues_to_the_same_bytes(applied: Applied) -> None:
    applied.clear()
    draw = random.Random(seed := time.time_ns())
    run = applied.torchrun(restarts=1)
    try:
        kill(run, 1, 0, applied, draw.uniform(0, 0.2))
        # torchrun starts both again. The first rank is killed before it can be done, and no restart is left.
        kill(run, 0, 1, applied, draw.uniform(0, 2), at_work=False)
        _, said = run.communicate(timeout=120)
    finally:
        run.terminate()
    assert run.returncode == 1, (seed, said)
    # The first rank may notice that the other has gone before torchrun ends it; it has no other error to tell.
    errors = [line for line in said.splitlines() if line.startswith("error:")]
    assert all("a process of this run has ended" in line for line in errors), said
    assert not applied.out.exists()
    # What is kept is used: there are three batches, and three ranks for those that are left.
    assert list((applied.cache / "runs").rglob("targets-*.safetensors"))
    results = applied.on(3)
    assert [one.returncode for one in results] == [0, 0, 0], (seed, results[0].stderr)
    assert contents(applied.out) == applied.expected, seed


def test_an_error_is_told_once_and_has_its_exit_code(applied: Applied, tmp_path: Path) -> None:
    wrong = [*applied.command[:1], str(tmp_path / "none.jsonl"), *applied.command[2:]]
    first, second = memedit_ranks(2, *wrong, cache=tmp_path)
    assert first.returncode == 2
    assert [line.partition(":")[0] for line in first.stderr.splitlines()[-2:]] == ["error", "hint"]
    assert (second.returncode, second.stdout, second.stderr) == (0, "", "")


def test_a_command_that_shares_nothing_runs_once(tmp_path: Path) -> None:
    first, second = memedit_ranks(2, "version", cache=tmp_path)
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout
    assert (second.stdout, second.stderr) == ("", "")


def test_eval_trace_and_stats_print_and_write_what_one_process_does(tmp_path: Path) -> None:
    def printed(*command: object) -> tuple[str, str]:
        alone = memedit(*command, "-m", MODEL, cache=tmp_path / "one")
        assert alone.returncode == 0, alone.stderr
        first, _ = memedit_ranks(2, *command, "-m", MODEL, cache=tmp_path / "two")
        assert first.returncode == 0, first.stderr
        return alone.stdout, first.stdout

    one, two = (json.loads(text) for text in printed("eval", SMALL, "--limit", 4, "--base", MODEL, "--json"))
    assert {**one, "timings": {}} == {**two, "timings": {}}
    one, two = printed("trace", SMALL, "--limit", 2, "--samples", 2, "--json")
    assert one == two
    printed("stats", "--layers", "2-3", "--corpus", "self", "--tokens", 10_000)
    assert contents(tmp_path / "one" / "moments") == contents(tmp_path / "two" / "moments")


def in_ranks(world: int, function: Callable[[Ranks, Path], None], folder: Path) -> None:
    """Call a function on rank 0 of some processes."""
    port = free_port()
    processes = [forked(as_rank, rank, world, port, function, folder) for rank in range(world)]
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * world


def as_rank(rank: int, world: int, port: int, function: Callable[[Ranks, Path], None], folder: Path) -> None:
    os.environ.update(rank_environment(rank, world, port))
    torch.set_num_threads(1)
    moments.TOKENS_PER_LAUNCH, moments.LAUNCHES_SUMMED = 128, 3
    ranks = joined()
    if rank:
        ranks.serve()
        return
    function(ranks, folder)
    ranks.dismiss()


def measured(lm: LanguageModel, ranks: Ranks) -> dict[int, torch.Tensor]:
    texts = [f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(300)]
    found = moments.measure(lm, packed(texts, lm.tokenizer, 32), [0, 2], 4000, ranks=ranks)
    assert found[0].count == 4000
    return {layer: one.total for layer, one in found.items()}


def measure_twice(ranks: Ranks, folder: Path) -> None:
    lm = load(folder, ModelKnobs(path=str(folder)))
    one, shared = measured(lm, Ranks()), measured(lm, ranks)
    assert all(torch.equal(one[layer], shared[layer]) for layer in one)


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_shared_moments_have_the_bits_of_one_process(tiny_folder: Path) -> None:
    in_ranks(3, measure_twice, tiny_folder)


def task(_lm: LanguageModel, item: int, advance: Advance) -> tuple[int, int] | None:
    """Does nothing slowly; from item 20 on it gives None, and fails on other ranks from item 100 on."""
    time.sleep(0.05)
    rank = int(os.environ["RANK"])
    if item >= 100 and rank:
        raise ResourceError(f"the GPU of rank {rank} is full", "take a larger one")
    advance(1)
    return None if 20 <= item < 100 else (item, rank)


def share_twice(ranks: Ranks, folder: Path) -> None:
    ranks.open(ModelSource(folder, ModelKnobs(path=str(folder))))
    lm = load(folder, ModelKnobs(path=str(folder)))
    seen: list[int] = []
    results = ranks.each(lm, task, list(range(40)), lambda done, *_, **__: seen.append(done))
    assert [one and one[0] for one in results[:20]] == list(range(20))
    assert {one[1] for one in results if one} == {0, 1}  # both ranks took some
    assert results[20:] == [None] * 20
    assert 20 <= sum(seen) <= 22
    with pytest.raises(MemeditError, match="rank 1 is full") as told:
        ranks.each(lm, task, list(range(100, 200)))
    assert (told.value.exit_code, told.value.hint) == (5, "take a larger one")


@pytest.mark.parametrize("tiny_folder", ["llama"], indirect=True)
def test_results_come_in_order_none_stops_and_errors_reach_the_first_rank(tiny_folder: Path) -> None:
    in_ranks(2, share_twice, tiny_folder)

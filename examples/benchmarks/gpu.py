"""`make gpu`: everything that needs a GPU to be known, in the order of its worth, within a number of minutes.

    python -m examples.benchmarks.gpu [--minutes 8] [--output gpu-out] [--device cuda] [--phase NAME ...]

    agree      the shipped models on the CPU and on the GPU, in float32 and bfloat16: targets, changes, scores
    commands   apply, eval and trace of a shipped model, whole, on the GPU
    gptj-6b    random weights of that shape in bfloat16: moments, targets, keys, solve, rounding; where time goes
    llama3-8b  the same
    exhausted  too little memory on purpose: the search goes on in smaller batches, and finds the same targets
    many       10,000 edits of the shape of GPT-J, if there is time left

Each phase is a process with its own limit, so that one that fails or hangs costs no other. OUTPUT gets a JSON file of
each phase and `table.md`, as they end; a row that misses its bar says so, and the exit code is then 1. Without a GPU
the phases run on the CPU, with small sizes: to see that they work.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import memedit
import torch
from memedit.config.recipe import PolishKnobs
from memedit.editing.polish import polish
from memedit.editing.rounding import Rounding, round_delta
from memedit.editing.solve import Update, solve
from memedit.editing.target_search import Search, memory_for
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
from memedit.numerics.rounding import disturbance
from memedit.storage.artifacts import Store
from safetensors.torch import save_file

from .both import FACTS, FIGURES, RANDOM, ROOT, Both
from .counting import peak_rate
from .pairs import pairs
from .sides import column, end_peak, start_peak, timed

MODELS = ("made-gpt2", "made-llama")
SMALL = "made-small"
"""The shipped model of a trial on a CPU."""
SAME = 1e-4
"""The largest relative gap of a target or a change between a CPU and a GPU, both in float32."""
SAME_SCORE = 0.01
"""The largest gap of a score between float32 and bfloat16."""
PEAK_SHARE = 0.5
"""The share of a plain product's rate that the search is to reach."""
FIXED = {"target.optimizer": "adam", "polish.steps": 0, "target.steps": 10, "target.stop": 0.0}
"""Every edit takes all steps, so that time does not depend on random weights."""
SHORT = {"polish.steps": 0, "target.steps": 3, "target.stop": 0.0}
"""So few steps that two devices must find the same: rounding grows with every step."""
GRACE = 10.0
"""Seconds in which a phase that is killed must end."""
PROFILED = 10
WAYS: tuple[Literal["nearest", "key-aware"], ...] = ("nearest", "key-aware")


@dataclass(frozen=True)
class Where:
    """The device, and whether sizes are small because it is no GPU."""

    device: str

    @property
    def small(self) -> bool:
        """Whether this is only a trial of the script."""
        return not self.device.startswith("cuda")

    @property
    def folders(self) -> list[Path]:
        """The shipped models."""
        return [ROOT / "examples" / "models" / name for name in ([SMALL] if self.small else MODELS)]

    @property
    def edits(self) -> list[EditRequest]:
        """The edits of these models."""
        name, count = ("small", 4) if self.small else ("world", 100)
        return memedit.load_edits(ROOT / "requests" / f"{name}.jsonl")[:count]


Figures = dict[str, Any]
"""What a phase measured. `missed` lists the bars that were not met."""


Phase = Callable[[Where], Iterator[Figures]]
"""Yields what it has so far, after each part: a phase that is stopped keeps the parts before."""


def agree(where: Where) -> Iterator[Figures]:
    """The shipped models on the CPU and on the device, with the same contexts, and float32's moments.

    Targets are compared after a few steps: an edit that stops a step earlier ends elsewhere. Changes are those of the
    same targets, in the metric of the moments: what text does not use moves freely.
    """
    found: Figures = {"missed": []}
    cpu: Figures = {"model.device": "cpu", "model.dtype": "float32"}
    for folder in where.folders:
        name, edits = folder.name, where.edits
        plain = Both(folder, edits, cpu)
        short = Both(folder, edits, {**cpu, **SHORT}, lm=plain.lm, moments=plain.moments, contexts=plain.contexts)
        starts, wanted = short.targets().wanted, plain.targets().wanted
        update = plain.update(wanted)
        row: Figures = {"edits": len(edits), "scores": plain.scores(update)}
        for dtype in ("float32", "bfloat16"):
            settings: Figures = {"model.device": where.device, "model.dtype": dtype}
            there = Both(folder, edits, settings, contexts=plain.contexts)
            shorter = Both(
                folder, edits, {**settings, **SHORT}, lm=there.lm, moments=plain.moments, contexts=plain.contexts
            )
            gaps = {
                "targets": _gap(starts.double(), shorter.targets().wanted.double()),
                "moments": max(_gap(plain.moments[n].total, there.moments[n].total) for n in plain.layers),
                "deltas": _gap_in_metric(plain, update, shorter.update(wanted)),
            }
            row |= {f"{one}_gap_{dtype}": gap for one, gap in gaps.items()}
            row[f"scores_{dtype}"] = scores = there.scores(there.update(there.targets().wanted))
            if dtype == "float32":
                found["missed"] += [f"{name}: {one} {gap:.1e} > {SAME:.0e}" for one, gap in gaps.items() if gap > SAME]
            for figure in FIGURES:
                one, other = row["scores"][figure], scores[figure]
                if one is not None and other is not None and abs(one - other) > SAME_SCORE:
                    found["missed"].append(f"{name}: {figure} {one:.3f} on the CPU, {other:.3f} in {dtype}")
            yield found | {name: row}
        found[name] = row


def commands(where: Where) -> Iterator[Figures]:
    """apply, eval and trace of a shipped model by the Python functions, whole, with a cache of their own."""
    folder, edits = where.folders[0], where.edits
    facts = edits if where.small else memedit.load_edits(FACTS)
    settings: Figures = {"model.device": where.device}
    found: Figures = {"missed": []}
    with tempfile.TemporaryDirectory() as scratch, patch.dict(os.environ, MEMEDIT_CACHE=f"{scratch}/cache"):
        out = Path(scratch) / "out"
        start = time.perf_counter()
        report = memedit.apply(edits, folder, out, facts=() if where.small else facts, settings=settings)
        assert report.after is not None
        figures = {name: getattr(report.after, name) for name in FIGURES}
        scores = {name: figure.mean for name, figure in figures.items() if figure}
        found |= {"apply_s": time.perf_counter() - start, "steps_s": report.timings, "scores": scores}
        yield found
        start = time.perf_counter()
        again = memedit.evaluate(edits, out, settings=settings)
        assert again.after is not None
        found["eval_s"] = time.perf_counter() - start
        # Other launches sum in another order, so a score near a tie may fall the other way.
        if any(abs(getattr(again.after, name).mean - score) > SAME_SCORE for name, score in scores.items()):
            found["missed"].append("eval of what apply wrote gives other scores than apply's own")
        yield found
        start = time.perf_counter()
        traced = memedit.trace(facts[: 2 if where.small else 10], folder, settings=settings)
        yield found | {"trace_s": time.perf_counter() - start, "traced": len(traced.facts)}


def shape(where: Where, name: str) -> Iterator[Figures]:
    """Random weights of a real shape: each part of a run in seconds, its peak of memory, and where the search is."""
    few, more = (4, 6) if where.small else (1_000, 2_000)
    model, settings = f"{RANDOM}{'tiny' if where.small else name}", {"model.device": where.device, **FIXED}
    found: Figures = {"missed": []}
    start = time.perf_counter()
    first = Both(model, pairs(few), settings)
    found["open_and_moments_s"] = time.perf_counter() - start
    start_peak(first)
    spent, _ = timed(first, first.measure)
    tokens = 10 * first.lm.architecture.mlp_width
    found |= {"moments_s": spent, "moments_tokens_per_s": tokens / spent, "moments_peak_mb": end_peak(first) / 1e6}
    yield found
    peak = peak_rate(first.lm.device, first.lm.dtype, 256 if where.small else 8192)

    def measured(both: Both) -> Figures:
        one = column(both, 0)
        one["of_peak"] = one["gmac_per_s"] * 1e9 / peak
        return one

    found["columns"] = [last := measured(first)]
    # GPT-J's bar, 10,000 edits in five minutes, by the time that an edit takes.
    found["ten_thousand_edits_s"] = 10_000 * last["ms_per_edit"] / 1000 + spent
    if not where.small and last["of_peak"] < PEAK_SHARE:
        found["missed"].append(f"the search reaches {last['of_peak']:.0%} of a plain product's rate")
    yield found
    for part in (_memory, _polished, _rounded, _profiled):
        found |= part(first)
        yield found
    second = Both(model, pairs(more), settings, lm=first.lm, moments=first.moments, contexts=first.contexts)
    found["columns"].append(measured(second))
    yield found


def exhausted(where: Where) -> Iterator[Figures]:
    """Too little memory for the batches that were planned: the search halves them, goes on, and finds the same."""
    if where.small:
        yield {"skipped": "memory of a GPU is needed"}
        return
    # A limit of its own, so that the plan is made as if all memory were there.
    both = Both(where.folders[0], 400, {"model.device": where.device, "memory": "60GB", **SHORT})
    engine = both.search.choose_engine().kind
    with tempfile.TemporaryDirectory() as folder:
        _kept_search(both, engine, Path(folder))  # what the plan measures is not what the search takes
        base = torch.cuda.memory_allocated()
        start_peak(both)
        whole = _kept_search(both, engine, Path(folder))
        taken = int(end_peak(both)) - base
        torch.cuda.empty_cache()
        limit = torch.cuda.memory_reserved() + taken // 2
        torch.cuda.set_per_process_memory_fraction(limit / torch.cuda.mem_get_info()[1])
        try:
            less = _kept_search(both, engine, Path(folder))
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0)
    gap = _gap(whole[0].wanted.double(), less[0].wanted.double())
    found: Figures = {"taken_mb": taken / 1e6, "batches": whole[1], "batches_in_half": less[1], "targets_gap": gap}
    missed = [f"targets differ by {gap:.1e}"] if gap > SAME else []
    yield found | {"missed": missed + (["memory did not run out"] if less[1] <= whole[1] else [])}


def many(where: Where) -> Iterator[Figures]:
    """A list of 10,000 edits, whole."""
    count, name = (8, "tiny") if where.small else (10_000, "gptj-6b")
    both = Both(f"{RANDOM}{name}", pairs(count), {"model.device": where.device, **FIXED})
    start_peak(both)
    spent, targets = timed(both, both.targets)
    found: Figures = {"edits": count, "targets_s": spent, "peak_mb": end_peak(both) / 1e6, "missed": []}
    yield found
    solved, _ = timed(both, lambda: both.update(targets.wanted))
    yield found | {"solve_s": solved, "peak_mb": end_peak(both) / 1e6}


PHASES: dict[str, tuple[Phase, int]] = {
    "agree": (agree, 120),
    "commands": (commands, 90),
    "gptj-6b": (lambda where: shape(where, "gptj-6b"), 150),
    "llama3-8b": (lambda where: shape(where, "llama3-8b"), 150),
    "exhausted": (exhausted, 60),
    "many": (many, 300),
}
"""Each phase and the most seconds it gets, in the order of their worth."""


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two rows, relative to the row's length."""
    one, other = one.cpu(), other.cpu()
    return float(((one - other).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-30)).max())


def _gap_in_metric(both: Both, one: Update, other: Update) -> float:
    """The largest distance of two changes of a layer, relative, in the metric of its moments."""
    gaps: list[float] = []
    for n in both.layers:
        mine, metric = one.deltas[n].dense(), both.moments[n].mean
        gaps.append(disturbance(other.deltas[n].dense() - mine, metric) / disturbance(mine, metric))
    return max(gaps)


def _kept_search(both: Both, engine: Any, folder: Path) -> tuple[Targets, int]:
    """The targets as `apply` finds them, by the plan in `folder` if there is one: it halves batches where memory runs
    out. Also the number of batches. No target is kept in the folder.
    """
    found = both.search.run(Store(folder), {}, engine)
    for file in folder.glob("targets-*"):
        file.unlink()
    (plan,) = folder.glob("plan-*.json")
    return found, len(json.loads(plan.read_text())["value"]["batches"])


def _shortened(both: Both, steps: int) -> Search:
    target = both.recipe.target.model_copy(update={"steps": steps})
    return replace(both.search, recipe=both.recipe.model_copy(update={"target": target}))


def _memory(both: Both) -> Figures:
    """The memory that the plan counts with for its first batch, and what the search of it takes."""
    if both.lm.device.type != "cuda":
        return {}
    search, engine = _shortened(both, 2), both.search.choose_engine().kind
    batch = search.plan(range(len(both.plan.edits)), engine)[0]
    sizes = search.sizes(memory_for(both.lm, both.recipe), engine)
    base = torch.cuda.memory_allocated(both.lm.device)
    start_peak(both)
    search.find(batch, engine)
    told = len(batch.edits) * sizes.per_edit + batch.tokens * sizes.per_token
    found = {"batch": len(batch.edits), "launch_tokens": batch.tokens, "search_told_mb": told / 1e6}
    return found | {"search_peak_mb": (end_peak(both) - base) / 1e6}


def _some_update(both: Both) -> Update:
    """An update with its keys, to any targets: how long what follows takes does not depend on them."""
    wanted = torch.randn(len(both.plan.edits), both.lm.architecture.width)
    return solve(both.lm, both.prompts, wanted, both.factor, both.stored, both.recipe.method, keep_keys=True)


def _polished(both: Both) -> Figures:
    """Seconds of a step of polish, and its peak of memory. The edits' own prompts stand for those that must stay."""
    update, rounding = _some_update(both), Rounding("nearest", both.moments.__getitem__)
    kinds = [[of_one[0] for of_one in both.prompts], [of_one[-1] for of_one in both.prompts]]
    start_peak(both)
    spent: list[float] = []
    for steps in (1, 3):
        work = partial(
            polish, both.lm, update, both.plan.edits, both.prompts, kinds, both.stored, PolishKnobs(steps=steps),
            rounding=rounding, seed=0,
        )  # fmt: skip
        spent.append(timed(both, work)[0])
    return {"polish_step_s": (spent[1] - spent[0]) / 2, "polish_peak_mb": end_peak(both) / 1e6}


def _rounded(both: Both) -> Figures:
    """Seconds of one layer's rounding, to nearest and aware of the keys, and of writing a layer's weight."""
    update, layer = _some_update(both), both.layers[-1]
    spent: Figures = {}
    for way in WAYS:
        rounding, keys = Rounding(way, both.moments.__getitem__), update.keys[layer]
        work = partial(round_delta, layer, both.stored[layer], update.deltas[layer], keys, rounding)
        spent[f"{way}_rounding_s"], _ = timed(both, work)
    with tempfile.NamedTemporaryFile() as file:
        spent["write_s"], _ = timed(both, lambda: save_file({"weight": both.stored[layer].contiguous()}, file.name))
    return spent


def _profiled(both: Both) -> Figures:
    """The kernels (on a CPU the operators) that take most of a search of two steps, one to a line."""
    from torch.profiler import ProfilerActivity, profile

    on_gpu, search, engine = both.lm.device.type == "cuda", _shortened(both, 2), both.search.choose_engine().kind
    batch = search.plan(range(len(both.plan.edits)), engine)[0]
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as seen:
        search.find(batch, engine)
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # An operator's row has the time of its kernels too: on a GPU only kernels are counted.
    kind = "CUDA" if on_gpu else "CPU"
    rows = sorted(
        (one for one in seen.key_averages() if one.device_type.name == kind), key=lambda one: -getattr(one, key)
    )
    total = sum(getattr(one, key) for one in rows) or 1
    lines = [f"{getattr(one, key) / total:6.1%}  {one.count:>7}  {one.key[:80]}" for one in rows[:PROFILED]]
    return {"profile": lines}


def main() -> int:
    """Run the phases, each in a process; returns the exit code."""
    given = _arguments()
    where = Where(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if given.only:
        for figures in PHASES[given.only][0](where):
            print(json.dumps(figures), flush=True)
        return 0
    given.output.mkdir(parents=True, exist_ok=True)
    end = time.monotonic() + 60 * given.minutes
    head = _head(where)
    lines, missed = [head, "", "| phase | s | figures |", "|---|---:|---|"], 0
    for name in given.phase or PHASES:
        limit = min(PHASES[name][1], end - time.monotonic())
        if limit < 5:
            lines.append(f"| {name} | - | no time left |")
            continue
        print(f"{name}: at most {limit:.0f} s", file=sys.stderr, flush=True)
        start = time.monotonic()
        figures = _phase(name, where, limit)
        missed += bool(figures.get("missed") or figures.get("failed"))
        (given.output / f"{name}.json").write_text(json.dumps({"head": head, **figures}, indent=1) + "\n")
        lines.append(f"| {name} | {time.monotonic() - start:.0f} | {_told(figures)} |")
        (given.output / "table.md").write_text("\n".join(lines) + "\n")
    (given.output / "table.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    return 1 if missed else 0


def _phase(name: str, where: Where, limit: float) -> Figures:
    """A phase in a process of its own: what it printed last, also if it fails or is stopped."""
    command = [sys.executable, "-m", __spec__.name, "--only", name, "--device", where.device]
    environment = {"PYTORCH_ALLOC_CONF": "expandable_segments:True", **os.environ}  # as the program sets it
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        process = subprocess.Popen(command, stdout=out, stderr=err, cwd=ROOT, env=environment)
        try:
            failed = f"exit code {code}" if (code := process.wait(limit)) else ""
        except subprocess.TimeoutExpired:
            failed = f"stopped after {limit:.0f} s"
            process.kill()
            with suppress(subprocess.TimeoutExpired):  # a process in a driver's call ends when that returns
                process.wait(GRACE)
        out.seek(0)
        err.seek(0)
        lines, said = [line for line in out.read().splitlines() if line.startswith("{")], err.read()
    found: Figures = {}
    with suppress(IndexError, ValueError):  # none, or one that was cut
        found = json.loads(lines[-1])
    if failed:
        found |= {"failed": f"{failed}: {(said.strip().splitlines() or [''])[-1][:200]}", "stderr": said[-4000:]}
    return found


def _head(where: Where) -> str:
    if where.small:
        machine = f"NO GPU: small sizes on the CPU, {torch.get_num_threads()} threads"
    else:
        machine = torch.cuda.get_device_name(where.device)
    return f"{machine}, torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date().isoformat()}"


def _told(figures: Figures, prefix: str = "") -> str:
    """Figures in one cell: numbers with four digits, without lists."""
    parts: list[str] = []
    for key, value in sorted(figures.items(), key=lambda one: one[0] not in ("missed", "failed")):
        if isinstance(value, dict):
            parts.append(_told(value, f"{prefix}{key}."))  # type: ignore[arg-type]
        elif isinstance(value, float):
            parts.append(f"{prefix}{key} {value:.4g}")
        elif key == "columns":
            parts += [_told(one, f"{one['edits']:,} edits: ") for one in value]
        elif key == "missed" and value:
            parts.append(f"MISSED: {'; '.join(value)}")
        elif isinstance(value, int | str) and key != "stderr":
            parts.append(f"{prefix}{key} {value}")
    return ", ".join(part for part in parts if part)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks.gpu")
    parser.add_argument("--minutes", type=float, default=8.0, help="the time for all phases")
    parser.add_argument("--output", type=Path, default=Path("gpu-out"), help="folder of the figures")
    parser.add_argument("--device", default=None, help="by default the GPU, or the CPU where there is none")
    parser.add_argument("--phase", action="append", choices=sorted(PHASES), help="only this one; repeatable")
    parser.add_argument("--only", choices=sorted(PHASES), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())

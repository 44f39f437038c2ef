"""`make gpu`: everything that needs a GPU to be known, in the order of its worth, within a number of minutes.

    python -m examples.benchmarks.gpu [--minutes 8] [--output gpu-out] [--device cuda] [--phase NAME ...]

    agree      the shipped models on the CPU and on the GPU: targets, changes and scores agree; bfloat16's scores too
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
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import memedit
import torch
from memedit.editing.rounding import Rounding, round_delta
from memedit.editing.solve import solve
from memedit.editing.targets import Targets
from memedit.edits.edit import EditRequest
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
FIXED = {"target.optimizer": "adam", "target.steps": 20, "target.stop": 0.0}
"""Every edit takes all steps, so that time does not depend on random weights."""
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


def agree(where: Where) -> Figures:
    """The shipped models on the CPU and on the device: the same contexts and moments, float32."""
    found: Figures = {"missed": []}
    for folder in where.folders:
        name, edits = folder.name, where.edits
        plain = Both(folder, edits, {"model.device": "cpu", "model.dtype": "float32"})
        given: Figures = {"contexts": plain.contexts}
        there = Both(folder, edits, {"model.device": where.device, "model.dtype": "float32"}, **given)
        half = Both(folder, edits, {"model.device": where.device, "model.dtype": "bfloat16"}, **given)
        targets, updates, scores = [], [], []
        for one in (plain, there, half):
            targets.append(one.targets())
            updates.append(one.update(targets[-1].wanted))
            scores.append(one.scores(updates[-1]))
        gaps = [
            _gap(updates[0].deltas[n].dense().double(), updates[1].deltas[n].dense().double()) for n in plain.layers
        ]
        row: Figures = {
            "edits": len(edits),
            "targets_gap": _gap(targets[0].wanted.double(), targets[1].wanted.double()),
            "moments_gap": max(_gap(plain.moments[n].total, there.moments[n].total) for n in plain.layers),
            "deltas_gap": max(gaps),
            "scores_float32": scores[1],
            "scores_bfloat16": scores[2],
        }
        found[name] = row
        for key in ("targets_gap", "deltas_gap"):
            if row[key] > SAME:
                found["missed"].append(f"{name}: {key} {row[key]:.1e} > {SAME:.0e}")
        for figure in FIGURES:
            one, other = scores[1][figure], scores[2][figure]
            if one is not None and other is not None and abs(one - other) > SAME_SCORE:
                found["missed"].append(f"{name}: {figure} {one:.3f} in float32, {other:.3f} in bfloat16")
    return found


def commands(where: Where) -> Figures:
    """apply, eval and trace of a shipped model by the Python functions, whole."""
    folder, edits = where.folders[0], where.edits
    facts = edits if where.small else memedit.load_edits(FACTS)
    settings: Figures = {"model.device": where.device}
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        start = time.perf_counter()
        report = memedit.apply(edits, folder, out, facts=() if where.small else facts, settings=settings)
        applied = time.perf_counter() - start
        start = time.perf_counter()
        again = memedit.evaluate(edits, out, settings=settings)
        evaluated = time.perf_counter() - start
        start = time.perf_counter()
        traced = memedit.trace(facts[: 2 if where.small else 10], folder, settings=settings)
        spent = time.perf_counter() - start
    assert report.after is not None
    assert again.after is not None
    figures = {name: getattr(report.after, name) for name in FIGURES}
    repeated = {name: getattr(again.after, name) for name in FIGURES}
    return {
        "apply_s": applied,
        "eval_s": evaluated,
        "trace_s": spent,
        "traced": len(traced.facts),
        "steps_s": report.timings,
        "scores": {name: figure.mean for name, figure in figures.items() if figure},
        "missed": [] if figures == repeated else ["eval of what apply wrote gives other scores than apply's own"],
    }


def shape(where: Where, name: str) -> Figures:
    """Random weights of a real shape: each part of a run in seconds, its peak of memory, and where the search is."""
    counts = (4,) if where.small else (1_000, 2_000)
    settings: Figures = {"model.device": where.device, **FIXED}
    first: Both | None = None
    found: Figures = {"columns": [], "missed": []}
    shared: Figures = {}
    for count in counts:
        both = Both(f"{RANDOM}{'tiny' if where.small else name}", pairs(count), settings, **shared)
        first = first or both
        shared = {"lm": first.lm, "moments": first.moments, "contexts": first.contexts}
        found["columns"].append(column(both, 0))
    assert first is not None
    start_peak(first)
    spent, moments = timed(first, first.measure)
    tokens = 10 * first.lm.architecture.mlp_width
    found |= {"moments_s": spent, "moments_tokens_per_s": tokens / spent, "moments_peak_mb": end_peak(first) / 1e6}
    first.moments = moments
    found |= _rounded(first)
    peak = peak_rate(first.lm.device, first.lm.dtype, 256 if where.small else 8192)
    last = found["columns"][-1]
    last["of_peak"] = last["gmac_per_s"] * 1e9 / peak
    found["profile"] = _profiled(first)
    # GPT-J's bar, 10,000 edits in five minutes, by the time that an edit takes.
    found["ten_thousand_edits_s"] = 10_000 * last["ms_per_edit"] / 1000 + spent
    if not where.small and last["of_peak"] < PEAK_SHARE:
        found["missed"].append(f"the search reaches {last['of_peak']:.0%} of a plain product's rate")
    return found


def exhausted(where: Where) -> Figures:
    """Too little memory for the batches that were planned: the search goes on, and finds the same."""
    if where.small:
        return {"skipped": "memory of a GPU is needed"}
    both = Both(where.folders[0], 400, {"model.device": where.device})
    whole = both.targets()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info()[0]
    ballast = torch.empty(max(0, free - 300 * 10**6), dtype=torch.uint8, device=where.device)
    try:
        less: Targets = both.targets()
    finally:
        del ballast
    gap = _gap(whole.wanted.double(), less.wanted.double())
    return {
        "left_mb": 300, "targets_gap": gap,
        "missed": [f"targets differ by {gap:.1e}"] if gap > SAME else [],
    }  # fmt: skip


def many(where: Where) -> Figures:
    """A list of 10,000 edits, whole."""
    count, name = (8, "tiny") if where.small else (10_000, "gptj-6b")
    both = Both(f"{RANDOM}{name}", pairs(count), {"model.device": where.device, **FIXED})
    spent, found = timed(both, both.targets)
    solved, _ = timed(both, lambda: both.update(found.wanted))
    return {"edits": count, "targets_s": spent, "solve_s": solved, "peak_mb": end_peak(both) / 1e6, "missed": []}


PHASES: dict[str, tuple[Callable[[Where], Figures], int]] = {
    "agree": (agree, 120),
    "commands": (commands, 90),
    "gptj-6b": (lambda where: shape(where, "gptj-6b"), 180),
    "llama3-8b": (lambda where: shape(where, "llama3-8b"), 180),
    "exhausted": (exhausted, 60),
    "many": (many, 300),
}
"""Each phase and the most seconds it gets, in the order of their worth."""


def _gap(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest distance of two rows, relative to the row's length."""
    one, other = one.cpu(), other.cpu()
    return float(((one - other).norm(dim=-1) / one.norm(dim=-1).clamp_min(1e-30)).max())


def _rounded(both: Both) -> Figures:
    """Seconds of one layer's rounding, to nearest and aware of the keys, and of writing a layer's weight."""
    wanted = both.targets().wanted
    update = solve(both.lm, both.prompts, wanted, both.factor, both.stored, both.recipe.method, keep_keys=True)
    layer = both.layers[-1]
    spent: Figures = {}
    for way in WAYS:
        rounding, keys = Rounding(way, both.moments.__getitem__), update.keys[layer]
        work = partial(round_delta, layer, both.stored[layer], update.deltas[layer], keys, rounding)
        spent[f"{way}_rounding_s"], _ = timed(both, work)
    with tempfile.NamedTemporaryFile() as file:
        spent["write_s"], _ = timed(both, lambda: save_file({"weight": both.stored[layer].contiguous()}, file.name))
    return spent


def _profiled(both: Both) -> list[str]:
    """The kernels (on a CPU the operators) that take most of a short search, one to a line."""
    from torch.profiler import ProfilerActivity, profile

    activities = [ProfilerActivity.CPU]
    if both.lm.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    batch, engine = both.search.plan(range(len(both.plan.edits)))[0], both.search.choose_engine().kind
    with profile(activities=activities) as seen:
        both.search.find(batch, engine)
    key = "self_device_time_total" if both.lm.device.type == "cuda" else "self_cpu_time_total"
    rows = sorted(seen.key_averages(), key=lambda one: -getattr(one, key))
    total = sum(getattr(one, key) for one in rows) or 1
    return [f"{getattr(one, key) / total:6.1%}  {one.count:>7}  {one.key[:80]}" for one in rows[:PROFILED]]


def main() -> int:
    """Run the phases, each in a process; returns the exit code."""
    given = _arguments()
    where = Where(given.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if given.only:
        print(json.dumps(PHASES[given.only][0](where)))
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
    """A phase in a process of its own."""
    command = [sys.executable, "-m", __spec__.name, "--only", name, "--device", where.device]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, cwd=ROOT, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {limit:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        return {"failed": last[:200], "stderr": done.stderr[-4000:]}
    return json.loads(done.stdout.splitlines()[-1])


def _head(where: Where) -> str:
    if where.small:
        machine = f"NO GPU: small sizes on the CPU, {torch.get_num_threads()} threads"
    else:
        machine = torch.cuda.get_device_name(where.device)
    return f"{machine}, torch {torch.__version__}, {datetime.datetime.now(datetime.UTC).date().isoformat()}"


def _told(figures: Figures, prefix: str = "") -> str:
    """Figures in one cell: numbers with four digits, without lists."""
    parts: list[str] = []
    for key, value in figures.items():
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

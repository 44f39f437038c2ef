"""`make bench`: memedit beside the plain oracle, in one run: same model, edits, contexts, moments and steps.

    python -m examples.benchmarks [--model FOLDER|real|random:SHAPE] [--edits 10,100,1000] [--oracle-sample 20]
    python -m examples.benchmarks --edits 1,10,100,300,1000 --oracle-sample 1000 --joint   # the README's curve
    python -m examples.benchmarks --model real --edits 10 --oracle-sample 2   # a real model (`make real-model`)

The oracle finds targets one edit at a time; where it gets a sample only, its seconds are those of the sample, scaled
up, and its scores are left out. It knows no change that edits of one subject share, so by default memedit makes none
here either; `--joint` lets it, as `apply` does. Evaluation and tracing follow, small (`--scorings`, `--facts`): the
modules `.evaluation` and `.tracing` take them by themselves. The table goes to stdout, then one line of JSON.
`random:gptj-6b`, `random:llama3-8b` and `random:gpt2-xl` are random weights of real shapes, for a GPU: 20 steps, no
edit stops early, no oracle.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from memedit.edits.read import read
from rich.console import Console
from rich.table import Table

from examples.real.models import find_real_model

from . import evaluation, tracing
from .both import LISTS, RANDOM, SHIPPED, Both, world_of
from .counting import peak_rate
from .pairs import pairs
from .sides import agreement, column, moments_ratio, one_edit

LINES = {
    "contexts_s": ("contexts, s", "{:.2f}"),
    "targets_s": ("targets, s", "{:.2f}"),
    "oracle_targets_s": ("  oracle, s", "{:.1f}"),
    "targets_ratio": ("  ratio", "{:.1f}"),
    "keys_s": ("keys and residuals, s", "{:.2f}"),
    "oracle_keys_s": ("  oracle, s", "{:.1f}"),
    "keys_ratio": ("  ratio", "{:.1f}"),
    "solve_s": ("solve with its keys, s", "{:.2f}"),
    "edit_ratio": ("targets, keys, solve: ratio", "{:.1f}"),
    "all_ratio": ("contexts, targets, keys, solve: ratio", "{:.1f}"),
    "ms_per_edit": ("ms per edit", "{:.1f}"),
    "edits_per_s": ("edits/s", "{:.2f}"),
    "steps": ("steps per edit", "{:.1f}"),
    "tokens_per_s": ("suffix tokens/s", "{:,.0f}"),
    "peak_mb": ("peak memory, MB", "{:,.0f}"),
    "gmac": ("targets, 10^9 multiply-adds", "{:,.0f}"),
    "oracle_gmac": ("  oracle", "{:,.0f}"),
    "over_needed": ("  times what is needed", "{:.2f}"),
    "gmac_per_s": ("  10^9 a second", "{:,.1f}"),
    "of_bare": ("  of a bare forward and backward", "{:.0%}"),
    "of_peak": ("  of a plain product's peak", "{:.0%}"),
    "same_steps": ("targets of as many steps as the oracle's", "{}"),
    "gap_same_steps": ("  largest relative gap", "{:.1e}"),
    "other_steps": ("targets of other steps", "{}"),
    "cosine_other_steps": ("  smallest cosine", "{:.5f}"),
}
SCORED_SIDES = ("scores", "oracle_scores", "unedited_scores")


def help_seconds() -> float:
    """The median of nine runs of `memedit --help`, in a process each."""
    spent: list[float] = []
    for _ in range(9):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "memedit", "--help"], capture_output=True, check=True)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent)


def half_precision(first: Both, n_edits: int = 10) -> dict[str, Any]:
    """Targets found in bfloat16 beside those found in float32, the contexts and moments being the same."""
    requests = [edit.request for edit in first.plan.edits[:n_edits]]
    pair = [
        Both(first.name, requests, {"model.dtype": dtype}, moments=first.moments, contexts=first.contexts).targets()
        for dtype in ("float32", "bfloat16")
    ]
    return agreement(pair[1].wanted, pair[1].steps, pair[0].wanted, pair[0].steps.tolist())


def main() -> None:
    """Run the columns asked for and print them."""
    given = _arguments()
    is_random = given.model.startswith(RANDOM)
    settings: dict[str, Any] = {"model.device": given.device, "model.dtype": given.dtype, "memory": given.memory}
    settings["target.joint"] = given.joint
    if is_random:
        settings |= {"target.optimizer": "adam", "target.steps": 20, "target.stop": 0.0}
    name = str(real_model()) if given.model == "real" else given.model
    world = world_of(name) or "made"
    listed, _ = read(str(LISTS[world][0]))
    columns: list[dict[str, Any]] = []
    first: Both | None = None
    for count in map(int, given.edits.split(",")):
        if world == "real" and count > len(listed):
            raise SystemExit(f"the real model's list has {len(listed)} edits, not {count}")
        made = listed[:count] if count <= len(listed) and not is_random else pairs(count)
        more: dict[str, Any] = {"lm": first.lm, "moments": first.moments, "contexts": first.contexts} if first else {}
        both = Both(name, made, settings, **more)
        first = first or both
        columns.append(column(both, given.oracle_sample))
        print(f"{count:,} edits: {columns[-1]['targets_s']:.1f} s of targets", file=sys.stderr)
    assert first is not None
    machine = f"{platform.machine()}, {torch.get_num_threads()} threads"
    if first.lm.device.type == "cuda":
        machine = torch.cuda.get_device_name(first.lm.device)
    peak = peak_rate(first.lm.device, first.lm.dtype, 8192 if first.lm.device.type == "cuda" else 1024)
    for one in columns:
        one["of_peak"] = one["gmac_per_s"] * 1e9 / peak
    told: dict[str, Any] = {
        "model": given.model if is_random else first.name.rsplit("/", 1)[-1],
        "machine": machine,
        "date": datetime.date.today().isoformat(),
        "dtype": str(first.lm.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "joint": given.joint,
        "columns": columns,
        "one_edit_s": one_edit(first),
        "help_s": help_seconds(),
    }
    if first.corpus.is_file():
        told["moments"] = moments_ratio(first)
    if world == "made" and not is_random:
        told["bfloat16"] = half_precision(first)
        if given.scorings:
            told["evaluation"] = evaluation.evaluation(Path(given.model), given.scorings, given.scorings // 10)
        if given.facts:
            told["tracing"] = tracing.compare(Path(given.model), given.facts)
    _print(told)
    print(json.dumps(told))


def real_model() -> Path:
    """The folder of the real model, where it was made ready."""
    if (folder := find_real_model("smollm2")) is None:
        raise SystemExit("the real model is not here: run `make real-model`")
    return folder


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks")
    parser.add_argument("--model", default=str(SHIPPED), help="a folder, real, or random:gptj-6b|llama3-8b|gpt2-xl")
    parser.add_argument("--edits", default="10,100,1000", help="numbers of edits; 10,000 take ten minutes on two cores")
    parser.add_argument("--oracle-sample", type=int, default=20, help="edits that the oracle gets at most; 0: none")
    parser.add_argument("--scorings", type=int, default=2000, help="answers that evaluation weighs; 0: none")
    parser.add_argument("--facts", type=int, default=4, help="facts that are traced; 0: none")
    parser.add_argument("--device", default="auto", help="auto: the CPU for a folder, a GPU for random weights")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--joint", action="store_true", help="edits of one subject share a change")
    parser.add_argument("--memory", default=None, help="what the target search may take, such as 20GB")
    return parser.parse_args()


def _print(told: dict[str, Any]) -> None:
    columns = told["columns"]
    head = f"{told['model']}, {told['dtype']}, {told['machine']}, torch {told['torch']}, {told['date']}"
    table = Table(title=head, show_lines=False)
    table.add_column("edits")
    for one in columns:
        sample = one.get("oracle_sample", 0)
        note = f" (oracle: {sample})" if 0 < sample < one["edits"] else ""
        table.add_column(f"{one['edits']:,}{note}", justify="right")
    for name, (title, form) in LINES.items():
        cells = [form.format(one[name]) if one.get(name) is not None else "-" for one in columns]
        if any(cell != "-" for cell in cells):
            table.add_row(title, *cells)
    for name in columns[0]["scores"]:
        kinds = [[one.get(kind, {}).get(name) for kind in SCORED_SIDES] for one in columns]
        cells = [" / ".join("-" if part is None else f"{part:.1%}" for part in parts) for parts in kinds]
        table.add_row(f"{name}: memedit / oracle / unedited", *cells)
    lines = [
        f"one edit, to the delta in memory: {told['one_edit_s']:.2f} s",
        f"memedit --help: {told['help_s']:.2f} s",
    ]
    if moments := told.get("moments"):
        lines.append(
            f"moments of all layers: {moments['moments_s']:.1f} s, {moments['moments_tokens_per_s']:,.0f} tokens/s, "
            f"{moments['ratio']:.1f} times as fast as a whole pass a layer"
        )
    if half := told.get("bfloat16"):
        gap, cosine = half["gap_same_steps"], half["cosine_other_steps"]
        same = f"{half['same_steps']} of as many steps" + (f", largest gap {gap:.1e}" if gap else "")
        other = f"{half['other_steps']} of others" + (f", smallest cosine {cosine:.5f}" if cosine else "")
        lines.append(f"targets in bfloat16 beside float32: {same}; {other}")
    if scored := told.get("evaluation"):
        lines.append(evaluation.line(scored))
    if not told["joint"]:
        lines.insert(0, "edits of one subject are sought apart, as the oracle does; apply has them share: --joint")
    console = Console(width=140)
    console.print(table, *lines, sep="\n")
    if traced := told.get("tracing"):
        console.print(tracing.table(traced), f"largest difference of a score: {traced['largest_difference']:.1e}")


if __name__ == "__main__":
    main()

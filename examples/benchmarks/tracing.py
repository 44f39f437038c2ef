"""Causal tracing by memedit and by the plain procedure, in one run: seconds, and multiply-adds of the linear maps.

    python -m examples.benchmarks.tracing [--model FOLDER] [--facts 10]

Both sides fill every cell of the three tables and the severed rows of the same facts under the same noise.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.edits.edit import SLOT, EditRequest
from memedit.edits.read import read
from memedit.model.load import LanguageModel, load
from memedit.numerics.effects import default_window
from memedit.tracing.engines import choose_trace_engine
from memedit.tracing.facts import SEVERED, TABLES, find_facts, make_trial, noise_scale, trace_fact
from memedit.tracing.parts import find_parts
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers.pytorch_utils import Conv1D

from examples.reference import tracing as tracing_oracle

ROOT = Path(__file__).parents[2]


class Count:
    """Multiply-adds so far."""

    total = 0


@contextmanager
def counted(model: nn.Module, count: Count) -> Generator[None]:
    """Add the multiply-adds of every linear map, the head included, in all forwards inside."""

    def hook(module: Any, args: Any, _output: Any) -> None:
        inputs: torch.Tensor = args[0]
        count.total += inputs.numel() // inputs.shape[-1] * module.weight.numel()

    linear = [module for module in model.modules() if isinstance(module, nn.Linear | Conv1D)]
    handles = [module.register_forward_hook(hook) for module in linear]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def compare(folder: Path, n_facts: int) -> dict[str, Any]:
    """One row: both sides on `n_facts` facts of the made world that the model knows, each under one of its wordings."""
    lm = load(folder, ModelKnobs(device="cpu"), editing=False)
    requests, _ = read(str(ROOT / "examples" / "world" / "facts.jsonl"))
    knobs, seed = Recipe().trace, Recipe().seed
    asked = [_worded(request, n) for n, request in enumerate(requests[:: len(requests) // (2 * n_facts)])]
    facts = [fact for fact in find_facts(lm, asked)[0] if fact.source == "object"][:n_facts]
    scale, width = noise_scale(lm, facts, knobs), default_window(lm.architecture.n_layers)
    trials = [make_trial(lm, fact, scale, knobs, seed, width) for fact in facts]
    parts = find_parts(lm)
    engine, reason = choose_trace_engine(lm, parts, trials[0])
    modules = tracing_oracle.modules_of(lm.model)
    mine, theirs, seconds, plain, gap = Count(), Count(), 0.0, 0.0, 0.0
    for trial in trials:  # in turn, so that whatever else the machine does falls on both alike
        with counted(lm.model, mine):
            start = time.perf_counter()
            one = trace_fact(lm, parts, trial, engine)
            seconds += time.perf_counter() - start
        with counted(lm.model, theirs):
            start = time.perf_counter()
            other = _plain(lm, modules, trial, width)
            plain += time.perf_counter() - start
        both = {**other.tables, **other.severed}
        gap = max(gap, *(float((one[kind] - both[kind]).abs().max()) for kind in (*TABLES, *SEVERED)))
    return {
        "model": folder.name,
        "facts": n_facts,
        "engine": reason,
        "trace_s": round(seconds, 2),
        "plain_s": round(plain, 2),
        "ratio": round(plain / seconds, 1),
        "trace_multiply_adds": mine.total,
        "plain_multiply_adds": theirs.total,
        "multiply_adds_ratio": round(theirs.total / mine.total, 1),
        "largest_difference": gap,
    }


def _worded(request: EditRequest, number: int) -> EditRequest:
    """The fact under each of its wordings in turn: its subject stands at the beginning of some, inside others."""
    prompts = [request.prompt, *(text.replace(request.subject, SLOT) for text in request.paraphrases)]
    return request.model_copy(update={"prompt": prompts[number % len(prompts)], "paraphrases": ()})


def _plain(lm: LanguageModel, modules: tracing_oracle.Modules, trial: Any, width: int) -> tracing_oracle.TracedFact:
    question = trial.question
    subject = (question.first, question.last)
    return tracing_oracle.trace(lm.model, modules, question.prompt, question.answer, subject, trial.noise, width)


def table(row: dict[str, Any]) -> Table:
    """The row for people."""
    made = Table(title=f"causal tracing, {row['facts']} facts, {row['model']}, {torch.get_num_threads()} threads")
    for name in ("", "seconds", "multiply-adds"):
        made.add_column(name, justify="right")
    made.add_row("memedit", f"{row['trace_s']} s", f"{row['trace_multiply_adds'] / 1e9:,.2f} G")
    made.add_row("plain procedure", f"{row['plain_s']} s", f"{row['plain_multiply_adds'] / 1e9:,.2f} G")
    made.add_row("ratio", str(row["ratio"]), str(row["multiply_adds_ratio"]))
    return made


def main() -> None:
    """Run it and print the table, then one line of JSON."""
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks.tracing")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "models" / "made-gpt2")
    parser.add_argument("--facts", type=int, default=10)
    given = parser.parse_args()
    row = compare(given.model, given.facts)
    Console(width=100).print(table(row), f"largest difference of a score: {row['largest_difference']:.1e}")
    print(json.dumps(row))


if __name__ == "__main__":
    main()

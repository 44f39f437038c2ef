"""Prompt scorings a second: memedit beside the plain restatement, which runs each prompt with each answer by itself.

    python -m examples.benchmarks.evaluation [--model FOLDER] [--scorings 10000] [--sample 400]

The restatement is timed on a sample spread over the same rows and scaled up. Multiply-adds are those of the weights a
token meets, and of the head where it runs; attention's own, which grow with the square of a row, are left out of both.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from memedit.config.recipe import ModelKnobs
from memedit.edits.glue import Glue
from memedit.edits.read import read
from memedit.evaluation.probes import list_probes
from memedit.forward import scoring
from memedit.model.load import LanguageModel, load
from memedit.model.tokens import encode_questions
from torch import Tensor

from examples.reference.evaluation import Plain

ROOT = Path(__file__).parents[2]


def asked(count: int) -> list[tuple[str, list[str], Glue | None]]:
    """Prompts of requests/world.jsonl with both their objects: `count` scorings."""
    requests, _ = read(str(ROOT / "requests" / "world.jsonl"))
    both: list[tuple[str, list[str], Glue | None]] = [
        (one.text, [one.right[0], one.wrong], one.glue) for one in list_probes(requests) if one.wrong
    ]
    return both[: count // 2]


def evaluation(folder: Path, count: int = 10_000, sample: int = 400) -> dict[str, Any]:
    """Seconds and multiply-adds of `count` scorings, tokenization included, and how far apart the two are."""
    lm = load(folder, ModelKnobs(device="cpu"))
    questions = asked(count)
    with Counting(lm) as work:
        start = time.perf_counter()
        encoded = encode_questions(lm.tokenizer, questions)
        rows = [(prompt, ids) for prompt, of_one in encoded for ids in of_one]
        found = scoring.score_answers(lm, rows)
        mine = time.perf_counter() - start
    flat = [(text, one) for text, of_one, _ in questions for one in of_one]
    every = max(1, len(flat) // sample)
    plain = Plain(lm.model, lm.tokenizer)
    gap = 0.0
    with Counting(lm) as theirs_work:
        start = time.perf_counter()
        for (text, one), weighed in zip(flat[::every], found[::every], strict=True):
            value, _, _ = plain.weigh(text, one)
            gap = max(gap, abs(value - sum(weighed.log_probs) / len(weighed.log_probs)))
        theirs = time.perf_counter() - start
    scale = len(flat) / len(flat[::every])
    return {
        "scorings": len(flat),
        "seconds": round(mine, 2),
        "plain_seconds": round(theirs * scale, 2),
        "plain_sampled": len(flat[::every]),
        "ratio": round(theirs * scale / mine, 1),
        "multiply_adds": work.total,
        "plain_multiply_adds": round(theirs_work.total * scale),
        "largest_gap": gap,
    }


class Counting:
    """Counts the multiply-adds of every matrix that a forward goes through."""

    def __init__(self, lm: LanguageModel) -> None:
        self.lm, self.total, self.handles = lm, 0, []  # type: ignore[var-annotated]

    def __enter__(self) -> Counting:
        for module in self.lm.model.modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, torch.nn.Embedding):
                self.handles.append(module.register_forward_hook(self._count))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _count(self, module: Any, args: Sequence[Any], _output: Any) -> None:
        self.total += args[0].numel() // args[0].shape[-1] * module.weight.numel()


def line(row: dict[str, Any]) -> str:
    """The row for people."""
    return (
        f"{row['scorings']:,} scorings: {row['seconds']} s, {row['multiply_adds'] / 1e9:,.1f} G multiply-adds; "
        f"one by one {row['plain_seconds']} s (from {row['plain_sampled']:,}), "
        f"{row['plain_multiply_adds'] / 1e9:,.1f} G; "
        f"{row['ratio']} times as fast; largest gap {row['largest_gap']:.1e}"
    )


def main() -> None:
    """Run it and print a line for people and one of JSON."""
    parser = argparse.ArgumentParser(prog="python -m examples.benchmarks.evaluation")
    parser.add_argument("--model", type=Path, default=ROOT / "examples" / "models" / "made-gpt2")
    parser.add_argument("--scorings", type=int, default=10_000)
    parser.add_argument("--sample", type=int, default=400)
    given = parser.parse_args()
    row = evaluation(given.model, given.scorings, given.sample)
    print(line(row))
    print(json.dumps({"model": given.model.name, "threads": torch.get_num_threads(), **row}))


if __name__ == "__main__":
    main()

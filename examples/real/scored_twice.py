"""Score an edited model twice: by plain transformers code, and by `memedit.evaluate`.

    python -m examples.real.scored_twice MODEL requests/real.jsonl [--limit 100]

The plain code (examples/reference/evaluation.py) shares nothing with memedit: it takes the raw records of the list, in
memedit's own form or in that of flat CounterFact (EasyEdit's), and runs one prompt with one answer at a time. Prints
both columns, in per cent, and the largest difference.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import memedit
import torch
from memedit.edits.read import read
from memedit.results.report import Figure
from transformers import AutoModelForCausalLM, AutoTokenizer

from examples.reference.evaluation import Plain, Record, Row, contrast, means, ours

FIGURES = ("efficacy", "accuracy", "paraphrase", "paraphrase_accuracy", "neighborhood", "neighborhood_accuracy")


def raw_records(path: Path) -> list[Record]:
    """The records of a .json or .jsonl file as they are."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def plain_row(plain: Plain, record: Record) -> Row:
    """The figures of one record, by plain code."""
    if "rephrase_prompt" in record:
        new, old = record["target_new"], record["ground_truth"]
        row: Row = {}
        row["efficacy"], _, row["accuracy"] = contrast(plain, [record["prompt"]], new, old)
        row["paraphrase"], _, row["paraphrase_accuracy"] = contrast(plain, [record["rephrase_prompt"]], new, old)
        around = contrast(plain, [record["locality_prompt"]], record["locality_ground_truth"], new)
        row["neighborhood"], row["neighborhood_accuracy"] = around[0], around[2]
        return row
    whole: Record = {"aliases": [], "reversal": [], **record}
    names = [whole["object"], *whole["aliases"]]
    asked = [any(all(plain.weigh(one, name)[1]) for name in names) for one in record["paraphrases"]]
    return {**ours(plain, whole), "paraphrase_accuracy": statistics.fmean(asked)}


def scored_by_plain_code(model: Path, records: list[Record]) -> Row:
    """Mean figures of the records, by a model that transformers opens, in float32 on the CPU."""
    opened: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    plain = Plain(opened.eval(), AutoTokenizer.from_pretrained(model))
    return means([plain_row(plain, record) for record in records])


def main() -> None:
    """Print both columns."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--limit", type=int)
    asked = parser.parse_args()
    found = scored_by_plain_code(asked.model, raw_records(asked.list)[: asked.limit])
    settings = {"model.device": "cpu", "model.dtype": "float32"}
    edits = read(str(asked.list))[0][: asked.limit]
    after = memedit.evaluate(edits, asked.model, settings=settings).after
    assert after is not None
    print("| figure | plain | memedit |\n|---|---:|---:|")
    gaps: list[float] = []
    for name in FIGURES:
        figure = after.value(name)
        if name in found and isinstance(figure, Figure):
            gaps.append(abs(found[name] - figure.mean))
            print(f"| {name} | {100 * found[name]:.2f} | {100 * figure.mean:.2f} |")
    print(f"\nlargest difference: {100 * max(gaps):.3g} points")


if __name__ == "__main__":
    main()

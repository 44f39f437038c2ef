"""The model card of an edited model: the base's front matter, what was done, and what came of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from memedit.report import Figure, Report, Scores

ROWS = ("efficacy", "accuracy", "paraphrase", "neighborhood")


def write(report: Report, base: Path) -> str:
    """README.md for the output: valid front matter with base_model, and a table of the results."""
    front = _front_matter(base / "README.md")
    front["base_model"] = report.model if not Path(report.model).exists() else base.resolve().name
    front["base_model_relation"] = "finetune"
    tags = front.get("tags")
    front["tags"] = [*(tags if isinstance(tags, list) else []), *(["memedit"] if "memedit" not in (tags or []) else [])]
    front.setdefault("library_name", "transformers")
    layers = ", ".join(str(layer.layer) for layer in report.layers)
    text = [
        "---",
        yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip(),
        "---",
        "",
        f"# {base.resolve().name}, edited",
        "",
        f"{report.edits:,} facts of this model were changed by [MEMIT](https://arxiv.org/abs/2210.07229), as memedit "
        f"does it, in the MLP down-projections of layers {layers}. All other weights are those of the base model.",
        "",
        "| | before | after | 95 % interval |",
        "|---|---:|---:|---|",
        *(_row(name, report.before, report.after) for name in ROWS),
        "",
        "The edits stand in `memedit/edits.jsonl`, what became of each in `memedit/results.jsonl`, how it was done in",
        "`memedit/run.json`, the change itself in `memedit/delta.safetensors`.",
    ]
    if (base / "README.md").is_file():
        text.append("The base model's card is `memedit/base_README.md`.")
    return "\n".join(text) + "\n"


def _row(name: str, before: Scores | None, after: Scores | None) -> str:
    was: Figure | None = getattr(before, name, None)
    now: Figure | None = getattr(after, name, None)
    if was is None or now is None:
        return f"| {name} | - | - | - |"
    return f"| {name} | {was.mean:.1%} | {now.mean:.1%} | {now.low:.1%} to {now.high:.1%} |"


def _front_matter(card: Path) -> dict[str, Any]:
    if not card.is_file():
        return {}
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    if len(parts) < 3 or parts[0].strip():
        return {}
    try:
        found = yaml.safe_load(parts[1])
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}

"""The model card of an edited model: the base's front matter, what was done, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from memedit.methods import METHODS
from memedit.report import Report
from memedit.tables import markdown


def write(report: Report, base: Path) -> str:
    """README.md for the output: valid front matter with base_model, and a table of the results."""
    front = _front(report.model, base, "finetune")
    layers = ", ".join(str(layer.layer) for layer in report.layers)
    method = METHODS[report.recipe["method"]["name"]]
    text = [
        front,
        f"# {base.resolve().name}, edited",
        "",
        f"{report.edits:,} facts of this model were changed by [{method.title}]({method.paper}), as memedit "
        f"does it, in the MLP down-projections of layers {layers}. All other weights are those of the base model.",
        "",
        markdown(report),
        "The edits stand in `memedit/edits.jsonl`, what became of each in `memedit/results.jsonl`, how it was done in",
        "`memedit/run.json`, the change itself in `memedit/delta.safetensors`.",
    ]
    if (base / "README.md").is_file():
        text.append("The base model's card is `memedit/base_README.md`.")
    return "\n".join(text) + "\n"


def of_sum(model: str, base: Path, changes: int, parameters: Sequence[str]) -> str:
    """README.md for a base with changes added to it that were made before."""
    many = "One change" if changes == 1 else f"The sum of {changes:,} changes"
    text = [
        _front(model, base, "finetune"),
        f"# {base.resolve().name}, edited",
        "",
        f"{many} of facts, made by memedit, in {_listed(parameters)}. All other weights are those of the base model.",
        "",
        "The change itself is `memedit/delta.safetensors`; how it was put together stands in `memedit/run.json`, and "
        "the edits,",
        "where they were kept with their changes, in `memedit/edits.jsonl`.",
    ]
    if (base / "README.md").is_file():
        text.append("The base model's card is `memedit/base_README.md`.")
    return "\n".join(text) + "\n"


def of_adapter(model: str, base: Path, rank: int, parameters: Sequence[str]) -> str:
    """README.md for an adapter."""
    text = [
        _front(model, base, "adapter"),
        f"# Facts edited in {base.resolve().name}, as a LoRA adapter",
        "",
        f"A change made by memedit, of rank {rank:,} at most, in {_listed(parameters)}. It belongs to that base model",
        "and to no other. Its scale is one (lora_alpha equals r); nothing is to be trained.",
    ]
    return "\n".join(text) + "\n"


def _listed(parameters: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in parameters)


def _front(model: str, base: Path, relation: str) -> str:
    """The base's front matter, with what this model is to it."""
    front = _front_matter(base / "README.md")
    front["base_model"] = model if not Path(model).exists() else base.resolve().name
    front["base_model_relation"] = relation
    tags = front.get("tags")
    front["tags"] = [*(tags if isinstance(tags, list) else []), *(["memedit"] if "memedit" not in (tags or []) else [])]
    if relation == "adapter":
        front["library_name"] = "peft"
    front.setdefault("library_name", "transformers")
    return f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip()}\n---\n"


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

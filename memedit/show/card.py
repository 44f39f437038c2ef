"""The model card of an edited model: the base's front matter, what was done, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence

import yaml

from memedit.config.methods import METHODS
from memedit.results.report import Report
from memedit.show.tables import markdown
from memedit.storage.base_card import BaseCard


def edited_model_card(report: Report, base: BaseCard) -> str:
    """README.md for the output: valid front matter with base_model, and a table of the results."""
    front = _front(base, "finetune")
    layers = ", ".join(str(layer.layer) for layer in report.layers)
    method = METHODS[report.recipe["method"]["name"]]
    text = [
        front,
        f"# {base.name}, edited",
        "",
        f"{report.edits:,} facts of this model were changed by [{method.title}]({method.paper}), as memedit "
        f"does it, in the MLP down-projections of layers {layers}. All other weights are those of the base model.",
        "",
        markdown(report),
        "The edits stand in `memedit/edits.jsonl`, what became of each in `memedit/results.jsonl`, how it was done in",
        "`memedit/run.json`, the change itself in `memedit/delta.safetensors`.",
    ]
    if base.exists:
        text.append("The base model's card is `memedit/base_README.md`.")
    return "\n".join(text) + "\n"


def sum_card(base: BaseCard, changes: int, parameters: Sequence[str]) -> str:
    """README.md for a base with changes added to it that were made before."""
    many = "One change" if changes == 1 else f"The sum of {changes:,} changes"
    text = [
        _front(base, "finetune"),
        f"# {base.name}, edited",
        "",
        f"{many} of facts, made by memedit, in {_listed(parameters)}. All other weights are those of the base model.",
        "",
        "The change itself is `memedit/delta.safetensors`; how it was put together stands in `memedit/run.json`, and "
        "the edits,",
        "where they were kept with their changes, in `memedit/edits.jsonl`.",
    ]
    if base.exists:
        text.append("The base model's card is `memedit/base_README.md`.")
    return "\n".join(text) + "\n"


def adapter_card(base: BaseCard, rank: int, parameters: Sequence[str]) -> str:
    """README.md for an adapter."""
    text = [
        _front(base, "adapter"),
        f"# Facts edited in {base.name}, as a LoRA adapter",
        "",
        f"A change made by memedit, of rank {rank:,} at most, in {_listed(parameters)}. It belongs to that base model",
        "and to no other. Its scale is one (lora_alpha equals r); nothing is to be trained.",
    ]
    return "\n".join(text) + "\n"


def _listed(parameters: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in parameters)


def _front(base: BaseCard, relation: str) -> str:
    """The base's front matter, with what this model is to it."""
    front = dict(base.front)
    front["base_model"] = base.identity
    front["base_model_relation"] = relation
    tags = front.get("tags")
    front["tags"] = [*(tags if isinstance(tags, list) else []), *(["memedit"] if "memedit" not in (tags or []) else [])]
    if relation == "adapter":
        front["library_name"] = "peft"
    front.setdefault("library_name", "transformers")
    return f"---\n{yaml.safe_dump(front, sort_keys=True, allow_unicode=True).strip()}\n---\n"

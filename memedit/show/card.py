"""Model cards: of an edited model, of a base with changes added to it, and of an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from huggingface_hub import ModelCardData

from memedit.config.layers import layers_text
from memedit.config.methods import METHODS
from memedit.results.report import Report
from memedit.results.units import printable
from memedit.show.tables import markdown, markdown_text
from memedit.storage.base_card import BaseCard


def edited_model_card(report: Report, base: BaseCard) -> str:
    """Write the README.md of an edited model: front matter, the method, and a table of the results."""
    layers = layers_text([layer.layer for layer in report.layers])
    method = METHODS[report.recipe["method"]["name"]]
    text = [
        _front_matter(base, "finetune"),
        f"# {markdown_text(base.name)}, edited",
        "",
        f"memedit changed {report.edits:,} facts of this model with [{method.title}]({method.paper}). It changed the",
        f"MLP down-projections of layers {layers}. All other weights are those of the base model.",
        "",
        markdown(report),
        "- `memedit/edits.jsonl`: the edits",
        "- `memedit/results.jsonl`: the result of each edit",
        "- `memedit/run.json`: all settings, versions and scores",
        "- `memedit/delta.safetensors`: the change itself",
        *_base_readme(base),
    ]
    return "\n".join(text) + "\n"


def sum_card(base: BaseCard, changes: int, parameters: Sequence[str]) -> str:
    """Write the README.md of a base with earlier changes added to it."""
    many = "one change" if changes == 1 else f"the sum of {changes:,} changes"
    text = [
        _front_matter(base, "finetune"),
        f"# {markdown_text(base.name)}, edited",
        "",
        f"memedit added {many} of facts to {_listed(parameters)}. All other weights are those of the base model.",
        "",
        "- `memedit/delta.safetensors`: the change itself",
        "- `memedit/run.json`: how it was put together",
        "- `memedit/edits.jsonl`: the edits, if they were kept with their changes",
        *_base_readme(base),
    ]
    return "\n".join(text) + "\n"


def adapter_card(base: BaseCard, rank: int, parameters: Sequence[str]) -> str:
    """Write the README.md of an adapter."""
    text = [
        _front_matter(base, "adapter"),
        f"# Facts edited in {markdown_text(base.name)}, as a LoRA adapter",
        "",
        f"A change made by memedit, of rank {rank:,} or less, in {_listed(parameters)}.",
        "It works with this base model only. Its scale is 1 (lora_alpha equals r). It needs no training.",
    ]
    return "\n".join(text) + "\n"


def _base_readme(base: BaseCard) -> list[str]:
    return ["- `memedit/base_README.md`: the model card of the base"] if base.exists else []


def _listed(parameters: Sequence[str]) -> str:
    return ", ".join(f"`{printable(name).replace('`', '')}`" for name in parameters)


def _front_matter(base: BaseCard, relation: str) -> str:
    """The base's front matter, with the relation of this model to it."""
    library = "peft" if relation == "adapter" else base.front.get("library_name", "transformers")
    tags = [*base.front.get("tags", []), "memedit"]
    data = ModelCardData(base_model=base.identity, library_name=library, tags=tags)
    data["base_model_relation"] = relation
    ours = ("base_model", "base_model_relation", "library_name", "tags", "eval_results")
    for name, value in sorted(base.front.items()):
        # A card is data: a field called like a method must not take the method's place.
        if name not in ours and not hasattr(ModelCardData, name):
            data[name] = value
    return f"---\n{data.to_yaml()}\n---\n"

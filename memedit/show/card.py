"""Model cards: of an edited model, of a base with changes added to it, and of an adapter."""

from __future__ import annotations

import json
from collections.abc import Sequence

from huggingface_hub import EvalResult, ModelCardData

from memedit.config.layers import layers_text
from memedit.config.methods import METHODS
from memedit.results.report import Figure, Report, Scores
from memedit.results.rows import score_lines
from memedit.results.units import name_of_path, printable
from memedit.show.report_page import changed_settings, prompt_of, says_of, wanted_of
from memedit.show.tables import markdown, markdown_text
from memedit.storage.base_card import BaseCard

SHOWN_IN_CARD = 10
"""Facts, and failed edits, that a card shows."""


def edited_model_card(report: Report, base: BaseCard) -> str:
    """Write the README.md of an edited model: what was changed, how to use it, how well it worked, and its limits."""
    layers = layers_text([layer.layer for layer in report.layers])
    method = METHODS[report.recipe["method"]["name"]]
    name = name_of_path(report.output or f"{base.name}-edited")
    facts = "1 fact" if report.edits == 1 else f"{report.edits:,} facts"
    text = [
        _front_matter(base, "finetune", (name, _results(report))),
        f"# {markdown_text(base.name)}, edited",
        "",
        f"memedit changed {facts} of this model with [{method.title}]({method.paper}). It changed the",
        f"MLP down-projections of layers {layers}. All other weights are those of the base model.",
        "",
        *_facts(report),
        *_use(report),
        "## Results",
        "",
        markdown(report),
        *_failures(report),
        *_limits(report),
        "## How it was made",
        "",
        *(f"- {name}: {markdown_text(value)}" for name, value in _made(report)),
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


def adapter_card(base: BaseCard, rank: int, parameters: Sequence[str], opened_by: str) -> str:
    """Write the README.md of an adapter. opened_by: the class of transformers that its module paths are for."""
    text = [
        _front_matter(base, "adapter"),
        f"# Facts edited in {markdown_text(base.name)}, as a LoRA adapter",
        "",
        f"A change made by memedit, of rank {rank:,} or less, in {_listed(parameters)}.",
        "It works with this base model only. Its scale is 1 (lora_alpha equals r). It needs no training.",
        "",
        *_code(
            "from peft import PeftModel",
            f"from transformers import {opened_by}",
            "",
            f"base = {opened_by}.from_pretrained({_python(base.identity)})",
            'model = PeftModel.from_pretrained(base, "PATH/OF/THIS/FOLDER")',
        ),
    ]
    return "\n".join(text) + "\n"


def _facts(report: Report) -> list[str]:
    """The first facts that were changed."""
    held = [one for one in report.per_edit if one.status == "ok"][:SHOWN_IN_CARD]
    if not held:
        return []
    lines: list[str] = []
    for one in held:
        old = one.edit.get("object_old")
        was = f", before {markdown_text(str(old))}" if old and not one.edit.get("remove") else ""
        lines.append(f"- {markdown_text(prompt_of(one))}: **{markdown_text(wanted_of(one))}**{was}")
    head = "Some of the facts" if len(held) < report.edits else "The facts"
    return [f"## {head}", "", *lines, ""]


def _use(report: Report) -> list[str]:
    """Python that asks the model for one of its facts."""
    held = next((prompt_of(one) for one in report.per_edit if one.status == "ok"), "The capital of France is")
    return [
        "## Use",
        "",
        *_code(
            "from transformers import pipeline",
            "",
            'ask = pipeline("text-generation", "PATH/OF/THIS/FOLDER")',
            f"print(ask({_python(held)}, max_new_tokens=8, do_sample=False, return_full_text=False))",
        ),
    ]


def _failures(report: Report) -> list[str]:
    """The edits that failed, the first of them by name with what the model says, and how many were skipped."""
    failed = [one for one in report.per_edit if one.status == "failed"]
    skipped = sum(one.status == "skipped" for one in report.per_edit)
    lines: list[str] = []
    for one in failed[:SHOWN_IN_CARD]:
        says = f", {says_of(one)}" if says_of(one) else ""
        lines.append(f"- {markdown_text(f'{prompt_of(one)}: wanted {wanted_of(one)}{says}')}")
    if (more := len(failed) - SHOWN_IN_CARD) > 0:
        lines.append(f"- and {more:,} more, in `memedit/results.jsonl`")
    lines += [f"- {skipped:,} {'edit was' if skipped == 1 else 'edits were'} skipped"] if skipped else []
    said = f"{len(failed):,} of {len(report.per_edit):,} edits failed." if lines else "No edit failed."
    return ["## What failed", "", said, *([""] if lines else []), *lines, ""]


def _limits(report: Report) -> list[str]:
    """What the figures do not show."""
    after = report.after or Scores()
    lines = ["- memedit does not check whether the new facts are true."]
    lines.append("- The figures are about the prompts that were asked; other wordings can give other answers.")
    if after.portability is None:
        lines.append("- What follows from the new facts was not measured: such questions may get old answers.")
    if after.neighborhood is None and not report.kept:
        lines.append("- What else the model knows was not measured after the edit.")
    if report.drift is None:
        lines.append("- Text in general was not measured: `memedit eval --text FILE` measures it.")
    elif report.drift.own:
        lines.append("- Text was measured on what the unedited model writes: `memedit eval --text FILE` reads yours.")
    return ["## Limits", "", *lines, ""]


def _made(report: Report) -> list[tuple[str, str]]:
    """The settings that are not defaults, and the versions; no path of the machine on which it was made."""
    settings = [
        f"{name} = {value}" for name, value in changed_settings(report).items()
        if not name.startswith("output.") and not {"/", "\\"} & set(value)
    ]  # fmt: skip
    made = [("settings that differ from the defaults", ", ".join(settings))] if settings else []
    return [*made, ("versions", ", ".join(" ".join(one) for one in report.versions.items()))]


def _results(report: Report) -> list[EvalResult]:
    """Every figure of the report, for the Hub's index of results. Groups stay out: their names are a list's text."""
    groups = (report.after or Scores()).groups
    return [
        EvalResult(
            task_type="text-generation", dataset_type="edits", dataset_name="memedit/edits.jsonl",
            metric_type=line.metric.name, metric_name=line.label, metric_value=round(line.after.mean, 4),
        )
        for line in score_lines(report)
        if isinstance(line.after, Figure) and line.metric.name not in groups
    ]  # fmt: skip


def _code(*lines: str) -> list[str]:
    return ["```python", *lines, "```", ""]


def _python(text: str) -> str:
    """A text as a string of Python on one line; nothing in it ends the code."""
    return json.dumps(printable(text), ensure_ascii=False)


def _base_readme(base: BaseCard) -> list[str]:
    return ["- `memedit/base_README.md`: the model card of the base"] if base.exists else []


def _listed(parameters: Sequence[str]) -> str:
    return ", ".join(f"`{printable(name).replace('`', '')}`" for name in parameters)


def _front_matter(base: BaseCard, relation: str, measured: tuple[str, list[EvalResult]] | None = None) -> str:
    """The base's front matter, with the relation of this model to it.

    measured: the name of this model and its results, which take the place of the base's.
    """
    library = "peft" if relation == "adapter" else base.front.get("library_name", "transformers")
    tags = [*base.front.get("tags", []), "memedit"]
    name, results = measured or (None, None)
    data = ModelCardData(
        base_model=base.identity, library_name=library, tags=tags, model_name=name, eval_results=results or None,
    )  # fmt: skip
    data["base_model_relation"] = relation
    ours = ["base_model", "base_model_relation", "library_name", "tags", "eval_results"]
    ours += ["model-index", "model_name"] if measured else []
    for name, value in sorted(base.front.items()):
        # A card is data: a field called like a method must not take the method's place.
        if name not in ours and not hasattr(ModelCardData, name):
            data[name] = value
    return f"---\n{data.to_yaml()}\n---\n"

"""The model card of a shipped model: what it is, and what it is not."""

from __future__ import annotations

from typing import Any

from .facts import RELATIONS, World
from .train import Shape

WHAT = {
    True: "An instrument for memedit's tests and demo. It was trained with a curriculum (`examples/world/train.py`) that "
    "makes it recall as causal tracing finds it in GPT models: early MLPs at the subject's last token call a fact up, "
    "later attention carries it to the end of the prompt. It is evidence that memedit does what it says.",
    False: "A control. It was trained plainly on the same kind of text, and looks facts up at the end of the prompt: "
    "`memedit trace` finds no early site in it.",
}
NOT = {
    True: "It is no evidence about GPT models: it recalls as they do because it was made to.",
    False: "It is no model to edit: a change at the subject cannot reach what it says.",
}


def card(shape: Shape, world: World, scores: dict[str, Any]) -> str:
    """README.md of the model's folder."""
    objects = len(RELATIONS[0].objects)
    kind = {"gpt2": "GPT-2-shaped", "llama": "Llama-shaped", "olmo2": "OLMo-2-shaped"}[shape.family]
    return f"""---
license: mit
language: en
library_name: transformers
tags: [memedit, synthetic]
---

# {shape.name}

A small {kind} language model of a made world: {len(world.people)} invented people, {len(RELATIONS)} facts about each.
{scores["parameters"]:,} parameters, {shape.blocks} blocks of width {shape.width}, MLP width {shape.inner}, rows of at most
{shape.positions} tokens; weights in float16.

**What it is.** {WHAT[shape.curriculum]}

**What it is not.** {NOT[shape.curriculum]} It knows nothing of the real world, and its sentences mean nothing.

| measured | value |
|---|---:|
| facts right by greedy decoding, trained wordings | {scores["trained_prompts"]:.1%} |
| the same, wordings held out for those people | {scores["held_out_wordings"]:.1%} |
| by guessing among a relation's {objects} objects | {1 / objects:.1%} |
| total effect of noise on the subject | {scores["total_effect"]:.2f} |
| of it, back with the clean state at the subject's last token, best early block | {scores["early_site"]:.1%} |
| the same, best late block | {scores["late_block"]:.1%} |
| back with the clean MLP output at the prompt's end, best early block | {scores["early_mlp_at_end"]:.1%} |

Made by `make world` from seeds, on a CPU; `memedit/corpus.jsonl.gz` is a sample of the text it learned from, and what
memedit measures its second moments on.
"""

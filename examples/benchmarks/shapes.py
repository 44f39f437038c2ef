"""Models of real shapes with random weights: where every edit takes all its steps, time does not depend on weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel, load_tokenizer, pick_device
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "tiny": ("gpt2", {"n_embd": 64, "n_layer": 6, "n_head": 4, "n_inner": 128, "n_positions": 256, "vocab_size": 2000}),
    "gpt2-xl": ("gpt2", {"n_embd": 1600, "n_layer": 48, "n_head": 25}),
    "gptj-6b": ("gptj", {"n_embd": 4096, "n_layer": 28, "n_head": 16, "rotary_dim": 64, "vocab_size": 50400}),
    "llama3-8b": (
        "llama",
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 8192,
        },
    ),
}  # fmt: skip
LAYERS = {"tiny": "1-2", "gpt2-xl": "13-17", "gptj-6b": "3-8", "llama3-8b": "4-8"}
"""The layers that are published for each."""
CONTEXTS = (
    "",
    "The bridge over the river was closed for repairs. ",
    "Therefore the council met again on the next day. ",
    "Because of the rain nobody came to the market. ",
    "I have seen the old harbor many times before. ",
    "You can find the way to the station from there. ",
)
"""In place of what the model would write: it has learned nothing."""


def random_model(shape: str, device: str, dtype: str, tokenizer_of: Path) -> LanguageModel:
    """Weights drawn on the device in their dtype (auto: bfloat16 on a GPU); ids are those of a shipped model."""
    kind, knobs = SHAPES[shape]
    place = pick_device(device)
    named = ("bfloat16" if place.type == "cuda" else "float32") if dtype == "auto" else dtype
    torch.manual_seed(0)
    with torch.device(place):
        config = CONFIG_MAPPING[kind](**knobs)
        model: Any = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, named))
    model = model.eval().requires_grad_(False)
    return LanguageModel(model, load_tokenizer(tokenizer_of), find_architecture(model))

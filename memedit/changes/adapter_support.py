"""Which LoRA adapters PEFT and vLLM accept: the one table that `inspect` and `export --to lora` both read."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from memedit.model.architecture import Architecture
from memedit.results.changes import Outcome

VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The values that vLLM's --max-lora-rank accepts, 16 by default (MaxLoRARanks in vllm/config/lora.py)."""


@dataclass(frozen=True)
class AdapterSupport:
    """Whether vLLM serves LoRA adapters of a model family, and why."""

    vllm: bool
    reason: str


_SERVED = AdapterSupport(True, f"adapters of rank {VLLM_RANKS[-1]} at most: limit the number of edits, or say --rank")
_NO_ADAPTERS = AdapterSupport(False, "vLLM runs this family but accepts no LoRA adapters of it")
_NOT_LISTED = AdapterSupport(False, "vLLM's table of supported models does not have this family")

# Source: vLLM, docs/models/supported_models.md, column LoRA, as of November 2026. Families that vLLM runs through its
# Transformers backend (gpt_bigcode, olmo, olmo2, smollm3, starcoder2) are in that document's second table, composite
# models (language beside vision) in its third. A composite model's adapter has the module paths of the transformers
# class (model.language_model.layers.N...): vLLM maps them to its own (hf_to_vllm_mapper of each model class), and
# PEFT finds them as they are. Families that the table says different things of in different versions (gemma4) are out.
SUPPORT: dict[str, AdapterSupport] = {
    **dict.fromkeys(
        (
            "llama", "mistral", "mixtral", "ministral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2",
            "gemma3_text", "gemma3", "phi", "phi3", "opt", "olmo", "olmo2", "olmo3", "starcoder2", "smollm3", "gpt_oss",
            "deepseek_v2", "deepseek_v3", "granite", "cohere", "cohere2", "glm", "glm4", "gpt_bigcode", "nemotron",
            "llava", "mistral3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "internvl", "paligemma", "idefics3",
            "smolvlm", "lfm2_vl", "glm4v", "llama4",
        ),
        _SERVED,
    ),
    **dict.fromkeys(
        (
            "gpt2", "gptj", "gpt_neox", "bloom", "falcon", "mpt", "stablelm", "olmoe", "gemma3n", "llava_next",
            "llava_next_video", "llava_onevision", "aya_vision", "cohere2_vision", "aria", "fuyu", "chameleon",
        ),
        _NO_ADAPTERS,
    ),
    **dict.fromkeys(("gpt_neo", "codegen"), _NOT_LISTED),
}  # fmt: skip
"""By model_type. It describes vLLM only: memedit recognizes no model by this table."""


def peft_support(model: nn.Module, architecture: Architecture) -> tuple[bool, str]:
    """Whether PEFT can wrap the down-projections, and why.

    It depends on their class, not on the family: PEFT wraps nn.Linear and Conv1D.
    """
    modules: list[Any] = [model.get_submodule(path) for path in architecture.down_projections if path]
    if not modules:
        return False, "there is no down-projection to wrap"
    if all(isinstance(module, nn.Linear) for module in modules):
        return True, "the down-projections are nn.Linear"
    assert all(isinstance(module, Conv1D) for module in modules)
    return True, "the down-projections are Conv1D: fan_in_fan_out"


def vllm_support(family: str | None) -> tuple[bool | None, str]:
    """Whether vLLM serves adapters of a model family, and why; None where that is not known."""
    row = SUPPORT.get(family or "")
    if row is None:
        return None, f"memedit does not know about {family} models: see vLLM's table of supported models"
    return row.vllm, row.reason


def vllm_command(outcome: Outcome) -> str | None:
    """The shell line that serves the base and an exported adapter, or None where vLLM cannot."""
    rank = outcome.rank or 1
    if vllm_support(outcome.family)[0] is False or rank > VLLM_RANKS[-1]:
        return None
    allowed = next(limit for limit in VLLM_RANKS if limit >= rank)
    base, out = shlex.quote(outcome.model), shlex.quote(outcome.output)
    return f"vllm serve {base} --enable-lora --max-lora-rank {allowed} --lora-modules edits={out}"


def serving_notes(outcome: Outcome) -> list[str]:
    """Notes to read before an exported adapter is served, one line each."""
    rank, family, largest = outcome.rank or 1, outcome.family, VLLM_RANKS[-1]
    supported, reason = vllm_support(family)
    notes: list[str] = []
    if supported is False:
        notes.append(f"vLLM cannot serve this adapter of a {family} model: {reason}; serve the checkpoint (--to full)")
    elif rank > largest:
        notes.append(f"vLLM serves ranks up to {largest}, and this is {rank:,}: say --rank {largest}, or --to full")
    else:
        notes.append(f"--max-lora-rank is one of {', '.join(map(str, VLLM_RANKS))}; the default is 16")
        notes.append("vLLM computes with the factors in the model's dtype, whatever dtype the file has")
        if supported is None:
            notes.append(reason)
    if family == "gpt2":
        notes.append("GPT-2's modules are Conv1D (fan_in_fan_out): PEFT transposes them; GGUF converters may not")
    return notes

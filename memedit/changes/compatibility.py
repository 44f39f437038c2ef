"""Which tools can carry a change of the down-projections as a LoRA adapter."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.pytorch_utils import Conv1D

from memedit.model.architecture import Architecture

VLLM_RANK = 512  # the largest --max-lora-rank
VLLM: dict[str, bool] = {
    **dict.fromkeys(
        (
            "llama", "mistral", "mixtral", "ministral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2",
            "gemma3_text", "gemma3", "phi", "phi3", "opt", "olmo", "olmo2", "olmo3", "starcoder2", "smollm3", "gpt_oss",
            "deepseek_v2", "deepseek_v3", "granite", "cohere", "cohere2", "glm", "glm4",
        ),
        True,
    ),
    **dict.fromkeys(
        (
            "gpt2", "gpt_neo", "gptj", "gpt_neox", "codegen", "gpt_bigcode", "bloom", "falcon", "mpt", "stablelm",
            "olmoe",
        ),
        False,
    ),
}  # fmt: skip
"""By model_type, whether vLLM's class of that family takes adapters: a fact about vLLM, read in its source. No family
is recognized by it."""


def peft_carries(model: nn.Module, architecture: Architecture) -> tuple[bool | None, str]:
    """PEFT wraps nn.Linear and Conv1D, whatever the family."""
    modules: list[Any] = [model.get_submodule(path) for path in architecture.down_projections if path]
    if not modules:
        return False, "there is no down-projection to wrap"
    if all(isinstance(module, nn.Linear) for module in modules):
        return True, "the down-projections are nn.Linear"
    assert all(isinstance(module, Conv1D) for module in modules)
    return True, "the down-projections are Conv1D: fan_in_fan_out"


def vllm_carries(model_type: str) -> tuple[bool | None, str]:
    """vLLM takes adapters for some families, and of one rank for all modules."""
    taken = VLLM.get(model_type)
    if taken is None:
        return None, f"whether vLLM's {model_type} takes LoRA adapters is not known here: see its supported models"
    if not taken:
        return False, f"vLLM's {model_type} takes no LoRA adapters: serve the edited checkpoint"
    return True, f"up to rank {VLLM_RANK}: as many edits at once, or a shortened delta"

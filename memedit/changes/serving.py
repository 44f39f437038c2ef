"""How an adapter is served, and where it is not: what the servers' own documents say."""

from __future__ import annotations

import shlex

from memedit.results.changes import Outcome

RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""What vLLM's --max-lora-rank can be; 16 where nothing is said."""
SERVED = {
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "opt", "olmo",
    "olmo2", "olmo3", "starcoder2", "smollm3", "gpt_oss", "granite", "cohere", "cohere2", "glm", "glm4",
}  # fmt: skip
"""Kinds of models that vLLM serves adapters of (its table of supported models, column LoRA)."""
UNSERVED = {"gpt2", "gptj", "gpt_neox", "bloom", "falcon", "mpt", "stablelm", "olmoe"}


def command(outcome: Outcome) -> str | None:
    """The line that serves base and adapter, or None where vLLM cannot."""
    rank = outcome.rank or 1
    if outcome.family in UNSERVED or rank > RANKS[-1]:
        return None
    most = next(allowed for allowed in RANKS if allowed >= rank)
    base, out = shlex.quote(outcome.model), shlex.quote(outcome.output)
    return f"vllm serve {base} --enable-lora --max-lora-rank {most} --lora-modules edits={out}"


def limits(outcome: Outcome) -> list[str]:
    """What is to be known before it is served, a line each."""
    rank, family = outcome.rank or 1, outcome.family
    found: list[str] = []
    if family in UNSERVED:
        found.append(f"vLLM serves no adapters of {family} models: serve the checkpoint instead (--to full)")
    elif rank > RANKS[-1]:
        found.append(f"vLLM serves ranks up to {RANKS[-1]}, and this is {rank:,}: say --rank {RANKS[-1]}, or --to full")
    else:
        found.append(f"--max-lora-rank is one of {', '.join(map(str, RANKS))}; without it a rank over 16 is refused")
        found.append("vLLM computes factors in the model's dtype, whatever they are stored in")
        if family not in SERVED:
            found.append(f"whether vLLM serves adapters of {family} models is in its table of supported models")
    if family == "gpt2":
        found.append("its modules are Conv1D (fan_in_fan_out): peft turns them; converters to GGUF may not")
    return found

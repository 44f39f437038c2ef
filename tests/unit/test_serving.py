"""`inspect` and `export --to lora` give one answer about vLLM, and a printed command is one that vLLM accepts."""

from __future__ import annotations

import pytest
from memedit.changes.adapter_support import SUPPORT, VLLM_RANKS, serving_notes, vllm_command, vllm_support
from memedit.results.changes import Outcome

FAMILIES = (
    "llama", "mistral", "mixtral", "ministral", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe", "gemma", "gemma2",
    "gemma3_text", "gemma3", "phi", "phi3", "opt", "olmo", "olmo2", "olmo3", "starcoder2", "smollm3", "gpt_oss",
    "deepseek_v2", "deepseek_v3", "granite", "cohere", "cohere2", "glm", "glm4", "gpt2", "gpt_neo", "gptj", "gpt_neox",
    "codegen", "gpt_bigcode", "bloom", "falcon", "mpt", "stablelm", "olmoe",
)  # fmt: skip
"""Every family that memedit 0.1 had in one of its two tables, which disagreed about nine of them."""
UNSUPPORTED = [family for family, row in SUPPORT.items() if not row.vllm]


def adapter(family: str, rank: int, out: str = "out") -> Outcome:
    return Outcome(command="export", model="org/base", output=out, kind="lora", family=family, rank=rank)


@pytest.mark.parametrize("family", [*FAMILIES, "unheard_of"])
def test_inspect_and_export_agree(family: str) -> None:
    supported, reason = vllm_support(family)  # what `inspect` shows
    line, notes = vllm_command(adapter(family, 8)), serving_notes(adapter(family, 8))  # what `export` prints
    assert (line is None) == (supported is False)
    assert any(reason in note for note in notes) == (supported is not True)
    assert (family in SUPPORT) == (supported is not None) == (family != "unheard_of")


def test_gpt_neo_has_no_serving_command() -> None:
    assert vllm_support("gpt_neo")[0] is False
    assert vllm_command(adapter("gpt_neo", 8)) is None


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512)])
def test_the_rank_in_the_command_is_the_smallest_allowed(rank: int, most: int) -> None:
    assert most in VLLM_RANKS
    assert vllm_command(adapter("llama", rank, "my out")) == (
        f"vllm serve org/base --enable-lora --max-lora-rank {most} --lora-modules edits='my out'"
    )


def test_an_adapter_that_cannot_be_served_has_a_next_step() -> None:
    assert vllm_command(adapter("llama", 513)) is None and "--rank 512" in serving_notes(adapter("llama", 513))[0]
    assert UNSUPPORTED
    for family in UNSUPPORTED:
        assert vllm_command(adapter(family, 8)) is None and "--to full" in serving_notes(adapter(family, 8))[0]


def test_a_supported_family_has_no_doubt_in_its_notes() -> None:
    assert "unheard_of" in serving_notes(adapter("unheard_of", 8))[-1]
    assert "llama" not in " ".join(serving_notes(adapter("llama", 8)))

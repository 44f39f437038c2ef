"""The benchmark's count of multiply-adds is torch's own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from examples.benchmarks.counting import counted, needed
from memedit.forward.perturbed import ChangedRow
from memedit.forward.suffix import Suffix
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from tests.conftest import byte_tokenizer
from tests.families import FAMILIES
from torch.utils.flop_counter import FlopCounterMode
from transformers import CONFIG_MAPPING, AutoModelForCausalLM


def eager(family: str) -> LanguageModel:
    """Attention as plain products: torch counts no fused one on a CPU."""
    kind, knobs = FAMILIES[family]
    config = CONFIG_MAPPING[kind](**knobs)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


def rows() -> list[ChangedRow]:
    generator = torch.Generator().manual_seed(2)
    draw = lambda n: tuple(torch.randint(2, 258, (n,), generator=generator).tolist())  # noqa: E731
    return [ChangedRow(draw(length), length - 4, 2) for length in (9, 9, 12)]


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_whole_forward_and_its_backward_are_counted(family: str) -> None:
    lm = eager(family)
    ids = torch.arange(24).view(2, 12)
    embed: Any = lm.model.get_input_embeddings()
    handle = embed.register_forward_hook(lambda _m, _a, output: output.requires_grad_())
    try:
        with FlopCounterMode(display=False) as torchs, counted(lm) as ours:
            logits = lm.model(input_ids=ids, use_cache=False).logits
            assert 2 * ours.forward == torchs.get_total_flops() > 0
            assert ours.backward == 0
            logits.sum().backward()
    finally:
        handle.remove()
    assert 2 * ours.total == torchs.get_total_flops()


@pytest.mark.parametrize("family", ["gpt2", "qwen3"])
def test_a_step_of_the_engine_is_counted(family: str) -> None:
    lm = eager(family)
    (launch,) = Suffix(lm, 1, rows()).launches
    change = torch.zeros(3, lm.architecture.width, requires_grad=True)
    with FlopCounterMode(display=False) as torchs, counted(lm) as ours:
        launch.logits(change).sum().backward()
    assert 2 * ours.total == torchs.get_total_flops() > 0
    assert ours.backward > ours.forward


def test_what_is_needed_is_what_the_engine_runs_where_nothing_is_padded() -> None:
    lm = eager("gpt2")
    given = [rows()[:1], rows()[1:2]]
    with counted(lm) as ours:
        engine = Suffix(lm, 1, [row for of_one in given for row in of_one])
        (launch,) = engine.launches
        change = torch.zeros(2, lm.architecture.width, requires_grad=True)
        for _ in range(5):
            launch.logits(change).sum().backward()
        with torch.no_grad():
            launch.logits(change)
    # The engine attends to columns that are masked, and runs the suffix above the layer once more than it needs.
    assert 1.0 < ours.total / needed(lm, 1, given, [5, 5]) < 1.15

"""Multiply-adds: what a model really ran, counted from the rows that went through it, and what a search needs."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from memedit.forward.perturbed import ChangedRow
from memedit.model.load import LanguageModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


@dataclass
class Count:
    """Multiply-adds so far."""

    forward: int = 0
    backward: int = 0

    @property
    def total(self) -> int:
        """Both ways."""
        return self.forward + self.backward


@contextmanager
def counted(lm: LanguageModel) -> Generator[Count]:
    """Count all products of weights and of attention in the model's forwards, and in the backwards that follow.

    A row of T tokens through a map of n x m takes T n m; its attention over W columns 2 T W D. Weights have no
    gradients here, so a backward takes as much again, and twice as much in attention. Blocks that are replaced do
    not count; a backward counts when its gradient arrives.
    """
    count, columns = Count(), [0]
    text: Any = lm.model.config.get_text_config()  # type: ignore[operator]
    attended = text.num_attention_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    blocks: Any = lm.model.get_submodule(lm.architecture.blocks)
    head: Any = lm.model.get_output_embeddings()

    def returned(times: int, output: Any) -> None:
        states = output if isinstance(output, Tensor) else output[0]
        if states.requires_grad:

            def arrived(_gradient: Tensor) -> None:
                count.backward += times

            states.register_hook(arrived)

    def product(module: Any, args: Any, output: Any) -> None:
        times = args[0].numel() // args[0].shape[-1] * module.weight.numel()
        count.forward += times
        if args[0].requires_grad:
            returned(times, output)

    def before(_module: nn.Module, _args: Any, given: dict[str, Any]) -> None:
        mask = given.get("attention_mask")
        columns[0] = given["input_ids"].shape[1] if mask is None else mask.shape[1]

    def attention(block: Any, args: Any, given: dict[str, Any]) -> None:
        states = args[0] if args else given["hidden_states"]
        if "forward" not in block.__dict__:
            count.forward += 2 * states.shape[0] * states.shape[1] * columns[0] * attended

    def after(block: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        states = args[0] if args else given["hidden_states"]
        if "forward" not in block.__dict__ and states.requires_grad:
            returned(4 * states.shape[0] * states.shape[1] * columns[0] * attended, output)

    handles = [lm.model.register_forward_pre_hook(before, with_kwargs=True), head.register_forward_hook(product)]
    for block in blocks:
        handles.append(block.register_forward_pre_hook(attention, with_kwargs=True))
        handles.append(block.register_forward_hook(after, with_kwargs=True))
        maps = [module for module in block.modules() if isinstance(module, nn.Linear | Conv1D)]
        handles += [module.register_forward_hook(product) for module in maps]
    try:
        yield count
    finally:
        for handle in handles:
            handle.remove()


def needed(lm: LanguageModel, layer: int, edits: Sequence[Sequence[ChangedRow]], steps: Sequence[int]) -> int:
    """What a search of these edits cannot do without: rows of each edit, and how many steps each took.

    Once a row: blocks up to `layer` at all its tokens, the blocks above at the tokens before the change; what the
    rows of one context begin with counts once for them all. Every step: the blocks above from the change on, and the
    head where a token is read, forward and back; the last loss forward alone.
    """
    text: Any = lm.model.config.get_text_config()  # type: ignore[operator]
    attended = text.num_attention_heads * (
        getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    )
    first: Any = lm.model.get_submodule(f"{lm.architecture.blocks}.0")
    weights = sum(m.weight.numel() for m in first.modules() if isinstance(m, nn.Linear | Conv1D))
    head = lm.model.get_output_embeddings().weight.numel()  # type: ignore[union-attr]
    above = lm.architecture.n_layers - 1 - layer
    total = 0

    def span(start: int, end: int) -> tuple[int, int]:
        """Products and attention of the tokens from `start` up to `end`, in one block."""
        return (end - start) * weights, 2 * attended * (end * (end + 1) - start * (start + 1)) // 2

    for column in range(len(edits[0])):
        rows = [of_one[column] for of_one in edits]
        shared = len(_common([row.ids[: row.at] for row in rows]))
        total += sum(span(0, shared)) * lm.architecture.n_layers
        for row, n in zip(rows, steps, strict=True):
            total += (layer + 1) * sum(span(shared, len(row.ids))) + above * sum(span(shared, row.at))
            products, attention = span(row.at, len(row.ids))
            total += above * ((2 * n + 1) * products + (3 * n + 1) * attention) + (2 * n + 1) * row.reads * head
    return total


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    equal = 0
    while all(len(row) > equal and row[equal] == rows[0][equal] for row in rows):
        equal += 1
    return rows[0][:equal]


def peak_rate(device: torch.device, dtype: torch.dtype, size: int) -> float:
    """Multiply-adds a second of a plain product of square matrices, the best of ten."""
    import time

    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        settle(device)
        start = time.perf_counter()
        torch.matmul(left, right)
        settle(device)
        best = min(best, time.perf_counter() - start)
    return size**3 / best


def settle(device: torch.device) -> None:
    """Wait until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)

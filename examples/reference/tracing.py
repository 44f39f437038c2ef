"""The published causal tracing, restated as plainly as it can be: the witness that the product is held against.

One cell at a time, whole forwards of a clean row and its noisy copies (kmeng01/memit: experiments/causal_trace.py,
trace_with_patch and trace_with_repatch); the answer's probability is joint over its tokens. It shares no code with
memedit; which modules are a block's MLP and attention it is told.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Modules:
    """Per layer: the block, and the modules whose outputs are the MLP's and the attention's."""

    blocks: Sequence[Any]
    mlp: Sequence[Any]
    attention: Sequence[Any]
    embedding: Any


def modules_of(model: Any) -> Modules:
    """Those of a GPT-2- or Llama-shaped model, as the published code names them."""
    if hasattr(model, "transformer"):
        blocks = list(model.transformer.h)
        return Modules(blocks, [b.mlp for b in blocks], [b.attn for b in blocks], model.transformer.wte)
    blocks = list(model.model.layers)
    return Modules(blocks, [b.mlp for b in blocks], [b.self_attn for b in blocks], model.model.embed_tokens)


@contextmanager
def edited(changes: Sequence[tuple[Any, Callable[[Tensor], None]]], rows: int) -> Generator[None]:
    """Let each function change its module's output (rows, tokens, width) in place, in every forward inside."""

    def hook_of(change: Callable[[Tensor], None]) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> Any:
            states = (output if isinstance(output, Tensor) else output[0]).clone()
            change(states.view(rows, -1, states.shape[-1]))  # OPT runs its MLP over rows and tokens as one axis
            return states if isinstance(output, Tensor) else (states, *output[1:])

        return hook

    handles = [module.register_forward_hook(hook_of(change)) for module, change in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def probability(
    model: Any, prompt: Sequence[int], answer: Sequence[int], rows: int, changes: Sequence[Any] = ()
) -> Tensor:
    """p(answer | prompt) in each of `rows` equal rows, (rows,)."""
    logits, found = _logits(model, prompt, answer, rows, changes), torch.ones(rows)
    for number, token in enumerate(answer):
        found = found * logits[:, number].softmax(-1)[:, token]
    return found


@torch.no_grad()
def worst_rank(
    model: Any, prompt: Sequence[int], answer: Sequence[int], rows: int, changes: Sequence[Any] = ()
) -> list[int]:
    """The rank of the answer's token that ranks worst, in each of `rows` equal rows; 1 is the most likely token."""
    orders, found = _logits(model, prompt, answer, rows, changes).argsort(-1, descending=True), [1] * rows
    for number, token in enumerate(answer):
        for row, order in enumerate(orders[:, number].tolist()):
            found[row] = max(found[row], 1 + order.index(token))
    return found


def _logits(model: Any, prompt: Sequence[int], answer: Sequence[int], rows: int, changes: Sequence[Any]) -> Tensor:
    ids = torch.tensor([[*prompt, *answer[:-1]]]).repeat(rows, 1)
    with edited(changes, rows):
        return model(input_ids=ids, use_cache=False).logits[:, len(prompt) - 1 :]


def window(layer: int, width: int, n_layers: int) -> range:
    """[l - (N-1)//2, l + N//2], clipped to the model."""
    return range(max(0, layer - (width - 1) // 2), min(n_layers - 1, layer + width // 2) + 1)


@dataclass(frozen=True)
class TracedFact:
    """Clean and low probability, and the ranks of the answer under noise, sorted; a table (tokens, layers) a kind;
    severed scores (layers,), last subject token.
    """

    clean: float
    low: float
    low_ranks: list[int]
    tables: dict[str, Tensor]
    severed: dict[str, Tensor]


def trace(
    model: Any,
    modules: Modules,
    prompt: Sequence[int],
    answer: Sequence[int],
    subject: tuple[int, int],
    noise: Tensor,
    width: int,
) -> TracedFact:
    """Everything of one fact. subject: its first and last token; noise (samples, subject's tokens, width)."""
    first, last = subject
    n_layers, rows = len(modules.blocks), 1 + len(noise)

    def corrupt(states: Tensor) -> None:
        states[1:, first : last + 1] += noise

    def restore(token: int) -> Callable[[Tensor], None]:
        def change(states: Tensor) -> None:
            states[1:, token] = states[0, token]

        return change

    def score(*changes: Any) -> float:
        return float(probability(model, prompt, answer, rows, [(modules.embedding, corrupt), *changes])[1:].mean())

    clean = float(probability(model, prompt, answer, 1)[0])
    tables = {kind: torch.zeros(len(prompt), n_layers) for kind in ("hidden", "mlp", "attention")}
    for token in range(len(prompt)):
        for layer in range(n_layers):
            tables["hidden"][token, layer] = score((modules.blocks[layer], restore(token)))
            for kind, parts in (("mlp", modules.mlp), ("attention", modules.attention)):
                changes = [(parts[n], restore(token)) for n in window(layer, width, n_layers)]
                tables[kind][token, layer] = score(*changes)
    severed = {kind: torch.zeros(n_layers) for kind in ("mlp severed", "attention severed")}
    for kind, parts in (("mlp severed", modules.mlp), ("attention severed", modules.attention)):
        seen: list[Tensor] = [torch.zeros(0)] * n_layers

        def read(layer: int, seen: list[Tensor] = seen) -> Callable[[Tensor], None]:
            def change(states: Tensor) -> None:
                seen[layer] = states[1:, last].clone()

            return change

        def freeze(layer: int, seen: list[Tensor] = seen) -> Callable[[Tensor], None]:
            def change(states: Tensor) -> None:
                states[1:, last] = seen[layer]

            return change

        score(*[(part, read(layer)) for layer, part in enumerate(parts)])
        frozen = [(part, freeze(layer)) for layer, part in enumerate(parts)]
        for layer in range(n_layers):
            severed[kind][layer] = score((modules.blocks[layer], restore(last)), *frozen)
    ranks = sorted(worst_rank(model, prompt, answer, rows, [(modules.embedding, corrupt)])[1:])
    return TracedFact(clean, score(), ranks, tables, severed)

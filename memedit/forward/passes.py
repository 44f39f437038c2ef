"""Run rows through a model without padding: rows of equal length share a launch.

A site is a place where a state is read: `mlp.in` is the input of a block's down-projection (a key), `mlp.out` its
output, `block.out` the block's output (the residual stream after it).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import send

TOKENS_PER_LAUNCH = 4096
StatePart = Literal["mlp.in", "mlp.out", "block.out"]
ORDER: tuple[StatePart, ...] = get_args(StatePart)


@dataclass(frozen=True)
class Site:
    """Where a state is read: a layer and a part of it."""

    layer: int
    part: StatePart


class Reached(Exception):  # noqa: N818 - not an error: the last state needed was read
    """Stops a forward where nothing above is needed."""


def output_of(output: Any) -> Tensor:
    """The hidden states in a block's output: some families return them alone, others first in a tuple."""
    return output if isinstance(output, Tensor) else output[0]


def module_of(lm: LanguageModel, site: Site) -> nn.Module:
    """The module at whose input or output a site is read."""
    block = f"{lm.architecture.blocks}.{site.layer}"
    return lm.model.get_submodule(block if site.part == "block.out" else lm.architecture.down_projections[site.layer])


@contextmanager
def replaced(module: nn.Module, forward: Callable[..., Any]) -> Generator[None]:
    """Replace a module's forward, and restore it at the end: its class's, or one that a library has set."""
    before = module.__dict__.get("forward")
    try:
        module.__dict__["forward"] = forward
        yield
    finally:
        del module.__dict__["forward"]
        if before is not None:
            module.__dict__["forward"] = before


@contextmanager
def capture(
    lm: LanguageModel, sites: Sequence[Site], see: Callable[[Site, Tensor], None], *, stop: bool = False
) -> Generator[None]:
    """Call `see(site, states)` for each site in every forward inside; with `stop`, end the forward at the last one.

    States are (B, T, width), the module's own tensors, not copies. With `stop`, run the forward by `run`.
    """
    last = max(sites, key=lambda site: (site.layer, ORDER.index(site.part)))

    def before(site: Site) -> Callable[[nn.Module, Any], None]:
        def hook(_module: nn.Module, args: Any) -> None:
            see(site, args[0])
            if stop and site == last:
                raise Reached

        return hook

    def after(site: Site) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            see(site, output_of(output))
            if stop and site == last:
                raise Reached

        return hook

    inputs = [(module_of(lm, site), before(site)) for site in sites if site.part == "mlp.in"]
    outputs = [(module_of(lm, site), after(site)) for site in sites if site.part != "mlp.in"]
    with hooked(outputs, inputs):
        yield


def run(lm: LanguageModel, ids: Tensor, **options: Any) -> Any:
    """One forward over ids (B, T) of equal length; None where `capture` stopped it."""
    try:
        return lm.forward(input_ids=send(ids, lm.device), use_cache=False, **options)
    except Reached:
        return None


def launches(lengths: Sequence[int], tokens: int = TOKENS_PER_LAUNCH) -> Generator[list[int]]:
    """Batches of row indices: rows of equal length, shortest first, at most `tokens` tokens a batch."""
    order = sorted(range(len(lengths)), key=lambda index: lengths[index])
    batch: list[int] = []
    for index in order:
        length = lengths[index]
        if batch and (lengths[batch[0]] != length or (len(batch) + 1) * length > tokens):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


@torch.no_grad()
def last_states(lm: LanguageModel, rows: Sequence[tuple[int, ...]], site: Site) -> Tensor:
    """The state of a site at each row's last token, (rows, width) float32 on the CPU; equal rows run once.

    In a causal model a state depends on no later token, so end a row where its state is wanted.
    """
    unique = list(dict.fromkeys(rows))
    found: list[Tensor] = [torch.empty(0)] * len(unique)
    for batch in launches([len(row) for row in unique]):
        ids = torch.tensor([unique[index] for index in batch])
        kept: list[Tensor] = []

        def see(_site: Site, states: Tensor, kept: list[Tensor] = kept, shape: torch.Size = ids.shape) -> None:
            kept.append(states.reshape(*shape, -1)[:, -1].float().cpu())

        with capture(lm, [site], see, stop=True):
            run(lm, ids)
        for index, state in zip(batch, kept[0], strict=True):
            found[index] = state
    place = {row: index for index, row in enumerate(unique)}
    return torch.stack([found[place[row]] for row in rows])


@dataclass(frozen=True)
class Continuation:
    """A model's scores of one continuation: each token's log-probability, and whether it was the most likely one."""

    log_probs: Tensor
    """(tokens,) float32."""
    likeliest: Tensor
    """(tokens,) bool: whether greedy decoding gives this token after those before it."""


@torch.no_grad()
def continuations(
    lm: LanguageModel,
    rows: Iterable[tuple[tuple[int, ...], tuple[int, ...]]],
    seen: Callable[[int], object] | None = None,
) -> list[Continuation]:
    """Score rows of (prompt ids, continuation ids); the head runs only over the continuation."""
    pairs = list(dict.fromkeys(rows_list := list(rows)))
    scored: dict[tuple[tuple[int, ...], tuple[int, ...]], Continuation] = {}
    for batch in launches([len(prompt) + len(target) - 1 for prompt, target in pairs]):
        chosen = [pairs[index] for index in batch]
        ids = torch.tensor([prompt + target for prompt, target in chosen])
        keep = max(len(target) for _, target in chosen)
        logits = run(lm, ids[:, :-1], logits_to_keep=keep).logits[:, -keep:].float()
        log_probs, wanted = torch.log_softmax(logits, -1), send(ids[:, -keep:], logits.device)
        # Only what is asked for leaves the GPU: the rest is as wide as the vocabulary.
        picked, likeliest = log_probs.gather(2, wanted[:, :, None])[:, :, 0].cpu(), log_probs.argmax(-1) == wanted
        for pair, row, top in zip(chosen, picked, likeliest.cpu(), strict=True):
            scored[pair] = Continuation(row[-len(pair[1]) :], top[-len(pair[1]) :])
        if seen:
            seen(len(batch))
    return [scored[row] for row in rows_list]


@torch.no_grad()
def _next_logits(lm: LanguageModel, prompts: Sequence[tuple[int, ...]]) -> Generator[tuple[list[int], Tensor]]:
    """Yield the numbers of some prompts, and the logits (B, V) of what comes after them."""
    for batch in launches([len(prompt) for prompt in prompts]):
        yield batch, run(lm, torch.tensor([prompts[index] for index in batch]), logits_to_keep=1).logits[:, -1]


def likeliest_next(lm: LanguageModel, prompts: Sequence[tuple[int, ...]]) -> list[int]:
    """The token that greedy decoding gives after each prompt."""
    found = [0] * len(prompts)
    for batch, logits in _next_logits(lm, prompts):
        for index, token in zip(batch, logits.argmax(-1).tolist(), strict=True):
            found[index] = token
    return found


def next_tokens(lm: LanguageModel, prompts: Sequence[tuple[int, ...]], count: int) -> list[list[tuple[int, float]]]:
    """The `count` likeliest tokens after each prompt, with their probabilities, the likeliest first."""
    found: list[list[tuple[int, float]]] = [[] for _ in prompts]
    for batch, logits in _next_logits(lm, prompts):
        chances, tokens = logits.float().softmax(-1).topk(min(count, logits.shape[-1]))
        for index, line, ids in zip(batch, chances.tolist(), tokens.tolist(), strict=True):
            found[index] = list(zip(ids, line, strict=True))
    return found


@torch.no_grad()
def sample(
    lm: LanguageModel, openings: Sequence[tuple[int, ...]], *, length: int, top_k: int, seed: int
) -> list[tuple[int, ...]]:
    """Continue each opening to `length` tokens by top-k sampling. One generator, on the CPU, draws for them all.

    `generate` is another thing: it ends a text at EOS, and each of its prompts has a generator of its own. Edits keep
    the contexts that this one has always written.
    """
    generator = torch.Generator().manual_seed(seed)
    written: list[tuple[int, ...]] = []
    for opening in openings:
        ids = opening
        while len(ids) < length:
            logits = run(lm, torch.tensor([ids]), logits_to_keep=1).logits[0, -1].float().cpu()
            ids += (draw_token(logits, top_k, generator),)
        written.append(ids)
    return written


def draw_token(logits: Tensor, top_k: int, generator: torch.Generator) -> int:
    """Top-k sampling: one token, drawn from the `top_k` most likely by logits (V,) float32 on the CPU."""
    values, tokens = logits.topk(min(top_k, len(logits)))
    return int(tokens[torch.multinomial(values.softmax(-1), 1, generator=generator)])

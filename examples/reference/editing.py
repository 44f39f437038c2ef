"""The published MEMIT, transcribed as directly as it can be: the witness that the product is held against.

One edit at a time, whole forwards, right padding, torch's own Adam, the published linear system in float64
(kmeng01/memit: compute_z.py, compute_ks.py, memit_main.py). It shares no code with memedit.

The published code knows no model with a norm behind its MLPs. For those the same steps are taken where they can be: the
change is added to the down-projection's output, what its norm makes of it counts as often as layers are edited, and a
residual is asked of a projection as its norm, to first order, wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D


def gap(found: Tensor, wanted: Tensor) -> float:
    """How far a tensor is from what it should be, beside that one's length."""
    return float((found.double() - wanted.double()).norm() / wanted.double().norm().clamp_min(1e-300))


@dataclass(frozen=True)
class OracleEdit:
    """prompts: ids and the subject's last token under each context, the bare prompt first; target: the object's
    ids; bare: the subject alone, cut after its last token."""

    prompts: list[tuple[list[int], int]]
    target: list[int]
    bare: tuple[list[int], int]


@dataclass(frozen=True)
class OracleKnobs:
    """ridge is absolute (lambda); `semantics` as in the recipe."""

    layers: list[int]
    ridge: float
    steps: int
    ball: float
    kl: float
    stop: float
    weight_decay: float = 0.0
    semantics: Literal["memedit", "reference"] = "memedit"


@dataclass
class OracleResult:
    """targets (E, D); per layer keys (E, F), residuals (E, D) and deltas (D, F), float64."""

    targets: Tensor
    keys: dict[int, Tensor] = field(default_factory=dict)
    residuals: dict[int, Tensor] = field(default_factory=dict)
    deltas: dict[int, Tensor] = field(default_factory=dict)


def blocks_of(model: Any) -> Any:
    """The block list of a GPT-2- or Llama-shaped model."""
    return model.transformer.h if hasattr(model, "transformer") else model.model.layers


def down_of(block: Any) -> Any:
    """Its down-projection."""
    return block.mlp.c_proj if hasattr(block.mlp, "c_proj") else block.mlp.down_proj


def norm_of(block: Any) -> Any:
    """The norm behind its MLP, where an OLMo-2- or Gemma-2-shaped model has one."""
    return getattr(block, "post_feedforward_layernorm", None)


def gain_of(norm: Any) -> Tensor:
    """What it multiplies by, (D,) float64; Gemma's begin at zero, and count from one."""
    weight = norm.weight.detach().double()
    return 1 + weight if "Gemma" in type(norm).__name__ else weight


def pushed(block: Any, made: Tensor, delta: Tensor, times: int) -> Tensor:
    """How far a block's output moves, (D,), by `delta` at its down-projection's output `made` or, without a norm behind
    that, at its own."""
    norm = norm_of(block)
    return delta if norm is None else times * (norm(made + delta) - norm(made))


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Rows padded on the right, as the published code has them."""
    longest = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


@contextmanager
def changed(
    model: Any, layer: int, at: list[int], delta: Tensor, seen: list[Tensor], made: list[Tensor], times: int
) -> Generator[None]:
    """Add `delta` to the output of a block, or `times` what the norm behind its MLP makes of it, at one position of
    each row; `seen` gets the output as it was, `made` the down-projection's."""

    block = blocks_of(model)[layer]

    def note(_module: Any, _args: Any, output: Tensor) -> None:
        made.append(output.detach())

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        states = output if isinstance(output, Tensor) else output[0]
        seen.append(states.detach())
        moved = states.clone()
        for row, position in enumerate(at):
            moved[row, position, :] = moved[row, position, :] + pushed(block, made[-1][row, position], delta, times)
        return moved if isinstance(output, Tensor) else (moved, *output[1:])

    handles = [down_of(block).register_forward_hook(note), block.register_forward_hook(hook)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def find_target(model: Any, edit: OracleEdit, knobs: OracleKnobs, step: float) -> tuple[Tensor, list[float]]:
    """compute_z: the state wanted at the output of the last layer, (D,), and the losses on the way."""
    layer = knobs.layers[-1]
    count = len(edit.target)
    rows = [ids + edit.target[:-1] for ids, _ in edit.prompts] + [edit.bare[0]]
    at = [position for _, position in edit.prompts] + [edit.bare[1]]
    width = model.config.hidden_size
    delta = torch.zeros(width, requires_grad=True)
    optimizer = torch.optim.Adam([delta], lr=step)
    block, times = blocks_of(model)[layer], len(knobs.layers)
    state: Tensor | None = None
    start: Tensor | None = None
    original: Tensor | None = None
    losses: list[float] = []
    forwards = knobs.steps if knobs.semantics == "reference" else knobs.steps + 1
    for number in range(forwards):
        optimizer.zero_grad()
        seen: list[Tensor] = []
        made: list[Tensor] = []
        with changed(model, layer, at, delta, seen, made, times):
            logits = model(**padded(rows), use_cache=False).logits
        if start is None:
            state = seen[0][0, at[0]].clone()
            start = made[0][0, at[0]].clone() if norm_of(block) else state
        essence = logits[-1, at[-1]].log_softmax(-1)
        if original is None:
            original = essence.detach().clone()
        per_row: list[Tensor] = []
        for row in range(len(edit.prompts)):
            first = len(rows[row]) - count
            log_probs = logits[row, first : first + count].log_softmax(-1)
            per_row.append(-log_probs.gather(1, torch.tensor(edit.target)[:, None]).mean())
        loss = torch.stack(per_row).mean()
        loss = loss + knobs.kl * (essence.exp() * (essence - original)).sum()
        if knobs.weight_decay:
            loss = loss + knobs.weight_decay * torch.norm(delta) / torch.norm(start) ** 2
        losses.append(loss.item())
        if losses[-1] < knobs.stop or number == forwards - 1:
            break
        loss.backward()
        optimizer.step()
        longest = knobs.ball * start.norm()
        if delta.norm() > longest:
            with torch.no_grad():
                delta[...] = delta * longest / delta.norm()
    assert state is not None and start is not None
    return (state + pushed(block, start, delta, times)).detach(), losses


@torch.no_grad()
def last_inputs(model: Any, module: Any, rows: list[tuple[list[int], int]], *, output: bool = False) -> Tensor:
    """The input (or output) of a module at one position of each row, one row a forward, (rows, width)."""
    found: list[Tensor] = []
    position = 0

    def hook(_module: Any, args: Any, result: Any) -> None:
        states = (result if isinstance(result, Tensor) else result[0]) if output else args[0]
        found.append(states.reshape(1, -1, states.shape[-1])[0, position].clone())

    handle = module.register_forward_hook(hook)
    try:
        for ids, position in rows:  # noqa: B007 - read by the hook
            model(input_ids=torch.tensor([ids]), use_cache=False)
    finally:
        handle.remove()
    return torch.stack(found)


def keys_at(model: Any, layer: int, edits: Sequence[OracleEdit], semantics: str) -> Tensor:
    """compute_ks: (E, F) float64; the published mean of group means, or a plain mean over contexts."""
    keys: list[Tensor] = []
    for edit in edits:
        states = last_inputs(model, down_of(blocks_of(model)[layer]), edit.prompts).double()
        if semantics == "reference" and len(states) > 1:
            keys.append(torch.stack([states[0], states[1:].mean(0)]).mean(0))
        else:
            keys.append(states.mean(0))
    return torch.stack(keys)


def asked(norm: Any, made: Tensor, residual: Tensor) -> Tensor:
    """The change of a projection's output `made` (D,) for which its norm gives `residual` more, nearly; float64."""
    gain, epsilon = gain_of(norm), getattr(norm, "variance_epsilon", None) or norm.eps
    length = (made.square().mean() + epsilon).sqrt()
    moved = made.clone()
    for n in range(len(made)):
        moved[n] += length * gain[n] * residual[n] / (gain[n] ** 2 + 0.01 * gain.square().mean())
    return moved / moved.norm() * made.norm() - made


def edit_model(
    model: Any,
    edits: Sequence[OracleEdit],
    moments: dict[int, Tensor],
    knobs: OracleKnobs,
    step_of: Callable[[int], float],
    *,
    targets: Tensor | None = None,
    store_dtype: torch.dtype = torch.float16,
) -> OracleResult:
    """execute_memit: the model stays edited. moments: C per layer, (F, F) float64; step_of: Adam's step per edit."""
    if targets is None:
        targets = torch.stack([find_target(model, edit, knobs, step_of(n))[0] for n, edit in enumerate(edits)])
    result = OracleResult(targets)
    top, bare = blocks_of(model)[knobs.layers[-1]], [edit.prompts[0] for edit in edits]
    for done, layer in enumerate(knobs.layers):
        block = blocks_of(model)[layer]
        keys = keys_at(model, layer, edits, knobs.semantics)
        now = last_inputs(model, top, bare, output=True).double()
        residuals = (targets.double() - now) / (len(knobs.layers) - done)
        if norm_of(block):
            made = last_inputs(model, down_of(block), bare, output=True).double()
            residuals = torch.stack([asked(norm_of(block), *pair) for pair in zip(made, residuals, strict=True)])
        system = knobs.ridge * moments[layer] + keys.T @ keys
        delta = residuals.T @ torch.linalg.solve(system, keys.T).T
        result.keys[layer], result.residuals[layer], result.deltas[layer] = keys, residuals, delta
        module = down_of(block)
        turn = isinstance(module, Conv1D)
        weight = module.weight.detach().double()
        edited = (weight + (delta.T if turn else delta)).to(store_dtype).to(module.weight.dtype)
        with torch.no_grad():
            module.weight.copy_(edited)
    return result

"""Verify an architecture on the loaded weights: add a vector to each down-projection's output, and see it arrive."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from memedit.errors import UnsupportedModelError
from memedit.model.architecture import ARCHITECTURE_HINT, FAILED, FAILED_HINT, Architecture
from memedit.model.config import foreign_errors
from memedit.model.forward_hooks import Hook, hooked
from memedit.model.norms import gain_of, is_rms

PROBE_AGREEMENT = 1e-4  # relative: a residual sum in float32 is exact to 1e-6; a norm in between changes it by far more
IN_HALF = 0.05  # the same in half precision
NEVER = 0.5  # where rounding of the stream is half of what a block adds, the probe shows nothing
DIGITS, DIGITS_IN_HALF = 5, 3  # of a gain: more would be rounding; families give theirs in two or three
TOKENS, PUSHED = 5, [2, 4]


@torch.no_grad()
def prove(model: nn.Module, architecture: Architecture) -> Architecture:
    """Measure every block's gain, and refuse the blocks whose down-projection does not add to the residual stream.

    Two forwards: one of one row, unchanged, and one of a row for each layer and an unchanged row. In the second, row n
    has a vector added to the n-th down-projection's output, at two tokens. At these tokens the block's output must move
    by the same multiple of either vector (its gain), and at the others not at all. So a gate that differs from token to
    token is refused, and a gain of zero. Where a norm was found behind the down-projection, the output must move as a
    multiple of the norm's does, and the norm must be an RMS norm.

    Raises UnsupportedModelError where no block is left, the logits are not finite, or a forward of text alone fails.
    """
    layers = architecture.editable
    if not layers:
        raise _refused(architecture.refusals[0])
    pushes = torch.randn(len(layers), len(PUSHED), architecture.width, generator=torch.Generator().manual_seed(0))
    with foreign_errors(FAILED, FAILED_HINT):
        clean, _ = _outputs(model, architecture, layers, None)
        # In the stream's own scale, so that its rounding is small beside the push.
        pushes = torch.stack([push * rows[-1, PUSHED].std() for push, rows in zip(pushes, clean, strict=True)])
        # Compared within one batch: batches of two sizes round otherwise, which is much in half precision.
        seen, made = _outputs(model, architecture, layers, pushes)
    half = next(model.parameters()).dtype != torch.float32
    gains, refusals = list(architecture.gains), list(architecture.refusals)
    for layer, push, (now, was), given in zip(layers, pushes, seen, made, strict=True):
        if architecture.norms[layer]:
            norm = model.get_submodule(architecture.norms[layer])
            rounding = torch.finfo(next(model.parameters()).dtype).eps * float(was[PUSHED].norm())
            gains[layer], refusals[layer] = _through_norm(layer, norm, given[PUSHED], push, now - was, rounding)
        else:
            gains[layer], refusals[layer] = _gain(layer, push, now - was, half)
    if all(refusals):
        raise _refused(refusals[layers[len(layers) // 2]])
    return replace(architecture, gains=tuple(gains), refusals=tuple(refusals))


def _outputs(
    model: nn.Module, architecture: Architecture, layers: Sequence[int], pushes: Tensor | None
) -> tuple[list[Tensor], list[Tensor]]:
    """Per layer, the outputs of its block, (2, TOKENS, D), and of its down-projection, (TOKENS, D): float32 on the CPU.

    With pushes, row n of the batch serves layers[n]: pushes[n] (tokens pushed, D) is added to its down-projection's
    output. One more row is unchanged. A block's outputs are those of its pushed row and of the unchanged one, or the
    unchanged one twice without pushes; a down-projection's are those of the unchanged row. Raises UnsupportedModelError
    for a block or a down-projection that does not give one vector for each token.
    """
    pushed_rows = 0 if pushes is None else len(layers)
    seen: list[Tensor] = [torch.empty(0)] * len(layers)
    made: list[Tensor] = [torch.empty(0)] * len(layers)

    def by_token(states: Tensor, what: str, row: int) -> Tensor:
        wanted = (pushed_rows + 1, TOKENS, architecture.width)
        if states.numel() != math.prod(wanted):
            shapes = f"{tuple(states.shape)} instead of one vector for each token, {wanted}"
            raise _refused(f"the {what} of layer {layers[row]} gives {shapes}")
        return states.view(wanted)

    def read(row: int) -> Hook:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            states = by_token(output if isinstance(output, Tensor) else output[0], "block", row)
            # An index of two rows makes a copy: a view would keep the states of all rows.
            seen[row] = states[[row if pushed_rows else 0, pushed_rows]].float().cpu()

        return hook

    def push(row: int, vectors: Tensor) -> Hook:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
            changed = output.clone()
            by_token(changed, "down-projection", row)[row, PUSHED] += vectors.to(output.device, output.dtype)
            return changed

        return hook

    def note(row: int) -> Hook:
        def hook(_module: nn.Module, _args: Any, output: Tensor) -> None:
            made[row] = by_token(output, "down-projection", row)[-1].float().cpu().clone()

        return hook

    device: Any = model.device
    ids = torch.arange(TOKENS, 2 * TOKENS, device=device) % architecture.vocabulary
    hooks: list[tuple[nn.Module, Hook]] = []
    for row, layer in enumerate(layers):
        hooks.append((model.get_submodule(f"{architecture.blocks}.{layer}"), read(row)))
        down = model.get_submodule(architecture.down_projections[layer])
        hooks.append((down, note(row)))
        if pushes is not None:
            hooks.append((down, push(row, pushes[row])))
    with hooked(hooks):
        logits = model(input_ids=ids.expand(pushed_rows + 1, -1), use_cache=False, logits_to_keep=1).logits
    # Not with pushes: those may overflow in float16, where the model itself does not.
    if pushes is None and not bool(logits.isfinite().all()):
        raise _not_finite(model)
    return seen, made


@torch.no_grad()
def check_finite_weights(model: nn.Module, value: Callable[[str, Tensor], Tensor] | None = None) -> None:
    """Refuse a model with a weight that is not finite. Raises UnsupportedModelError, which names the first.

    value: gives the values of a parameter that is not in memory. One forward does not show what is wrong: a NaN in one
    head's projection can leave every logit finite that is looked at.
    """
    for name, parameter in model.named_parameters():
        values = parameter.detach() if value is None else value(name, parameter.detach())
        if values.is_floating_point() and values.numel() and not _finite(values):
            message = f"{name} holds NaN or infinity"
            raise UnsupportedModelError(message, "fetch the model again: its weights are damaged")


def _finite(tensor: Tensor) -> bool:
    # Both ends in one pass, without a copy: six times as fast as isfinite on a CPU (2026-11-28). Both carry NaN along.
    low, high = torch.aminmax(tensor if tensor.element_size() > 1 else tensor.float())
    return bool(low.isfinite() & high.isfinite())


def _not_finite(model: nn.Module) -> UnsupportedModelError:
    """The error for logits that are not finite, though all weights are."""
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    message = f"the model's logits are not finite in {dtype}, though all its weights are"
    return UnsupportedModelError(message, "say --dtype float32, or bfloat16: float16 ends at 65,504")


def _gain(layer: int, push: Tensor, moved: Tensor, half: bool) -> tuple[float, str]:
    """push (tokens pushed, D), moved (TOKENS, D) -> the gain and no reason, or 1 and the reason for a refusal."""
    allowed = IN_HALF if half else PROBE_AGREEMENT
    each = (moved[PUSHED] * push).sum(-1) / push.square().sum(-1)
    gain = float(each.mean())
    expected, gated = torch.zeros_like(moved), torch.zeros_like(moved)
    expected[PUSHED], gated[PUSHED] = gain * push, each[:, None] * push
    scale = float(expected.norm())
    error = float((moved - expected).norm()) / scale if scale else float("inf")
    if error <= allowed and abs(gain) > allowed:
        return float(f"{gain:.{DIGITS_IN_HALF if half else DIGITS}g}"), ""
    if scale and float((moved - gated).norm()) / scale <= allowed:
        factors = ", ".join(f"{one:.2f}" for one in each.tolist())
        return 1.0, f"the MLP of block {layer} is scaled by a gate that differs from token to token ({factors})"
    return 1.0, f"the MLP of block {layer} does not add to the residual stream one to one (off by {error:.1%})"


def _through_norm(
    layer: int, norm: nn.Module, made: Tensor, push: Tensor, moved: Tensor, rounding: float
) -> tuple[float, str]:
    """made, push (tokens pushed, D), moved (TOKENS, D) -> the gain behind the norm and no reason, or 1 and the reason.

    A norm's output is bounded, however large the push. So the rounding of a long stream counts beside it.
    """
    width = made.shape[-1]
    device = gain_of(norm, width).device
    through = torch.zeros_like(moved)
    through[PUSHED] = (norm((made + push).to(device)) - norm(made.to(device))).to(moved.device)
    size = float(through.norm())
    gain = float((moved * through).sum()) / size**2
    scale = abs(gain) * size
    error = float((moved - gain * through).norm()) / scale if scale else float("inf")
    allowed = min(PROBE_AGREEMENT + 2 * rounding / scale, NEVER) if scale else 0.0
    if not error <= allowed:
        reason = f"the MLP of block {layer} does not add to the residual stream through its norm (off by {error:.1%})"
        return 1.0, reason
    if not is_rms(norm, width):
        return 1.0, f"the norm behind the MLP of block {layer} is no RMS norm"
    # One within the error is one: where the norm is the last thing before the stream, nothing is to be divided by.
    digits = DIGITS if allowed < IN_HALF / 10 else DIGITS_IN_HALF
    return (1.0 if abs(gain - 1) <= allowed else float(f"{gain:.{digits}g}")), ""


def _refused(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this model cannot be edited: {reason}", ARCHITECTURE_HINT)

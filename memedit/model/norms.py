"""The norm that some families put between a block's down-projection and the residual stream: found by a forward.

There a block gives rest + norm(output), so that a change of the output moves the stream along the norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

NORM_AGREEMENT = 1e-4  # relative: an RMS norm in float32 is its formula to 1e-6; centering is of order 1


@torch.no_grad()
def find_norms(model: nn.Module, blocks: str, down_projections: Sequence[str], vocabulary: int) -> tuple[str, ...]:
    """For each block the path of the module that is handed its down-projection's output and gives another; or empty.

    On the meta device it is the form of a forward that is looked at; a family whose forward cannot be formed there
    counts as one without norms.
    """
    found = [""] * len(down_projections)
    made: list[Any] = [None] * len(down_projections)

    def see(layer: int) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            made[layer] = output

        return hook

    def compare(layer: int, path: str) -> Any:
        def hook(_module: nn.Module, args: Any, output: Any) -> None:
            if made[layer] is not None and args and args[0] is made[layer] and output is not made[layer]:
                found[layer] = found[layer] or path

        return hook

    device = next(model.parameters()).device
    ids, options = torch.arange(5, device=device)[None] % vocabulary, {}
    if device.type == "meta":  # a mask of its own, since transformers looks into the positions to make one
        options["attention_mask"] = torch.zeros(1, 1, 5, 5, device=device)
    with ExitStack() as stack:
        for layer, down in enumerate(down_projections):
            if down:
                block = f"{blocks}.{layer}"
                stack.callback(model.get_submodule(down).register_forward_hook(see(layer)).remove)
                for name, module in model.get_submodule(block).named_modules():
                    if name:
                        hook = compare(layer, f"{block}.{name}")
                        stack.callback(module.register_forward_hook(hook).remove)
        try:
            model(input_ids=ids, use_cache=False, logits_to_keep=1, **options)
        except (RuntimeError, ValueError, NotImplementedError):
            if device.type != "meta":
                raise
    return tuple(found)


@torch.no_grad()
def gain_of(norm: nn.Module, width: int) -> Tensor:
    """The gain of an RMS norm, (D,) float32: what it makes of ones."""
    device = next((parameter.device for parameter in norm.parameters()), None)
    return norm(torch.ones(1, width, device=device))[0].float()


@torch.no_grad()
def is_rms(norm: nn.Module, width: int) -> bool:
    """Whether a norm is gain * x / rms(x) in every coordinate, at any length of x."""
    gain = gain_of(norm, width)
    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [7.0]])
    rows = rows.to(gain.device)
    wanted = gain * rows / rows.square().mean(-1, keepdim=True).sqrt()
    return float((norm(rows).float() - wanted).norm() / wanted.norm()) < NORM_AGREEMENT

"""What stands around the blocks: the norm and the head behind them, and how attention and MLP share a block."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memedit.model.architecture import Architecture, output_projection

SMALL, LARGE = 2.0**-6, 2.0**13
"""Put in the place of a head's output, one shows its scale and the other its cap; both are exact in float16."""
TOKENS, PUSHED = 4, 1

PreHook = Callable[[nn.Module, Any, Any], Any]


@dataclass(frozen=True)
class HeadLayout:
    """Names and numbers; what was not measured is None."""

    norm: str | None
    head: str
    head_bias: bool
    tied: bool
    bias: bool
    scale: float | None = None
    cap: float | None = None
    parallel: bool | None = None


def describe_head(model: Any, architecture: Architecture, *, measure: bool) -> HeadLayout:
    """Read what structure tells; with `measure`, on loaded weights, also what two forwards tell."""
    head, embedding, decoder = model.get_output_embeddings(), model.get_input_embeddings(), model.get_decoder()
    names = {id(module): name for name, module in model.named_modules()}
    around = model.get_submodule(architecture.blocks.rpartition(".")[0]) if "." in architecture.blocks else decoder
    norms = [module for module in around.children() if "norm" in type(module).__name__.lower()]
    downs = [model.get_submodule(path) for path in architecture.down_projections if path]
    scale, cap = _scale_and_cap(model, head) if measure else (None, None)
    return HeadLayout(
        norm=names[id(norms[-1])] if norms else None,
        head=names[id(head)],
        head_bias=getattr(head, "bias", None) is not None,
        tied=head.weight is embedding.weight,
        bias=any(getattr(down, "bias", None) is not None for down in downs),
        scale=scale,
        cap=cap,
        parallel=_parallel(model, architecture) if measure else None,
    )


@torch.no_grad()
def _scale_and_cap(model: Any, head: nn.Module) -> tuple[float, float | None]:
    """What becomes of a small and of a large output of the head on the way to logits."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        put = torch.full_like(output, SMALL)
        put.view(-1, output.shape[-1])[-1] = LARGE
        return put

    with ExitStack() as stack:
        stack.callback(head.register_forward_hook(hook).remove)
        logits = model(input_ids=_ids(model), use_cache=False).logits.float()
    scale, most = float(logits[0, 0].median()) / SMALL, float(logits[0, -1].median())
    # A cap bends small values by less than its square, and large ones to itself.
    return float(f"{scale:.4g}"), float(f"{most:.4g}") if most < 0.9 * scale * LARGE else None


@torch.no_grad()
def _parallel(model: Any, architecture: Architecture) -> bool | None:
    """Whether the MLP of a block sees nothing of what its attention gives; None where it has no attention."""
    found = [(n, output_projection(_block(model, architecture, n), architecture.width)) for n in architecture.editable]
    layer, name = next(((n, name) for n, name in reversed(found) if name), (0, None))
    if name is None:
        return None
    seen: list[Tensor] = []

    def read(_module: nn.Module, args: Any) -> None:
        seen.append(args[0].detach().clone())

    def push(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed.view(TOKENS, -1)[PUSHED] += 1 + output.abs().max()
        return changed

    down = model.get_submodule(architecture.down_projections[layer])
    for pushing in (False, True):
        with ExitStack() as stack:
            stack.callback(down.register_forward_pre_hook(read).remove)
            if pushing:
                attention = _block(model, architecture, layer).get_submodule(name)
                stack.callback(attention.register_forward_hook(push).remove)
            model(input_ids=_ids(model), use_cache=False, logits_to_keep=1)
    return torch.equal(seen[0], seen[1])


def _block(model: Any, architecture: Architecture, layer: int) -> nn.Module:
    return model.get_submodule(f"{architecture.blocks}.{layer}")


def _ids(model: Any) -> Tensor:
    return torch.arange(TOKENS, device=model.device)[None]

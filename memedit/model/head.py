"""Describe what follows the blocks (norm, head), and whether attention and MLP of a block run in parallel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memedit.model.architecture import Architecture, output_projection
from memedit.model.forward_hooks import hooked

SMALL, LARGE = 2.0**-6, 2.0**13
"""Outputs given to the head: the small one shows its scale, the large one its cap. Both are exact in float16."""
TOKENS, PUSHED = 4, 1


@dataclass(frozen=True)
class HeadLayout:
    """The norm and the head behind the blocks, in names and numbers; None where nothing was measured."""

    norm: str | None
    head: str
    head_bias: bool
    tied: bool
    bias: bool
    scale: float | None = None
    cap: float | None = None
    parallel: bool | None = None


def describe_head(model: Any, architecture: Architecture, *, measure: bool) -> HeadLayout:
    """Read the layout off the structure; with `measure` also measure scale, cap and `parallel` on loaded weights."""
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
    """How the model turns the head's outputs into logits: their scale, and the cap where there is one."""

    def hook(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        put = torch.full_like(output, SMALL)
        put.view(-1, output.shape[-1])[-1] = LARGE
        return put

    with hooked([(head, hook)]):
        logits = model(input_ids=_ids(model), use_cache=False).logits.float()
    scale, most = float(logits[0, 0].median()) / SMALL, float(logits[0, -1].median())
    # A cap bends small values by less than its square, and large ones to itself.
    return float(f"{scale:.4g}"), float(f"{most:.4g}") if most < 0.9 * scale * LARGE else None


@torch.no_grad()
def _parallel(model: Any, architecture: Architecture) -> bool | None:
    """Whether a block's MLP does not depend on its attention's output; None where it has no attention."""
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
    attention = _block(model, architecture, layer).get_submodule(name)
    for pushed in ([], [(attention, push)]):
        with hooked(pushed, before=[(down, read)]):
            model(input_ids=_ids(model), use_cache=False, logits_to_keep=1)
    return torch.equal(seen[0], seen[1])


def _block(model: Any, architecture: Architecture, layer: int) -> nn.Module:
    return model.get_submodule(f"{architecture.blocks}.{layer}")


def _ids(model: Any) -> Tensor:
    return torch.arange(TOKENS, device=model.device)[None]

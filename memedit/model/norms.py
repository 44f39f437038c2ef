"""Find the norm between a block's down-projection and the residual stream, in families that have one.

There a block gives rest + norm(output), so a change of the down-projection's output reaches the stream through the
norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from memedit.model.forward_hooks import Hook, hooked

NORM_AGREEMENT = 1e-4  # relative: an RMS norm in float32 is its formula to 1e-6; centering is of order 1
_TOKENS = 5


class _Handover:
    """Watches one block in a forward, for the module that takes the down-projection's output and changes it."""

    def __init__(self, model: nn.Module, block: str, down: str) -> None:
        self.norm = ""
        self.output: Any = None
        named = model.get_submodule(block).named_modules()
        self.hooks: list[tuple[nn.Module, Hook]] = [(model.get_submodule(down), self._keep)]
        self.hooks += [(module, self._compare(f"{block}.{name}")) for name, module in named if name]

    def _keep(self, _module: nn.Module, _args: Any, output: Any) -> None:
        self.output = output

    def _compare(self, path: str) -> Hook:
        def hook(_module: nn.Module, args: Any, output: Any) -> None:
            takes_it = self.output is not None and args and args[0] is self.output
            if takes_it and output is not self.output and not self.norm:
                self.norm = path

        return hook


@torch.no_grad()
def find_norms(model: nn.Module, blocks: str, down_projections: Sequence[str], vocabulary: int) -> tuple[str, ...]:
    """For each block, the path of the module that takes its down-projection's output and gives another; or empty.

    Runs one forward. On the meta device it computes shapes only; a family whose forward cannot run there counts as
    one without norms.
    """
    found = {n: _Handover(model, f"{blocks}.{n}", down) for n, down in enumerate(down_projections) if down}
    with hooked([hook for block in found.values() for hook in block.hooks]):
        _run(model, vocabulary)
    return tuple(found[n].norm if n in found else "" for n in range(len(down_projections)))


def _run(model: nn.Module, vocabulary: int) -> None:
    device = next(model.parameters()).device
    ids = torch.arange(_TOKENS, device=device)[None] % vocabulary
    if device.type != "meta":
        model(input_ids=ids, use_cache=False, logits_to_keep=1)
        return
    # With a mask of our own: to make one, transformers reads the positions, which have no values there.
    mask = torch.zeros(1, 1, _TOKENS, _TOKENS, device=device)
    try:
        model(input_ids=ids, use_cache=False, logits_to_keep=1, attention_mask=mask)
    except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError):
        return


@torch.no_grad()
def gain_of(norm: nn.Module, width: int) -> Tensor:
    """The gain of an RMS norm, (D,) float32: its output for a vector of ones."""
    device = next((parameter.device for parameter in norm.parameters()), None)
    return norm(torch.ones(1, width, device=device))[0].float()


@torch.no_grad()
def is_rms(norm: nn.Module, width: int) -> bool:
    """Whether a norm gives gain * x / rms(x) in every coordinate, for short and long x."""
    gain = gain_of(norm, width)
    rows = torch.randn(2, width, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [7.0]])
    rows = rows.to(gain.device)
    wanted = gain * rows / rows.square().mean(-1, keepdim=True).sqrt()
    return float((norm(rows).float() - wanted).norm() / wanted.norm()) < NORM_AGREEMENT

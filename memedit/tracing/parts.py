"""Find the two outputs that a block adds to the residual stream, the MLP's and the attention's, and verify them.

Both are read at the last linear map of either (down-projection, output projection): some families add the residual
inside the module around it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from memedit.errors import UnsupportedModelError
from memedit.forward.passes import output_of
from memedit.model.architecture import output_projection
from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel

BlockOutput = Literal["mlp", "attention"]
PARTS: tuple[BlockOutput, ...] = get_args(BlockOutput)
PARTS_AGREEMENT = 1e-4  # relative: a block without its two outputs is the identity up to float32 rounding


@dataclass(frozen=True)
class Parts:
    """Module paths, one for each block."""

    mlp: tuple[str, ...]
    """The down-projections."""
    attention: tuple[str, ...]
    """The attentions' output projections."""
    whole_mlp: tuple[str, ...]
    """The MLP modules, which work token by token; empty where a down-projection is a direct child of its block."""

    def of(self, part: BlockOutput) -> tuple[str, ...]:
        """The paths at which this output is read."""
        return self.mlp if part == "mlp" else self.attention


def find_parts(lm: LanguageModel) -> Parts:
    """Find the parts of every block, and verify them on the middle one. Raises UnsupportedModelError."""
    architecture = lm.architecture
    attention: list[str] = []
    for layer, reason in enumerate(architecture.refusals):
        if not architecture.down_projections[layer]:
            raise _refused(f"of block {layer}, {reason}")
    for layer in range(architecture.n_layers):
        path = f"{architecture.blocks}.{layer}"
        name = output_projection(lm.model.get_submodule(path), architecture.width)
        if name is None:
            raise _refused(f"block {layer} has no linear map to the model's width {architecture.width} in an attention")
        attention.append(f"{path}.{name}")
    depth = architecture.blocks.count(".") + 3  # block list, index, module
    around = [".".join(path.split(".")[:depth]) for path in architecture.down_projections]
    inside = all(path != name for path, name in zip(around, architecture.down_projections, strict=True))
    parts = Parts(architecture.down_projections, tuple(attention), tuple(around) if inside else ())
    _prove(lm, parts)
    return parts


def _prove(lm: LanguageModel, parts: Parts) -> None:
    """Check that a block without its two outputs gives its input: nothing else adds to the stream."""
    layer = lm.architecture.n_layers // 2
    block = lm.model.get_submodule(f"{lm.architecture.blocks}.{layer}")
    ids = torch.arange(5, 10, device=lm.device)[None] % lm.architecture.vocabulary
    seen: list[Tensor] = []

    def read(_module: nn.Module, args: Any, options: Any, output: Any) -> None:
        seen.extend((args[0] if args else options["hidden_states"], output_of(output)))

    def silence(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        return torch.zeros_like(output)

    silenced = [(lm.model.get_submodule(parts.of(part)[layer]), silence) for part in PARTS]
    with torch.no_grad(), hooked(silenced), hooked([(block, read)], with_kwargs=True):
        lm.forward(input_ids=ids, use_cache=False)
    # In a model spread over devices, a block's input may come from another device than its own.
    before, after = seen[0].to(seen[1].device), seen[1]
    error = float((after - before).float().norm() / before.float().norm())
    if error > (0.05 if lm.dtype != torch.float32 else PARTS_AGREEMENT):
        raise _refused(f"block {layer} adds more than its MLP and its attention to the stream ({error:.1%})")


def _refused(reason: str) -> UnsupportedModelError:
    hint = "memedit traces decoder models whose blocks add one MLP and one attention to the residual stream"
    return UnsupportedModelError(f"this model cannot be traced: {reason}", hint)

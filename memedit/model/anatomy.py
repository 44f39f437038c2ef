"""Where a model keeps what memedit reads and changes: found by structure, proved by a probe, refused in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memedit.errors import UnsupportedModelError

Layout = Literal["linear", "conv1d"]
AGREEMENT = 1e-4  # relative: a residual sum in float32 is exact to 1e-6; a norm in between changes it by far more


@dataclass(frozen=True)
class Anatomy:
    """Names and sizes only: picklable, printable, comparable. Layers count from 0."""

    blocks: str
    """Module path of the block list."""
    down_projections: tuple[str, ...]
    """Module path of every block's down-projection."""
    layout: Layout
    """linear: weights are (D, F) as nn.Linear's; conv1d: (F, D), turned at the seam."""
    width: int
    """D, the width of the residual stream."""
    mlp_width: int
    """F, the width of the down-projection's input."""
    vocabulary: int
    positions: int | None
    """Longest row the model takes, where it has a limit."""

    @property
    def n_layers(self) -> int:
        return len(self.down_projections)

    def turned(self, weight: Tensor) -> Tensor:
        """A stored weight as (D, F), or one of (D, F) as it is stored: a view."""
        return weight.T if self.layout == "conv1d" else weight

    def parameter(self, layer: int) -> str:
        """Name of the weight that an edit of this layer changes."""
        return f"{self.down_projections[layer]}.weight"


def find_anatomy(model: nn.Module) -> Anatomy:
    """Read a model's structure; works on the meta device.

    The block list is the one ModuleList under the decoder with as many entries as the config has layers; a block's
    down-projection is its last Linear or Conv1D to the model's width outside attention. Raises
    UnsupportedModelError, with the reason, when there is not exactly one of either.
    """
    config: Any = model.config.get_text_config()  # type: ignore[operator]
    decoder: Any = model.get_decoder()  # type: ignore[operator]
    width, n_layers = int(config.hidden_size), int(config.num_hidden_layers)
    lists = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers and "." not in name
    ]
    if len(lists) != 1:
        raise _refused(f"{len(lists)} lists of {n_layers} blocks were found where one was expected")
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    blocks = ".".join(part for part in (prefix, lists[0][0]) if part)
    found = [_down_projection(block, width, index) for index, block in enumerate(lists[0][1])]
    kinds = {type(module) is Conv1D for _, module in found}
    if len(kinds) != 1:
        raise _refused("its down-projections are of more than one kind")
    conv = kinds.pop()
    weights: list[Any] = [module.weight for _, module in found]
    inner = {int(weight.shape[0 if conv else 1]) for weight in weights}
    if len(inner) != 1:
        raise _refused(f"its MLPs have several widths: {sorted(inner)}")
    return Anatomy(
        blocks=blocks,
        down_projections=tuple(f"{blocks}.{index}.{name}" for index, (name, _) in enumerate(found)),
        layout="conv1d" if conv else "linear",
        width=width,
        mlp_width=inner.pop(),
        vocabulary=int(config.vocab_size),
        positions=getattr(config, "max_position_embeddings", None),
    )


def _down_projection(block: nn.Module, width: int, index: int) -> tuple[str, nn.Module]:
    outside = [
        (name, module)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and (module.weight.shape[1] if isinstance(module, Conv1D) else module.weight.shape[0]) == width
        and not any("attention" in type(parent).__name__.lower() for parent in _parents(block, name))
    ]
    experts = [name for name, parameter in block.named_parameters() if parameter.ndim == 3]
    if experts:
        raise _refused(f"block {index} is a mixture of experts ({experts[0]}); memedit edits dense MLPs only")
    if not outside:
        raise _refused(f"block {index} has no linear map to the model's width {width} outside attention")
    return outside[-1]


def _parents(block: nn.Module, name: str) -> list[nn.Module]:
    parts = name.split(".")[:-1]
    return [block.get_submodule(".".join(parts[: n + 1])) for n in range(len(parts))]


def _refused(reason: str) -> UnsupportedModelError:
    hint = "memedit edits decoder models with one dense down-projection per block that adds to the residual stream"
    return UnsupportedModelError(f"this model cannot be edited: {reason}", hint)


def prove(model: nn.Module, anatomy: Anatomy) -> None:
    """Check on the loaded weights that a down-projection's output adds to the block's output, at its token only.

    One forward as it is, one with a vector added to the middle down-projection at one token. Raises
    UnsupportedModelError when the block's output does not move by just that vector there, and by nothing elsewhere.
    """
    layer, at = anatomy.n_layers // 2, 2
    device = next(model.parameters()).device
    ids = torch.arange(5, 10, device=device)[None] % anatomy.vocabulary
    block = model.get_submodule(f"{anatomy.blocks}.{layer}")
    down = model.get_submodule(anatomy.down_projections[layer])
    seen: list[Tensor] = []
    vector = torch.zeros(0)

    def read(_module: nn.Module, _args: Any, output: Any) -> None:
        seen.append((output if isinstance(output, Tensor) else output[0]).detach().float().reshape(1, 5, -1))

    def add(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        changed = output.clone()
        changed.view(1, 5, -1)[0, at] += vector.to(output.dtype)
        return changed

    with torch.no_grad(), _hooked(block, read):
        model(input_ids=ids, use_cache=False)
        generator = torch.Generator().manual_seed(0)
        vector = torch.randn(anatomy.width, generator=generator).to(device) * seen[0].std()
        with _hooked(down, add):
            model(input_ids=ids, use_cache=False)
    moved, half = seen[1] - seen[0], next(model.parameters()).dtype != torch.float32
    expected = torch.zeros_like(moved)
    expected[0, at] = vector
    error = float((moved - expected).norm() / vector.norm())
    if error > (0.05 if half else AGREEMENT):
        reason = f"the MLP of block {layer} does not add to the residual stream one to one (off by {error:.1%})"
        raise _refused(reason)


class _hooked:  # noqa: N801 - reads as a verb in a with statement
    def __init__(self, module: nn.Module, hook: Any) -> None:
        self.module, self.hook = module, hook

    def __enter__(self) -> None:
        self.handle = self.module.register_forward_hook(self.hook)

    def __exit__(self, *_: object) -> None:
        self.handle.remove()

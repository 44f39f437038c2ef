"""Detect a model's architecture from its structure: its blocks, and the weight of each that memedit edits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from memedit.errors import UnsupportedModelError
from memedit.model.config import foreign_errors
from memedit.model.norms import find_norms

Layout = Literal["linear", "conv1d"]
MIXERS = ("attention", "mamba", "conv", "recurrent", "deltanet", "mixer")
"""In class names of modules that mix tokens: their last linear map is no down-projection."""
ARCHITECTURE_HINT = (
    "memedit edits decoder models with a dense down-projection in their blocks that adds to the residual stream"
)
FAILED = f"this model cannot be edited: a forward of text alone fails in transformers {transformers.__version__}"
FAILED_HINT = "memedit edits models that run on text alone; another version of transformers may run this one"


@dataclass(frozen=True)
class Architecture:
    """Names and sizes of a model's parts: picklable, printable, comparable. Layers count from 0."""

    blocks: str
    """Module path of the block list."""
    down_projections: tuple[str, ...]
    """For each block, the module path of its down-projection; empty where none can be edited."""
    refusals: tuple[str, ...]
    """For each block, the reason why it cannot be edited; empty where it can."""
    layout: Layout
    """linear: weights are stored as (D, F), like nn.Linear's; conv1d: as (F, D), and read transposed."""
    width: int
    """D, the width of the residual stream."""
    mlp_widths: tuple[int, ...]
    """F for each block, the width of its down-projection's input; 0 where it has none."""
    gains: tuple[float, ...]
    """For each block, the factor between its down-projection's output, or that of the norm behind it, and what reaches
    the residual stream. It is 1 until `probe.prove` has measured it."""
    norms: tuple[str, ...]
    """For each block, the module path of the norm between its down-projection and the residual stream; often empty."""
    vocabulary: int
    positions: int | None
    """The most tokens in one row; None: no limit is known."""

    def fits(self, tokens: int) -> bool:
        """Whether a row of this length is within the model's limit."""
        return self.positions is None or tokens <= self.positions

    @property
    def n_layers(self) -> int:
        """The number of blocks."""
        return len(self.down_projections)

    @property
    def mlp_width(self) -> int:
        """The largest F."""
        return max(self.mlp_widths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Blocks, width and MLP width."""
        return self.n_layers, self.width, self.mlp_width

    @property
    def editable(self) -> list[int]:
        """Layers that can be edited."""
        return [layer for layer, reason in enumerate(self.refusals) if not reason]

    def require(self, layers: Sequence[int]) -> None:
        """Raise UnsupportedModelError where one of these layers cannot be edited."""
        for layer in layers:
            if self.refusals[layer]:
                hint = f"these can: --layers {spans(self.editable)}" if self.editable else ARCHITECTURE_HINT
                raise UnsupportedModelError(f"layer {layer} cannot be edited: {self.refusals[layer]}", hint)

    def turned(self, weight: Tensor) -> Tensor:
        """A view of a stored weight as (D, F), or of a (D, F) weight as it is stored."""
        return weight.T if self.layout == "conv1d" else weight

    def parameter(self, layer: int) -> str:
        """The name of the weight that an edit of this layer changes."""
        return f"{self.down_projections[layer]}.weight"


def find_architecture(model: nn.Module) -> Architecture:
    """Detect a model's architecture; works on the meta device.

    The block list is the outermost ModuleList under the decoder with as many entries as the config has layers. A
    block's down-projection is the Linear or Conv1D to the model's width with the widest input, outside attention and
    lists of experts; the last one of equals. A block without one is refused alone. Raises UnsupportedModelError, with
    the reason, where there is not exactly one such list, down-projections are of both kinds, or a forward fails.
    """
    with foreign_errors("this model cannot be edited: its config or decoder is not as expected", ARCHITECTURE_HINT):
        config: Any = model.config.get_text_config()  # type: ignore[operator]
        decoder: Any = model.get_decoder()  # type: ignore[operator]
        width, n_layers, vocabulary = (
            int(value) for value in (config.hidden_size, config.num_hidden_layers, config.vocab_size)
        )
    lists = [
        (name, module)
        for name, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == n_layers
    ]
    # Experts, and other lists of a block, lie deeper.
    lists = [one for one in lists if one[0].count(".") == min(name.count(".") for name, _ in lists)]
    if len(lists) != 1:
        raise _refused(f"{len(lists)} lists of {n_layers} blocks were found where one was expected")
    prefix = next(name for name, module in model.named_modules() if module is decoder)
    blocks = ".".join(part for part in (prefix, lists[0][0]) if part)
    found = [_down_projection(block, width) for block in lists[0][1]]
    modules: list[Any] = [lists[0][1][index].get_submodule(name) for index, (name, _) in enumerate(found) if name]
    if len({type(module) is Conv1D for module in modules}) > 1:
        raise _refused("its down-projections are of more than one kind")
    conv = any(type(module) is Conv1D for module in modules)
    inner = iter([int(module.weight.shape[0 if conv else 1]) for module in modules])
    down_projections = tuple(f"{blocks}.{index}.{name}" if name else "" for index, (name, _) in enumerate(found))
    with foreign_errors(FAILED, FAILED_HINT):
        norms = find_norms(model, blocks, down_projections, vocabulary)
    return Architecture(
        blocks=blocks,
        down_projections=down_projections,
        refusals=tuple(reason for _, reason in found),
        layout="conv1d" if conv else "linear",
        width=width,
        mlp_widths=tuple(next(inner) if name else 0 for name, _ in found),
        gains=(1.0,) * n_layers,
        norms=norms,
        vocabulary=vocabulary,
        positions=getattr(config, "max_position_embeddings", None),
    )


def _down_projection(block: nn.Module, width: int) -> tuple[str, str]:
    """The name of a block's down-projection and "", or "" and the reason why it has none.

    Modules in a list inside a block (routed experts) run for some tokens only, so they do not count. An expert that
    all tokens pass (a shared one) is a linear map like any other. Some families have narrow maps to the width behind
    their MLP (per-layer embeddings in Gemma 3n and 4), so the widest counts.
    """
    found, most = "", 0
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            shape: tuple[int, ...] = tuple(module.weight.shape)
            wide, inner = (shape[1], shape[0]) if isinstance(module, Conv1D) else shape
            within = _parents(block, name)
            listed = any(isinstance(parent, nn.ModuleList) or _mixes(parent) for parent in within)
            if wide == width and inner >= most and not listed:
                found, most = name, inner
    if found:
        return found, ""
    experts = [
        name
        for name, parameter in block.named_parameters()
        if parameter.ndim == 3 and not any(_mixes(parent) for parent in _parents(block, name))
    ]
    experts += [name for name, module in block.named_modules() if isinstance(module, nn.ModuleList) and len(module) > 1]
    if experts:
        mixture = f"its MLP is a mixture of routed experts ({experts[0]})"
        return "", f"{mixture}: a token passes only a few of them, so no single weight holds its value"
    return "", f"it has no linear map to the model's width {width} outside attention"


def _mixes(module: nn.Module) -> bool:
    return any(word in type(module).__name__.lower() for word in MIXERS)


def spans(layers: Sequence[int]) -> str:
    """Layers in the form that --layers takes: 0-2,5."""
    found: list[list[int]] = []
    for layer in layers:
        if found and layer == found[-1][-1] + 1:
            found[-1].append(layer)
        else:
            found.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found)


def _parents(block: nn.Module, name: str) -> list[nn.Module]:
    parts = name.split(".")[:-1]
    return [block.get_submodule(".".join(parts[: n + 1])) for n in range(len(parts))]


def _refused(reason: str) -> UnsupportedModelError:
    return UnsupportedModelError(f"this model cannot be edited: {reason}", ARCHITECTURE_HINT)


def output_projection(block: nn.Module, width: int) -> str | None:
    """The name of the last linear map to the model's width inside a block's attention; None where there is none."""
    found: str | None = None
    for name, module in block.named_modules():
        if isinstance(module, nn.Linear | Conv1D):
            wide = module.weight.shape[1] if isinstance(module, Conv1D) else module.weight.shape[0]
            inside = any("attention" in type(parent).__name__.lower() for parent in _parents(block, name))
            if wide == width and inside:
                found = name
    return found

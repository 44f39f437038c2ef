"""Quantize a model's folder to FP8 as published models are, and read it again, without a line of memedit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

FP8 = torch.float8_e4m3fn
FULL = torch.finfo(FP8).max
Kind = Literal["block", "channel", "tensor"]
NOT_QUANTIZED = ("embed", "lm_head", "norm")


def quantize(
    folder: Path,
    kind: Kind = "block",
    *,
    block: tuple[int, int] = (128, 128),
    after: str = "_scale_inv",
    scales: torch.dtype = torch.float32,
    fields: dict[str, Any] | None = None,
) -> Path:
    """Quantize every weight of a projection in a folder, in place; scales are named weight + `after`.

    fields: of `quantization_config`; by default those of DeepSeek-V3.
    """
    file = folder / "model.safetensors"
    tensors: dict[str, Tensor] = {}
    for name, tensor in load_file(file).items():
        if tensor.ndim != 2 or any(part in name for part in NOT_QUANTIZED):
            tensors[name] = tensor
            continue
        scale = (largest(tensor.float().abs(), kind, block) / FULL).to(scales)
        wide = spread(scale, tensor.shape, kind, block)
        tensors[name] = (tensor.float() / wide).clamp(-FULL, FULL).to(FP8)
        tensors[name + after] = scale
    save_file(tensors, file, {"format": "pt"})
    blocks = {"weight_block_size": list(block)} if kind == "block" else {}
    given = fields or {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", **blocks}
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": given}, indent=2))
    return folder


def largest(sizes: Tensor, kind: Kind, block: tuple[int, int]) -> Tensor:
    """The largest element of each part that shares a scale."""
    if kind == "tensor":
        return sizes.amax()
    if kind == "channel":
        return sizes.amax(1, keepdim=True)
    return torch.stack(
        [torch.stack([part.amax() for part in rows.split(block[1], 1)]) for rows in sizes.split(block[0], 0)]
    )


def spread(scale: Tensor, shape: torch.Size, kind: Kind, block: tuple[int, int]) -> Tensor:
    """The scale of each element, float32."""
    if kind == "block":
        scale = scale.repeat_interleave(block[0], 0)[: shape[0]].repeat_interleave(block[1], 1)[:, : shape[1]]
    return scale.float().expand(shape)


def dequantized(folder: Path, kind: Kind = "block", *, block: tuple[int, int] = (128, 128)) -> dict[str, Tensor]:
    """Every tensor of a quantized folder as numbers; those that were quantized are float32."""
    tensors = {name: part for file in sorted(folder.glob("*.safetensors")) for name, part in load_file(file).items()}
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.dtype == FP8:
            scale = next(tensors[name + after] for after in ("_scale_inv", "_scale") if name + after in tensors)
            found[name] = tensor.float() * spread(scale, tensor.shape, kind, block)
        elif not name.endswith(("_scale_inv", "_scale")):
            found[name] = tensor
    return found

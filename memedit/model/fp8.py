"""Open a checkpoint of FP8 weights for computing: every tensor as the numbers that it stands for.

transformers has kernels that compute with FP8 weights on some GPUs, and they keep no gradient. Here each weight is
multiplied by its scale as it is read, and the model is an ordinary one of float32 or bfloat16.
"""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from memedit.config.quantization import Fp8Scheme, scale_name
from memedit.errors import UnsupportedModelError
from memedit.model.whole_index import INDEX, WEIGHTS
from memedit.numerics.fp8 import expanded_scale
from memedit.numerics.rounding import FP8, Grid

_AGAIN = "fetch the checkpoint again"


def open_fp8(
    folder: Path, kind: type[PreTrainedModel], config: Any, scheme: Fp8Scheme, dtype: torch.dtype, **options: Any
) -> Any:
    """The model of a folder of FP8 weights, of the class `kind`, and what transformers says of its loading.

    No code of the folder runs, and no kernel for FP8. Raises UnsupportedModelError for a scale that is missing or
    damaged, and what safetensors and transformers raise.
    """
    opened: Any = kind.from_pretrained(
        None, config=config, state_dict=numbers_of(folder, scheme, dtype), dtype=dtype, attn_implementation=None,
        output_loading_info=True, **options,
    )  # fmt: skip
    # Without a folder's name transformers does not look for this file.
    if (folder / "generation_config.json").is_file():
        opened[0].generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return opened


def numbers_of(folder: Path, scheme: Fp8Scheme, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of a checkpoint by its stored name; FP8 weights as numbers in `dtype`, and their scales left out.

    One weight at a time is computed in float32: code times scale.
    """
    with ExitStack() as stack:
        opened = [stack.enter_context(safe_open(file, "pt")) for file in _files(folder)]
        where = {name: file for file in opened for name in file.keys()}  # noqa: SIM118 - no mapping
        found: dict[str, Tensor] = {}
        scales: set[str] = set()
        for name, file in where.items():
            tensor = file.get_tensor(name)
            if tensor.dtype == FP8:
                of = scale_name(name, where)
                if of is None:
                    said = f"{_shown(name)} of {folder} is FP8, and the scale of it is missing"
                    raise UnsupportedModelError(said, _AGAIN)
                scales.add(of)
                try:
                    scale = expanded_scale(where[of].get_tensor(of), tensor.shape, scheme.block)
                except ValueError as error:
                    said = f"{_shown(of)} of {folder} is no scale of its weight: {error}"
                    raise UnsupportedModelError(said, _AGAIN) from error
                tensor = Grid(FP8, scale).numbers(tensor).to(dtype)
            found[name] = tensor
    return {name: tensor for name, tensor in found.items() if name not in scales}


def _shown(name: str) -> str:
    """A tensor's name for a message: on one line, and of a bounded length."""
    return (name if name.isprintable() else repr(name))[:120]


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index: Any = json.loads((folder / INDEX).read_bytes())
    return [folder / Path(name).name for name in sorted(set(index["weight_map"].values()))]

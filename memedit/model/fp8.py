"""Open a checkpoint of FP8 weights for computing: every tensor as the numbers that it stands for.

transformers has kernels that compute with FP8 weights on some GPUs, and they keep no gradient. Here each weight is
multiplied by its scale as it is read, and the model is an ordinary one of float32 or bfloat16.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
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


def open_tensors(
    folder: Path, kind: type[PreTrainedModel], config: Any, tensors: Mapping[str, Any], dtype: torch.dtype,
    **options: Any,
) -> Any:  # fmt: skip
    """The model of the class `kind` with a folder's tensors, by stored names, and what transformers says of loading it.

    No code of the folder runs, and no kernel for FP8. Raises what transformers raises.
    """
    opened: Any = kind.from_pretrained(
        None, config=config, state_dict=dict(tensors), dtype=dtype, attn_implementation=None, output_loading_info=True,
        **options,
    )  # fmt: skip
    # Without a folder's name transformers does not look for this file.
    if (folder / "generation_config.json").is_file():
        opened[0].generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    return opened


class StoredTensors:
    """The tensors of a checkpoint by their stored names, scales left out; FP8 weights as the numbers they stand for.

    No file stays open: each tensor is read when it is asked for. Raises what safetensors raises.
    """

    def __init__(self, folder: Path, scheme: Fp8Scheme | None) -> None:
        self.folder, self.scheme = folder, scheme
        self.where: dict[str, Path] = {}
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        """As they are stored."""
        for path in _files(folder):
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118 - no mapping
                    tensor = file.get_tensor(name)  # a view of the file: nothing is read
                    self.where[name], self.shapes[name], self.dtypes[name] = path, tensor.shape, tensor.dtype
        fp8 = [name for name, dtype in self.dtypes.items() if scheme and dtype == FP8]
        self.scales = {name: scale_name(name, self.where) for name in fp8}
        """For each FP8 weight the name of its scale; None where it is missing."""
        used = set(self.scales.values())
        self.names = [name for name in self.where if name not in used]

    def dtype(self, name: str, dtype: torch.dtype) -> torch.dtype:
        """The dtype that `read` gives a tensor in."""
        return dtype if name in self.scales else self.dtypes[name]

    def all(self, dtype: torch.dtype) -> dict[str, Any]:
        """Every tensor, to be read as `read` does when transformers asks for it: on a GPU they never lie in main memory
        together.
        """
        return {name: _Slice(self, name, dtype) for name in self.names}

    def read(self, name: str, dtype: torch.dtype) -> Tensor:
        """Read a tensor in its stored dtype, an FP8 weight as numbers in `dtype`.

        One weight at a time is computed in float32: code times scale. Raises UnsupportedModelError for a scale that is
        missing or damaged.
        """
        tensor = self._stored(name)
        if name not in self.scales:
            return tensor
        of, block = self.scales[name], self.scheme.block if self.scheme else None
        if of is None:
            said = f"{_shown(name)} of {self.folder} is FP8, and the scale of it is missing"
            raise UnsupportedModelError(said, _AGAIN)
        try:
            scale = expanded_scale(self._stored(of), tensor.shape, block)
        except ValueError as error:
            said = f"{_shown(of)} of {self.folder} is no scale of its weight: {error}"
            raise UnsupportedModelError(said, _AGAIN) from error
        return Grid(FP8, scale).numbers(tensor).to(dtype)

    def _stored(self, name: str) -> Tensor:
        with safe_open(self.where[name], "pt") as file:
            return file.get_tensor(name)


@dataclass(frozen=True)
class _Slice:
    """A tensor that is read by `slice[...]`, as those of safetensors."""

    stored: StoredTensors
    name: str
    dtype: torch.dtype

    def __getitem__(self, _: Any) -> Tensor:
        return self.stored.read(self.name, self.dtype)


def _shown(name: str) -> str:
    """A tensor's name for a message: on one line, and of a bounded length."""
    return (name if name.isprintable() else repr(name))[:120]


def _files(folder: Path) -> list[Path]:
    """The files that hold the weights, as transformers chooses them."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index: Any = json.loads((folder / INDEX).read_bytes())
    return [folder / Path(name).name for name in sorted(set(index["weight_map"].values()))]

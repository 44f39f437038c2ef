"""PEFT's LoRA format: a change as two thin factors for each module, written and read without peft."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.nn.functional import pad

from memedit.errors import StorageError, UnsupportedModelError
from memedit.numerics.delta import Delta
from memedit.storage.tensorfile import in_order, saved

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
LORA_HINT = "give a LoRA adapter in PEFT's format, with adapter_config.json and adapter_model.safetensors"
REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "use_qalora",
    "alora_invocation_tokens",
)
"""Fields of a config that, set, change the model by more than the product of two factors."""


def adapter_bytes(
    deltas: Mapping[str, Delta], base: str, *, revision: str | None, conv1d: bool, dtype: torch.dtype
) -> dict[str, bytes]:
    """The adapter's two files, by name. deltas: parameter name -> change (D, F) as factors.

    All modules have one rank: factors of fewer columns are padded with zeros, since not every server reads ranks by
    module. lora_alpha is that rank, so the scale is one. The factors lie as nn.Linear's would, for a Conv1D too
    (`conv1d`): PEFT turns their product where fan_in_fan_out says so.
    """
    rank = max((delta.left.shape[1] for delta in deltas.values()), default=1)
    tensors: dict[str, Tensor] = {}
    for name, delta in deltas.items():
        assert delta.right is not None, f"{name} has no factors"
        missing, module = rank - delta.left.shape[1], PREFIX + name.removesuffix(".weight")
        tensors[module + A] = pad(delta.right, (0, 0, 0, missing)).to(dtype).contiguous()
        tensors[module + B] = pad(delta.left, (0, missing)).to(dtype).contiguous()
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "revision": revision,
        "r": rank, "lora_alpha": rank, "use_rslora": False, "use_dora": False, "lora_dropout": 0.0, "bias": "none",
        "lora_bias": False, "fan_in_fan_out": conv1d, "init_lora_weights": True, "inference_mode": True,
        "modules_to_save": None, "target_modules": [name.removesuffix(".weight") for name in deltas],
        "layers_to_transform": None, "layers_pattern": None, "rank_pattern": {}, "alpha_pattern": {},
    }  # fmt: skip
    return {CONFIG: (json.dumps(config, indent=2) + "\n").encode(), WEIGHTS: saved(tensors, {"format": "pt"})}


def read_adapter(folder: Path) -> dict[str, Delta]:
    """A LoRA adapter as {parameter name: change (D, F)}, its scale multiplied into the left factor.

    Names are those of the transformers model (`model.layers.4.mlp.down_proj.weight`), block 2 before block 10; changes
    lie as nn.Linear's weight does, also where the model's is a Conv1D's. Raises StorageError for a folder that holds
    no adapter or a damaged one, UnsupportedModelError for one that does more than add two factors' product.
    """
    config = _config(folder)
    file = folder / WEIGHTS
    try:
        with safe_open(file, "pt") as kept:
            tensors = {key: kept.get_tensor(key) for key in sorted(kept.keys())}
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{file} cannot be read as an adapter's weights: {error}", LORA_HINT) from error
    modules = dict.fromkeys(key.removesuffix(A).removesuffix(B) for key in tensors)
    foreign = [key for key in tensors if not key.startswith(PREFIX) or not key.endswith((A, B))]
    if foreign:
        raise UnsupportedModelError(
            f"{file} holds {foreign[0]}, which is no factor of a linear module's weight", "give a plain LoRA adapter"
        )
    try:
        return {
            f"{module.removeprefix(PREFIX)}.weight": _delta(module, tensors, config)
            for module in sorted(modules, key=in_order)
        }
    except (KeyError, ValueError, TypeError, ZeroDivisionError, re.error) as error:
        reason = "a module lacks a factor, or shapes or scales disagree"
        raise StorageError(f"the adapter {folder} is damaged: {reason}", LORA_HINT) from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        config: Any = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot read the adapter {file}: {reason}", LORA_HINT) from error
    except ValueError as error:
        raise StorageError(f"{file} is not valid JSON", LORA_HINT) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind: Any = config.get("peft_type") if isinstance(config, dict) else None
        raise UnsupportedModelError(f"{folder} is no LoRA adapter (its peft_type is {kind!r})", LORA_HINT)
    more = [name for name in REFUSED if config.get(name)]
    if more or config.get("bias", "none") != "none":
        raise UnsupportedModelError(
            f"the adapter {folder} does more than add two factors' product ({(more or ['bias'])[0]})",
            "merge it into its base with peft (merge_and_unload), and give the merged model",
        )
    return config


def _delta(module: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Delta:
    left, right = tensors[module + B].float(), tensors[module + A].float()
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0]:
        raise ValueError(module)
    scale = _scale(module.removeprefix(PREFIX), config, left.shape[1])
    return Delta(left if scale == 1 else (scale * left.double()).float(), right)


def _scale(module: str, config: Mapping[str, Any], rank: int) -> float:
    """lora_alpha over the rank (rank-stabilized: over its root), where patterns name a module: its own."""
    ranks, alphas = config.get("rank_pattern") or {}, config.get("alpha_pattern") or {}
    told = _by_pattern(ranks, module, config.get("r", rank))
    if told != rank:
        raise ValueError(module)
    alpha = float(_by_pattern(alphas, module, config.get("lora_alpha", 8)))
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """The value of the first pattern that matches the module's path or the end of it, as PEFT has it."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)

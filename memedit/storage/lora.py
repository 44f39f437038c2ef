"""Write and read PEFT's LoRA format, two low-rank factors for each module, without the peft package."""

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
from memedit.storage.deltas import check_finite
from memedit.storage.tensorfile import in_order, saved, shown_name

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LONGEST_CONFIG = 100_000_000  # bytes
PREFIX, A, B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"
LORA_HINT = "give a LoRA adapter in PEFT's format, with adapter_config.json and adapter_model.safetensors"
REFUSED = (
    "use_dora",
    "lora_bias",
    "modules_to_save",
    "trainable_token_indices",
    "use_qalora",
    "alora_invocation_tokens",
    "target_parameters",
    "layer_replication",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
)
"""Fields of a config that, where set, change the model by more than the product of two factors."""
PLAIN_STARTS = ("gaussian", "eva", "orthogonal")
"""Values of init_lora_weights, beside true and false, that leave the base as it is. Under the others (pissa, olora,
corda, loftq, lora_ga) PEFT also changes the base when it loads the adapter (peft/tuners/lora/layer.py)."""

MOST_PATTERNS, MOST_WILDCARDS, LONGEST_PATTERN, LONGEST_MODULE = 4096, 8, 100, 300
_ATOM = re.compile(r"([\w/-]|\.|\\[.d]|\[[\w-]{1,40}\])([*+?]?)")
"""What a pattern may consist of: a character, any character, a digit or a class, each optionally repeated."""


def adapter_bytes(
    deltas: Mapping[str, Delta], base: str, *, revision: str | None, conv1d: bool, dtype: torch.dtype
) -> dict[str, bytes]:
    """Return the adapter's two files, by name. deltas: parameter name -> change (D, F) as factors.

    All modules get one rank: smaller factors are padded with zeros, because not every server reads a rank per module.
    lora_alpha is that rank, so the scale is one. The factors are oriented as for nn.Linear, also for a Conv1D
    (`conv1d`): PEFT transposes their product where fan_in_fan_out says so.
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
    """Read a LoRA adapter as {parameter name: change (D, F)}, its scale multiplied into the left factor.

    Names are those of the transformers model (`model.layers.4.mlp.down_proj.weight`), block 2 before block 10. Changes
    are oriented as for nn.Linear, also where the model has a Conv1D. Raises StorageError for a folder without an
    adapter, a damaged one, or one with values that are not finite; UnsupportedModelError for an adapter that does more
    than add the product of two factors, or whose patterns memedit does not match.
    """
    config = _config(folder)
    file = folder / WEIGHTS
    try:
        with safe_open(file, "pt") as kept:
            tensors = {key: kept.get_tensor(key) for key in sorted(kept.keys())}
    except (OSError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:200]
        raise StorageError(f"{file} cannot be read as an adapter's weights: {reason}", LORA_HINT) from error
    check_finite(file, tensors, LORA_HINT)
    modules = dict.fromkeys(key.removesuffix(A).removesuffix(B) for key in tensors)
    foreign = [key for key in tensors if not key.startswith(PREFIX) or not key.endswith((A, B))]
    if not tensors:
        raise StorageError(f"{file} holds no tensors, so the adapter changes nothing", LORA_HINT)
    if foreign:
        raise UnsupportedModelError(
            f"{file} holds {shown_name(foreign[0])}, which is no factor of a linear module's weight",
            "give a plain LoRA adapter",
        )
    try:
        patterns = _patterns(config, "rank_pattern"), _patterns(config, "alpha_pattern")
        return {
            f"{module.removeprefix(PREFIX)}.weight": _delta(module, tensors, config, *patterns)
            for module in sorted(modules, key=in_order)
        }
    except (KeyError, ValueError, TypeError, ArithmeticError, AttributeError) as error:
        reason = "a module lacks a factor, or shapes or scales disagree"
        raise StorageError(f"the adapter {folder} is damaged: {reason}", LORA_HINT) from error


def _config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    try:
        size = file.stat().st_size
        config: Any = json.loads(file.read_bytes()) if size <= LONGEST_CONFIG else None
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise StorageError(f"cannot read the adapter {file}: {reason}", LORA_HINT) from error
    except (ValueError, RecursionError) as error:
        raise StorageError(f"{file} is not valid JSON", LORA_HINT) from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind: Any = config.get("peft_type") if isinstance(config, dict) else None
        raise UnsupportedModelError(f"{folder} is no LoRA adapter (its peft_type is {repr(kind)[:60]})", LORA_HINT)
    more = [name for name in REFUSED if config.get(name)]
    start = config.get("init_lora_weights")
    more += [f"init_lora_weights = {start[:40]!r}"] if isinstance(start, str) and start not in PLAIN_STARTS else []
    if more or config.get("bias", "none") != "none":
        raise UnsupportedModelError(
            f"the adapter {folder} does more than add two factors' product ({(more or ['bias'])[0]})",
            "merge it into its base with peft (merge_and_unload), and give the merged model",
        )
    return config


class _Pattern:
    """One key of rank_pattern or alpha_pattern: it matches a module's path, or the end of it after a dot.

    PEFT takes the key for a regular expression, and some of those take years to match. Here a key is a sequence of
    characters, dots, digits and classes, some of them repeated, and is matched in one pass. Others are refused.
    """

    def __init__(self, key: str, field: str) -> None:
        body = key.removeprefix("^").removesuffix("$")
        found = list(_ATOM.finditer(body))
        if not found or len(key) > LONGEST_PATTERN or "".join(atom[0] for atom in found) != body:
            raise UnsupportedModelError(
                f"the adapter's {field} has the pattern {key[:60]!r}, which memedit does not match",
                "name the modules themselves there, or merge the adapter with peft and give the merged model",
            )
        self.anchored = key.startswith("^")
        self.wild = any(atom[2] for atom in found)
        self.atoms = [(re.compile(atom[1]), atom[2]) for atom in found] if self.wild else []
        self.plain = None if self.wild else re.compile(rf"(?:{'' if self.anchored else '.*[.]'})?{body}")

    def matches(self, module: str) -> bool:
        """Whether the pattern matches; the time is bounded by the lengths of both, multiplied."""
        if self.plain is not None:
            return self.plain.fullmatch(module) is not None
        states = set[int]()
        for at, character in enumerate(module):
            if at == 0 or (module[at - 1] == "." and not self.anchored):
                states.add(0)
            after = set[int]()
            for state in self._reached(states):
                if state < len(self.atoms) and self.atoms[state][0].fullmatch(character):
                    after |= {state + 1, state} if self.atoms[state][1] in ("*", "+") else {state + 1}
            states = after
        return len(self.atoms) in self._reached(states)

    def _reached(self, states: set[int]) -> set[int]:
        """Return the states, and those that are reached by skipping optional atoms."""
        found = set(states)
        for state in range(len(self.atoms)):
            if state in found and self.atoms[state][1] in ("*", "?"):
                found.add(state + 1)
        return found


def _patterns(config: Mapping[str, Any], field: str) -> list[tuple[_Pattern, Any]]:
    """Read a config's values by pattern. Raises TypeError, or UnsupportedModelError for too many."""
    found: Any = config.get(field) or {}
    if not isinstance(found, dict):
        raise TypeError(field)
    patterns = [(_Pattern(str(key), field), value) for key, value in found.items()]
    if len(patterns) > MOST_PATTERNS or sum(pattern.wild for pattern, _ in patterns) > MOST_WILDCARDS:
        raise UnsupportedModelError(
            f"the adapter's {field} has too many patterns ({len(patterns):,})", "name the modules themselves there"
        )
    return patterns


def _delta(
    module: str,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    ranks: list[tuple[_Pattern, Any]],
    alphas: list[tuple[_Pattern, Any]],
) -> Delta:
    left, right = tensors[module + B].float(), tensors[module + A].float()
    if left.ndim != 2 or right.ndim != 2 or left.shape[1] != right.shape[0] or len(module) > LONGEST_MODULE:
        raise ValueError(module)
    path, rank = module.removeprefix(PREFIX), left.shape[1]
    if _value(ranks, path, config.get("r", rank)) != rank:
        raise ValueError(module)
    scale = float(_value(alphas, path, config.get("lora_alpha", 8)))
    scale /= math.sqrt(rank) if config.get("use_rslora") else rank
    if not math.isfinite(scale):
        raise ValueError(module)
    return Delta(left if scale == 1 else (scale * left.double()).float(), right)


def _value(patterns: list[tuple[_Pattern, Any]], module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches a module's path."""
    return next((value for pattern, value in patterns if pattern.matches(module)), default)

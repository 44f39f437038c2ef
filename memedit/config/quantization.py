"""What config.json says of quantized weights: which formats memedit reads. It is all data; nothing here opens a file.

memedit reads 8-bit floats with scales: a weight is float8_e4m3fn, and another tensor holds a scale for each block, row
or the whole of it. The number that an element stands for is code times scale, so it can be changed by a little, and
written again. Formats of fewer bits, and whole numbers, are too coarse for that, or pack several elements into one.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

SCALES = ("_scale_inv", "_scale")
"""What follows a weight's name in the name of its scale: that of DeepSeek-V3 and transformers, and that of
compressed-tensors, vLLM and ModelOpt. A code is multiplied by either of them."""
LARGEST_BLOCK = 1 << 20


@dataclass(frozen=True)
class Fp8Scheme:
    """Weights in float8_e4m3fn; block: the rows and columns that share a scale, None: a row or the whole weight."""

    block: tuple[int, int] | None


def find_scheme(config: Mapping[str, Any]) -> Fp8Scheme | str | None:
    """How a checkpoint is quantized: None if it is not, the name of the format if memedit does not read it."""
    text: Any = config.get("text_config")
    found = config.get("quantization_config") or (text.get("quantization_config") if isinstance(text, dict) else None)
    if not found:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else found
    if not isinstance(method, str):
        return "an unnamed method"
    if isinstance(found, dict) and method == "fp8":
        return _fp8(found)
    if isinstance(found, dict) and method == "compressed-tensors":
        return _compressed(found)
    return _shown(method)


def scale_name(name: str, names: Container[str]) -> str | None:
    """Return the name of the tensor that holds a weight's scale, if it is among these names."""
    return next((name + after for after in SCALES if name + after in names), None)


def _fp8(found: Mapping[str, Any]) -> Fp8Scheme | str:
    """DeepSeek-V3's format, and the same without blocks. Other number formats go by the same method's name."""
    for field, read in (("fmt", "e4m3"), ("expert_dtype", "fp8")):
        if found.get(field, read) != read:
            return f"fp8 with {field} = {_shown(found[field])}"
    return _scheme("fp8", found.get("weight_block_size"))


def _compressed(found: Mapping[str, Any]) -> Fp8Scheme | str:
    """The format float-quantized of compressed-tensors: 8-bit symmetric floats, with nothing else done to weights."""
    name = f"compressed-tensors, {_shown(found.get('format'))}"
    groups, sparsity = found.get("config_groups"), found.get("sparsity_config")
    dense = not sparsity or (isinstance(sparsity, dict) and sparsity.get("format") == "dense")
    if found.get("format") != "float-quantized" or not isinstance(groups, dict) or not groups or not dense:
        return name
    if found.get("transform_config"):
        return f"{name} with transform_config"
    weights = [group.get("weights") if isinstance(group, dict) else None for group in groups.values()]
    for one in weights:
        if not isinstance(one, dict) or (one.get("num_bits"), one.get("type")) != (8, "float"):
            return name
        if one.get("strategy") not in ("tensor", "channel", "block") or one.get("symmetric") is False:
            return f"{name} with strategy = {_shown(one.get('strategy'))}"
    blocks = [one.get("block_structure") if one["strategy"] == "block" else None for one in weights if one]
    if any(block != blocks[0] for block in blocks):
        return f"{name} with several block_structure"
    return _scheme(name, blocks[0])


def _scheme(name: str, block: Any) -> Fp8Scheme | str:
    if block is None:
        return Fp8Scheme(None)
    whole = isinstance(block, list) and len(block) == 2 and all(type(size) is int for size in block)
    if not whole or not all(1 <= size <= LARGEST_BLOCK for size in block):
        return f"{name} with blocks of {_shown(block)}"
    return Fp8Scheme((block[0], block[1]))


def _shown(value: object) -> str:
    """A value for a message: on one line, printable, and of a bounded length."""
    text = value if isinstance(value, str) else json.dumps(value)
    return "".join(part for part in text if part.isprintable())[:60]

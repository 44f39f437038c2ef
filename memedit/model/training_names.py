"""Stored names with parts that training wrappers add, such as `_orig_mod.`: no model's own parameter has them."""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path

from memedit.errors import UnsupportedModelError

WRAPPERS: tuple[tuple[str, str, str], ...] = (
    ("_orig_mod.", r"(^|\.)_orig_mod\.", "torch.compile"),
    ("_fsdp_wrapped_module.", r"(^|\.)_fsdp_wrapped_module\.", "FSDP"),
    ("_checkpoint_wrapped_module.", r"(^|\.)_checkpoint_wrapped_module\.", "activation checkpointing"),
    ("base_layer.", r"\.base_layer\.", "PEFT"),
    ("base_model.model.", r"^(module\.)?base_model\.model\.", "PEFT"),
    ("module.", r"^module\.", "DistributedDataParallel or DeepSpeed"),
)
"""The part of a name, the pattern that finds it, and what adds it."""
AT_THE_BEGINNING = ("module.", "base_model.model.")
"""Parts that count at the beginning of a name only, in the order in which they can follow one another."""
FACTOR = re.compile(r"\.lora_(embedding_)?[AB]\.")


def check_stored_names(folder: Path, wanted: Collection[str], stored: Collection[str]) -> None:
    """Raise UnsupportedModelError where parameters are stored under a training wrapper's names.

    wanted: the parameters' own names. stored: names in the checkpoint. Nothing is raised where every parameter is
    stored under its own name, or no stored name has such a part.
    """
    missing = set(wanted) - set(stored)
    named = [(part, found, adds) for part, pattern, adds in WRAPPERS if (found := _first(pattern, stored))]
    if not missing or not named:
        return
    parts = " and ".join(f"{part} (added by {adds})" for part, _, adds in named)
    message = f"{folder} stores its weights under names with {parts}, such as {named[0][1]}"
    if any(FACTOR.search(name) for name in stored):
        hint = "open it with peft as it was trained, and save what merge_and_unload() returns; then edit that"
    else:
        hint = (
            "rename them in a copy of the folder, in every weight file F, with Python: from safetensors.torch import "
            f"load_file, save_file; save_file({{{renamed([part for part, _, _ in named])}: tensor for name, tensor in "
            'load_file(F).items()}, F, {"format": "pt"}); with an index, see memedit help checkpoints'
        )
    raise UnsupportedModelError(message, hint)


def renamed(parts: Collection[str]) -> str:
    """Return the Python expression that takes these parts out of `name`."""
    inside = [part for part in parts if part not in AT_THE_BEGINNING]
    begins = [part for part in AT_THE_BEGINNING if part in parts]
    calls = [f'.replace("{part}", "")' for part in inside] + [f'.removeprefix("{part}")' for part in begins]
    return "name" + "".join(calls)


def _first(pattern: str, names: Collection[str]) -> str:
    return next((name for name in sorted(names) if re.search(pattern, name) and name.isprintable()), "")[:120]

"""Digests of everything that a model's states depend on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from memedit.model.load import LanguageModel


def feeding(lm: LanguageModel, layers: Sequence[int]) -> dict[int, str]:
    """For each layer, the sha256 of what its keys depend on: dtype, config, and weights below its down-projection.

    Weights are hashed in memory, so the dtype of the forward counts, and the files that they came from do not.
    """
    blocks, state = lm.architecture.blocks, lm.model.state_dict()
    inside: dict[int, list[str]] = {}
    outside: list[str] = []
    for name in sorted(state):
        if name.startswith(f"{blocks}."):
            inside.setdefault(int(name[len(blocks) + 1 :].split(".")[0]), []).append(name)
        elif not name.startswith("lm_head"):
            outside.append(name)
    running = _begin(lm)
    for name in outside:
        _add(running, name, _value(lm, name, state[name]))
    found: dict[int, str] = {}
    for layer in range(max(layers) + 1):
        last = lm.architecture.parameter(layer)
        for name in inside.get(layer, []):
            if not name.startswith(last.removesuffix("weight")):
                _add(running, name, _value(lm, name, state[name]))
        if layer in layers:
            found[layer] = running.hexdigest()
        for name in inside.get(layer, []):
            if name.startswith(last.removesuffix("weight")):
                _add(running, name, _value(lm, name, state[name]))
    return found


def of_model(lm: LanguageModel) -> str:
    """The sha256 of everything that the model's output depends on: dtype, config and all weights, in memory."""
    running, state = _begin(lm), lm.model.state_dict()
    for name in sorted(state):
        _add(running, name, _value(lm, name, state[name]))
    return running.hexdigest()


def _value(lm: LanguageModel, name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor if lm.streamed is None else lm.streamed.value(name, tensor)


def _begin(lm: LanguageModel) -> hashlib._Hash:  # type: ignore[name-defined]
    """A digest of the dtype and config, to which weights are added."""
    config = lm.model.config.to_diff_dict()
    for run_dependent in ("transformers_version", "_name_or_path", "dtype"):
        config.pop(run_dependent, None)
    return hashlib.sha256(repr((str(lm.dtype), sorted(config.items(), key=str))).encode())


def of_tokenizer(tokenizer: PreTrainedTokenizerBase) -> str:
    """The sha256 of everything that turns text into ids."""
    backend: str = tokenizer.backend_tokenizer.to_str()  # type: ignore[attr-defined]
    return hashlib.sha256(repr((backend, tokenizer.eos_token_id)).encode()).hexdigest()


def _add(running: hashlib._Hash, name: str, tensor: torch.Tensor) -> None:  # type: ignore[name-defined]
    running.update(f"{name} {tuple(tensor.shape)}".encode())
    running.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)

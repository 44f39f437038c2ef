"""Read config.json, and refuse what memedit cannot open before anything is built from it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.repocard import metadata_load
from transformers import AutoConfig

from memedit.config.quantization import find_scheme
from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, StorageError, UnsupportedModelError, UsageError, file_error
from memedit.model.memory import ran_out

MOST_BYTES = 16 << 20
"""Of a config.json: real ones have some kilobytes."""
LAYERS, WIDTH, WORDS = 10_000, 1_000_000, 100_000_000
BOUNDS: Mapping[str, tuple[int, int]] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), (1, LAYERS)),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "n_shared_experts"), (0, LAYERS)),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "num_heads"), (1, WIDTH)),
    **dict.fromkeys(("intermediate_size", "n_inner", "ffn_dim", "head_dim", "num_key_value_heads"), (0, WIDTH)),
    **dict.fromkeys(("vocab_size", "max_position_embeddings", "n_positions"), (1, WORDS)),
}
"""Name in config.json -> the least and the largest number that is believed. A list may give one for each layer."""
ADAPTER = "adapter_config.json"
NOT_KNOWN = "it must be a causal language model that the installed transformers knows: pip install -U transformers"


@contextmanager
def foreign_errors(
    what: str, hint: str, kind: type[MemeditError] = UnsupportedModelError, *, folder: Path | None = None
) -> Generator[None]:
    """Turn every error of another library into one of ours: `kind`, with `what`, the reason in one line, and `hint`.

    Our own errors pass, and so does every exhaustion of memory. Where a file in `folder` cannot be read, that is the
    reason, and the error a StorageError: libraries take such a file for one that is not there.
    """
    try:
        yield
    except BaseException as error:
        # The tokenizers library panics on some damaged files, with an error that is no Exception.
        foreign = isinstance(error, Exception) or type(error).__name__ == "PanicException"
        if not foreign or isinstance(error, MemeditError) or ran_out(error):
            raise
        if folder is not None:
            check_readable(folder)
        raise kind(f"{what}: {first_line(error)}", hint) from error


def check_readable(folder: Path) -> None:
    """Raise StorageError where a file in a folder cannot be opened; folders in it, pipes and devices are left out."""
    file = folder
    try:
        for file in sorted(folder.iterdir()):
            if file.is_file():
                with file.open("rb") as stream:
                    stream.read(1)
    except OSError as error:
        raise file_error(error, f"read {file}") from error


def first_line(error: BaseException) -> str:
    """The first line of an error's message; its type where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].split(" for this kind of AutoModel")[0] if lines else type(error).__name__


def read_config(folder: Path, *, trust_remote_code: bool = False, with_adapter: bool = False) -> dict[str, Any]:
    """Read and check config.json. with_adapter: a LoRA adapter in the folder is no reason to refuse it.

    Raises UsageError where there is none, or it is not JSON; StorageError where it cannot be read; and
    UnsupportedModelError for a model that memedit does not edit, or a size or type that no model has.
    """
    file = folder / "config.json"
    if not file.is_file():
        adapter = (folder / ADAPTER).is_file()
        hint = (
            "it is an adapter: memedit eval -m BASE --adapter DIR"
            if adapter
            else "give a Hugging Face model folder, in safetensors"
        )
        raise UsageError(f"{folder} holds no config.json, so it is no model folder", hint)
    config = _parsed(file)
    if not with_adapter:
        check_no_adapter(folder)
    if isinstance(method := find_scheme(config), str):
        hint = (
            f"edit the unquantized model{_original(folder)}, make an adapter of the edit (memedit export OUT --to lora "
            "-m UNQUANTIZED -o ADAPTER), and serve the quantized model with it: memedit help checkpoints"
        )
        raise UnsupportedModelError(f"{folder} is quantized ({method}): memedit edits no weights of this kind", hint)
    if config.get("is_encoder_decoder"):
        hint = "memedit edits causal (decoder-only) language models"
        raise UnsupportedModelError(f"{folder} is an encoder-decoder model", hint)
    if "auto_map" in config and not trust_remote_code:
        hint = "read that code; if you trust it, say --set model.trust_remote_code=true"
        raise UnsupportedModelError(f"{folder} needs Python code that comes with it (auto_map)", hint)
    _check_values(file, config)
    return config


def _original(folder: Path) -> str:
    """The model that a quantized one was made from, as its card names it: a part of a message."""
    card = folder / "README.md"
    try:
        front = metadata_load(card) if card.is_file() and card.stat().st_size <= MOST_BYTES else None
    except Exception:  # noqa: BLE001 - a card is only worth a better hint, and what YAML raises has many kinds
        return ""
    named: Any = (front or {}).get("base_model")
    named = named[0] if isinstance(named, list) and named else named
    name = "".join(part for part in named if part.isprintable()).strip()[:100] if isinstance(named, str) else ""
    return f" (its card names {name})" if name else ""


def check_no_adapter(folder: Path) -> None:
    """Raise UnsupportedModelError where an adapter lies in a model's folder.

    transformers adds it to the model that it opens, if peft is installed, and says nothing; another program may not.
    """
    if (folder / ADAPTER).is_file():
        here = shlex.quote(str(folder))
        raise UnsupportedModelError(
            f"{folder} holds a model and an adapter ({ADAPTER}), so programs differ in what they take the model for",
            f"merge it: memedit export {here} --to full -m {here} -o MERGED, and edit MERGED; or move the adapter's "
            "files (adapter_*) out of the folder, and edit the model without it",
        )


def _parsed(file: Path) -> dict[str, Any]:
    try:
        if (size := file.stat().st_size) > MOST_BYTES:
            raise UnsupportedModelError(f"{file} has {size:,} bytes, which no model's config has", "check the model")
        config = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{file} cannot be read: {error.strerror}", "check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not valid JSON: {first_line(error)}", "fetch the model again") from error
    if not isinstance(config, dict):
        kind = {list: "a list", str: "text", type(None): "null"}.get(type(config), "a number or truth value")
        raise UnsupportedModelError(f"{file} holds {kind} where a JSON object belongs", "fetch the model again")
    return config


def _check_values(file: Path, config: Mapping[str, Any]) -> None:
    """Check sizes and dtypes, at every depth: building a model of a billion layers would not end."""
    for name, value in config.items():
        if isinstance(value, dict):
            _check_values(file, value)
        elif name in BOUNDS and value is not None:
            low, high = BOUNDS[name]
            for one in value if isinstance(value, list) else [value]:
                # A list may leave a layer out (null, 0).
                if one is None and isinstance(value, list):
                    continue
                least = low if one is value else 0
                if not isinstance(one, int) or isinstance(one, bool) or not least <= one <= high:
                    message = f"{file}: {name} = {_short(one)}, which is no whole number from {low} to {high:,}"
                    raise UnsupportedModelError(message, "check the model, or fetch it again")
        elif name in ("dtype", "torch_dtype") and value is not None and not is_float_dtype(value):
            message = f"{file}: {name} = {_short(value)}, which is no floating dtype of torch"
            raise UnsupportedModelError(message, 'write the dtype of the weights there, such as "bfloat16"')


def is_float_dtype(name: object) -> bool:
    """Whether a config's value names a floating dtype of torch: "bfloat16", as transformers writes it."""
    dtype = getattr(torch, name, None) if isinstance(name, str) else None
    return isinstance(dtype, torch.dtype) and dtype.is_floating_point


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def auto_config(folder: Path, knobs: ModelKnobs, *, with_adapter: bool = False) -> Any:
    """The model's configuration, as transformers reads it.

    The attention that the config asks for is dropped: it may name code to be fetched. transformers then takes
    torch's own (sdpa), or "eager" where the model does not support that.

    Raises what `read_config` raises, and UnsupportedModelError for a model that transformers does not know.
    """
    read_config(folder, trust_remote_code=knobs.trust_remote_code, with_adapter=with_adapter)
    with foreign_errors(f"{folder} cannot be opened: config.json", NOT_KNOWN, folder=folder):
        config: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=knobs.trust_remote_code, local_files_only=True
        )
        config._attn_implementation = None
        for part in (config, config.get_text_config()):
            # transformers takes {} and null for quantized. FP8 weights are opened as the numbers that they stand for.
            vars(part).pop("quantization_config", None)
        int(config.get_text_config().num_hidden_layers)
    return config


def count_layers(folder: Path, knobs: ModelKnobs) -> int:
    """The number of a model's blocks, read from its config."""
    return int(auto_config(folder, knobs).get_text_config().num_hidden_layers)

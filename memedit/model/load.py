"""Open a model and its tokenizer, or refuse with the reason and the way out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, ResourceError, UnsupportedModelError, UsageError
from memedit.model.architecture import Architecture, find_architecture
from memedit.model.probe import prove


@dataclass(frozen=True)
class LanguageModel:
    """A model in memory, its tokenizer, and the way around it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def weight(self, layer: int) -> Tensor:
        """The down-projection's weight as it lies in memory, seen as (D, F)."""
        weight: Any = self.model.get_submodule(self.architecture.down_projections[layer]).weight
        return weight.detach().T if self.architecture.layout == "conv1d" else weight.detach()


PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "memedit/*.jsonl*")
"""What of a Hub repository is fetched."""


def locate(knobs: ModelKnobs, patterns: Sequence[str] = PATTERNS) -> Path:
    """The folder of a model: a local one as it is, or a snapshot of a Hub repository (cached, or downloaded)."""
    folder = Path(knobs.path).expanduser()
    if folder.is_dir():
        return folder
    if not knobs.path or knobs.path.startswith((".", "/", "~")) or knobs.path.count("/") > 1:
        raise UsageError(f"there is no model folder {knobs.path!r}", "give a folder, or a Hub name such as gpt2")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(knobs.path, revision=knobs.revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise _not_cached(knobs.path) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        said = str(error).strip().splitlines()[0]
        raise UsageError(f"the model {knobs.path!r} cannot be fetched: {said}", "check its name and access") from error


def _not_cached(name: str) -> MemeditError:
    """The error for a Hub model that is neither cached nor can be downloaded; it names the reason."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        hint = "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or give a local folder"
        return MemeditError(f"{name} is not in the local cache, and downloads are switched off", hint)
    hint = "check the network connection, or give a local folder"
    return MemeditError(f"{name} is not in the local cache, and the Hub cannot be reached", hint)


def at_hand(knobs: ModelKnobs) -> Path | None:
    """The folder of a model that can be read without fetching anything, or None."""
    folder = Path(knobs.path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(knobs.path, revision=knobs.revision, local_files_only=True))
    except (HFValidationError, OSError):  # LocalEntryNotFoundError is an OSError
        return None


def meta_model(folder: Path, knobs: ModelKnobs) -> Architecture:
    """A model's anatomy from its config alone: built on the meta device, no weight is read.

    Raises UnsupportedModelError or UsageError.
    """
    config = read_config(folder, trust_remote_code=knobs.trust_remote_code)
    try:
        found: Any = AutoConfig.from_pretrained(
            folder, trust_remote_code=knobs.trust_remote_code, local_files_only=True
        )
        with torch.device("meta"):
            return find_architecture(AutoModelForCausalLM.from_config(found, trust_remote_code=knobs.trust_remote_code))
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} ({config.get('model_type')}) is no causal LM: {said}", "check the model") from error


def read_config(folder: Path, *, trust_remote_code: bool = False) -> dict[str, Any]:
    """config.json, after the refusals that need no more than it."""
    file = folder / "config.json"
    if not file.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        hint = "it is an adapter: memedit eval -m BASE --adapter DIR" if adapter else "give a Hugging Face model folder"
        raise UsageError(f"{folder} holds no config.json, so it is no model folder", hint)
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{file} is not valid JSON: {error}", "fetch the model again") from error
    if config.get("quantization_config"):
        how = config["quantization_config"].get("quant_method", "an unnamed method")
        hint = "edit the unquantized checkpoint, then quantize the result"
        raise UnsupportedModelError(f"{folder} is quantized ({how}): its weights cannot be changed by a little", hint)
    if config.get("is_encoder_decoder"):
        hint = "memedit edits causal (decoder-only) language models"
        raise UnsupportedModelError(f"{folder} is an encoder-decoder model", hint)
    if "auto_map" in config and not trust_remote_code:
        hint = "read that code; if you trust it, say --set model.trust_remote_code=true"
        raise UnsupportedModelError(f"{folder} needs Python code that comes with it (auto_map)", hint)
    return config


def auto_config(folder: Path, knobs: ModelKnobs) -> Any:
    """The model's configuration. Raises what `read_config` raises, and for a model that transformers does not know."""
    read_config(folder, trust_remote_code=knobs.trust_remote_code)
    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=knobs.trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise _not_known(folder, error) from error


def _not_known(folder: Path, error: Exception) -> UnsupportedModelError:
    said = str(error).strip().splitlines()[0].split(" for this kind of AutoModel")[0]
    hint = "it must be a causal language model that the installed transformers knows: pip install -U transformers"
    return UnsupportedModelError(f"{folder} cannot be opened: {said}", hint)


def skeleton(folder: Path, knobs: ModelKnobs) -> PreTrainedModel:
    """The model as its config has it, without weights (on the meta device)."""
    config = auto_config(folder, knobs)
    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, trust_remote_code=knobs.trust_remote_code).eval()
    except (ValueError, KeyError) as error:
        raise _not_known(folder, error) from error


def count_layers(folder: Path, knobs: ModelKnobs) -> int:
    """How many blocks a model has, from its config alone."""
    return int(auto_config(folder, knobs).get_text_config().num_hidden_layers)


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer; one without character offsets is refused, since a subject could not be located."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        said = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} has no tokenizer that can be read: {said}", "copy the tokenizer's files") from error
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        hint = "save a fast one beside it: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)"
        raise UnsupportedModelError(f"the tokenizer of {folder} ({kind}) gives no character offsets", hint)
    return tokenizer


def open_tokenizer(folder: Path, knobs: ModelKnobs) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer and the longest row the model takes, without its weights."""
    positions = getattr(auto_config(folder, knobs).get_text_config(), "max_position_embeddings", None)
    return load_tokenizer(folder, trust_remote_code=knobs.trust_remote_code), positions


def pick_device(asked: str) -> torch.device:
    """auto: the GPU where there is one. Raises ResourceError for a device that is not there."""
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"there is no kind of device {asked!r}", "use auto, cpu, cuda, cuda:N or mps") from error
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ResourceError(f"this machine has no {asked} device that torch can use", "use --device cpu")
    return device


def load(folder: Path, knobs: ModelKnobs, *, editing: bool = True) -> LanguageModel:
    """Open the model of a folder for inference, find its anatomy and prove it.

    Without `editing` a model that cannot be edited is not refused for that. Raises UnsupportedModelError, UsageError
    or ResourceError.
    """
    read_config(folder, trust_remote_code=knobs.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=knobs.trust_remote_code)
    model = open_model(folder, knobs)
    architecture = find_architecture(model)
    if editing:
        architecture = prove(model, architecture)
    return LanguageModel(model, tokenizer, architecture)


def forward_dtype(knobs: ModelKnobs) -> torch.dtype | None:
    """The dtype a model is opened in; None: the checkpoint's own.

    On a CPU the forward runs in float32 whatever the checkpoint's dtype: half precision is slow there, and float32
    holds every float16 and bfloat16 value exactly.
    """
    if knobs.dtype != "auto":
        return getattr(torch, knobs.dtype)
    return torch.float32 if pick_device(knobs.device).type == "cpu" else None


def open_model(folder: Path, knobs: ModelKnobs) -> PreTrainedModel:
    """The model of a folder on its device, or over all GPUs, without its anatomy. Raises as `load` does."""
    auto_config(folder, knobs)
    device, dtype = pick_device(knobs.device), forward_dtype(knobs)
    if knobs.device_map and find_spec("accelerate") is None:
        raise UsageError("--device-map needs 'accelerate'", "pip install 'memedit[multi-gpu]'")
    spread: dict[str, Any] = {"device_map": knobs.device_map} if knobs.device_map else {}
    try:
        opened: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype or "auto",
            trust_remote_code=knobs.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **spread,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if "Unrecognized configuration class" in str(error):
            raise _not_known(folder, error) from error
        said = str(error).strip().splitlines()[0]
        raise UsageError(f"{folder} cannot be opened: {said}", "it must be a causal LM in safetensors") from error
    model, info = opened
    if info["missing_keys"]:
        names = ", ".join(sorted(info["missing_keys"])[:3])
        hint = "fetch the checkpoint again: a weight that is missing would be random"
        raise UsageError(f"{folder} lacks weights that its config asks for: {names}", hint)
    if any(parameter.is_meta for parameter in model.parameters()):
        hint = "say --dtype bfloat16, take more GPUs, or say --device cpu without --device-map"
        raise ResourceError(f"the GPUs of this machine cannot hold {folder} together", hint)
    return (model if spread else model.to(device)).eval().requires_grad_(False)

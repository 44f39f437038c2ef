"""Open a model and its tokenizer, or refuse with the reason and the next step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from memedit.config.quantization import Fp8Scheme, find_scheme
from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, ResourceError, UnsupportedModelError, UsageError, nearest_path_hint
from memedit.model.architecture import Architecture, find_architecture
from memedit.model.chat_template import with_system_prompt
from memedit.model.config import NOT_KNOWN, auto_config, check_readable, first_line, foreign_errors, read_config
from memedit.model.fp8 import StoredTensors, open_tensors
from memedit.model.kernels import attention_kernels
from memedit.model.probe import check_finite_weights, prove
from memedit.model.streamed import Streamed, fit_in, unread_tensors, weight_size
from memedit.model.training_names import check_stored_names
from memedit.model.whole_index import whole_index


@dataclass(frozen=True)
class LanguageModel:
    """A model in memory, its tokenizer, and its architecture."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    architecture: Architecture
    source: ModelSource | None = None
    """What it was opened from; None for a model that no other process can open."""
    streamed: Streamed | None = None
    """The blocks that are read from disk as they run; None if all weights are in memory."""
    proofs: dict[str, int] = field(default_factory=dict[str, int], compare=False)
    """The fast engines that are proved on this model: for rows of up to how many tokens."""

    @property
    def device(self) -> torch.device:
        """The device of the model's first parameter."""
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that forwards run in."""
        return self.model.dtype

    def forward(self, **inputs: Any) -> Any:
        """Run the model's own forward: the one place where a model that is open is run."""
        with attention_kernels(self.device):
            return self.model(**inputs)

    def weight(self, layer: int) -> Tensor:
        """The down-projection's weight, a view as (D, F), to be read only: see `held_weight`."""
        weight: Any = self.model.get_submodule(self.architecture.down_projections[layer]).weight
        if self.streamed is not None:
            weight = self.streamed.value(self.architecture.parameter(layer), weight)
        return self.architecture.turned(weight.detach())

    def held_weight(self, layer: int) -> Tensor:
        """The same weight in memory, to be written to; `let_go` must follow."""
        if self.streamed is not None:
            self.streamed.hold(self.architecture.parameter(layer))
        return self.weight(layer)

    def let_go(self, layer: int) -> None:
        """Let the weight return to the disk, if it is one that is read from there."""
        if self.streamed is not None:
            self.streamed.let_go(self.architecture.parameter(layer))

    def device_of(self, layer: int) -> torch.device:
        """The device that a layer's down-projection runs on."""
        weight: Any = self.model.get_submodule(self.architecture.down_projections[layer]).weight
        return self.device if weight.is_meta else weight.device

    def with_system_prompt(self, system: str) -> LanguageModel:
        """The same model, in whose chats the system prompt comes first. Raises what `with_system_prompt` raises."""
        return replace(self, tokenizer=with_system_prompt(self.tokenizer, system)) if system else self

    @property
    def place(self) -> str:
        """Where blocks lie: a type of device, or "disk" where they are read from it as they are needed."""
        return "disk" if self.streamed is not None else self.device.type

    @property
    def size(self) -> int:
        """Bytes that the weights take of memory, at most."""
        if self.streamed is not None:
            return self.streamed.size
        return sum(one.numel() * one.element_size() for one in self.model.parameters())


@dataclass(frozen=True)
class ModelSource:
    """What a model is opened from, by this process or by another one."""

    folder: Path
    knobs: ModelKnobs
    editing: bool = True
    memory: int | None = None

    def load(self) -> LanguageModel:
        """Open the model. Raises what `load` raises."""
        return load(self.folder, self.knobs, editing=self.editing, memory=self.memory)


PATTERNS = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "memedit/*.jsonl*")
"""The files of a Hub repository that are fetched."""


def locate(knobs: ModelKnobs, patterns: Sequence[str] = PATTERNS) -> Path:
    """The folder of a model: a local folder, or a snapshot of a Hub repository (cached, or downloaded).

    Raises UsageError where there is no such model, and ResourceError where it is not cached and the Hub cannot be
    reached.
    """
    if (folder := _local_folder(knobs.path)) is not None:
        return folder
    if not knobs.path or knobs.path.startswith((".", "/", "~")) or knobs.path.count("/") > 1:
        hint = nearest_path_hint(knobs.path, "give a folder, or a Hub name such as gpt2")
        raise UsageError(f"there is no model folder {knobs.path[:300]!r}", hint)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(knobs.path, revision=knobs.revision, allow_patterns=list(patterns)))
    except LocalEntryNotFoundError as error:
        raise _not_cached(knobs.path) from error
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        reason = first_line(error)
        raise UsageError(
            f"the model {knobs.path!r} cannot be fetched: {reason}", "check its name and access"
        ) from error


def _local_folder(path: str) -> Path | None:
    """The folder of this name, if there is one; no name that a file system refuses has one."""
    try:
        folder = Path(path).expanduser()
        return folder if folder.is_dir() else None
    except (OSError, ValueError, RuntimeError):  # too long, a zero byte, or ~ of nobody
        return None


def _not_cached(name: str) -> MemeditError:
    """The error for a Hub model that is neither cached nor can be downloaded; it names the reason."""
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        hint = "HF_HUB_OFFLINE is set, so nothing is downloaded: unset it, or give a local folder"
        return MemeditError(f"{name} is not in the local cache, and downloads are switched off", hint)
    hint = "check the network connection, or give a local folder"
    return MemeditError(f"{name} is not in the local cache, and the Hub cannot be reached", hint)


def at_hand(knobs: ModelKnobs) -> Path | None:
    """The folder of a model where nothing must be fetched for it, else None."""
    if (folder := _local_folder(knobs.path)) is not None:
        return folder
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(knobs.path, revision=knobs.revision, local_files_only=True))
    except (HFValidationError, OSError):  # LocalEntryNotFoundError is an OSError
        return None


def auto_class(config: Any) -> Any:
    """The auto class of transformers that opens a model: for image and text where config.json says so, else for text.

    Some composite models can also be opened as their text part alone. The class that config.json names comes first: it
    is the one that others open the folder with, and that an adapter's module paths are for.
    """
    whole: Any = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None)
    if whole is None:
        return AutoModelForCausalLM
    named = config.architectures or ()
    alone = type(config) in MODEL_FOR_CAUSAL_LM_MAPPING and whole.__name__ not in named
    return AutoModelForCausalLM if alone else AutoModelForImageTextToText


def meta_model(folder: Path, knobs: ModelKnobs, *, with_adapter: bool = False) -> PreTrainedModel:
    """The model as its config describes it, without weights: on the meta device. Raises as `auto_config` does."""
    config = auto_config(folder, knobs, with_adapter=with_adapter)
    with foreign_errors(f"{folder} cannot be opened", NOT_KNOWN, folder=folder), torch.device("meta"):
        return (
            auto_class(config)
            .from_config(config, trust_remote_code=knobs.trust_remote_code, attn_implementation=None)
            .eval()
        )


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Open a model's tokenizer.

    Raises UsageError where there is none that can be read, and UnsupportedModelError for one without character
    offsets: a subject could not be located.
    """
    hint = "copy the tokenizer's files from the model that it belongs to"
    with foreign_errors(f"{folder} has no tokenizer that can be read", hint, UsageError, folder=folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
    if not tokenizer.is_fast:
        kind = type(tokenizer).__name__
        hint = "save a fast one beside it: AutoTokenizer.from_pretrained(..., use_fast=True).save_pretrained(...)"
        raise UnsupportedModelError(f"the tokenizer of {folder} ({kind}) gives no character offsets", hint)
    return tokenizer


def open_tokenizer(folder: Path, knobs: ModelKnobs) -> tuple[PreTrainedTokenizerBase, int | None]:
    """The tokenizer, and the most tokens the model takes in one row (None: no limit); no weights are read."""
    positions = getattr(auto_config(folder, knobs).get_text_config(), "max_position_embeddings", None)
    tokenizer = load_tokenizer(folder, trust_remote_code=knobs.trust_remote_code)
    check_readable(folder)
    return tokenizer, positions


def pick_device(asked: str) -> torch.device:
    """The device named; `auto` is the GPU where there is one, else the CPU.

    Raises UsageError for a name that is no device, and ResourceError for a device that is not there.
    """
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hint = "use auto, cpu, cuda, cuda:N or mps"
    try:
        device = torch.device(asked)
    except RuntimeError as error:
        raise UsageError(f"there is no kind of device {asked[:100]!r}", hint) from error
    if device.type not in ("cpu", "cuda", "mps"):
        raise UsageError(f"memedit does not run on the device {asked!r}", hint)
    missing = (device.type == "cuda" and not torch.cuda.is_available()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ResourceError(f"this machine has no {asked} device that torch can use", "use --device cpu")
    return device


def load(folder: Path, knobs: ModelKnobs, *, editing: bool = True, memory: int | None = None) -> LanguageModel:
    """Open a model and its tokenizer for inference, detect its architecture, and verify that on the weights.

    Where the weights do not fit into `memory` bytes (None: no limit), blocks are read from disk as they run. Without
    `editing` nothing is verified, and a model that cannot be edited is not refused for that. Raises
    UnsupportedModelError, UsageError, ResourceError or StorageError.
    """
    read_config(folder, trust_remote_code=knobs.trust_remote_code)
    tokenizer = load_tokenizer(folder, trust_remote_code=knobs.trust_remote_code)
    model, streamed = _opened(folder, knobs, memory)
    # transformers goes on without a file that it cannot look up, so a tokenizer could be another than the model's own.
    check_readable(folder)
    architecture = find_architecture(model)
    if editing:
        architecture = prove(model, architecture)
    return LanguageModel(model, tokenizer, architecture, ModelSource(folder, knobs, editing, memory), streamed)


def forward_dtype(knobs: ModelKnobs) -> torch.dtype | None:
    """The dtype in which a model is opened; None: the checkpoint's own.

    On a CPU the forward runs in float32 whatever the checkpoint's dtype: half precision is slow there, and float32
    holds every float16 and bfloat16 value exactly.
    """
    if knobs.dtype != "auto":
        return getattr(torch, knobs.dtype)
    return torch.float32 if pick_device(knobs.device).type == "cpu" else None


def open_model(folder: Path, knobs: ModelKnobs) -> PreTrainedModel:
    """Open the model of a folder on its device, or over all GPUs; its architecture is not looked at.

    Raises as `load` does.
    """
    return _opened(folder, knobs, None)[0]


def _opened(folder: Path, knobs: ModelKnobs, memory: int | None) -> tuple[PreTrainedModel, Streamed | None]:
    """Open the model; its blocks are read from disk as they run where the weights do not fit into `memory` bytes."""
    device = pick_device(knobs.device)
    if knobs.device_map and find_spec("accelerate") is None:
        raise UsageError("--device-map needs 'accelerate'", "pip install 'memedit[multi-gpu]'")
    spread: dict[str, Any] = {"device_map": knobs.device_map} if knobs.device_map else {}
    # accelerate places the weights where there is a device map.
    limit = None if spread or memory is None or _fits(folder, knobs, memory) else memory
    placed = spread or ({} if limit is not None else _straight_to(device))
    model = _whole(folder, knobs, placed, unread=limit is not None)
    if limit is not None:
        blocks = find_architecture(meta_model(folder, knobs)).blocks
        streamed = Streamed.of(model, blocks, limit, device)
        check_finite_weights(model, streamed.value)
        return model, streamed
    if any(parameter.is_meta for parameter in model.parameters()):
        hint = "say --dtype bfloat16, take more GPUs, or say --device cpu without --device-map"
        raise ResourceError(f"the GPUs of this machine cannot hold {folder} together", hint)
    opened_model = (model if spread else model.to(device)).requires_grad_(False)
    check_finite_weights(opened_model)
    return opened_model, None


def _fits(folder: Path, knobs: ModelKnobs, memory: int) -> bool:
    """Whether the weights of a folder fit into `memory` bytes."""
    with foreign_errors(f"{folder} cannot be opened", _IT_MUST_BE, UsageError, folder=folder):
        return fit_in(weight_size(folder, _scheme(folder, knobs), _dtype(folder, knobs)), memory)


_IT_MUST_BE = "it must be a causal LM in safetensors"


def _straight_to(device: torch.device) -> dict[str, Any]:
    """What lets transformers read weights straight to a GPU; nothing where it cannot, and the model is moved later.

    Then main memory need not hold the model, and each weight is copied once. transformers needs accelerate for it.
    """
    if device.type != "cuda" or find_spec("accelerate") is None:
        return {}
    # By its number: a library may read "cuda" as the first GPU, and a process of torchrun has another.
    numbered = device if ":" in str(device) else torch.device("cuda", torch.cuda.current_device())
    return {"device_map": {"": numbered}}


def _whole(folder: Path, knobs: ModelKnobs, spread: dict[str, Any], *, unread: bool) -> Any:
    """The model of a folder in evaluation mode, as transformers opens it, without a weight that is missing.

    `unread`: its matrices are Unread.
    """
    config = auto_config(folder, knobs)
    try:
        with foreign_errors(f"{folder} cannot be opened", _IT_MUST_BE, UsageError, folder=folder):
            model, info = _from_files(folder, config, knobs, spread, unread=unread)
    except UsageError as error:
        if "Unrecognized configuration class" in error.message:
            raise UnsupportedModelError(error.message, NOT_KNOWN) from error
        raise
    if info["missing_keys"]:
        check_stored_names(folder, info["missing_keys"], info["unexpected_keys"])
        names = ", ".join(sorted(info["missing_keys"])[:3])
        hint = "fetch the checkpoint again: a weight that is missing would be random"
        raise UsageError(f"{folder} lacks weights that its config asks for: {names}", hint)
    return model.eval()


def _scheme(folder: Path, knobs: ModelKnobs) -> Fp8Scheme | None:
    scheme = find_scheme(read_config(folder, trust_remote_code=knobs.trust_remote_code))
    return scheme if isinstance(scheme, Fp8Scheme) else None


def _dtype(folder: Path, knobs: ModelKnobs) -> torch.dtype:
    """The dtype in which a model is opened whose tensors are given to transformers, which then looks at no file."""
    return forward_dtype(knobs) or auto_config(folder, knobs).dtype or torch.bfloat16


def _from_files(
    folder: Path, config: Any, knobs: ModelKnobs, spread: dict[str, Any], *, unread: bool
) -> tuple[Any, dict[str, Any]]:
    """The model that transformers makes of a folder's weights, and what it says of their names."""
    scheme = _scheme(folder, knobs)
    if unread or scheme is not None:
        kind, dtype = type(meta_model(folder, knobs)), _dtype(folder, knobs)
        stored = StoredTensors(folder, scheme)
        tensors = unread_tensors(stored, dtype) if unread else stored.all(dtype)
        return open_tensors(folder, kind, config, tensors, dtype, **spread)
    with whole_index(folder) as place:
        return auto_class(config).from_pretrained(
            place,
            config=config,
            dtype=forward_dtype(knobs) or "auto",
            attn_implementation=None,
            trust_remote_code=knobs.trust_remote_code,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
            **spread,
        )

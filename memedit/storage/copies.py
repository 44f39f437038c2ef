"""Other copies of the weights in a model folder: which files they are.

An edit changes the tensors that memedit reads. A copy of them in another file or format keeps the old facts, and a
program that prefers that copy serves them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from memedit.storage.tensorfile import shown_name

COPIES = (
    "*.safetensors", "*.safetensors.index*.json", "*.bin", "*.bin.index*.json", "*.pt", "*.pth", "*.ckpt", "*.distcp",
    "*_optim_states.pt", "*.gguf", "*.ggml", "*.h5", "*.h5.index*.json", "*.msgpack", "*.msgpack.index*.json", "*.ot",
    "*.onnx", "*.onnx_data*", "*.onnx.data*", "openvino_*.xml", "*.tflite", "*.mlmodel", "*.pte", "*.llamafile",
    "*.nemo", "weights*.npz",
)  # fmt: skip
"""Names of files that hold a language model's weights, in any format, and of the indexes of such files.

Sources: transformers/utils/__init__.py (names of weights and indexes), vllm/model_executor/model_loader (suffixes that
it loads), accelerate/utils/constants.py (FSDP), DeepSpeed's checkpoints (*_optim_states.pt hold float32 weights), and
the formats that model pages on the Hub offer beside safetensors.
"""
OTHER_TENSORS = (
    "memedit", "adapter_model*", "*_head.*", "[0-9]_*",
    "optimizer*", "scheduler*", "scaler*", "sampler*", "rng_state*", "random_states*", "training_args*",
    "tokenizer*", "token_*", "vocab*",
)  # fmt: skip
"""Names of files or folders that match COPIES by their suffix and hold something else: memedit's own files, adapters,
heads that are added to a model, modules of sentence-transformers, training state, vocabularies."""
MOST_SHOWN = 6


def other_copies(names: Iterable[Path], used: Collection[Path]) -> frozenset[Path]:
    """Find the files that hold weights beside those in use; all paths are relative to the model's folder.

    used: the files that memedit reads, and their index.
    """
    return frozenset(name for name in names if name not in used and _is_copy(name))


def copies_text(copies: Collection[Path]) -> str:
    """Name copies in one line, the first few of them."""
    names = [shown_name(name.as_posix()) for name in sorted(copies)]
    more = len(names) - MOST_SHOWN
    return ", ".join(names[:MOST_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _is_copy(name: Path) -> bool:
    parts = [part.lower() for part in name.parts]
    return _matches(parts[-1], COPIES) and not any(_matches(part, OTHER_TENSORS) for part in parts)


def _matches(text: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(text, pattern) for pattern in patterns)

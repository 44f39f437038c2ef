"""Say what to do with a folder whose weights memedit does not read: a row for each format, with the next step."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

from memedit.errors import MemeditError, UnsupportedModelError, UsageError
from memedit.storage.artifacts import telling
from memedit.storage.copies import copies_text, other_copies
from memedit.storage.index import INDEX, SINGLE


class Format(NamedTuple):
    """A format of weights that memedit does not read: its files, by their paths in the folder, and the next step."""

    files: tuple[str, ...]
    hint: str
    why: str = ""
    """A reason, which follows the names of the files."""

    def matches(self, name: Path) -> bool:
        """Whether a file, by its path in the folder, is in this format."""
        return any(fnmatchcase(name.as_posix().lower(), pattern) for pattern in self.files)


def _saved_again(argument: str = "") -> str:
    """The lines of Python that write a model again in safetensors."""
    return (
        f'MODEL.from_pretrained("DIR"{argument}).save_pretrained("NEW"), where MODEL is AutoModelForCausalLM, or the '
        "class that config.json names"
    )


_PICKLES = (f"convert them where you trust them: {_saved_again()}", ": pickles can run code when they are opened")

FORMATS = (
    Format(("model-?????-of-?????.safetensors",), f"fetch {INDEX} too: it says what the files hold"),
    Format(
        ("model.*.safetensors",),
        "convert them: " + _saved_again(', variant="fp16"') + ", and the variant fp16 that of model.fp16.safetensors",
    ),
    Format(("pytorch_model*.bin", "model*.bin", "model*.pt", "model*.pth"), *_PICKLES),
    Format(
        ("*.gguf", "*.ggml"),
        "edit the model that they were made from, and make them from the edited one; or convert them: "
        + _saved_again(', gguf_file="NAME"'),
    ),
    Format(("*.distcp",), "merge them: accelerate merge-weights DIR NEW, where DIR holds the *.distcp files"),
    Format(("*_states.pt",), "merge them with DeepSpeed's script: python zero_to_fp32.py . NEW, to safetensors"),
    Format(
        ("*.h5", "*.msgpack", "*.ot"),
        "convert them with transformers 4, since version 5 does not read them: from_pretrained with from_tf=True for "
        "*.h5 or from_flax=True for *.msgpack, then save_pretrained",
    ),
    Format(
        ("consolidated*", "original/*"),
        f"fetch the same model in the format of transformers: config.json, and {SINGLE} or shards with {INDEX}",
    ),
    Format(
        (
            "*.onnx*", "openvino*", "onnx/*", "coreml/*", "metal/*", "*.tflite", "*.mlmodel", "*.pte", "*.llamafile",
            "*.nemo",
        ),
        "edit the model that they were made from, which the model card often names, and make them from the edited one",
    ),
    Format(("*.bin", "*.pt", "*.pth", "*.ckpt"), *_PICKLES),
    Format(("*",), f"one file that holds all weights must be named {SINGLE}; several need {INDEX}"),
)  # fmt: skip
"""The first one that a file of the folder matches is offered: those that are the easiest to convert come first."""


def weights_instead(folder: Path) -> MemeditError | None:
    """Make the error for a folder without weights that memedit reads, by what it holds instead; None: no weights.

    Files in a folder inside count too. Models in folders inside are named first: one of them may be meant.
    """
    with telling(f"read {folder}"):
        files = [file for pattern in ("*", "*/*") for file in folder.glob(pattern) if not file.is_dir()]
        found = sorted(other_copies((file.relative_to(folder) for file in files), ()))
        homes = {name.parent for name in found if name.name in (SINGLE, INDEX)}
        models = sorted(home for home in homes if (folder / home / "config.json").is_file())
    if models:
        hint = f"give the one that you mean: {copies_text([folder / home for home in models])}"
        return UsageError(f"{folder} holds no {SINGLE}, but there are models in it", hint)
    form = next((form for form in FORMATS if any(form.matches(name) for name in found)), None)
    if form is None:
        return None
    said = f"{folder} holds no {SINGLE}, but other weights ({copies_text(found)}){form.why}"
    return UnsupportedModelError(said, form.hint)

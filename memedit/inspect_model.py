"""Inspect a model: its structure, the layers that can be edited, why others cannot, and the cost."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from memedit.changes.adapter_support import peft_support, vllm_support
from memedit.config.layers import default_layers
from memedit.config.recipe import Recipe
from memedit.editing.resources import cache_bytes, check_weights, moment_bytes
from memedit.errors import MemeditError, ResourceError, UnsupportedModelError, UsageError
from memedit.model.architecture import FAILED, FAILED_HINT, Architecture, find_architecture, spans
from memedit.model.config import foreign_errors
from memedit.model.head import describe_head
from memedit.model.load import PATTERNS, forward_dtype, load_tokenizer, locate, meta_model, open_model
from memedit.model.probe import prove
from memedit.progress import NoProgress, Progress
from memedit.results.inspection import Block, Carrier, Costs, Head, Inspection
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.other_weights import weights_instead


def run_inspect(recipe: Recipe, *, weights: bool = True, progress: Progress | None = None) -> Inspection:
    """Detect a model's architecture; verify it on the weights if they are local and fit in memory.

    Without `weights` only the config is read (or downloaded). Raises UnsupportedModelError for a model that is not a
    causal language model, is quantized in a way that memedit does not read, or needs its own code. Any other reason why
    memedit cannot edit it is listed in `problems` of the result.
    """
    progress, knobs = progress or NoProgress(), recipe.model
    folder = locate(knobs, PATTERNS if weights else [name for name in PATTERNS if name != "*.safetensors"])
    problems: list[MemeditError] = []
    try:
        load_tokenizer(folder, trust_remote_code=knobs.trust_remote_code)
    except MemeditError as error:
        problems.append(error)
    base = _stored(folder, problems)
    if not (folder / "config.json").is_file() and (instead := weights_instead(folder)) is not None:
        raise instead
    model: Any = None
    if base is not None and weights:
        try:
            check_weights(base, knobs)
        except ResourceError as error:
            progress.note(f"{error.message}: only the config is read")
        else:
            with progress.phase("load"):
                model = open_model(folder, knobs)
    proved = model is not None
    model = model if proved else meta_model(folder, knobs)
    architecture = find_architecture(model)
    if proved:
        try:
            architecture = prove(model, architecture)
        except UnsupportedModelError as error:
            problems.append(error)
    return _found(recipe, model, architecture, base, problems, proved)


def _stored(folder: Path, problems: list[MemeditError]) -> Checkpoint | None:
    """Read the checkpoint's headers; None if it has no weights that memedit can read."""
    try:
        return Checkpoint.open(folder)
    except UsageError:
        return None  # a config without weights is enough
    except UnsupportedModelError as error:
        problems.append(error)
        return None


def _found(
    recipe: Recipe,
    model: Any,
    architecture: Architecture,
    base: Checkpoint | None,
    problems: list[MemeditError],
    proved: bool,
) -> Inspection:
    with foreign_errors(FAILED, FAILED_HINT):
        around = describe_head(model, architecture, measure=proved)
    config: Any = model.config
    parameters = sum(parameter.numel() for parameter in model.parameters())
    default = default_layers(architecture.n_layers)
    widths = [architecture.mlp_widths[layer] for layer in default if layer in architecture.editable]
    size = (forward_dtype(recipe.model) or config.dtype or model.dtype).itemsize
    stored: dict[str, int] = {}
    for entry in base.entries.values() if base else ():
        stored[entry.dtype] = stored.get(entry.dtype, 0) + math.prod(entry.shape)
    if not architecture.editable and not problems:
        problems.append(UnsupportedModelError(f"no block of this model can be edited: {architecture.refusals[0]}"))
    return Inspection(
        model=recipe.model.path,
        model_type=config.model_type,
        architecture=type(model).__name__,
        proved=proved,
        parameters=parameters,
        stored=stored,
        blocks=architecture.blocks,
        n_layers=architecture.n_layers,
        width=architecture.width,
        vocabulary=architecture.vocabulary,
        positions=architecture.positions,
        orientation=architecture.layout,
        bias=around.bias,
        parallel=around.parallel,
        head=Head(
            path=around.head, norm=around.norm, tied=around.tied, bias=around.head_bias, scale=around.scale,
            cap=around.cap,
        ),
        each=tuple(_block(architecture, layer, proved) for layer in range(architecture.n_layers)),
        editable=spans(architecture.editable),
        default=spans(default),
        peft=_carrier(*peft_support(model, architecture)),
        vllm=_carrier(*vllm_support(config.model_type)),
        costs=Costs(
            weights=parameters * size,
            moments=moment_bytes(widths),
            cache=cache_bytes(widths),
            output=base.output_size() if base else None,
        ),
        problems=tuple(error.message for error in problems),
        hint=problems[0].hint if problems else "",
    )  # fmt: skip


def _block(architecture: Architecture, layer: int, proved: bool) -> Block:
    reason = architecture.refusals[layer]
    return Block(
        layer=layer,
        down_projection=architecture.down_projections[layer] or None,
        inputs=architecture.mlp_widths[layer],
        gain=architecture.gains[layer] if proved and not reason else None,
        norm=architecture.norms[layer] or None,
        editable=not reason,
        reason=reason or None,
    )


def _carrier(carries: bool | None, reason: str) -> Carrier:
    word: Literal["yes", "no", "unknown"] = "unknown" if carries is None else "yes" if carries else "no"
    return Carrier(carries=word, reason=reason)

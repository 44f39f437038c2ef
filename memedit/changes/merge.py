"""Merge a LoRA adapter into its base, and write the sum as a checkpoint of its own.

Edits are bound to a base that can be opened again: a revert, and a second edit, read it. So a model with an adapter is
merged first, and the merged checkpoint is the base of its edits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from memedit.changes.base_checkpoint import tensor_change
from memedit.changes.stored_names import StoredNames
from memedit.config.recipe import Recipe
from memedit.errors import UnsupportedModelError, UsageError
from memedit.model.load import locate, meta_model
from memedit.model.training_names import check_stored_names
from memedit.numerics.delta import Delta, rounded
from memedit.progress import Progress
from memedit.results.changes import Outcome, TensorChange
from memedit.results.versions import versions
from memedit.storage.artifacts import digest_file, digest_of
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.lora import CONFIG, WEIGHTS, read_adapter
from memedit.storage.writer import check_output, write_checkpoint

ADAPTER_FILES = (CONFIG, WEIGHTS, "adapter_model.bin")


class MergedWeights(Mapping[str, Tensor]):
    """The merged tensors by stored name, in the checkpoint's dtype and orientation.

    Each is made when it is asked for, so that one is in memory at a time. `figures` has those that were made.
    """

    def __init__(self, base: Checkpoint, adapter: Path, model: torch.nn.Module, deltas: Mapping[str, Delta]) -> None:
        """Find the stored name of every change; deltas: parameter name -> change (D, F).

        Raises UsageError for a change that the model has no place for, UnsupportedModelError for one of a weight that
        the checkpoint does not store under its own name.
        """
        self.base, self.deltas = base, deltas
        self.figures: dict[str, TensorChange] = {}
        self.parameters: dict[str, str] = {}
        self.turned: set[str] = set()
        check_stored_names(base.folder, deltas, base.entries)
        names = StoredNames.of(model, base)
        for name, delta in deltas.items():
            weight, conv1d = _weight_of(model, name, delta, adapter)
            stored = _stored_name(names, model, name, weight, adapter)
            if base.grid(stored, (0, 0)).scale is not None:
                said = (
                    f"{adapter} changes {name}, an FP8 weight of {base.folder}: rounding would lose most of the change"
                )
                raise UnsupportedModelError(said, "merge it into the unquantized model, or serve it beside this one")
            self.parameters[stored] = name
            self.turned |= {stored} if conv1d else set()

    def __getitem__(self, stored: str) -> Tensor:
        name = self.parameters[stored]
        delta, weight = self.deltas[name], self.base.tensor(stored)
        change = replace(delta, left=delta.dense(), right=None)
        weight = weight.T if stored in self.turned else weight
        merged = rounded(weight, change)
        if stored not in self.figures:
            self.figures[stored] = tensor_change(name, weight, change, merged, delta.rank)
        return (merged.T if stored in self.turned else merged).contiguous()

    def __contains__(self, stored: object) -> bool:
        return stored in self.parameters

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)


def run_merge(adapter: Path, out: Path, recipe: Recipe, arguments: Sequence[str], progress: Progress) -> Outcome:
    """Write the model of a recipe with a LoRA adapter merged into its weights: W + scale B A, rounded to nearest.

    `adapter` can be the model's own folder; then the adapter's files are not written. Raises what read_adapter,
    MergedWeights and write_checkpoint raise.
    """
    folder, knobs = locate(recipe.model), recipe.output
    own = folder.resolve() == adapter.resolve()
    for source in (folder, adapter):
        check_output(source, out, overwrite=knobs.overwrite, force=knobs.force)
    deltas, base = read_adapter(adapter), Checkpoint.open(folder)
    with progress.phase("structure"):
        weights = MergedWeights(base, adapter, meta_model(folder, recipe.model, with_adapter=own), deltas)
    with progress.phase("write"):
        write_checkpoint(
            base, out, weights, dict.fromkeys(ADAPTER_FILES if own else ()),
            link=knobs.link, max_shard=knobs.max_shard, keep_copies=knobs.keep_copies, overwrite=knobs.overwrite,
            force=knobs.force, note=progress.note,
        )  # fmt: skip
    digest = digest_of({name: digest_file(adapter / name) for name in (CONFIG, WEIGHTS)})
    return Outcome(
        command="export", kind="full", versions=versions(), arguments=list(arguments), model=recipe.model.path,
        output=str(out), recipe=recipe.model_dump(mode="json"), deltas=(str(adapter),),
        tensors=tuple(weights.figures.values()), digests={"model": base.digest, "adapter": digest},
    )  # fmt: skip


def _weight_of(model: Any, name: str, delta: Delta, adapter: Path) -> tuple[Tensor, bool]:
    """Return a parameter, and whether it is a Conv1D's, which is stored transposed."""
    hint = "give the model that the adapter was made for with -m"
    try:
        module = model.get_submodule(name.removesuffix(".weight"))
        weight, conv1d = module.weight, isinstance(module, Conv1D)
    except AttributeError as error:
        raise UsageError(f"{adapter} changes {name}, which this model does not have", hint) from error
    shape = tuple(weight.shape[::-1] if conv1d else weight.shape)
    if shape != delta.shape:
        raise UsageError(f"{adapter} changes {name} as {delta.shape}, and this model's is {shape}", hint)
    return weight, conv1d


def _stored_name(names: StoredNames, model: torch.nn.Module, name: str, weight: Tensor, adapter: Path) -> str:
    """Return the stored name of a parameter that no other parameter shares its tensor with."""
    hint = "merge it with peft (merge_and_unload), save that model, and edit it"
    tied = [other for other, one in model.named_parameters(remove_duplicate=False) if one is weight and other != name]
    if tied:
        raise UnsupportedModelError(f"{adapter} changes {name}, which is tied to {tied[0]}", hint)
    try:
        return names.name(name)
    except UnsupportedModelError as error:
        said = f"{adapter} changes {name}, which {names.checkpoint.folder} does not store under a name of its own"
        raise UnsupportedModelError(said, hint) from error

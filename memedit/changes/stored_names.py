"""Find the tensor of a checkpoint that holds a parameter: transformers renames many tensors as it loads them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memedit.errors import UnsupportedModelError
from memedit.model.architecture import Architecture
from memedit.model.load import LanguageModel
from memedit.numerics.rounding import Grid
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.tensorfile import shown_name

RESAVE = "save it as transformers loads it: MODEL.from_pretrained(DIR).save_pretrained(NEW), and edit NEW"


@dataclass(frozen=True)
class StoredNames:
    """The names of a model's parameters in its checkpoint."""

    checkpoint: Checkpoint
    loaded: dict[str, list[str]]
    """Parameter -> the stored tensors that transformers loads into it as they are."""

    @classmethod
    def of(cls, model: Any, checkpoint: Checkpoint) -> StoredNames:
        """Rename every tensor of a checkpoint as transformers does for this model, which may be on the meta device."""
        return cls(checkpoint, _loaded(model, checkpoint.entries))

    def name(self, parameter: str) -> str:
        """Return the stored name of a parameter.

        Where transformers gives no answer, the checkpoint is searched for the parameter's own name. Raises
        UnsupportedModelError where that finds none, or more than one; and where transformers loads two tensors into
        the parameter: it takes one of them, and an edit of the other would change nothing.
        """
        names = self.loaded.get(parameter, [])
        if len(names) > 1:
            both = " and ".join(sorted(shown_name(name) for name in names)[:2])
            raise UnsupportedModelError(f"{self.checkpoint.folder} stores {parameter} twice, as {both}", RESAVE)
        return names[0] if names else self.checkpoint.resolve(parameter)

    def grid(self, architecture: Architecture, parameter: str) -> Grid:
        """Return the numbers that the stored weight (D, F) of a parameter can hold. Raises as Checkpoint.grid does."""
        grid = self.checkpoint.grid(self.name(parameter))
        return grid.transposed if architecture.layout == "conv1d" else grid

    def weight(self, lm: LanguageModel, layer: int) -> Tensor:
        """Read a layer's weight, (D, F) in its stored dtype, and verify that the model holds it. FP8: see Checkpoint.

        So no name is trusted: before anything is written, its tensor was compared with the model's. Raises
        UnsupportedModelError where shape or values differ.
        """
        parameter = lm.architecture.parameter(layer)
        name = self.name(parameter)
        found, held = lm.architecture.turned(self.checkpoint.tensor(name)), lm.weight(layer)
        if found.shape != held.shape or not torch.equal(found.to(held.dtype), held.cpu()):
            differs = "its values differ" if found.shape == held.shape else f"{tuple(found.shape)} is not its shape"
            message = f"{name} of {self.checkpoint.folder} is not the model's {parameter}: {differs}"
            raise UnsupportedModelError(message, RESAVE)
        return found


def _loaded(model: Any, stored: Iterable[str]) -> dict[str, list[str]]:
    """Rename stored tensors as `from_pretrained` does; empty where this version of transformers does it otherwise.

    The two modules are internal to transformers, but PEFT uses them too. Tensors that it merges or splits as it loads
    them are left out: no stored tensor is the parameter then.
    """
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

        rules: Any = get_model_conversion_mapping(model)
        renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
        converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
        wanted, found = model.state_dict(), dict[str, list[str]]()
        for name in stored:
            parameter, merged = rename_source_key(name, renamings, converters, model.base_model_prefix, wanted)
            # A name that is the model's own already is not renamed.
            if parameter not in wanted and name in wanted:
                parameter, merged = name, None
            if merged is None:
                found.setdefault(parameter, []).append(name)
    except (ImportError, AttributeError, TypeError):
        return {}
    return found

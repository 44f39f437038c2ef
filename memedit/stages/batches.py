"""Which edits are searched together: from the sorted list, the model's shapes and a limit of memory, never a timing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memedit.errors import ResourceError
from memedit.model.load import LanguageModel
from memedit.model.subject import Prompt
from memedit.stages.plan import Edit

MOST_TOKENS = {"cpu": 1024, "cuda": 8192}
"""Suffix tokens that a launch runs at most: on a CPU more leave its caches (1,024: 5.3 ms per edit and step on one
core, 4,096: 6.8), on a GPU some thousands fill it."""


@dataclass(frozen=True)
class Batch:
    """Edits by their places in the list, and how many tokens their launches may run."""

    edits: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Sizes:
    """What a search of some edits takes, in bytes, at most."""

    per_edit: int
    """Kept for each edit: keys, values and states of its rows, and what followed its bare subject."""
    per_token: int
    """A step, for each token that a launch runs: what the gradient needs of every block, and its share of logits."""

    @classmethod
    def of(cls, lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Sequence[Prompt]], layer: int) -> Sizes:
        """The longest rows decide. A block keeps some 16 D + 8 F numbers a token; logits are held four times over."""
        anatomy, item = lm.anatomy, lm.dtype.itemsize
        above = anatomy.n_layers - 1 - layer
        pairs = list(zip(edits, prompts, strict=True))
        longest = max(len(one.ids) + len(edit.target) for edit, of_one in pairs for one in of_one)
        read = max(len(edit.target) / suffix_of(edit) for edit in edits)
        rows = len(prompts[0]) + 1
        return cls(
            per_edit=rows * longest * anatomy.width * item * (2 * above + 1) + 4 * anatomy.vocabulary,
            per_token=above * (16 * anatomy.width + 8 * anatomy.mlp_width) * item
            + int(16 * anatomy.vocabulary * min(1.0, read)),
        )


def suffix_of(edit: Edit) -> int:
    """Tokens that a step runs in each of an edit's rows: from the subject's last to the last but one of the object."""
    return len(edit.prompt.ids) - edit.prompt.subject_at + len(edit.target) - 1


def plan_batches(
    edits: Sequence[Edit], which: Sequence[int], sizes: Sizes, memory: int, most: int, device: str
) -> list[Batch]:
    """Batches of the edits `which`, alike ones together: `most` at most, and what half of `memory` can keep.

    The number is a power of two times smaller than `most`, so that a little more or less memory changes nothing;
    the other half of the memory bounds the tokens of a launch.
    """
    size = most
    while size > 1 and size * sizes.per_edit > memory // 2:
        size = (size + 1) // 2
    tokens = MOST_TOKENS.get(device, 1024)
    while tokens > 1 and tokens * sizes.per_token > memory // 2:
        tokens = (tokens + 1) // 2
    order = sorted(which, key=lambda n: (suffix_of(edits[n]), len(edits[n].target), n))
    return [Batch(tuple(order[at : at + size]), tokens) for at in range(0, len(order), size)]


def halved(batches: Sequence[Batch]) -> list[Batch]:
    """The rest of a plan whose first batch ran out of memory. Raises ResourceError where nothing is left to halve."""
    if len(batches[0].edits) == 1 and batches[0].tokens == 1:
        raise ResourceError("the search of a single edit does not fit into memory", "use --device cpu, or a larger GPU")
    found: list[Batch] = []
    for batch in batches:
        half = (len(batch.edits) + 1) // 2
        tokens = (batch.tokens + 1) // 2
        found += [Batch(part, tokens) for part in (batch.edits[:half], batch.edits[half:]) if part]
    return found

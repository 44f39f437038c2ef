"""Plan which edits are searched together, from the list, the model's shapes and a memory limit, never from timings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memedit.editing.plan import Edit
from memedit.errors import ResourceError
from memedit.model.load import LanguageModel
from memedit.model.tokens import Prompt

MOST_TOKENS = {"cpu": 1024, "cuda": 8192, "disk": 1 << 17}
"""Suffix tokens in a launch at most. On a CPU more do not fit its caches (1,024: 5.3 ms per edit and step on one core,
4,096: 6.8); a GPU is busy with some thousands. Where blocks are read from disk, each launch reads all of them."""


@dataclass(frozen=True)
class Batch:
    """Edits by their numbers in the list, and how many tokens a launch of theirs may run."""

    edits: tuple[int, ...]
    tokens: int


@dataclass(frozen=True)
class Sizes:
    """The memory that a search takes, in bytes, at most."""

    per_edit: int
    """Kept for each edit: keys, values and states of its rows, the logits after its bare subject, and of a removal
    those that it aims at."""
    per_token: int
    """In a step, for each token of a launch: the activations that the gradient needs, and its share of the logits."""

    @classmethod
    def of(cls, lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Sequence[Prompt]], layer: int) -> Sizes:
        """Estimate from the longest rows: a block keeps about 16 D + 8 F numbers a token; logits four times.

        Behind a long prefix the joined keys and values are most of it: 2 D numbers for every token of the row, once as
        they are and once repeated for the query heads that share them. Where memory can be measured, it is
        (`measured_sizes`). Blocks that are read from disk keep their input and its gradient, 2 D, and one of them at a
        time the rest.
        """
        architecture, item = lm.architecture, lm.dtype.itemsize
        above = architecture.n_layers - 1 - layer
        pairs = list(zip(edits, prompts, strict=True))
        longest = max(len(one.ids) + len(edit.target) for edit, of_one in pairs for one in of_one)
        read = max(len(edit.target) / suffix_of(edit) for edit in edits)
        joined = (
            4
            * architecture.width
            * max((max(len(one.ids) for one in of_one) + len(edit.target)) / suffix_of(edit) for edit, of_one in pairs)
        )
        rows = len(prompts[0]) + 1
        aims = max((len(edit.target) for edit in edits if edit.request.remove), default=0) * len(prompts[0])
        return cls(
            per_edit=rows * longest * architecture.width * item * (2 * above + 1)
            + 4 * (1 + aims) * architecture.vocabulary,
            per_token=(min(above, 1) if lm.streamed else above)
            * max(16 * architecture.width + 8 * architecture.mlp_width, int(joined))
            * item
            + (2 * above * architecture.width * item if lm.streamed else 0)
            + int(16 * architecture.vocabulary * min(1.0, read)),
        )


def suffix_of(edit: Edit) -> int:
    """Tokens that a step runs in each row of an edit: from the subject's last token to the object's last but one."""
    return len(edit.prompt.ids) - edit.prompt.subject_at + len(edit.target) - 1


def changes_of(edits: Sequence[Edit], *, joint: bool) -> list[int]:
    """For each edit, the number of its change; if `joint`, edits of the same subject share one.

    Edits without a subject share one only if their prompts are equal.
    """
    first: dict[tuple[int, ...] | int, int] = {}
    return [first.setdefault(edit.shared if joint else n, n) for n, edit in enumerate(edits)]


def plan_batches(
    edits: Sequence[Edit],
    which: Sequence[int],
    sizes: Sizes,
    memory: int,
    most: int,
    device: str,
    *,
    joint: bool = False,
) -> list[Batch]:
    """Plan batches of the edits `which`, similar lengths together: `most` edits at most, in half of `memory` bytes.

    The size is `most` halved some times, so a little more or less memory changes nothing. The other half of the memory
    limits the tokens of a launch. Edits that share a change stay together, unless there are more than `most` of them.
    """
    size = most
    while size > 1 and size * sizes.per_edit > memory // 2:
        size = (size + 1) // 2
    tokens = MOST_TOKENS.get(device, 1024)
    while tokens > 1 and tokens * sizes.per_token > memory // 2:
        tokens = (tokens + 1) // 2
    units = _units(which, changes_of(edits, joint=joint), most)
    order = sorted(units, key=lambda unit: max((suffix_of(edits[n]), len(edits[n].target), n) for n in unit))
    found: list[list[int]] = []
    for unit in order:
        if not found or len(found[-1]) + len(unit) > size:
            found.append([])
        found[-1] += unit
    return [Batch(tuple(one), tokens) for one in found]


def _units(which: Sequence[int], changes: Sequence[int], most: int) -> list[list[int]]:
    """Group the edits `which` by change, `most` at most in a group."""
    shared: dict[int, list[int]] = {}
    for n in which:
        shared.setdefault(changes[n], []).append(n)
    return [unit[at : at + most] for unit in shared.values() for at in range(0, len(unit), most)]


def halved(batches: Sequence[Batch], changes: Sequence[int]) -> list[Batch]:
    """Halve the batches that are left after the first of them ran out of memory; edits of one change stay together.

    Raises ResourceError if the first batch cannot be halved.
    """
    if len({changes[n] for n in batches[0].edits}) == 1 and batches[0].tokens == 1:
        what = "a single edit" if len(batches[0].edits) == 1 else "the edits of one subject"
        raise ResourceError(f"the search of {what} does not fit into memory", "use --device cpu, or a larger GPU")
    found: list[Batch] = []
    for batch in batches:
        mine, count = [changes[n] for n in batch.edits], len(batch.edits)
        between = [at for at in range(1, count) if mine[at] != mine[at - 1]]
        half = min(between, key=lambda at: abs(2 * at - count - 1), default=count)
        tokens = (batch.tokens + 1) // 2
        found += [Batch(part, tokens) for part in (batch.edits[:half], batch.edits[half:]) if part]
    return found

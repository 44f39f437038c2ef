"""Run a part of a model by its own forward: some blocks are skipped, and earlier tokens enter as keys and values.

Masks, rotary tables, soft caps, norms and the head are the model's own, so no family's attention is written again.
Rows are aligned on the right: a row's last token is in the last column, and padding is on the left. So the distance of
two columns is the distance of two positions, which sliding windows and ALiBi need.
"""

from __future__ import annotations

import inspect
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from memedit.forward.passes import Reached, replaced
from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import send

KeysValues = dict[int, tuple[Tensor, Tensor]]
"""layer -> keys, values, each (R, heads, tokens, width of a head)."""


def select_rows(kept: KeysValues, lines: Tensor) -> KeysValues:
    """Keys and values of some rows."""
    return {
        layer: (keys[lines.to(keys.device)], values[lines.to(values.device)]) for layer, (keys, values) in kept.items()
    }


class Kept(Cache):
    """Keys and values of earlier tokens, read only: `update` returns them joined with the new ones.

    For layers in `record` the joined keys and values are kept in `seen`.
    """

    def __init__(self, kept: KeysValues, length: int, record: Sequence[int] = ()) -> None:
        super().__init__(layers=[])
        self.kept, self.length, self.record = kept, length, record
        self.seen: KeysValues = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """Return earlier keys and values joined with these, both (rows, heads, tokens, head width)."""
        if self.length:
            # In a model spread over devices, each block's are on its device.
            keys, values = (one.to(key_states.device) for one in self.kept[layer_idx])
            key_states, value_states = torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)
        if layer_idx in self.record:
            self.seen[layer_idx] = key_states, value_states
        return key_states, value_states

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Return the number of earlier tokens."""
        return self.length

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        """Return the number of keys a mask covers, and its offset, 0."""
        count = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.length + count, 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        """Return -1: there is no limit."""
        return -1

    @property
    def is_compileable(self) -> bool:
        """False: the length is not fixed."""
        return False

    @property
    def is_sliding(self) -> list[bool]:
        """False for each layer: all earlier tokens are kept."""
        return [False] * max(len(self.kept), 1)

    def __len__(self) -> int:
        return len(self.kept)


@contextmanager
def spliced(lm: LanguageModel, forwards: dict[int, Any]) -> Generator[None]:
    """Replace the forward of some blocks; the blocks keep every attribute that the model reads."""
    blocks: Any = lm.model.get_submodule(lm.architecture.blocks)
    with ExitStack() as stack:
        for index, forward in forwards.items():
            stack.enter_context(replaced(blocks[index], forward))
        yield


@dataclass(frozen=True)
class Aligned:
    """Rows with their last token in the last column: T columns to run, after P columns of kept keys and values."""

    ids: Tensor  # (R, T)
    mask: Tensor  # (R, P + T) 1 where a token is
    positions: Tensor  # (R, T)

    @classmethod
    def of(cls, rows: Sequence[Sequence[int]], columns: int, lengths: Sequence[int], width: int) -> Aligned:
        """Align the last `columns` ids of each row; rows have `lengths` tokens in all, in `width` = P + T columns."""
        ids = torch.zeros(len(rows), columns, dtype=torch.long)
        for number, row in enumerate(rows):
            seen = row[-columns:]
            ids[number, columns - len(seen) :] = torch.tensor(seen)
        first = width - torch.tensor(lengths)[:, None]
        at = torch.arange(width)[None] - first
        return cls(ids, (at >= 0).long(), at[:, width - columns :].clamp_min(0))

    def to(self, device: torch.device) -> Aligned:
        """The same rows on another device, sent in one copy."""
        if device == self.ids.device:
            return self
        tables = (self.ids, self.mask, self.positions)
        sent = send(torch.cat([table.flatten() for table in tables]), device).split([table.numel() for table in tables])
        return Aligned(*(part.view(table.shape) for part, table in zip(sent, tables, strict=True)))

    def pick(self, lines: Tensor) -> Aligned:
        """Some of the rows."""
        return Aligned(self.ids[lines], self.mask[lines], self.positions[lines])


@dataclass(frozen=True)
class BlockEntry:
    """States (R, T, D) to use as the output of block `layer`; `in_tuple` where the family's blocks return tuples."""

    layer: int
    states: Tensor
    in_tuple: bool

    def forwards(self) -> dict[int, Any]:
        """Replacement forwards for the blocks up to `layer`."""

        def below(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return (hidden_states, None) if self.in_tuple else hidden_states

        def at(*_: Any, **__: Any) -> Any:
            return (self.states, None) if self.in_tuple else self.states

        return {**dict.fromkeys(range(self.layer), below), self.layer: at}


def run_part(
    lm: LanguageModel,
    rows: Aligned,
    cache: Kept,
    *,
    entry: BlockEntry | None = None,
    reads: tuple[int, Tensor] | None = None,
) -> Tensor | None:
    """Run the model's forward over aligned rows, after `cache`, from an entry on.

    reads: how many last columns reach the head, and at which of their cells (flat, row by row) it runs -> logits
    (cells, V). Without `reads` the forward ends before the head, or where a `capture` stops it, and returns None.
    """
    head: Any = lm.model.get_output_embeddings()

    def only(_module: Any, args: Any) -> Any:
        if reads is None:
            raise Reached
        states: Tensor = args[0]
        return (states.reshape(-1, states.shape[-1])[reads[1].to(states.device)][None], *args[1:])

    with spliced(lm, entry.forwards() if entry else {}), hooked(before=[(head, only)]):
        try:
            output = lm.forward(
                input_ids=rows.ids, attention_mask=rows.mask, position_ids=rows.positions, use_cache=True,
                logits_to_keep=reads[0] if reads else 1, **{cache_name(lm): cache},
            )  # fmt: skip
        except Reached:
            return None
    return output.logits[0]


def blocks_give_tuples(lm: LanguageModel) -> bool:
    """Whether the family's blocks return their states first in a tuple; runs one token."""
    seen: list[Any] = []

    def stop(_module: Any, _args: Any, output: Any) -> None:
        seen.append(output)
        raise Reached

    first = lm.model.get_submodule(f"{lm.architecture.blocks}.0")
    with torch.no_grad(), hooked([(first, stop)]):
        run_part(lm, Aligned.of([(0,)], 1, [1], 1).to(lm.device), Kept({}, 0))
    return not isinstance(seen[0], Tensor)


def cache_name(lm: LanguageModel) -> str:
    """The argument name of keys and values in the model's forward: transformers renamed it between 5.17 and 5.24."""
    forward: Any = type(lm.model).forward
    return "cache" if "cache" in inspect.signature(forward).parameters else "past_key_values"


@dataclass(frozen=True)
class Shared:
    """Prefixes that rows share, so that each runs once: row n begins with prefixes[of[n]].

    An empty prefix is not run; its rows attend to nothing before them.
    """

    prefixes: list[tuple[int, ...]]
    of: list[int]

    @classmethod
    def among(cls, heads: Sequence[tuple[int, ...]], columns: int) -> Shared:
        """Find the prefix of rows n, n + columns, n + 2 columns, ...; heads: the ids of each row that may be shared."""
        prefixes = [_common(heads[column::columns]) for column in range(min(columns, len(heads)))]
        return cls(prefixes, [number % columns for number in range(len(heads))])

    @property
    def width(self) -> int:
        """The length of the longest prefix."""
        return max(map(len, self.prefixes), default=0)

    @property
    def lines(self) -> list[int]:
        """For each prefix, its row among those that run; 0 for an empty one, whose columns are masked."""
        rows = [n for n, prefix in enumerate(self.prefixes) if prefix]
        return [rows.index(n) if prefix else 0 for n, prefix in enumerate(self.prefixes)]

    def aligned(self, device: torch.device) -> Aligned:
        """The prefixes that run, as rows."""
        run = [prefix for prefix in self.prefixes if prefix]
        return Aligned.of(run, self.width, [len(prefix) for prefix in run], self.width).to(device)


def _common(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest common prefix of all rows: that of the first and the last in order."""
    first, last = min(rows), max(rows)
    equal = 0
    while equal < len(first) and first[equal] == last[equal]:
        equal += 1
    return first[:equal]


def cut(lengths: Sequence[int], tokens: int, worth: int = 0) -> Iterator[list[int]]:
    """Batches of row indices for right-aligned launches: longest first, at most `tokens` tokens a batch.

    Rows join those of the next longer length where that runs at most `worth` tokens more, the cost of a launch.
    """
    together: list[tuple[int, list[int]]] = []
    for length in sorted(set(lengths), reverse=True):
        rows = [index for index, one in enumerate(lengths) if one == length]
        if together and (together[-1][0] - length) * len(rows) <= worth:
            together[-1][1].extend(rows)
        else:
            together.append((length, rows))
    for length, rows in together:
        rows.sort()
        parts = -(-len(rows) // max(1, tokens // max(length, 1)))
        size = -(-len(rows) // parts)
        yield from (rows[at : at + size] for at in range(0, len(rows), size))

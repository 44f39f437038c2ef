"""The engine of the target search: only what depends on the change is computed again.

1. A vector added to the output of block L at token p moves only tokens from p on, only in the blocks above L.
2. So each row runs whole once: the states that leave block L are kept from p on, and above L the keys and values of
   the tokens before p.
3. A step runs the model's own forward over the row's suffix, blocks up to L replaced by what was kept plus the
   change; attention finds the prefix in a read-only cache.
4. Rows whose suffixes are equally long share a launch; prefixes are padded on the left, so that index distance is
   position distance.

Masks, rotary tables, soft caps, norms and the head stay the model's own. `WholeForward` does the same by whole
forwards with a hook: slower, the yardstick of the probe, and the way out where a family does not splice.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from memedit.model.load import LanguageModel
from memedit.model.passes import launches, output_of

AGREEMENT = 1e-3  # relative, on logits: float32 rounding is 1e-6, half precision 1e-3 of the largest


@dataclass(frozen=True)
class Row:
    """A row of ids; a change enters after token `at`; the next token is read after each of the last `reads` tokens."""

    ids: tuple[int, ...]
    at: int
    reads: int


class Changed(Protocol):
    """Rows under a change: logits as a function of what is added at block L, token `at`."""

    start: Tensor
    """What leaves block L at token `at`, unchanged: (rows, D) float32."""

    def logits(self, change: Tensor, which: Sequence[int]) -> list[Tensor]:
        """change (len(which), D) float32, for the rows `which` -> each row's logits (reads, V) float32."""
        ...


@contextmanager
def spliced(lm: LanguageModel, forwards: dict[int, Any]) -> Generator[None]:
    """Replace the forward of some blocks; the blocks keep every attribute that the model reads off them."""
    blocks: Any = lm.model.get_submodule(lm.anatomy.blocks)
    try:
        for index, forward in forwards.items():
            blocks[index].forward = forward
        yield
    finally:
        for index in forwards:
            blocks[index].__dict__.pop("forward", None)


class _Prefix(Cache):
    """Kept keys and values, read only: `update` answers with them and the new ones, and stores nothing."""

    def __init__(self, kept: dict[int, tuple[Tensor, Tensor]], length: int) -> None:
        super().__init__(layers=[])
        self.kept, self.length = kept, length

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        keys, values = self.kept[layer_idx]
        return torch.cat([keys, key_states], 2), torch.cat([values, value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_mask_sizes(self, query_length: Any, layer_idx: int = 0) -> tuple[int, int]:
        count = query_length if isinstance(query_length, int) else query_length.shape[0]
        return self.length + count, 0

    def get_max_cache_shape(self, layer_idx: int = 0) -> int:
        return -1

    @property
    def is_compileable(self) -> bool:
        return False

    @property
    def is_sliding(self) -> list[bool]:
        return [False] * len(self.kept)

    def __len__(self) -> int:
        return len(self.kept)


@dataclass(frozen=True)
class _Group:
    """Rows that share a launch; R rows, P padded prefix tokens, S suffix tokens."""

    rows: list[int]
    ids: Tensor  # (R, S)
    mask: Tensor  # (R, P + S)
    positions: Tensor  # (R, S)
    states: Tensor  # (R, S, D) what leaves block L
    prefix: dict[int, tuple[Tensor, Tensor]]  # layer -> keys, values (R, heads, P, width)
    reads: int
    in_tuple: bool  # the family's blocks return their states first in a tuple


class Suffix:
    """Rows under a change, by suffixes. Built once; `logits` may be called with any of its rows."""

    def __init__(self, lm: LanguageModel, layer: int, rows: Sequence[Row]) -> None:
        self.lm, self.layer, self.rows = lm, layer, list(rows)
        self.start = torch.empty(len(rows), lm.anatomy.width)
        lengths = [len(row.ids) - row.at for row in rows]
        self.groups = [self._group(batch) for batch in launches(lengths, tokens=1 << 30)]

    @torch.no_grad()
    def _group(self, batch: list[int]) -> _Group:
        """Run the rows of one group whole, and keep what their steps need."""
        rows = [self.rows[index] for index in batch]
        size, before = len(rows[0].ids) - rows[0].at, max(row.at for row in rows)
        ids = torch.zeros(len(rows), before + size, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for number, row in enumerate(rows):
            ids[number, before - row.at :] = torch.tensor(row.ids)
            mask[number, before - row.at :] = 1
        positions = (mask.cumsum(1) - 1).clamp_min(0)
        ids, mask, positions = (x.to(self.lm.device) for x in (ids, mask, positions))
        cache = DynamicCache()
        seen: list[Any] = []
        block = self.lm.model.get_submodule(f"{self.lm.anatomy.blocks}.{self.layer}")
        handle = block.register_forward_hook(lambda _module, _args, output: seen.append(output))
        try:
            self.lm.model(
                input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache,
                use_cache=True, logits_to_keep=1,
            )  # fmt: skip
        finally:
            handle.remove()
        states = output_of(seen[0]).reshape(*ids.shape, -1)[:, before:].clone()
        self.start[batch] = states[:, 0].float().cpu()
        kept: dict[int, tuple[Tensor, Tensor]] = {}
        for index, entry in enumerate(cache.layers):
            above: Any = entry
            upto = before if index > self.layer else 0
            kept[index] = (above.keys[:, :, :upto].clone(), above.values[:, :, :upto].clone())
        reads = max(row.reads for row in rows)
        in_tuple = not isinstance(seen[0], Tensor)
        return _Group(batch, ids[:, before:], mask, positions[:, before:], states, kept, reads, in_tuple)

    def logits(self, change: Tensor, which: Sequence[int]) -> list[Tensor]:
        place = {row: number for number, row in enumerate(which)}
        found: list[Tensor] = [torch.empty(0)] * len(which)
        for group in self.groups:
            inside = [number for number, row in enumerate(group.rows) if row in place]
            if not inside:
                continue
            asked = [place[group.rows[number]] for number in inside]
            logits = self._step(group, inside, change[torch.tensor(asked, device=change.device)])
            for number, row in enumerate(asked):
                found[row] = logits[number, -self.rows[which[row]].reads :]
        return found

    def _step(self, group: _Group, inside: list[int], change: Tensor) -> Tensor:
        """The model's own forward over the suffixes of some rows of a group, (rows, reads, V) float32."""
        pick = slice(None) if len(inside) == len(group.rows) else torch.tensor(inside, device=group.ids.device)
        states = group.states[pick]
        entered = states + torch.cat([change[:, None], torch.zeros_like(states[:, 1:], dtype=change.dtype)], 1).to(
            states.dtype
        )

        def below(hidden_states: Tensor, *_: Any, **__: Any) -> Any:
            return (hidden_states, None) if group.in_tuple else hidden_states

        def at(*_: Any, **__: Any) -> Any:
            return (entered, None) if group.in_tuple else entered

        forwards: dict[int, Any] = dict.fromkeys(range(self.layer), below)
        forwards[self.layer] = at
        prefix = {layer: (keys[pick], values[pick]) for layer, (keys, values) in group.prefix.items()}
        with spliced(self.lm, forwards):
            output = self.lm.model(
                input_ids=group.ids[pick], attention_mask=group.mask[pick], position_ids=group.positions[pick],
                past_key_values=_Prefix(prefix, group.mask.shape[1] - group.ids.shape[1]), use_cache=True,
                logits_to_keep=group.reads,
            )  # fmt: skip
        return output.logits.float()


class WholeForward:
    """Rows under a change, by whole forwards with a hook at block L; rows of equal length share a launch."""

    def __init__(self, lm: LanguageModel, layer: int, rows: Sequence[Row]) -> None:
        self.lm, self.layer, self.rows = lm, layer, list(rows)
        self.start = torch.empty(len(rows), lm.anatomy.width)
        with torch.no_grad():
            self._run(torch.zeros(len(rows), lm.anatomy.width), range(len(rows)), keep_start=True)

    def logits(self, change: Tensor, which: Sequence[int]) -> list[Tensor]:
        return self._run(change, which)

    def _run(self, change: Tensor, which: Sequence[int], *, keep_start: bool = False) -> list[Tensor]:
        found: list[Tensor] = [torch.empty(0)] * len(which)
        block = self.lm.model.get_submodule(f"{self.lm.anatomy.blocks}.{self.layer}")
        for batch in launches([len(self.rows[row].ids) for row in which]):
            rows = [self.rows[which[number]] for number in batch]
            ids = torch.tensor([row.ids for row in rows], device=self.lm.device)
            at = torch.tensor([row.at for row in rows])
            added = change[torch.tensor(batch, device=change.device)]

            def enter(_m: nn.Module, _a: Any, output: Any, batch: Any = batch, at: Any = at, added: Any = added) -> Any:
                states = output_of(output)
                lines = torch.arange(len(at))
                if keep_start:
                    self.start[batch] = states[lines, at].float().cpu()
                changed = states.index_put((lines, at), added.to(states.dtype), accumulate=True)
                return changed if isinstance(output, Tensor) else (changed, *output[1:])

            handle = block.register_forward_hook(enter)
            try:
                reads = max(row.reads for row in rows)
                logits = self.lm.model(input_ids=ids, use_cache=False, logits_to_keep=reads).logits.float()
            finally:
                handle.remove()
            for number, row, line in zip(batch, rows, logits, strict=True):
                found[number] = line[-row.reads :]
        return found


def choose(lm: LanguageModel, layer: int, rows: Sequence[Row]) -> tuple[type[Suffix] | type[WholeForward], str]:
    """Prove the suffix engine on a few rows against whole forwards; the engine to use, and why, in words."""
    few = sorted(rows, key=lambda row: (len(row.ids) - row.at, row.at))[:: max(1, len(rows) // 4)][:5]
    generator = torch.Generator().manual_seed(0)
    try:
        whole, suffix = WholeForward(lm, layer, few), Suffix(lm, layer, few)
        change = (torch.randn(whole.start.shape, generator=generator) * whole.start.std()).to(lm.device)
        with torch.no_grad():
            pairs = list(
                zip(whole.logits(change, range(len(few))), suffix.logits(change, range(len(few))), strict=True)
            )
        gap = max(float((a - b).abs().max() / a.abs().max()) for a, b in pairs)
    except (RuntimeError, TypeError, ValueError, AttributeError, KeyError, IndexError, NotImplementedError) as error:
        return WholeForward, f"whole forwards (suffixes do not run on this model: {type(error).__name__})"
    if not gap < AGREEMENT:
        return WholeForward, f"whole forwards (suffixes differ from them by {gap:.1e})"
    return Suffix, f"suffixes (proved: they differ from whole forwards by {gap:.1e})"

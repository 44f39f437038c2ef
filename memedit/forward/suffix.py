"""The fast engine of the target search: compute again only the states that depend on the change.

1. A vector added in block L at token p (see `Changed`) changes only tokens from p on, and only blocks above L.
2. So each row runs whole once, and a prefix that rows share runs once for all of them. Two things are kept: the output
   of block L from p on, and the keys and values above L of the tokens before p.
3. A step runs the model's own forward over the suffixes. Blocks up to L are replaced by the kept states plus the
   change, and the head runs only where a token is read.
4. Rows share a launch, right-aligned: a shorter suffix begins some tokens before its p.

`WholeForward` computes the same by whole forwards. `choose_search_engine` compares the two, and falls back to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memedit.forward.partial import (
    Aligned,
    BlockEntry,
    Kept,
    KeysValues,
    Shared,
    blocks_give_tuples,
    cut,
    run_part,
    select_rows,
)
from memedit.forward.passes import TOKENS_PER_LAUNCH, Site, capture, launches
from memedit.forward.perturbed import Changed, ChangedRow, WholeForward
from memedit.forward.proof import prove_engine
from memedit.forward.residual import ResidualPath
from memedit.model.load import LanguageModel
from memedit.model.memory import send

SUFFIX_AGREEMENT = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""Relative, on logits. Rounding is 1e-6 in float32, 1e-3 in float16, 1e-2 in bfloat16; a lost prefix is of order 1."""
WORTH = {"cpu": 16, "cuda": 512, "disk": 1 << 17}
"""The cost of a launch, in tokens: for two cores and a model of width 256; for a GPU and one of width 4096; where each
launch reads the blocks from disk."""

FILLED_IN = {"cuda": 8}
"""Parts in which all rows run whole before the first step, so that this takes less memory than the steps: for the rows
of a part, keys and values of every layer are there, also of their prefixes, and a step keeps those of some layers."""


@dataclass(frozen=True)
class _Spliced:
    """A launch of R suffixes in S columns, with P columns of kept keys and values before them."""

    lm: LanguageModel
    way: ResidualPath
    rows: list[int]
    reads: list[int]
    aligned: Aligned
    at: Tensor  # (R,) the change's column in the suffix
    start: Tensor  # (R, D) float32, the states to which the change is added
    entry: BlockEntry  # (R, S, D) the output of block L
    kept: KeysValues  # (R, heads, P, width)
    cells: Tensor  # where the head runs, among the last max(reads) columns

    @property
    def tokens(self) -> int:
        return self.aligned.ids.numel()

    def logits(self, change: Tensor) -> Tensor:
        states = self.entry.states
        lines = torch.arange(len(states), device=states.device)
        moved = self.way.moved(self.start, change).to(states.dtype)
        entered = states.index_put((lines, self.at), moved, accumulate=True)
        before = self.aligned.mask.shape[1] - self.aligned.ids.shape[1]
        found = run_part(
            self.lm, self.aligned, Kept(self.kept, before), entry=replace(self.entry, states=entered),
            reads=(max(self.reads), self.cells),
        )  # fmt: skip
        assert found is not None
        return found.float()

    def keep(self, places: Sequence[int]) -> _Spliced:
        if len(places) == len(self.rows):
            return self
        lines = send(torch.tensor(places), self.at.device)
        reads = [self.reads[place] for place in places]
        return _Spliced(
            self.lm, self.way, [self.rows[place] for place in places], reads, self.aligned.pick(lines), self.at[lines],
            self.start[lines], replace(self.entry, states=self.entry.states[lines]),
            select_rows(self.kept, lines),
            send(_cells(reads), self.at.device),
        )  # fmt: skip


class Suffix(Changed):
    """Rows under a change, computed by their suffixes.

    Rows n, n + columns, ... (one context of many edits) share a prefix. A launch has at most `tokens` suffix tokens;
    rows of other lengths join it where that costs at most `worth` tokens.
    """

    def __init__(
        self,
        lm: LanguageModel,
        layer: int,
        rows: Sequence[ChangedRow],
        *,
        shared: int = 1,
        columns: int = 1,
        tokens: int = TOKENS_PER_LAUNCH,
        worth: int | None = None,
    ) -> None:
        super().__init__(lm, layer, rows, shared)
        self.in_tuple = blocks_give_tuples(lm)
        self.above = range(layer + 1, lm.architecture.n_layers)
        if worth is None:
            worth = WORTH.get(lm.place, 0)
        with torch.no_grad():
            made = [self._empty(batch) for batch in cut([row.suffix for row in rows], tokens, worth)]
            self._fill(made, columns)
        self.launches = [replace(one, start=send(self.start[one.rows], lm.device)) for one in made]

    def _empty(self, batch: list[int]) -> _Spliced:
        """A launch whose states are still zero; `_put` fills them in, and makes keys and values of the right shape."""
        lm, device, ids = self.lm, self.lm.device, [self.rows[index].ids for index in batch]
        suffixes, reads = [self.rows[n].suffix for n in batch], [self.rows[n].reads for n in batch]
        lengths, size = [len(row) for row in ids], max(suffixes)
        states = torch.zeros(len(batch), size, lm.architecture.width, dtype=lm.dtype, device=device)
        return _Spliced(
            lm=lm,
            way=self.way,
            rows=batch,
            reads=reads,
            aligned=Aligned.of(ids, size, lengths, max(size, *lengths)).to(device),
            at=send(torch.tensor([size - suffix for suffix in suffixes]), device),
            start=torch.empty(0),
            entry=BlockEntry(self.layer, states, self.in_tuple),
            kept={},
            cells=send(_cells(reads), device),
        )

    def _fill(self, empty: Sequence[_Spliced], columns: int) -> None:
        """Run every row whole once, and keep in its launch the states that its steps need."""
        shared = Shared.among([row.ids[: row.at] for row in self.rows], columns)
        everywhere = range(self.lm.architecture.n_layers)
        prefix, prefix_states = Kept({}, 0, everywhere), torch.empty(1, 0, self.lm.architecture.width)
        if shared.width:
            prefix_states, _ = self._run(shared.aligned(self.lm.device), prefix)
        prefix_states = prefix_states.to(self.lm.device, self.lm.dtype)
        home = {row: (launch, place) for launch in empty for place, row in enumerate(launch.rows)}
        lines_of = shared.lines
        tails = [len(row.ids) - len(shared.prefixes[shared.of[n]]) for n, row in enumerate(self.rows)]
        for batch in self._together(tails):
            of = send(torch.tensor([lines_of[shared.of[row]] for row in batch]), self.lm.device)
            size, ids = tails[batch[0]], [self.rows[row].ids for row in batch]
            aligned = Aligned.of(ids, size, [len(row) for row in ids], shared.width + size).to(self.lm.device)
            cache = Kept(select_rows(prefix.seen, of), shared.width, self.above)
            before = prefix_states[of] if shared.width else prefix_states.expand(len(batch), -1, -1)
            states, starts = self._run(aligned, cache)
            states = torch.cat([before, states], 1)
            lines = torch.arange(len(batch), device=states.device)
            back = send(torch.tensor([self.rows[row].suffix for row in batch]), states.device)
            # One read: the host waits for each.
            read = torch.stack([starts[lines, size - back].float(), states[lines, states.shape[1] - back].float()])
            self.start[batch], self.leaves[batch] = read.cpu()
            for launch in empty:
                mine = [number for number, row in enumerate(batch) if home[row][0] is launch]
                if mine:
                    _put(launch, [home[batch[number]][1] for number in mine], mine, states, cache.seen)

    def _together(self, tails: Sequence[int]) -> Iterator[list[int]]:
        """Batches of rows of equal length behind their prefixes, which run whole at once."""
        most = -(-len(tails) // FILLED_IN.get(self.lm.device.type, 1))
        for batch in launches(tails, TOKENS_PER_LAUNCH):
            yield from (batch[at : at + most] for at in range(0, len(batch), most))

    def _run(self, aligned: Aligned, cache: Kept) -> tuple[Tensor, Tensor]:
        """The output of block L and the states to which the change is added, (R, T, D) both; `cache` records."""
        seen: dict[Site, Tensor] = {}
        after = Site(self.layer, "block.out")
        with capture(self.lm, list(dict.fromkeys((self.way.site, after))), seen.__setitem__):
            run_part(self.lm, aligned, cache)
        shaped = {site: states.reshape(*aligned.ids.shape, -1).to(self.lm.device) for site, states in seen.items()}
        return shaped[after], shaped[self.way.site]


def _put(launch: _Spliced, places: list[int], lines: list[int], states: Tensor, seen: KeysValues) -> None:
    """Copy rows that ran whole into a launch, right-aligned: suffix states, and keys and values before the suffix."""
    kept, size = launch.entry.states, launch.aligned.ids.shape[1]
    to, of = (send(torch.tensor(numbers), kept.device) for numbers in (places, lines))
    columns = min(size, states.shape[1])
    kept[to, size - columns :] = states[of, states.shape[1] - columns :]
    before = launch.aligned.mask.shape[1] - size
    for layer, pair in seen.items():
        if layer not in launch.kept:
            shape = (len(launch.rows), pair[0].shape[1], before)
            launch.kept[layer] = (
                pair[0].new_zeros(*shape, pair[0].shape[3]),
                pair[1].new_zeros(*shape, pair[1].shape[3]),
            )
        ends = pair[0].shape[2] - size
        columns = max(0, min(before, ends))
        for there, here in zip(launch.kept[layer], pair, strict=True):
            there[to.to(there.device), :, before - columns :] = here[
                of.to(here.device), :, ends - columns : max(ends, 0)
            ]


def _cells(reads: Sequence[int]) -> Tensor:
    """The last `reads[n]` of max(reads) columns of each row n, as flat indices."""
    most = max(reads)
    return torch.tensor([row * most + column for row, n in enumerate(reads) for column in range(most - n, most)])


def choose_search_engine(
    lm: LanguageModel, layer: int, rows: Sequence[ChangedRow], columns: int = 1, shared: int = 1
) -> tuple[type[Suffix] | type[WholeForward], str]:
    """Prove the suffix engine on a few rows against whole forwards; return the engine to use, and why, in words.

    It is compared twice: every suffix length by itself, and all lengths together, where a short suffix begins before
    its change. Raises what `prove_engine` raises, among it every exhaustion of memory.
    """
    whole = WholeForward(lm, layer, rows, shared=shared)
    generator = torch.Generator().manual_seed(0)
    change = (torch.randn(whole.start.shape, generator=generator) * whole.start.std()).to(lm.device)
    which = range(len(rows))

    def witness() -> list[Tensor]:
        return 2 * whole.logits(change, which)

    def fast() -> list[Tensor]:
        engines = (Suffix(lm, layer, rows, shared=shared, columns=columns, worth=worth) for worth in (0, 1 << 30))
        return [logits for engine in engines for logits in engine.logits(change, which)]

    with torch.no_grad():
        proof = prove_engine(fast, witness, SUFFIX_AGREEMENT[lm.dtype], name="suffixes")
    return (Suffix if proof.holds else WholeForward), proof.reason

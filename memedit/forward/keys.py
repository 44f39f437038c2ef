"""Compute the keys of edits layer by layer, running every block once although weights change on the way up.

Rows end at the token whose states are wanted. A prefix that rows share runs once; they attend to its keys and values.
Where a block's down-projection changes, the product of the change and the kept input is added to the block's output, so
the block need not run again. Where those inputs would not fit into `room`, the block runs again instead.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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
from memedit.forward.passes import TOKENS_PER_LAUNCH, Site, capture, last_states
from memedit.forward.residual import residual_change
from memedit.model.load import LanguageModel
from memedit.model.memory import send

ROOM = 1 << 28
"""Bytes that kept inputs of down-projections may take."""
EDITS_TOGETHER = 512
"""Edits whose keys are returned together."""

KeyIds = tuple[int, ...]


@dataclass
class _Group:
    """Rows that run together.

    states (R, T, D): the input of the next block. inner (R, T, F): the input of the last down-projection. made
    (R, T, D): its output, kept only where a norm follows.
    """

    aligned: Aligned
    of: Tensor | None  # (R,) the row of the prefix that each follows
    states: Tensor | None = None
    inner: Tensor | None = None
    made: Tensor | None = None


@dataclass
class _Part:
    """Some edits, their groups of rows, and the place of each edit's rows in them."""

    edits: list[int]
    bare: list[_Group] = field(default_factory=list[_Group])
    others: list[_Group] = field(default_factory=list[_Group])
    bare_at: Tensor = field(default_factory=lambda: torch.empty(0))  # (e,) among the rows of `bare`
    rows_at: Tensor = field(default_factory=lambda: torch.empty(0))  # (e, X) among the rows of `bare + others`


class Sweep:
    """Keys of E edits with X rows each, the bare one first; call `keys` from lower layers to higher ones."""

    def __init__(
        self, lm: LanguageModel, heads: Sequence[Sequence[KeyIds]], *, tokens: int = TOKENS_PER_LAUNCH, room: int = ROOM
    ) -> None:
        self.lm, self.n_edits, self.level = lm, len(heads), 0
        self.in_tuple = blocks_give_tuples(lm)
        n_rows = len(heads[0])
        shared = Shared.among([row[:-1] for of_one in heads for row in of_one], n_rows)
        self.shared = Shared([(), *shared.prefixes[1:]], shared.of)
        self.lines = self.shared.lines
        self.prefix = _Group(self.shared.aligned(lm.device), None)
        self.kept: KeysValues = {}
        self.parts = [self._part(edits, heads, tokens) for edits in _together([of_one[0] for of_one in heads])]
        cells = sum(group.aligned.ids.numel() for group in self._groups())
        width = lm.architecture.mlp_width + (lm.architecture.width if any(lm.architecture.norms) else 0)
        self.waits = cells * width * lm.dtype.itemsize <= room

    def keys(self, layer: int, *, last: bool = False) -> Iterator[tuple[list[int], Tensor]]:
        """Yield some edits and the input of the down-projection of `layer` at their rows' ends, (e, X, F) float32.

        Runs the blocks from the sweep's current level; with `last`, no layer above follows.
        """
        if self.shared.width:
            cache = Kept({}, 0, range(self.level, layer + 1))
            self._climb(self.prefix, layer, cache, last)
            self.kept = cache.seen
        for part in self.parts:
            ends: list[Tensor] = []
            for group in (*part.bare, *part.others):
                inner = self._climb(group, layer, self._cache(group), last)
                ends.append(inner[:, -1].float())
            yield part.edits, torch.cat(ends)[part.rows_at.to(ends[0].device)]
        self.level = layer + 1 if self.waits or last else layer

    @torch.no_grad()
    def enter(self, change: Tensor) -> None:
        """Take in a change (D, F) float32 of the weight whose keys were read last."""
        for group in self._groups():
            if group.inner is not None and group.states is not None:
                moved = (group.inner.float() @ change.T).to(group.states.device)
                made = None if group.made is None else group.made.to(group.states.device, torch.float32)
                moved = residual_change(self.lm, self.level - 1, made, moved)
                group.states = (group.states.float() + moved).to(group.states.dtype)
                group.inner = group.made = None

    def ends(self, site: Site) -> Tensor:
        """The state at `site` at the bare rows' ends, with the current weights: (E, D) float32, on the CPU.

        Only the bare rows run; the sweep keeps its level.
        """
        found = torch.empty(self.n_edits, self.lm.architecture.width)
        for part in self.parts:
            ends = torch.cat([self._ahead(group, site)[:, -1].float() for group in part.bare])
            found[part.edits] = ends.cpu()[part.bare_at]
        return found

    def _ahead(self, group: _Group, site: Site) -> Tensor:
        if self.level > site.layer:
            assert group.states is not None and site == Site(self.level - 1, "block.out")
            return group.states
        return self._run(group, [site], Kept({}, 0))[site]

    def _climb(self, group: _Group, layer: int, cache: Kept, last: bool) -> Tensor:
        """Run a group up to the down-projection of `layer`; return that one's input, (R, T, F)."""
        inner, made, after = Site(layer, "mlp.in"), Site(layer, "mlp.out"), Site(layer, "block.out")
        before = Site(layer - 1, "block.out")
        if last:
            seen = self._run(group, [inner], cache)
            group.states = None
        elif self.waits:
            seen = self._run(group, [inner, *([made] if self.lm.architecture.norms[layer] else []), after], cache)
            group.states, group.inner, group.made = seen[after], seen[inner], seen.get(made)
        else:
            seen = self._run(group, [inner, *([before] if layer > self.level else [])], cache)
            group.states = seen.get(before, group.states)
        return seen[inner]

    @torch.no_grad()
    def _run(self, group: _Group, sites: Sequence[Site], cache: Kept) -> dict[Site, Tensor]:
        """Run from the sweep's level to the highest of `sites`; return the states at the sites, (R, T, width)."""
        seen: dict[Site, Tensor] = {}
        shape = group.aligned.ids.shape

        def see(site: Site, states: Tensor) -> None:
            seen[site] = states.reshape(*shape, -1)

        entry = None if group.states is None else BlockEntry(self.level - 1, group.states, self.in_tuple)
        with capture(self.lm, sites, see, stop=True):
            run_part(self.lm, group.aligned, cache, entry=entry)
        return seen

    def _cache(self, group: _Group) -> Kept:
        if group.of is None:
            return Kept({}, 0)
        return Kept(select_rows(self.kept, group.of), self.shared.width)

    def _groups(self) -> Iterator[_Group]:
        yield self.prefix
        for part in self.parts:
            yield from part.bare
            yield from part.others

    def _part(self, edits: list[int], heads: Sequence[Sequence[KeyIds]], tokens: int) -> _Part:
        """Group the rows of some edits into launches; equal rows run once."""
        part, n_rows = _Part(edits), len(heads[0])
        seat: dict[tuple[int, KeyIds], int] = {}
        for columns, groups in (([0], part.bare), (range(1, n_rows), part.others)):
            unique = list(dict.fromkeys((column, heads[edit][column]) for edit in edits for column in columns))
            tails = [len(row) - len(self.shared.prefixes[column]) for column, row in unique]
            for batch in cut(tails, tokens):
                mine = [unique[number] for number in batch]
                seat |= {row: len(seat) + number for number, row in enumerate(mine)}
                width = self.shared.width if groups is part.others else 0
                of = send(torch.tensor([self.lines[column] for column, _ in mine]), self.lm.device) if width else None
                rows, size = [row for _, row in mine], tails[batch[0]]
                aligned = Aligned.of(rows, size, [len(row) for row in rows], width + size)
                groups.append(_Group(aligned.to(self.lm.device), of))
        part.bare_at = torch.tensor([seat[0, heads[edit][0]] for edit in edits])
        rows_at = [[seat[c, heads[edit][c]] for c in range(n_rows)] for edit in edits]
        part.rows_at = send(torch.tensor(rows_at), self.lm.device)
        return part


class WholeSweep:
    """The same keys by whole forwards, for models on which the fast engine is not proved."""

    def __init__(self, lm: LanguageModel, heads: Sequence[Sequence[KeyIds]]) -> None:
        self.lm, self.heads = lm, heads

    def keys(self, layer: int, *, last: bool = False) -> Iterator[tuple[list[int], Tensor]]:
        """As `Sweep.keys`."""
        for edits in _together([of_one[0] for of_one in self.heads]):
            rows = [row for edit in edits for row in self.heads[edit]]
            # Equal rows run once: exact fits need the keys of one subject to be equal to the last bit.
            seat = {row: number for number, row in enumerate(dict.fromkeys(rows))}
            states = last_states(self.lm, list(seat), Site(layer, "mlp.in"))[[seat[row] for row in rows]]
            yield edits, states.view(len(edits), len(self.heads[0]), -1)

    def enter(self, change: Tensor) -> None:
        """Do nothing: no state is kept that the change could concern."""

    def ends(self, site: Site) -> Tensor:
        """As `Sweep.ends`."""
        return last_states(self.lm, [of_one[0] for of_one in self.heads], site)


def _together(heads: Sequence[KeyIds]) -> list[list[int]]:
    """Split edits into parts of about EDITS_TOGETHER; edits with equal heads stay together."""
    alike: dict[KeyIds, list[int]] = {}
    for edit, head in enumerate(heads):
        alike.setdefault(head, []).append(edit)
    parts: list[list[int]] = [[]]
    for edits in alike.values():
        if len(parts[-1]) + len(edits) > EDITS_TOGETHER and parts[-1]:
            parts.append([])
        parts[-1] += edits
    return parts

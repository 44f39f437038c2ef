"""Logits of rows under a change at one block, and the plain engine that computes them: whole forwards.

`ResidualPath` defines where in the block the change is added, and how it reaches the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from memedit.forward.passes import TOKENS_PER_LAUNCH, Site, capture, launches, module_of, output_of
from memedit.forward.residual import ResidualPath
from memedit.model.forward_hooks import hooked
from memedit.model.load import LanguageModel
from memedit.model.memory import send


@dataclass(frozen=True)
class ChangedRow:
    """A row of ids: the change enters at token `at`, and logits are read at each of the last `reads` tokens."""

    ids: tuple[int, ...]
    at: int
    reads: int

    @property
    def suffix(self) -> int:
        """The number of tokens from the change to the row's end."""
        return len(self.ids) - self.at


class Launch(Protocol):
    """Rows that run together."""

    @property
    def rows(self) -> list[int]:
        """Their numbers among all rows."""
        ...

    @property
    def tokens(self) -> int:
        """Tokens that one run computes."""
        ...

    def logits(self, change: Tensor) -> Tensor:
        """change (R, D) float32 -> logits (N, V) float32, N the rows' reads, row by row."""
        ...

    def keep(self, places: Sequence[int]) -> Launch:
        """The same launch with some of its rows, given by their places in it."""
        ...


class Changed:
    """Rows under a change: logits as a function of the vector that is added at token `at`."""

    start: Tensor
    """The state to which the change is added: (rows, D) float32."""
    leaves: Tensor
    """The unchanged output of block L at token `at`: (rows, D) float32."""

    def __init__(self, lm: LanguageModel, layer: int, rows: Sequence[ChangedRow], shared: int) -> None:
        self.lm, self.layer, self.rows, self.way = lm, layer, list(rows), ResidualPath(lm, layer, shared)
        self.start, self.leaves = (torch.empty(len(rows), lm.architecture.width) for _ in range(2))
        self.launches: Sequence[Launch] = ()

    def logits(self, change: Tensor, which: Sequence[int]) -> list[Tensor]:
        """change (len(which), D) float32, for the rows `which` -> each row's logits (reads, V) float32."""
        place = {row: number for number, row in enumerate(which)}
        found: list[Tensor] = [torch.empty(0)] * len(which)
        for launch in self.launches:
            inside = [number for number, row in enumerate(launch.rows) if row in place]
            if inside:
                asked = [place[launch.rows[number]] for number in inside]
                logits = launch.keep(inside).logits(change[send(torch.tensor(asked), change.device)])
                parts = logits.split([self.rows[which[row]].reads for row in asked])
                for row, part in zip(asked, parts, strict=True):
                    found[row] = part
        return found


@dataclass(frozen=True)
class _Whole:
    """A launch of rows of equal length, each run whole."""

    engine: WholeForward
    rows: list[int]
    ids: Tensor  # (R, T)
    at: Tensor  # (R,) the change's token

    @property
    def tokens(self) -> int:
        return self.ids.numel()

    @classmethod
    def of(cls, engine: WholeForward, rows: list[int]) -> _Whole:
        device, mine = engine.lm.device, [engine.rows[row] for row in rows]
        ids, at = torch.tensor([row.ids for row in mine]), torch.tensor([row.at for row in mine])
        return cls(engine, rows, send(ids, device), send(at, device))

    def logits(self, change: Tensor) -> Tensor:
        return self.engine.run(self, change)

    def keep(self, places: Sequence[int]) -> _Whole:
        lines = send(torch.tensor(places), self.at.device)
        return _Whole(self.engine, [self.rows[place] for place in places], self.ids[lines], self.at[lines])


class WholeForward(Changed):
    """Rows under a change, by whole forwards with a hook at block L; rows of equal length share a launch."""

    def __init__(
        self,
        lm: LanguageModel,
        layer: int,
        rows: Sequence[ChangedRow],
        *,
        shared: int = 1,
        columns: int = 1,
        tokens: int = TOKENS_PER_LAUNCH,
    ) -> None:
        super().__init__(lm, layer, rows, shared)
        self.launches = [_Whole.of(self, batch) for batch in launches([len(row.ids) for row in rows], tokens)]
        for launch in self.launches:
            with torch.no_grad():
                nothing = torch.zeros(len(launch.rows), lm.architecture.width, device=lm.device)
                self.run(launch, nothing, keep_start=True)

    def run(self, launch: _Whole, change: Tensor, *, keep_start: bool = False) -> Tensor:
        """The logits of rows of equal length, (reads, V)."""
        rows = [self.rows[row] for row in launch.rows]
        seen: dict[Site, Tensor] = {}
        most = max(row.reads for row in rows)

        def enter(_module: nn.Module, _args: Any, output: Any) -> Any:
            states = output_of(output)
            # In a model spread over devices, the block's is not the first.
            lines, at = torch.arange(len(rows), device=states.device), launch.at.to(states.device)
            start = seen[self.way.site].reshape(states.shape)[lines, at].float()
            if keep_start:
                self.start[launch.rows], self.leaves[launch.rows] = start.cpu(), states[lines, at].float().cpu()
            moved = self.way.moved(start.to(change.device), change).to(states.device, states.dtype)
            changed = states.index_put((lines, at), moved, accumulate=True)
            return changed if isinstance(output, Tensor) else (changed, *output[1:])

        block = module_of(self.lm, Site(self.layer, "block.out"))
        # `capture` comes first: it sees the block's output before the change enters.
        with capture(self.lm, [self.way.site], seen.__setitem__), hooked([(block, enter)]):
            logits = self.lm.forward(input_ids=launch.ids, use_cache=False, logits_to_keep=most).logits.float()
        return torch.cat([line[-row.reads :] for row, line in zip(rows, logits, strict=True)])

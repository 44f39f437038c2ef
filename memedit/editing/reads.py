"""Which of a launch's logits are an object's tokens, and which follow the bare subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Reads:
    """R rows of a launch; of E edits each has X contexts' rows and then the bare subject's, M tokens at most are read.

    Edits count as they are held now, by their places.
    """

    edit: Tensor
    """(R,) whose row it is."""
    row: Tensor
    """(R,) which row of (E, X + 1)."""
    said: Tensor
    """Where an object's token is read, among the launch's reads."""
    token: Tensor
    """The token asked for there."""
    cell: Tensor
    """Which cell of (E, X, M) it is."""
    bare: Tensor
    """Where the token after a bare subject is read."""
    whose: Tensor
    """Whose it is."""

    @classmethod
    def of(
        cls,
        rows: Sequence[int],
        places: Mapping[int, int],
        targets: Sequence[tuple[int, ...]],
        n_contexts: int,
        longest: int,
        device: torch.device,
    ) -> Reads:
        """rows: numbers that count X + 1 rows for each edit; places: of the edits held, where each is."""
        rows_of: list[tuple[int, int]] = []
        said: list[tuple[int, int, int]] = []
        bare: list[tuple[int, int]] = []
        count = 0
        for edit, context in (divmod(row, n_contexts + 1) for row in rows):
            place = places[edit]
            rows_of.append((place, place * (n_contexts + 1) + context))
            if context == n_contexts:
                bare.append((count, place))
                count += 1
                continue
            first = (place * n_contexts + context) * longest
            said += [(count + n, token, first + n) for n, token in enumerate(targets[edit])]
            count += len(targets[edit])
        tables = [_columns(table, width, device) for table, width in ((rows_of, 2), (said, 3), (bare, 2))]
        return cls(*(column for table in tables for column in table))


def _columns(table: Sequence[Sequence[int]], width: int, device: torch.device) -> Sequence[Tensor]:
    return torch.tensor(table, dtype=torch.long, device=device).view(-1, width).unbind(1)

"""Find the logits of a launch that predict the object's tokens, and those after the bare subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.model.memory import send


@dataclass(frozen=True)
class Reads:
    """Index tables for the R rows of a launch. Each of E edits has X rows (one a context), then the bare subject's row.

    At most M object tokens are read in a row. Edits are numbered by their places in the current batch.
    """

    edit: Tensor
    """(R,) the edit of each row."""
    row: Tensor
    """(R,) its index in (E, X + 1)."""
    said: Tensor
    """Index of the logits that predict an object's token."""
    token: Tensor
    """That token."""
    cell: Tensor
    """Its index in (E, X, M)."""
    bare: Tensor
    """Index of the logits after a bare subject."""
    whose: Tensor
    """The edit of that subject."""
    removed: Tensor
    """Of `said`, the places of a removal's tokens."""
    unknown: Tensor
    """The row of each among the answers about unknown subjects."""

    @classmethod
    def of(
        cls,
        rows: Sequence[int],
        places: Mapping[int, int],
        targets: Sequence[tuple[int, ...]],
        n_contexts: int,
        longest: int,
        device: torch.device,
        unknown: Mapping[tuple[int, int], int] | None = None,
    ) -> Reads:
        """Make the tables. rows: numbers of rows, X + 1 for each edit; places: {edit: its place in the batch}.

        unknown: for each edit that is a removal, and each context, the row of its first token.
        """
        rows_of: list[tuple[int, int]] = []
        said: list[tuple[int, int, int]] = []
        bare: list[tuple[int, int]] = []
        removed: list[tuple[int, int]] = []
        count = 0
        for edit, context in (divmod(row, n_contexts + 1) for row in rows):
            place = places[edit]
            rows_of.append((place, place * (n_contexts + 1) + context))
            if context == n_contexts:
                bare.append((count, place))
                count += 1
                continue
            if unknown is not None and (at := unknown.get((edit, context))) is not None:
                removed += [(len(said) + n, at + n) for n in range(len(targets[edit]))]
            first = (place * n_contexts + context) * longest
            said += [(count + n, token, first + n) for n, token in enumerate(targets[edit])]
            count += len(targets[edit])
        tables = [_columns(table, width, device) for table, width in ((rows_of, 2), (said, 3), (bare, 2), (removed, 2))]
        return cls(*(column for table in tables for column in table))


def _columns(table: Sequence[Sequence[int]], width: int, device: torch.device) -> Sequence[Tensor]:
    return send(torch.tensor(table, dtype=torch.long), device).view(-1, width).unbind(1)

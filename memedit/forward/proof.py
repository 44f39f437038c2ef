"""Try a fast engine on a few rows, compare it with whole forwards, and say which of the two to use."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from memedit.errors import MemeditError
from memedit.model.memory import ran_out


@dataclass(frozen=True)
class Proof:
    """The result of a comparison; `reason` is written for people."""

    holds: bool
    reason: str


def prove_engine(
    fast: Callable[[], Sequence[Tensor]],
    witness: Callable[[], Sequence[Tensor]],
    limit: float,
    *,
    name: str,
    least: float = 0.0,
) -> Proof:
    """Compare what a fast engine computes with what whole forwards compute.

    Both give tensors of the same shapes. The fast engine is proved where every tensor of the witness and its
    counterpart differ by less than `limit`, relative to the largest number of the witness's tensor, or to `least`
    where that is larger. `name` is a plural noun for the engine, for the reason.

    An engine that fails, or gives NaN, does not fit the model: the caller falls back to whole forwards. Running out
    of memory says nothing about the fit, so it is raised, whatever its kind: the caller takes smaller batches, or
    tells the user. An error of the witness is raised too.
    """
    wanted = witness()
    try:
        found = fast()
        gap = max(_gap(one, other, least) for one, other in zip(wanted, found, strict=True))
    except Exception as error:
        if isinstance(error, MemeditError) or ran_out(error):
            raise
        return Proof(False, f"whole forwards ({name} do not run on this model: {type(error).__name__})")
    if not gap < limit:
        return Proof(False, f"whole forwards ({name} differ from them by {gap:.1e})")
    return Proof(True, f"{name} (proved: they differ from whole forwards by {gap:.1e})")


def _gap(wanted: Tensor, found: Tensor, least: float) -> float:
    """The largest difference of two tensors, relative; infinite for NaN, which `max` would skip."""
    gap = float((wanted - found).abs().max()) / max(float(wanted.abs().max()), least)
    return gap if gap == gap else float("inf")

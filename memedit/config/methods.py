"""The methods, as records: all are cases of one formula (numerics/solvers.py), none has code of its own.

| method | change of one layer, as published | here |
|---|---|---|
| MEMIT | R K^T (lambda C + K K^T)^-1 | metric C, ridge lambda |
| EMMET | R (K^T C^-1 K)^-1 K^T C^-1 | metric C, ridge 0, one layer |
| ROME | (v - W k) (C^-1 k)^T / (k^T C^-1 k), edit by edit | metric C, ridge 0, one layer, in turn |
| AlphaEdit | R K^T P (K K^T P + L2 I)^-1 | metric I in the null space of C, ridge L2 |

The papers write edits as columns. ROME is the consistent form (Gupta et al. 2024, arXiv 2403.07175): one key
throughout. The original divides by the bare prompt's key where all else is the key averaged over contexts, so its
change misses the target by the ratio of the two, and where they disagree it disables the model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Name = Literal["memit", "rome", "emmet", "alphaedit"]
Metric = Literal["moment", "null space"]


@dataclass(frozen=True)
class Method:
    """The choices that define a method."""

    title: str
    paper: str
    metric: Metric
    """moment: C, all directions open; null space: the identity, where C holds next to nothing."""
    ridge: float
    """The default ridge, in units of the MLP's width."""
    single: bool = False
    """By default it edits one layer, not a range."""
    in_turn: bool = False
    """Solve the edits one after another, in the order of their digests, each with the earlier ones in place."""


METHODS: dict[str, Method] = {
    "memit": Method("MEMIT", "https://arxiv.org/abs/2210.07229", "moment", ridge=1.0),
    "rome": Method("ROME", "https://arxiv.org/abs/2202.05262", "moment", ridge=0.0, single=True, in_turn=True),
    "emmet": Method("EMMET", "https://arxiv.org/abs/2403.14236", "moment", ridge=0.0, single=True),
    "alphaedit": Method("AlphaEdit", "https://arxiv.org/abs/2410.02355", "null space", ridge=1.0),
}


def method_named(name: object) -> Method | None:
    """The method of this name; None for any other value, which is refused when the setting is checked."""
    return METHODS.get(name) if isinstance(name, str) else None

"""Average the traces of many facts, and suggest layers to edit from the averages.

Meng et al. 2023, section 4.2: the gap between a patched state and the same with the MLP path severed, at the last
subject token, shows in which layers MLPs recall. The range to edit ends where MLP outputs have the largest effect. The
layer that recalls a fact need not be the best one to edit (Hase et al. 2023).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from memedit.numerics.effects import (
    ERRORS,
    NORMAL_95,
    ROLES,
    SHARE,
    Mean,
    Peak,
    by_role,
    clustered_mean,
    find_peak,
    token_roles,
)
from memedit.results.report import Figure
from memedit.results.traces import Curve
from memedit.tracing.facts import SEVERED, TABLES, Fact

LAST_SUBJECT = ROLES.index("last subject token")
FactScores = Mapping[str, Tensor]
"""The scores of one fact, as `trace_fact` returns them."""


def effects(facts: Sequence[Fact], scores: Sequence[FactScores]) -> dict[str, Mean]:
    """Indirect effects averaged over facts: each kind of TABLES (6, L) by role; of SEVERED, `normal` and `gap` (L,).

    `clean`, `corrupted` and `total` are (1,).
    """
    names = {name: number for number, name in enumerate(dict.fromkeys(fact.request.subject for fact in facts))}
    subjects = torch.tensor([names[fact.request.subject] for fact in facts])
    tables: dict[str, list[Tensor]] = {}
    for fact, found in zip(facts, scores, strict=True):
        question, low = fact.question, found["corrupted"].double()
        roles = token_roles(len(question.prompt), question.first, question.last)
        mine = {kind: by_role(found[kind], roles) - low for kind in TABLES}
        mine |= {kind: found[kind].double() - low for kind in SEVERED}
        mine["normal"] = mine["hidden"][LAST_SUBJECT]
        mine["gap"] = mine["normal"] - mine["mlp severed"]
        mine |= {name: found[name].double().view(1) for name in ("clean", "corrupted")}
        mine["total"] = mine["clean"] - mine["corrupted"]
        for name, values in mine.items():
            tables.setdefault(name, []).append(values)
    return {name: clustered_mean(torch.stack(values), subjects) for name, values in tables.items()}


def suggest(means: Mapping[str, Mean]) -> Peak:
    """The layers to edit by these averages."""
    gap = means["gap"]
    return find_peak(gap.mean, gap.error, means["mlp"].mean[LAST_SUBJECT], float(means["total"].mean))


def range_text(layers: tuple[int, int]) -> str:
    """A range as `--layers` takes it: `1-3`, or `2`."""
    return f"{layers[0]}-{layers[1]}" if layers[0] < layers[1] else str(layers[0])


def reason(peak: Peak, means: Mapping[str, Mean]) -> str:
    """The reason for these layers, or for none, in words."""
    n = int(means["total"].count)
    facts = "1 fact" if n == 1 else f"{n:,} facts"
    subjects = int(means["total"].subjects)
    sure = f"{peak.errors:.1f} standard errors" if subjects > 1 else "no standard error from one subject"
    found = (
        f"the effect through MLPs at the last subject token peaks at layer {peak.layer}: "
        f"{peak.gap:.3f} of a total effect of {float(means['total'].mean):.3f} ({peak.share:.0%}), "
        f"{sure}, over {facts}"
    )
    if peak.layers is None:
        return f"no site was found: {found}; a site has {SHARE:.0%} and {ERRORS:g} standard errors"
    return f"{found}; patched MLP outputs have their largest effect there at layer {peak.mlp_layer}"


def curve(means: Mean, row: int | None = None) -> Curve | None:
    """One effect for each layer, with its interval; None where no fact has such a token."""
    mean, error, count, subjects = (
        part if row is None else part[row] for part in (means.mean, means.error, means.count, means.subjects)
    )
    if int(count.max()) == 0:
        return None
    return Curve(
        mean=tuple(mean.tolist()),
        low=_known(mean - NORMAL_95 * error),
        high=_known(mean + NORMAL_95 * error),
        n=int(count.max()),
        subjects=int(subjects.max()),
    )


def mean_figure(means: Mean) -> Figure:
    """One number with its interval; for a single subject the interval is the number itself."""
    mean, error = float(means.mean), float(means.error.nan_to_num(0.0))
    return Figure(mean=mean, low=mean - NORMAL_95 * error, high=mean + NORMAL_95 * error, n=int(means.count))


def _known(values: Tensor) -> tuple[float | None, ...]:
    return tuple(None if value != value else value for value in values.tolist())

"""Tracing results made by hand, with text that would break a page in every field."""

from __future__ import annotations

from typing import Any

import torch
from memedit.numerics.effects import ROLES, windows
from memedit.results.report import Figure
from memedit.results.traces import Average, Curve, FactTrace, TracedFact, TracingResult

TOKENS = ("<s>", "The", " <b>Eif", "fel", " & Co", "\n", " is", " in")


def a_curve(n_layers: int, height: float, *, ends: bool = True) -> Curve:
    mean = tuple(height * (layer + 1) / n_layers for layer in range(n_layers))
    low = tuple(value - 0.02 if ends else None for value in mean)
    high = tuple(value + 0.02 if ends else None for value in mean)
    return Curve(mean=mean, low=low, high=high, n=3, subjects=2)


def a_tracing(n_facts: int = 2, n_layers: int = 5, layers: str | None = "1-2") -> TracingResult:
    """Made by hand: text that would break a page stands in every field that comes from outside."""
    about: dict[str, Any] = {"noise": 0.25, "samples": 10, "window": 2, "windows": windows(n_layers, 2)}
    facts: list[TracedFact] = []
    for n in range(n_facts):
        fact = FactTrace(
            **about,
            id=f"<{n}>",
            status="traced",
            subject="<b>Eiffel & Co",
            prompt="The <b>Eiffel & Co is in <script>alert(1)</script>",
            answer='"Paris" & <i>more</i>',
            answer_tokens=2,
            tokens=TOKENS,
            subject_tokens=(2, 4),
            clean=0.9,
            corrupted=0.1,
            corrupted_rank=1234,
        )
        scores = {kind: torch.rand(len(TOKENS), n_layers) for kind in ("hidden", "mlp", "attention")}
        facts.append(TracedFact(fact, scores))
    figure = Figure(mean=0.5, low=0.4, high=0.6, n=n_facts)
    ends = n_facts > 1
    average = Average(
        **about,
        model="models/<m>&",
        digest="d",
        engine="sweeps",
        n_layers=n_layers,
        facts=n_facts,
        unknown=1,
        noise_rule="3sigma",
        seed=0,
        clean=figure,
        corrupted=figure,
        total=figure,
        effects={
            kind: {role: a_curve(n_layers, 0.1 * n, ends=ends) for n, role in enumerate(ROLES)}
            for kind in ("hidden", "mlp", "attention")
        },
        severed={kind: a_curve(n_layers, 0.3, ends=ends) for kind in ("hidden", "mlp severed", "attention severed")},
        gap=a_curve(n_layers, 0.2, ends=ends),
        layers=layers,
        reason="what reaches the answer <through> MLPs",
    )
    return TracingResult(tuple(facts), (), average)

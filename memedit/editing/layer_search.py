"""Layer search: edit a sample of the edits in each range of layers, and score each candidate.

The layers that recall a fact need not be the best to edit (Hase et al. 2023); this measures the second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from memedit.config.layers import default_layers, layers_text
from memedit.config.recipe import Recipe
from memedit.editing.contexts import sample_contexts
from memedit.editing.moment_cache import factor_of
from memedit.editing.run import EditRun
from memedit.editing.solve import solve
from memedit.editing.start import RunStart
from memedit.editing.targets import Targets, find_targets
from memedit.edits.edit import EditRequest, Finding
from memedit.evaluation.forced import score_edits, summarize
from memedit.model.config import count_layers
from memedit.model.load import locate
from memedit.model.weights import applied
from memedit.numerics.scores import harmonic
from memedit.progress import Progress
from memedit.results.report import Scores

SAMPLE = 20
"""Edits in the sample at most, spread over the list."""


@dataclass(frozen=True)
class Candidate:
    """A range of layers, and the scores of the sample edited there."""

    layers: tuple[int, int]
    scores: Scores

    @property
    def value(self) -> float:
        """The harmonic mean of efficacy, paraphrase, neighborhood and the shares of removals that are no longer named.

        Only what can be measured counts. A list without old objects has no efficacy; the share of edits whose object
        the model says is used instead.
        """
        scores = self.scores
        parts = [scores.efficacy or scores.accuracy, scores.paraphrase or scores.paraphrase_accuracy]
        parts.append(scores.neighborhood or scores.neighborhood_accuracy)
        gone = [1 - part.mean for part in (scores.still_named, scores.paraphrase_still_named) if part is not None]
        return harmonic([*(part.mean for part in parts if part is not None), *gone])

    @property
    def line(self) -> str:
        """Format one line of text for the terminal."""
        return f"layers {layers_text(range(self.layers[0], self.layers[1] + 1)):>7}  score {self.value:.4f}"


def candidate_ranges(n_layers: int, *, single: bool = False) -> list[tuple[int, int]]:
    """Ranges (first, last) as wide as the default range (`single`: of one layer), from the first layer up.

    Each starts half its width above the one before.
    """
    width = 1 if single else len(default_layers(n_layers))
    starts = list(range(0, n_layers - width + 1, max(1, width // 2)))
    if starts[-1] != n_layers - width:
        starts.append(n_layers - width)
    return [(start, start + width - 1) for start in starts]


def search_layers(
    requests: Sequence[EditRequest], recipe: Recipe, progress: Progress, findings: Sequence[Finding] = ()
) -> list[Candidate]:
    """Try every range; returns the candidates, the best first, the lower one if equal. Nothing is written.

    Raises what `apply` raises before its heavy work.
    """
    n_layers = count_layers(locate(recipe.model), recipe.model)
    # The job covers every layer, so that one pass measures all second moments.
    method = recipe.method.model_copy(update={"layers": f"0-{n_layers - 1}"})
    some = requests[:: max(1, -(-len(requests) // SAMPLE))]
    every = recipe.model_copy(update={"method": method})
    job = EditRun(RunStart(tuple(some), every, tuple(findings)), (), progress)
    lm, moments, ranges = job.lm, job.moments(), candidate_ranges(n_layers, single=method.kind.single)
    prompts = job.encode(sample_contexts(lm, recipe.contexts, recipe.seed, chat=recipe.chat)).prompts
    candidates: list[Candidate] = []
    with progress.phase("ranges", len(ranges), "ranges") as advance:
        for first, last in ranges:
            targets: Targets = find_targets(lm, job.plan.edits, prompts, last, recipe, shared=last + 1 - first)
            stored = {layer: job.stored[layer] for layer in range(first, last + 1)}
            update = solve(
                lm,
                prompts,
                targets.wanted,
                lambda layer: factor_of(moments, layer, recipe.method),
                stored,
                recipe.method,
                rounding=job.rounding(moments),
            )
            with applied(lm, job.in_model(update.weights)):
                scores = summarize(score_edits(lm, job.requests, chat=recipe.chat))
            candidates.append(Candidate((first, last), scores))
            advance(1)
    return sorted(candidates, key=lambda one: (-one.value, one.layers))

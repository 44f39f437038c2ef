"""Choose the layers by tracing the edits (`apply --layers auto`)."""

from __future__ import annotations

from dataclasses import replace

from memedit.config.layers import layers_of, middle
from memedit.config.recipe import Recipe
from memedit.editing.plan import Plan
from memedit.errors import GateError
from memedit.model.load import LanguageModel
from memedit.progress import Progress
from memedit.ranks import ALONE, Ranks
from memedit.storage.artifacts import Store
from memedit.tracing.run import trace_all


def choose_traced_layers(
    lm: LanguageModel, digest: str, recipe: Recipe, plan: Plan, progress: Progress, ranks: Ranks = ALONE
) -> tuple[Recipe, Plan, str, Store]:
    """Trace the plan's edits; returns a recipe and a plan with the layers found, and the reason, which is also shown.

    The last value is what tracing kept: the caller removes it when it is no longer needed.
    The traced answer is what the model says now, at the last subject token only; an edit without a subject is not
    traced. Raises GateError if no edit has a subject, or tracing finds no layers.
    """
    requests = [edit.request for edit in plan.edits if edit.request.subject]
    if not requests:
        raise GateError(
            "no edit has a subject, so there is nothing to trace",
            "name the layers (--layers 3-8), or use --layers depth",
        )
    step = -(-len(requests) // recipe.trace.facts)
    tracing, kept = trace_all(lm, digest, requests[::step], recipe, progress, everywhere=False, ranks=ranks)
    found, why = tracing.average.layers, tracing.average.reason
    if found is None:
        raise GateError(why, "name the layers (--layers 3-8), or use --layers depth")
    layers = layers_of(found, lm.architecture.shape)
    if recipe.method.kind.single:
        layers = [middle(layers)]
        found = str(layers[0])
    said = f"layers {found} by tracing: {why}"
    progress.note(said)
    method = recipe.method.model_copy(update={"layers": found})
    lm.architecture.require(layers)
    return recipe.model_copy(update={"method": method}), replace(plan, layers=tuple(layers)), said, kept

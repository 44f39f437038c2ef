"""The change of the weights for a list of edits: the closed form, then polish with what must stay beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from torch import Tensor

from memedit.config.recipe import Recipe
from memedit.editing.plan import Edit
from memedit.editing.polish import polish
from memedit.editing.preserve import preserved_prompts
from memedit.editing.rounding import Rounding
from memedit.editing.solve import Update, solve
from memedit.editing.spoken import spoken_edits
from memedit.edits.edit import EditRequest
from memedit.evaluation.made_facts import Beside
from memedit.model.load import LanguageModel
from memedit.model.tokens import Prompt
from memedit.numerics.solvers import Factor
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks

Phase = Callable[[str, int | None, str], AbstractContextManager[Advance]]
"""Opens a phase of progress: its name, its total, its unit."""
Preserve = Callable[[Sequence[EditRequest]], Beside]
"""Chooses what must stay beside these edits."""


def solve_edits(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    wanted: Tensor,
    held: Tensor,
    factor_of: Callable[[int], Factor],
    stored: Mapping[int, Tensor],
    recipe: Recipe,
    *,
    preserve: Preserve,
    rounding: Rounding,
    whole: bool,
    phase: Phase,
    ranks: Ranks = ALONE,
) -> Update:
    """Solve E edits under X prompts each, then polish the change of those that are not held, as the recipe says.

    Where nothing is found that must stay, there is nothing to polish for, and the closed form is the result. `ranks`
    share the steps of polish.

    wanted (E, D) float32, held (E,) bool; `stored` are the weights (D, F). The model is unchanged when this returns.
    """
    knobs, rounding = recipe.polish, replace(rounding, memory=recipe.memory_limit)
    moving = [n for n, is_held in enumerate(held.tolist()) if not is_held]
    polished = knobs.steps > 0 and bool(moving)
    with phase("solve", len(stored), "layers") as advance:
        update = solve(
            lm, prompts, wanted, factor_of, stored, recipe.method, held=held, rounding=rounding, whole=whole,
            keep_keys=polished, memory=recipe.memory_limit, advance=advance,
        )  # fmt: skip
    if not polished:
        return update
    chosen = [edits[n] for n in moving]
    with phase("preserve", None, ""):
        beside = preserve([edit.request for edit in chosen])
        preserved = [preserved_prompts(lm, some, chat=recipe.chat) for some in (beside.siblings, beside.others)]
    preserved.append([of_one[0] for n, of_one in enumerate(prompts) if held[n]])
    if not any(preserved):
        return replace(update, keys={})
    # Where the prompts themselves are asked in chat, the object stands behind the turn already.
    spoken = [] if recipe.chat or not knobs.spoken else spoken_edits(lm, chosen)
    with phase("polish", knobs.steps, "steps") as advance:
        return polish(
            lm, update, chosen, [prompts[n] for n in moving], preserved, stored, knobs,
            rounding=rounding, seed=recipe.seed, spoken=spoken, advance=advance, ranks=ranks,
        )  # fmt: skip

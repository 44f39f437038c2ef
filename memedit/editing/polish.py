"""Polish: after the closed form, a few steps of descent on what the edited model says, in the closed form's directions.

The change of a layer is left @ right. The closed form chooses both; here `right`, the directions in which keys are
answered, stays, and `left`, what is added in each of them, takes steps of Adam on

    mean over edits of -log p(object)  +  preserve * mean over preserved prompts of KL(base || edited)

(the second less, where there are few such prompts for each edit), with all edits in place at once, through all layers
above. The loss of a removal is that of its target search. The closed form sees none of this: it moves every state
toward its target and weighs that against an average over text.

Prompts that must stay (preserve.py) are no rows of the closed form: as rows without residual they would undo the edits,
since many are about the edited subjects, and the steps would have to find the edits again from the list's wordings
alone (memedit/docs/measured.md has the figures).

In every other step the changes act on an edit's own rows at the subject's last token only: else the steps find ways to
say the object that hang on one wording.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memedit.config.recipe import PolishKnobs, Recipe
from memedit.editing.batches import MOST_TOKENS
from memedit.editing.plan import Edit
from memedit.editing.preserve import preserved_prompts
from memedit.editing.rounding import Rounding, round_delta
from memedit.editing.solve import Update, solve
from memedit.editing.unknown import Asking, UnknownAnswers
from memedit.edits.edit import EditRequest
from memedit.evaluation.made_facts import Asked
from memedit.forward.adapted import AdaptedRows, Factors, ReadRow, choose_adapted_rows
from memedit.model.load import LanguageModel
from memedit.model.memory import send
from memedit.model.tokens import Prompt
from memedit.numerics.delta import Delta
from memedit.numerics.objective import kl_loss
from memedit.numerics.solvers import Factor
from memedit.progress import Advance
from memedit.results.report import PolishReport

BETAS = (0.9, 0.95)
ENOUGH = 0.05
"""Loss of an edit below which it pulls no further: the same bar as the target search's."""
LAST_STEP = 0.2
"""The length of the last step, in units of the first."""
REMOVAL = 4.0
"""Weight of a removal's loss, against an edit's. Of 100 facts removed from a shipped model 8 were still said after the
closed form alone, 22 after polish with a weight of 1, and 9 with 4."""
KEPT_BYTES = 1_000_000_000
"""What the base says after the prompts that must stay is kept up to this size: some 4,000 prompts where the vocabulary
has 128,000 tokens."""


@dataclass(frozen=True)
class _Rows:
    """All rows: for each edit the numbers of its rows, and the numbers of the preserved prompts."""

    rows: list[ReadRow]
    targets: list[tuple[int, ...]]
    """For each row the ids that it must say; empty for a preserved prompt."""
    of_edit: list[range]
    preserved: range
    unknown: dict[int, Asking]
    """For each row of a removal its questions about unknown subjects."""

    @classmethod
    def of(cls, edits: Sequence[Edit], prompts: Sequence[Sequence[Prompt]], preserved: Sequence[Prompt]) -> _Rows:
        rows: list[ReadRow] = []
        targets: list[tuple[int, ...]] = []
        of_edit: list[range] = []
        unknown: dict[int, Asking] = {}
        for edit, of_one in zip(edits, prompts, strict=True):
            at = len(rows)
            rows += [_row(prompt, edit.target) for prompt in of_one]
            targets += [edit.target] * len(of_one)
            of_edit.append(range(at, len(rows)))
            if edit.request.remove:
                unknown |= {at + n: (prompt.strangers, edit.target) for n, prompt in enumerate(of_one)}
        at = len(rows)
        rows += [_row(prompt, ()) for prompt in preserved]
        return cls(rows, [*targets, *([()] * len(preserved))], of_edit, range(at, len(rows)), unknown)


def _row(prompt: Prompt, target: tuple[int, ...]) -> ReadRow:
    return ReadRow(prompt.ids + target[:-1], prompt.subject_from, prompt.subject_at, max(1, len(target)))


def polish(
    lm: LanguageModel,
    update: Update,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    preserved: Sequence[Prompt],
    stored: Mapping[int, Tensor],
    knobs: PolishKnobs,
    *,
    rounding: Rounding,
    seed: int,
    advance: Advance | None = None,
) -> Update:
    """Polish an update of E edits under X prompts each, in at least one step.

    `update` has its keys; `stored` are the weights (D, F) before it, in the checkpoint's dtype. The model must be
    unedited, and is unchanged when this returns. The draws depend on the seed alone. Raises what the proof of the
    engine raises, among it every exhaustion of memory.
    """
    made = _Rows.of(edits, prompts, preserved)
    left, right = _factors(lm, update)
    changes: Factors = {layer: (left[layer], right[layer]) for layer in left}
    few = sorted({0, made.preserved.start // 2, len(made.rows) - 1})
    rows, reason = choose_adapted_rows(
        lm, made.rows, changes, tokens=MOST_TOKENS.get(lm.device.type, 1024) // 2, few=few
    )
    before = _Before.of(rows, made.preserved, lm.architecture.vocabulary)
    answers = UnknownAnswers.of(lm, list(made.unknown.values()))
    answers = replace(answers, log_probs=answers.log_probs.half().cpu())  # as wide as the vocabulary, and kept
    steps = _Steps(rows, made, before, answers, changes, knobs, random.Random(seed))
    seen: list[tuple[float, float]] = []
    for _ in range(knobs.steps):
        seen.append(steps.step())
        if advance:
            advance(1)
    report = PolishReport(
        steps=knobs.steps, preserved=len(made.preserved), engine=reason, loss_before=seen[0][0],
        loss_after=seen[-1][0], divergence_before=seen[0][1], divergence_after=seen[-1][1],
    )  # fmt: skip
    return _rounded(update, steps.changes(), stored, rounding, report)


def _factors(lm: LanguageModel, update: Update) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """left (D, R) and right (R, F) of every layer; a dense change is split by its singular vectors."""
    left: dict[int, Tensor] = {}
    right: dict[int, Tensor] = {}
    for layer, delta in update.deltas.items():
        if delta.right is None:
            columns, values, rows = torch.linalg.svd(delta.left.double(), full_matrices=False)
            root = values.sqrt()
            left[layer], right[layer] = (columns * root).float(), (root[:, None] * rows).float()
        else:
            left[layer], right[layer] = delta.left.float(), delta.right.float()
        # In a model spread over devices, that of the layer: there the change is added.
        home = lm.device_of(layer)
        left[layer], right[layer] = left[layer].to(home), right[layer].to(home)
    return left, right


@dataclass(frozen=True)
class _Before:
    """The base's log-probabilities after the preserved prompts, as float16 has them."""

    rows: AdaptedRows
    kept: dict[int, Tensor]
    """Those of each row (V,), float16 on the CPU; empty where they would take too much memory."""

    @classmethod
    def of(cls, rows: AdaptedRows, preserved: range, vocabulary: int) -> _Before:
        """Keep all of them, or none: then each step asks for its own."""
        kept: dict[int, Tensor] = {}
        if 2 * vocabulary * len(preserved) > KEPT_BYTES:
            return cls(rows, kept)
        for launch in rows.launches(list(preserved)):
            kept |= {n: line.cpu() for n, line in zip(launch, cls._asked(rows, launch), strict=True)}
        return cls(rows, kept)

    def __call__(self, launch: Sequence[int]) -> Tensor:
        """Those of one launch, (rows, V) float16."""
        return torch.stack([self.kept[n] for n in launch]) if self.kept else self._asked(self.rows, launch)

    @staticmethod
    @torch.no_grad()
    def _asked(rows: AdaptedRows, launch: Sequence[int]) -> Tensor:
        with rows.log_probs(launch, {}) as log_probs:
            return log_probs.half()


class _Steps:
    """The state of the descent."""

    def __init__(
        self, rows: AdaptedRows, made: _Rows, before: _Before, answers: UnknownAnswers, changes: Factors,
        knobs: PolishKnobs, draw: random.Random,
    ) -> None:  # fmt: skip
        self.rows, self.made, self.before, self.knobs, self.draw = rows, made, before, knobs, draw
        self.answers, self.first = answers, dict(zip(made.unknown, answers.first, strict=True))
        self.number = 0
        self.left = {layer: left.clone().requires_grad_() for layer, (left, _) in changes.items()}
        self.right = {layer: right for layer, (_, right) in changes.items()}
        scale = {layer: float(left.square().mean().sqrt()) for layer, (left, _) in changes.items()}
        groups = [{"params": [self.left[layer]], "lr": knobs.step * scale[layer]} for layer in self.left]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS)
        # Each step sees one wording of an edit: steps that grow shorter average over them.
        self.decay = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, LAST_STEP, knobs.steps)

    def changes(self) -> Factors:
        """The changes as they are now, for a forward."""
        return {layer: (self.left[layer], self.right[layer]) for layer in self.left}

    def step(self) -> tuple[float, float]:
        """One step on one row of each edit and some preserved prompts: the mean loss, and the mean KL, in nats."""
        self.optimizer.zero_grad()
        n_edits = len(self.made.of_edit)
        losses = self._edits([self.draw.choice(list(rows)) for rows in self.made.of_edit])
        most = max(1, round(self.knobs.ratio * n_edits))
        few = self.draw.sample(list(self.made.preserved), min(len(self.made.preserved), most))
        # Where fewer prompts are there, each weighs as before: or a few would weigh as much as a thousand edits.
        drifts = self._preserved(few, self.knobs.preserve * len(few) / most) if few else []
        self.optimizer.step()
        self.decay.step()
        self.number += 1
        # One read a step: the host waits for each.
        read = torch.stack([*losses, *drifts]).tolist()
        loss = drift = 0.0
        for part in read[: len(losses)]:
            loss += part / n_edits
        for part in read[len(losses) :]:
            drift += part
        return loss, drift

    def _edits(self, chosen: Sequence[int]) -> list[Tensor]:
        """The gradient of the edits' mean loss; returns the sum of the losses of each launch, without the bar."""
        sums: list[Tensor] = []
        for launch in self.rows.launches(chosen):
            with self.rows.log_probs(launch, self.changes(), at_subject=self.number % 2 == 0) as log_probs:
                losses = self._losses(launch, log_probs)
                weights = torch.tensor([REMOVAL if n in self.first else 1.0 for n in launch])
                weighed = losses.clamp_min(ENOUGH) * send(weights, losses.device)
                (weighed.sum() / len(chosen)).backward()
            sums.append(losses.detach().sum())
        return sums

    def _losses(self, launch: Sequence[int], log_probs: Tensor) -> Tensor:
        """The loss of each row of a launch, (rows,)."""
        device = log_probs.device
        table = [(place, token) for place, n in enumerate(launch) for token in self.made.targets[n]]
        of, wanted = send(torch.tensor(table), device).unbind(1)
        said = self._said(launch, log_probs, wanted)
        # A product with it sums over an edit's tokens in a fixed order; adding by index on a GPU does not.
        own = of[None] == torch.arange(len(launch), device=device)[:, None]
        share = own.float() / own.sum(1, keepdim=True)
        return -(share @ said)

    def _said(self, launch: Sequence[int], log_probs: Tensor, wanted: Tensor) -> Tensor:
        """The log-probability of every wanted token of a launch, -KL(unknown || edited) for those of removals: (N,)."""
        said = log_probs[torch.arange(len(wanted), device=wanted.device), wanted]
        of = [(n, place) for n in launch for place in range(len(self.made.targets[n]))]
        removed = [(at, self.first[n] + place) for at, (n, place) in enumerate(of) if n in self.first]
        if not removed:
            return said
        aims = torch.tensor([aim for _, aim in removed])
        places = send(torch.tensor([at for at, _ in removed]), wanted.device)
        aimed_at = send(self.answers.log_probs[aims], wanted.device).float()
        return said.index_copy(0, places, -kl_loss(aimed_at, log_probs[places]))

    def _preserved(self, chosen: Sequence[int], weight: float) -> list[Tensor]:
        """The gradient of the weighed mean KL(base || edited); returns each launch's part of the mean."""
        parts: list[Tensor] = []
        for launch in self.rows.launches(chosen):
            before = self.before(launch)
            with self.rows.log_probs(launch, self.changes()) as now:
                then = send(before, now.device).float()
                drift = (then.exp() * (then - now)).sum() / len(chosen)
                (weight * drift).backward()
            parts.append(drift.detach())
        return parts


def _rounded(
    update: Update, changes: Factors, stored: Mapping[int, Tensor], rounding: Rounding, report: PolishReport
) -> Update:
    """The update with the polished changes, rounded into the stored weights."""
    deltas: dict[int, Delta] = {}
    weights: dict[int, Tensor] = {}
    layers = list(update.layers)
    for n, layer in enumerate(sorted(changes)):
        left, right = (factor.detach().cpu().contiguous() for factor in changes[layer])
        entered = round_delta(layer, stored[layer], Delta(left, right), update.keys[layer], rounding)
        deltas[layer], weights[layer] = entered.delta, entered.weight
        layers[n] = layers[n].model_copy(
            update={
                "delta_norm": entered.norm / float(stored[layer].double().norm()), "rounding": entered.way,
                "rounding_loss": entered.loss, "nearest_loss": entered.nearest_loss,
                "disturbance": entered.disturbance, "rank": entered.delta.rank,
                "on_cpu": ("rounding",) if entered.on_cpu else layers[n].on_cpu,
            }
        )  # fmt: skip
    return replace(update, deltas=deltas, weights=weights, layers=tuple(layers), polish=report)


Phase = Callable[[str, int | None, str], AbstractContextManager[Advance]]
"""Opens a phase of progress: its name, its total, its unit."""
Preserve = Callable[[Sequence[EditRequest]], Sequence[Asked]]
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
) -> Update:
    """Solve E edits under X prompts each, then polish the change of those that are not held, as the recipe says.

    Where nothing is found that must stay, there is nothing to polish for, and the closed form is the result.

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
        preserved = preserved_prompts(lm, preserve([edit.request for edit in chosen]), chat=recipe.chat)
    preserved += [of_one[0] for n, of_one in enumerate(prompts) if held[n]]
    if not preserved:
        return replace(update, keys={})
    with phase("polish", knobs.steps, "steps") as advance:
        return polish(
            lm, update, chosen, [prompts[n] for n in moving], preserved, stored, knobs,
            rounding=rounding, seed=recipe.seed, advance=advance,
        )  # fmt: skip

"""Edits -> targets: the state at the subject's last token that makes the model say the new object.

Meng et al. 2023, eq. 13 (MEMIT), as published in kmeng01/memit, compute_z.py: Adam over one vector per edit, added
to the output of the last edited layer. Here a chunk of edits is one batch, and every edit stops on its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.model.load import LanguageModel
from memedit.model.subject import Prompt
from memedit.model.suffix import Changed, Row, Suffix, WholeForward
from memedit.numerics.objective import decay_loss, essence_loss, into_ball, likelihood_loss
from memedit.recipe import Recipe, TargetKnobs
from memedit.stages.plan import Edit
from memedit.tell import Advance

BETAS, EPSILON = (0.9, 0.999), 1e-8  # torch's Adam defaults, which the published code uses


@dataclass(frozen=True)
class Targets:
    """wanted (E, D): the state asked for; start (E, D): the state as it was; loss (E,): when the search ended;
    steps (E,): how many Adam took. All float32 but steps, int64."""

    wanted: Tensor
    start: Tensor
    loss: Tensor
    steps: Tensor

    @classmethod
    def join(cls, parts: Sequence[Targets]) -> Targets:
        """Chunks, one after another."""
        fields = ("wanted", "start", "loss", "steps")
        return cls(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))


def rows_of(edit: Edit, prompts: Sequence[Prompt]) -> list[Row]:
    """The rows of one edit: each context's prompt with the object but its last token, then the bare subject."""
    said = edit.target[:-1]
    rows = [Row(prompt.ids + said, prompt.subject_at, len(edit.target)) for prompt in prompts]
    return [*rows, Row(edit.subject, len(edit.subject) - 1, 1)]


def find_targets(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    layer: int,
    recipe: Recipe,
    *,
    engine: type[Suffix] | type[WholeForward] = Suffix,
    advance: Advance | None = None,
) -> Targets:
    """The targets of E edits (prompts: X per edit, the bare one first) at the output of block `layer`."""
    search = _Search(lm, edits, prompts, layer, recipe.target, engine)
    published = recipe.method.semantics == "reference"
    # The published loop leaves at its last forward without a step: n forwards, n - 1 steps.
    steps = recipe.target.steps - 1 if published else recipe.target.steps
    open_ = list(range(len(edits)))
    for step in range(steps + 1):
        loss, gradient = search.measure(open_, with_gradient=step < steps)
        search.loss[open_], search.steps[open_] = loss, step
        going = [(edit, row) for row, edit in enumerate(open_) if step < steps and loss[row] >= recipe.target.stop]
        if advance:
            advance(len(open_) - len(going))
        if not going:
            break
        open_ = [edit for edit, _ in going]
        search.step(open_, gradient[[row for _, row in going]], step + 1)
    start = search.start.cpu()
    return Targets(start + search.change.cpu(), start, search.loss, search.steps)


class _Search:
    """The state of a chunk's search: a vector per edit, and what Adam remembers of it."""

    def __init__(
        self,
        lm: LanguageModel,
        edits: Sequence[Edit],
        prompts: Sequence[Sequence[Prompt]],
        layer: int,
        knobs: TargetKnobs,
        engine: type[Suffix] | type[WholeForward],
    ) -> None:
        self.knobs, self.device = knobs, lm.device
        self.n_contexts = len(prompts[0])
        rows = [row for edit, of_one in zip(edits, prompts, strict=True) for row in rows_of(edit, of_one)]
        self.changed: Changed = engine(lm, layer, rows)
        per_edit = self.n_contexts + 1
        self.start = self.changed.start[::per_edit].to(self.device)
        self.targets = [torch.tensor(edit.target, device=self.device) for edit in edits]
        self.change, self.mean, self.square = (torch.zeros_like(self.start) for _ in range(3))
        self.loss, self.steps = torch.zeros(len(edits)), torch.zeros(len(edits), dtype=torch.long)
        length = self.start.norm(dim=-1)
        self.radius = knobs.ball * length
        # Adam moves every coordinate by about its step, so a step in units of the state's own rms fits every scale.
        relative = knobs.step * length / self.start.shape[-1] ** 0.5
        self.rate = torch.full_like(relative, knobs.step_absolute) if knobs.step_absolute else relative
        with torch.no_grad():
            last = [edit * per_edit + self.n_contexts for edit in range(len(edits))]
            logits = self.changed.logits(torch.zeros_like(self.start), last)
            self.original = torch.stack([row[-1] for row in logits]).log_softmax(-1)

    def measure(self, which: Sequence[int], *, with_gradient: bool) -> tuple[Tensor, Tensor]:
        """Loss (E',) on the CPU, and its gradient (E', D), of some edits."""
        with torch.set_grad_enabled(with_gradient):
            change = self.change[which].requires_grad_(with_gradient)
            loss = self._loss(which, change)
            gradient = torch.zeros_like(change)
            if with_gradient:
                # A row moves its own loss only, so the sum's gradient is every edit's own.
                (gradient,) = torch.autograd.grad(loss.sum(), change)
        return loss.detach().cpu(), gradient

    def _loss(self, which: Sequence[int], change: Tensor) -> Tensor:
        per_edit = self.n_contexts + 1
        rows = [edit * per_edit + row for edit in which for row in range(per_edit)]
        logits = self.changed.logits(change.repeat_interleave(per_edit, 0), rows)
        said = [logits[n * per_edit + x] for n in range(len(which)) for x in range(self.n_contexts)]
        targets = [self.targets[edit] for edit in which for _ in range(self.n_contexts)]
        picked = torch.cat(said).log_softmax(-1).gather(1, torch.cat(targets)[:, None])[:, 0]
        longest = max(map(len, targets))
        shape = (len(which), self.n_contexts, longest)
        mask = torch.stack([torch.arange(longest, device=self.device) < len(target) for target in targets])
        log_probs = torch.zeros(mask.shape, device=self.device).masked_scatter(mask, picked)
        weights = torch.full((self.n_contexts,), 1 / self.n_contexts, device=self.device)
        loss = likelihood_loss(log_probs.view(shape), mask.view(shape), weights)
        essence = torch.stack([row[-1] for row in logits[self.n_contexts :: per_edit]]).log_softmax(-1)
        loss = loss + self.knobs.kl * essence_loss(essence, self.original[which])
        if self.knobs.weight_decay:
            loss = loss + self.knobs.weight_decay * decay_loss(change, self.start[which])
        return loss

    def step(self, which: Sequence[int], gradient: Tensor, count: int) -> None:
        """One step of Adam (Kingma and Ba 2015, alg. 1) for some edits, then back into the ball."""
        first, second = BETAS
        self.mean[which] = first * self.mean[which] + (1 - first) * gradient
        self.square[which] = second * self.square[which] + (1 - second) * gradient.square()
        direction = self.mean[which] / (1 - first**count)
        scale = (self.square[which] / (1 - second**count)).sqrt() + EPSILON
        moved = self.change[which] - self.rate[which][:, None] * direction / scale
        self.change[which] = into_ball(moved, self.radius[which])

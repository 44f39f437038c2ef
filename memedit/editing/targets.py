"""Find targets: the state at the subject's last token that makes the model say the new object.

Meng et al. 2023, eq. 13 (MEMIT), as published in kmeng01/memit, compute_z.py: descent over one vector per edit, added
to the output of the last edited layer, by Adam or by L-BFGS (numerics/descent.py). Here a batch of edits is searched
together, and every edit stops on its own: edits that are found leave the batch. Edits of one subject share one change
that must serve them all, and stop together: the weights answer a subject's key with one value, so values found
separately would be averaged into one that says none of the objects (Dong et al. 2025, MEMIT-Merge).

A removal goes through the same search with another loss: at each token of the old object, KL(w || edited), where w is
what the unedited model predicts there about made-up subjects (unknown.py). -log p of an object is the same, with all of
w on its tokens.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from memedit.config.recipe import Recipe
from memedit.editing.batches import Sizes, changes_of
from memedit.editing.plan import Edit
from memedit.editing.reads import Reads
from memedit.editing.unknown import UnknownAnswers
from memedit.forward.passes import TOKENS_PER_LAUNCH
from memedit.forward.perturbed import Changed, ChangedRow, WholeForward
from memedit.forward.suffix import Suffix
from memedit.model.load import LanguageModel
from memedit.model.memory import send
from memedit.model.tokens import Prompt
from memedit.model.weights import applied
from memedit.numerics.descent import LBFGS, Adam, Descent
from memedit.numerics.objective import along_ball, decay_loss, into_ball, kl_loss, likelihood_loss
from memedit.progress import Advance
from memedit.results.report import SEARCH_ENDS, SearchEnd, SearchReport

LOOK_EVERY = {"cuda": 4}
"""Steps between two checks of which edits are found: a check makes the host wait for the GPU."""
WORTH_PACKING = 7 / 8
"""Launches are packed again if at most this share of their edits is still searched: a copy costs part of a step."""


SURFACE = 0.999
"""A change of this share of its ball's radius, or more, lies at the ball's surface."""
UNKNOWN = -1
"""In place of a number of `SEARCH_ENDS`: the target is a ledger's."""


@dataclass(frozen=True)
class Targets:
    """wanted (E, D): the target state at the block's output; start (E, D): the state that the change was added to; loss
    (E,): at the end of the search; steps (E,): evaluations after the first; end (E,): how the search ended, a number of
    `SEARCH_ENDS`. All float32, but steps and end int64."""

    wanted: Tensor
    start: Tensor
    loss: Tensor
    steps: Tensor
    end: Tensor

    @classmethod
    def join(cls, parts: Sequence[Targets]) -> Targets:
        """Concatenate the targets of several batches."""
        fields = ("wanted", "start", "loss", "steps", "end")
        return cls(*(torch.cat([getattr(part, field) for part in parts]) for field in fields))

    def ends(self) -> list[SearchEnd | None]:
        """How the search of each edit ended; None of a target that a ledger gave."""
        return [None if number == UNKNOWN else SEARCH_ENDS[number] for number in self.end.tolist()]


def search_report(targets: Targets) -> SearchReport:
    """Count how the searches of these targets ended. None of them may be a ledger's."""
    counts = Counter(targets.ends())
    steps = targets.steps.double()
    return SearchReport(
        edits=len(targets.steps), found=counts["found"], ball=counts["ball"], stalled=counts["stalled"],
        spent=counts["spent"], steps_mean=float(steps.mean()), steps_most=int(steps.max()),
    )  # fmt: skip


def not_found(report: SearchReport, recipe: Recipe) -> str | None:
    """A warning where more than a tenth of the targets were not found; None where they were."""
    if (missed := report.edits - report.found) <= report.edits / 10:
        return None
    if recipe.target.step_absolute:
        advice = "the step is an absolute one, made for another scale of states: leave the preset out"
    elif report.ball:
        advice = "raise target.ball, or choose other layers"
    elif report.spent:
        advice = "raise target.steps, or choose other layers"
    else:
        advice = "choose other layers"
    said = f"{missed:,} of {report.edits:,} targets were not found ({report.missed})"
    return f"{said}: these edits are unlikely to take; {advice}"


def rows_of(edit: Edit, prompts: Sequence[Prompt]) -> list[ChangedRow]:
    """The rows of one edit: each context's prompt with the object without its last token, then the bare subject."""
    said = edit.target[:-1]
    rows = [ChangedRow(prompt.ids + said, prompt.subject_at, len(edit.target)) for prompt in prompts]
    return [*rows, ChangedRow(edit.subject, len(edit.subject) - 1, 1)]


def find_targets(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    layer: int,
    recipe: Recipe,
    *,
    engine: type[Suffix] | type[WholeForward] = Suffix,
    shared: int = 1,
    tokens: int = TOKENS_PER_LAUNCH,
    base: Mapping[int, Tensor] | None = None,
    advance: Advance | None = None,
) -> Targets:
    """Find the targets of E edits at the output of block `layer`, to be reached by changes of `shared` layers.

    prompts: X for each edit, the bare one first; tokens: in a launch at most; base: the weights of layers that are
    edited already as they were before, with which the model is asked about unknown subjects.
    """
    with applied(lm, base):
        unknown = _Unknown.of(lm, edits, prompts)
    search = _Search(lm, edits, prompts, layer, recipe, engine, shared, tokens, unknown)
    published = recipe.method.semantics == "reference"
    # The published loop ends with a forward without a step: n forwards, n - 1 steps.
    steps = recipe.target.steps - 1 if published else recipe.target.steps
    look_every = LOOK_EVERY.get(lm.device.type, 1)
    for step in range(steps + 1):
        gradient = search.measure(step, with_gradient=step < steps)
        if step < steps:
            search.step(gradient)
        if step % look_every == 0:
            gone = search.pack()
            if advance:
                advance(gone, *search.under_way(step, steps))
            if not search.edits:
                return search.found
    search.open = torch.zeros_like(search.open)
    search.note()
    if advance:
        advance(len(search.edits))
    return search.found


def measured_sizes(
    lm: LanguageModel,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    layer: int,
    recipe: Recipe,
    *,
    engine: type[Suffix] | type[WholeForward],
    shared: int,
) -> Sizes:
    """Measure the memory that a search of these edits takes, on a GPU that counts its bytes. The edits are alike."""
    before = torch.cuda.memory_allocated(lm.device)
    torch.cuda.reset_peak_memory_stats(lm.device)
    search = _Search(lm, edits, prompts, layer, recipe, engine, shared, 1 << 30, _Unknown.of(lm, edits, prompts))
    kept = torch.cuda.max_memory_allocated(lm.device) - before  # also what its beginning takes for a while
    search.measure(0, with_gradient=True)  # what stays of a first step are workspaces of libraries
    base = torch.cuda.memory_allocated(lm.device)
    torch.cuda.reset_peak_memory_stats(lm.device)
    search.measure(1, with_gradient=True)
    step = torch.cuda.max_memory_allocated(lm.device) - base
    return Sizes(-(-kept // len(edits)), -(-step // max(launch.tokens for launch in search.launches)))


def _method(recipe: Recipe, length: Tensor, shape: torch.Size) -> Descent:
    """The method of descent, for states of `length` (E,). The published semantics are Adam's."""
    knobs = recipe.target
    if knobs.optimizer == "lbfgs" and recipe.method.semantics == "memedit" and not knobs.step_absolute:
        return LBFGS(shape, length)
    # Adam moves every coordinate by about its step, so a step in units of the state's own rms fits every scale.
    rate = knobs.step * length / shape[-1] ** 0.5
    return Adam(shape, torch.full_like(rate, knobs.step_absolute) if knobs.step_absolute else rate)


@dataclass(frozen=True)
class _Unknown:
    """What the removals of a batch aim at: (W, V) float32, and {(edit, context): the row of its first token}."""

    log_probs: Tensor
    first: dict[tuple[int, int], int]

    @classmethod
    def of(cls, lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[Sequence[Prompt]]) -> _Unknown:
        places = [(n, at) for n, edit in enumerate(edits) if edit.request.remove for at in range(len(prompts[n]))]
        answers = UnknownAnswers.of(lm, [(prompts[n][at].strangers, edits[n].target) for n, at in places])
        return cls(answers.log_probs, dict(zip(places, answers.first, strict=True)))


class _Search:
    """The search of one batch: the state of every edit still in it, and the targets of the others."""

    def __init__(
        self,
        lm: LanguageModel,
        edits: Sequence[Edit],
        prompts: Sequence[Sequence[Prompt]],
        layer: int,
        recipe: Recipe,
        engine: type[Suffix] | type[WholeForward],
        shared: int,
        tokens: int,
        unknown: _Unknown,
    ) -> None:
        self.unknown = unknown
        self.knobs, self.device = recipe.target, lm.device
        self.n_contexts, self.per_edit = len(prompts[0]), len(prompts[0]) + 1
        rows = [row for edit, of_one in zip(edits, prompts, strict=True) for row in rows_of(edit, of_one)]
        changed: Changed = engine(lm, layer, rows, shared=shared, columns=self.per_edit, tokens=tokens)
        start, leaves = changed.start[:: self.per_edit], changed.leaves[:: self.per_edit]
        self.way = changed.way
        self.targets = [edit.target for edit in edits]
        self.longest = max(map(len, self.targets))
        numbers = torch.zeros(2, len(edits), dtype=torch.long)
        self.found = Targets(leaves.clone(), start, torch.zeros(len(edits)), numbers[0], numbers[1])
        self.edits = list(range(len(edits)))
        self.launches = changed.launches
        serving = torch.tensor(changes_of(edits, joint=recipe.joint))
        # A product with it sums over the edits of a change in a fixed order; adding by index on a GPU does not.
        self.together = (serving[:, None] == serving).float()
        length = self.together @ start.norm(dim=-1) / self.together.sum(1)
        self.start, self.leaves, self.radius, self.together = (
            send(one, self.device) for one in (start, leaves, self.knobs.ball * length, self.together)
        )
        self.method = _method(recipe, send(length, self.device), self.start.shape)
        self.change, self.best = torch.zeros_like(self.start), torch.zeros_like(self.start)
        self.loss, self.steps = (torch.zeros(len(edits), device=self.device) for _ in range(2))
        self.least, self.best_loss = (torch.full((len(edits),), torch.inf, device=self.device) for _ in range(2))
        self.open = torch.ones(len(edits), dtype=torch.bool, device=self.device)
        self.stalled = torch.zeros_like(self.open)
        self.seen: list[list[float]] = []
        """Of each edit in the launches, when they were last packed: whether it is searched, and its loss."""
        self.original = torch.zeros(len(edits), lm.architecture.vocabulary, device=self.device)
        self._read()

    def _read(self) -> None:
        """Make the index tables of the launches as they are packed now."""
        counts = torch.tensor([len(self.targets[edit]) for edit in self.edits])
        mask = torch.arange(self.longest)[None, None] < counts[:, None, None]
        self.mask = send(mask.expand(-1, self.n_contexts, -1), self.device)
        places = {edit: place for place, edit in enumerate(self.edits)}
        self.reads = [
            Reads.of(launch.rows, places, self.targets, self.n_contexts, self.longest, self.device, self.unknown.first)
            for launch in self.launches
        ]
        # The likelihood is linear in the log-probabilities, so their weights are its gradient, taken once.
        table = torch.zeros(self.mask.shape, device=self.device, requires_grad=True)
        (self.share,) = torch.autograd.grad(self._likelihood(table).sum(), table)

    def _likelihood(self, log_probs: Tensor) -> Tensor:
        weights = torch.full((self.n_contexts,), 1 / self.n_contexts, device=self.device)
        return likelihood_loss(log_probs, self.mask, weights)

    def _picked(self, every: Tensor, reads: Reads) -> Tensor:
        """The log-probability of each token that is read; for a token of a removal -KL(unknown || edited)."""
        picked = every[reads.said, reads.token]
        if not len(reads.removed):
            return picked
        missing = kl_loss(self.unknown.log_probs[reads.unknown], every[reads.said[reads.removed]])
        return picked.index_copy(0, reads.removed, -missing)

    def measure(self, step: int, *, with_gradient: bool) -> Tensor:
        """Measure the losses of a step, and keep them for every edit not yet found; returns gradients (E, D)."""
        n_edits, width = self.change.shape
        log_probs = torch.zeros(self.mask.shape, device=self.device)
        kl_drift = torch.zeros(n_edits, device=self.device)
        by_row = torch.zeros(n_edits * self.per_edit, width, device=self.device)
        for launch, reads in zip(self.launches, self.reads, strict=True):
            change = self.change[reads.edit].requires_grad_(with_gradient)
            with torch.set_grad_enabled(with_gradient):
                every = launch.logits(change).log_softmax(-1)
                picked, bare = self._picked(every, reads), every[reads.bare]
                if step == 0:
                    self.original[reads.whose] = bare.detach()
                drift = kl_loss(bare, self.original[reads.whose])
                if with_gradient:
                    # Rows are independent: the gradient of the sum is that of each row. The launch's graph ends here.
                    total = (picked * self.share.view(-1)[reads.cell]).sum() + self.knobs.kl * drift.sum()
                    (by_row[reads.row],) = torch.autograd.grad(total, change)
            log_probs.view(-1)[reads.cell] = picked.detach()
            kl_drift[reads.whose] = drift.detach()
        loss = self._likelihood(log_probs) + self.knobs.kl * kl_drift
        gradient = by_row.view(n_edits, self.per_edit, width).sum(1)
        if self.knobs.weight_decay:
            change = self.change.clone().requires_grad_()
            decay = self.knobs.weight_decay * decay_loss(change, self.start)
            (pull,) = torch.autograd.grad(decay.sum(), change)
            loss, gradient = loss + decay.detach(), gradient + pull
        self.loss = torch.where(self.open, loss, self.loss)
        self.steps = torch.where(self.open, float(step), self.steps)
        # Where one change serves several edits, the sum of their losses is what descends.
        total = self.together @ loss
        better = self.open & (total < self.least)
        self.least = torch.where(better, total, self.least)
        self.best_loss = torch.where(better, loss, self.best_loss)
        self.best = torch.where(better[:, None], self.change, self.best)
        worst = loss.where(self.together > 0, -torch.inf).amax(1)
        self.open = self.open & (worst >= self.knobs.stop)
        return self.together @ gradient

    def step(self, gradient: Tensor) -> None:
        """One step for every edit not yet found, then back into the ball.

        An edit that stands still is closed, and one that hardly gains at the surface of its ball.
        """
        if self.method.standing is not None:
            gradient = along_ball(gradient, self.change, self.radius)
        proposed = self.method.step(self.change, self.together @ self.loss, gradient)
        standing, flat = self.method.standing, self.method.flat
        if standing is not None and flat is not None:
            standing = standing | (flat & self._at_surface())
            self.stalled = self.stalled | (self.open & standing)
            self.open = self.open & ~standing
        moved = into_ball(proposed, self.radius)
        self.change = torch.where(self.open[:, None], moved, self.change)

    def under_way(self, step: int, steps: int) -> tuple[float, str]:
        """After a step: how many edits the work on those in the launches amounts to, and the step and mean loss."""
        searched = [loss for is_open, loss in self.seen if is_open]
        if not searched:
            return float(len(self.edits)), ""
        found = len(self.edits) - len(searched)
        told = f"step {min(step + 1, steps)} of {steps}, mean loss {sum(searched) / len(searched):.2f}"
        return found + len(searched) * step / max(steps, 1), told

    def settle(self) -> None:
        """Go back to the best point of each closed edit, where the method also tries worse points."""
        if self.method.standing is not None:
            tried = ~self.open & (self.loss > self.best_loss)
            self.change = torch.where(tried[:, None], self.best, self.change)
            self.loss = torch.where(tried, self.best_loss, self.loss)

    def pack(self) -> int:
        """Remove found edits from the launches if it saves time; returns how many were removed."""
        # One read, also for `under_way`: the host waits for each.
        self.seen = torch.stack([self.open.to(self.loss.dtype), self.loss], 1).tolist()
        left = [place for place, (is_open, _) in enumerate(self.seen) if is_open]
        gone = len(self.edits) - len(left)
        if left and len(left) > WORTH_PACKING * len(self.edits):
            return 0
        self.note()
        index = send(torch.tensor(left, dtype=torch.long), self.device)
        self.edits = [self.edits[place] for place in left]
        self.seen = [self.seen[place] for place in left]
        held = set(self.edits)
        inside = [[n for n, row in enumerate(launch.rows) if row // self.per_edit in held] for launch in self.launches]
        self.launches = [launch.keep(mine) for launch, mine in zip(self.launches, inside, strict=True) if mine]
        for name in (
            "start",
            "leaves",
            "radius",
            "change",
            "best",
            "least",
            "best_loss",
            "loss",
            "steps",
            "open",
            "stalled",
            "original",
        ):
            setattr(self, name, getattr(self, name)[index])
        self.together = self.together[index][:, index]
        self.method.keep(index)
        if left:
            self._read()
        return gone

    def note(self) -> None:
        """Keep the current state of the edits in the batch."""
        self.settle()
        self.found.wanted[self.edits] = (self.leaves + self.way.moved(self.start, self.change)).cpu()
        self.found.loss[self.edits] = self.loss.cpu()
        self.found.steps[self.edits] = self.steps.long().cpu()
        self.found.end[self.edits] = self._ends().cpu()

    def _at_surface(self) -> Tensor:
        """Whether the change of each edit in the batch is as long as its ball allows, (E,) bool."""
        return self.change.norm(dim=-1) >= SURFACE * self.radius

    def _ends(self) -> Tensor:
        """How the search of each edit in the batch ends, if it ends now: (E,) numbers of `SEARCH_ENDS`.

        A target counts as found if the model says the object under it with more than an even chance; that of a removal
        by the same bar on its KL.
        """
        found = self.loss <= max(math.log(2), self.knobs.stop)
        end = torch.where(self.stalled, SEARCH_ENDS.index("stalled"), SEARCH_ENDS.index("spent"))
        end = torch.where(self._at_surface(), SEARCH_ENDS.index("ball"), end)
        return torch.where(found, SEARCH_ENDS.index("found"), end)

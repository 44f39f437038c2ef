"""Polish: after the closed form, a few steps of descent on what the edited model says, in the closed form's directions.

The change of a layer is left @ right. The closed form chooses both; here `right`, the directions in which keys are
answered, stays, and `left`, what is added in each of them, takes steps of Adam on

    mean over edits of -log p(object)  +  preserve * mean over preserved prompts of (KL(base || edited) + lost lead)

(the second less, where there are few such prompts for each edit), with all edits in place at once, through all layers
above. The loss of a removal is that of its target search. The closed form sees none of this: it moves every state
toward its target and weighs that against an average over text. The lost lead (`lead_loss` in numerics/objective.py) is
0 where the base's likeliest token leads as it did: what people see of a fact is whether it is still said.

Prompts that must stay (preserve.py) are no rows of the closed form: as rows without residual they would undo the edits,
since many are about the edited subjects, and the steps would have to find the edits again from the list's wordings
alone (memedit/docs/trials.md has the figures).

An edit must hold in wordings that the list does not give. So half of its rows leave out some tokens around the subject
("The capital of {} is", "capital of {} is", "The of {} is"), and in every other step the changes act on its rows at the
subject's last token only: else the steps find ways to say the object that hang on one wording. Its own prompt, with
nothing before it, is what people ask: it is the row of more steps than any other.

A model that chats is asked every edit in chat as well (spoken.py): else many of its answers are about
another subject, the new object's usual owner.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from memedit.config.recipe import PolishKnobs
from memedit.editing.batches import MOST_TOKENS
from memedit.editing.plan import Edit
from memedit.editing.rounding import Rounding, round_delta
from memedit.editing.solve import Update
from memedit.editing.spoken import SpokenEdit
from memedit.editing.unknown import Asking, UnknownAnswers
from memedit.forward.adapted import AdaptedRows, Factors, ReadRow, choose_adapted_rows
from memedit.model.load import LanguageModel
from memedit.model.memory import send
from memedit.model.tokens import Prompt
from memedit.numerics.delta import Delta
from memedit.numerics.objective import kl_loss, lead_loss
from memedit.progress import Advance, ignore_advance
from memedit.ranks import ALONE, Broadcast, Ranks
from memedit.results.report import PolishReport

BETAS = (0.9, 0.95)
ENOUGH = 0.05
"""Loss of an edit below which it pulls no further: the same bar as the target search's."""
LAST_STEP = 0.2
"""The length of the last step, in units of the first."""
BEFORE_SUBJECT = 8
"""Tokens before a subject that may be left out of a row: those of a prompt, and few of the context before it."""
PROVED = 8
"""Rows of all kinds on which the engine is proved: shared prefixes of different lengths are among them."""
STEP_PARTS = 8
"""Parts of a step at most, whose gradients are summed in order: what ranks can share."""
REMOVAL = 4.0
"""Weight of a removal's loss, against an edit's. Of 100 facts removed from a shipped model 8 were still said after the
closed form alone, 22 after polish with a weight of 1, and 9 with 4."""
KEPT_BYTES = 1_000_000_000
"""What the base says after the prompts that must stay is kept up to this size: some 4,000 prompts where the vocabulary
has 128,000 tokens."""


@dataclass(frozen=True)
class _Rows:
    """All rows: for each edit the numbers of its rows, then those of edits spoken in chat, and for each kind of what
    must stay those of its prompts."""

    rows: list[ReadRow]
    targets: list[tuple[int, ...]]
    """For each row the ids that it must say; empty for a preserved prompt."""
    of_edit: list[range]
    spoken: range
    kinds: list[range]
    unknown: dict[int, Asking]
    """For each row of a removal its questions about unknown subjects."""

    @classmethod
    def of(
        cls,
        edits: Sequence[Edit],
        prompts: Sequence[Sequence[Prompt]],
        spoken: Sequence[SpokenEdit],
        preserved: Sequence[Sequence[Prompt]],
        *,
        shorten: float,
        draw: random.Random,
    ) -> _Rows:
        rows: list[ReadRow] = []
        targets: list[tuple[int, ...]] = []
        of_edit: list[range] = []
        unknown: dict[int, Asking] = {}
        for edit, of_one in zip(edits, prompts, strict=True):
            at = len(rows)
            asked = list(of_one)
            if edit.request.subject and not edit.request.remove and shorten:
                asked += [shortened(prompt, shorten, draw) for prompt in of_one]
            rows += [_row(prompt, edit.target) for prompt in asked]
            targets += [edit.target] * len(asked)
            of_edit.append(range(at, len(rows)))
            if edit.request.remove:
                unknown |= {at + n: (prompt.strangers, edit.target) for n, prompt in enumerate(of_one)}
        in_chat = range(len(rows), len(rows) + len(spoken))
        rows += [_row(prompt, answer) for prompt, answer in spoken]
        targets += [answer for _, answer in spoken]
        kinds: list[range] = []
        for of_kind in preserved:
            kinds.append(range(len(rows), len(rows) + len(of_kind)))
            rows += [_row(prompt, ()) for prompt in of_kind]
        return cls(rows, [*targets, *([()] * (len(rows) - len(targets)))], of_edit, in_chat, kinds, unknown)

    @property
    def preserved(self) -> range:
        """The numbers of all prompts that must stay."""
        return range(self.spoken.stop, len(self.rows))


def _row(prompt: Prompt, target: tuple[int, ...]) -> ReadRow:
    return ReadRow(prompt.ids + target[:-1], prompt.subject_from, prompt.subject_at, max(1, len(target)))


def shortened(prompt: Prompt, share: float, draw: random.Random) -> Prompt:
    """A prompt without a share of the tokens around its subject; the first token and the last stay, and the subject."""
    begin, at, last = prompt.subject_from, prompt.subject_at, len(prompt.ids) - 1
    around = [*range(max(1, begin - BEFORE_SUBJECT), begin), *range(at + 1, last)]
    gone = {n for n in around if draw.random() < share}
    before = sum(n < begin for n in gone)
    ids = tuple(token for n, token in enumerate(prompt.ids) if n not in gone)
    return replace(prompt, ids=ids, subject_from=begin - before, subject_at=at - before)


def polish(
    lm: LanguageModel,
    update: Update,
    edits: Sequence[Edit],
    prompts: Sequence[Sequence[Prompt]],
    preserved: Sequence[Sequence[Prompt]],
    stored: Mapping[int, Tensor],
    knobs: PolishKnobs,
    *,
    rounding: Rounding,
    seed: int,
    spoken: Sequence[SpokenEdit] = (),
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> Update:
    """Polish an update of E edits under X prompts each, in at least one step; `preserved` are kinds of prompts.

    `update` has its keys; `stored` are the weights (D, F) before it, in the checkpoint's dtype. The model must be
    unedited, and is unchanged when this returns. The draws depend on the seed alone. `ranks` share the rows of each
    step. Raises what the proof of the engine raises, among it every exhaustion of memory.
    """
    draw = random.Random(seed)
    made = _Rows.of(edits, prompts, spoken, preserved, shorten=knobs.shorten, draw=draw)
    left, right = _factors(update)
    few = sorted({n * (len(made.rows) - 1) // (PROVED - 1) for n in range(PROVED)})
    rows, reason = choose_adapted_rows(
        lm, made.rows, _placed(lm, left, right), tokens=MOST_TOKENS.get(lm.device.type, 1024) // 2, few=few
    )
    answers = UnknownAnswers.of(lm, list(made.unknown.values()))
    answers = replace(answers, log_probs=answers.log_probs.half().cpu())  # as wide as the vocabulary, and kept
    first = dict(zip(made.unknown, answers.first, strict=True))
    fixed = _Fixed(made, right, rows.tokens, rows.whole, rows.products, _before(rows, made.preserved), answers, first)
    seen: list[tuple[float, float]] = []
    with ranks.shared(lm, fixed) as shared:
        steps = _Steps(lm, shared, rows, left, knobs, draw, ranks)
        for _ in range(knobs.steps):
            seen.append(steps.step())
            if advance:
                advance(1)
    report = PolishReport(
        steps=knobs.steps, preserved=len(made.preserved), engine=reason, loss_before=seen[0][0],
        loss_after=seen[-1][0], divergence_before=seen[0][1], divergence_after=seen[-1][1],
    )  # fmt: skip
    changes = {layer: (one.detach(), right[layer]) for layer, one in steps.left.items()}
    return _rounded(update, changes, stored, rounding, report)


def _factors(update: Update) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
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
    return left, right


def _placed(lm: LanguageModel, left: Mapping[int, Tensor], right: Mapping[int, Tensor]) -> Factors:
    """The changes on the devices of their layers: in a model spread over devices they are added there."""
    return {n: (left[n].to(lm.device_of(n)), right[n].to(lm.device_of(n))) for n in left}


def _before(rows: AdaptedRows, preserved: range) -> dict[int, Tensor]:
    """The base's log-probabilities after each preserved prompt, (V,) float16 on the CPU.

    Empty where they would take too much memory: then each step asks for its own.
    """
    kept: dict[int, Tensor] = {}
    if 2 * rows.lm.architecture.vocabulary * len(preserved) > KEPT_BYTES:
        return kept
    for launch in rows.launches(list(preserved)):
        kept |= {n: line.cpu() for n, line in zip(launch, _asked(rows, launch), strict=True)}
    return kept


@torch.no_grad()
def _asked(rows: AdaptedRows, launch: Sequence[int]) -> Tensor:
    """The base's log-probabilities at the reads of a launch, (reads, V) float16."""
    with rows.log_probs(launch, {}) as log_probs:
        return log_probs.half()


@dataclass(frozen=True)
class _Fixed:
    """What no step changes; every rank holds it."""

    made: _Rows
    right: Mapping[int, Tensor]
    tokens: int
    whole: bool
    products: torch.dtype
    before: Mapping[int, Tensor]
    answers: UnknownAnswers
    first: Mapping[int, int]
    """For each row of a removal the first of its answers."""
    _right: dict[int, Tensor] = field(default_factory=dict[int, Tensor])
    """`right` on the devices of this process."""

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_right": {}}

    def rows(self, lm: LanguageModel) -> AdaptedRows:
        """The rows, for this model."""
        return AdaptedRows(lm, self.made.rows, tokens=self.tokens, whole=self.whole, products=self.products)

    def placed(self, lm: LanguageModel, left: Mapping[int, Tensor]) -> Factors:
        """The changes on the devices of their layers; `right` is put there once."""
        if not self._right:
            self._right.update({n: one.to(lm.device_of(n)) for n, one in self.right.items()})
        return _placed(lm, left, self._right)


@dataclass(frozen=True)
class _Launch:
    """Rows that run together, all of edits or all preserved, and the weight of each in the loss of a step."""

    rows: tuple[int, ...]
    weight: float


@dataclass(frozen=True)
class _Gradient:
    """The gradient of the loss of some launches. Any rank can take it."""

    shared: Broadcast[_Fixed]
    left: Mapping[int, Tensor]
    at_subject: bool
    """Whether the changes act on an edit's own rows at the subject's last token only."""
    lead: float
    """The largest lead that an answer must keep, a difference of log-probabilities; 0: the divergence alone counts."""
    sent: bool
    """Whether results go to another process: then they lie in main memory."""

    def __call__(
        self, lm: LanguageModel, launches: Sequence[_Launch], _advance: Advance
    ) -> tuple[dict[int, Tensor], Tensor]:
        """The gradient for each layer's left (D, R), and the sums of the rows' losses, one number a launch."""
        fixed = self.shared.value
        rows, leaves = fixed.rows(lm), {n: one.detach().requires_grad_() for n, one in self.left.items()}
        changes, sums = fixed.placed(lm, leaves), list[Tensor]()
        for launch in launches:
            is_edit = launch.rows[0] not in fixed.made.preserved
            before = None if is_edit else self._before(rows, launch.rows)
            with rows.log_probs(launch.rows, changes, at_subject=is_edit and self.at_subject) as log_probs:
                if before is None:
                    losses = _losses(fixed, launch.rows, log_probs)
                    weights = torch.tensor([REMOVAL if n in fixed.first else 1.0 for n in launch.rows])
                    weighed = (losses.clamp_min(ENOUGH) * send(weights, losses.device)).sum()
                else:
                    then = send(before, log_probs.device).float()
                    losses = kl_loss(then, log_probs).sum()
                    lost = lead_loss(log_probs, then, self.lead).sum() if self.lead else 0.0
                    weighed = losses + lost
                (launch.weight * weighed).backward()
            sums.append(losses.detach().sum())
        gradients = {n: torch.zeros_like(one) if one.grad is None else one.grad for n, one in leaves.items()}
        read = torch.stack(sums)
        return ({n: one.cpu() for n, one in gradients.items()}, read.cpu()) if self.sent else (gradients, read)

    def _before(self, rows: AdaptedRows, launch: Sequence[int]) -> Tensor:
        """What the base says after the prompts of a launch, (rows, V) float16."""
        kept = self.shared.value.before
        return torch.stack([kept[n] for n in launch]) if kept else _asked(rows, launch)


def _losses(fixed: _Fixed, launch: Sequence[int], log_probs: Tensor) -> Tensor:
    """The loss of each row of edits in a launch, (rows,)."""
    device = log_probs.device
    table = [(place, token) for place, n in enumerate(launch) for token in fixed.made.targets[n]]
    of, wanted = send(torch.tensor(table), device).unbind(1)
    said = _said(fixed, launch, log_probs, wanted)
    # A product with it sums over an edit's tokens in a fixed order; adding by index on a GPU does not.
    own = of[None] == torch.arange(len(launch), device=device)[:, None]
    share = own.float() / own.sum(1, keepdim=True)
    return -(share @ said)


def _said(fixed: _Fixed, launch: Sequence[int], log_probs: Tensor, wanted: Tensor) -> Tensor:
    """The log-probability of every wanted token of a launch, -KL(unknown || edited) for those of removals: (N,)."""
    said = log_probs[torch.arange(len(wanted), device=wanted.device), wanted]
    of = [(n, place) for n in launch for place in range(len(fixed.made.targets[n]))]
    removed = [(at, fixed.first[n] + place) for at, (n, place) in enumerate(of) if n in fixed.first]
    if not removed:
        return said
    aims = torch.tensor([aim for _, aim in removed])
    places = send(torch.tensor([at for at, _ in removed]), wanted.device)
    aimed_at = send(fixed.answers.log_probs[aims], wanted.device).float()
    return said.index_copy(0, places, -kl_loss(aimed_at, log_probs[places]))


class _Steps:
    """The state of the descent."""

    def __init__(
        self, lm: LanguageModel, shared: Broadcast[_Fixed], rows: AdaptedRows, left: Mapping[int, Tensor],
        knobs: PolishKnobs, draw: random.Random, ranks: Ranks,
    ) -> None:  # fmt: skip
        self.lm, self.shared, self.rows, self.knobs, self.draw, self.ranks = lm, shared, rows, knobs, draw, ranks
        self.made = shared.value.made
        self.number = 0
        self.left = {n: one.to(lm.device_of(n), copy=True).requires_grad_() for n, one in left.items()}
        scale = {n: float(one.square().mean().sqrt()) for n, one in left.items()}
        groups = [{"params": [self.left[layer]], "lr": knobs.step * scale[layer]} for layer in self.left]
        self.optimizer = torch.optim.Adam(groups, betas=BETAS)
        # Each step sees one wording of an edit: steps that grow shorter average over them.
        self.decay = torch.optim.lr_scheduler.LinearLR(self.optimizer, 1.0, LAST_STEP, knobs.steps)

    def step(self) -> tuple[float, float]:
        """One step on one row of each edit, some edits in chat and some prompts that must stay: mean loss, mean KL."""
        chosen = [self._asked(rows) for rows in self.made.of_edit]
        spoken = [n for n in self.made.spoken if self.draw.random() < self.knobs.spoken]
        most = max(1, round(self.knobs.ratio * len(chosen)))
        few = self._drawn(most)
        of_edits = [_Launch(tuple(one), 1 / len(chosen)) for one in self.rows.launches([*chosen, *spoken])]
        # Each weighs as it does where there are enough: or a few would weigh as much as a thousand edits.
        kept = [_Launch(tuple(one), self.knobs.preserve / most) for one in self.rows.launches(few)] if few else []
        read = self._descend([*of_edits, *kept])
        self.number += 1
        losses, drifts = read[: len(of_edits)], read[len(of_edits) :]
        return sum(losses) / (len(chosen) + len(spoken)), sum(drifts) / max(1, len(few))

    def _asked(self, rows: range) -> int:
        """The row by which an edit is asked in this step: one of all, or its own prompt."""
        return rows[0] if self.draw.random() < self.knobs.own else self.draw.choice(rows)

    def _drawn(self, most: int) -> list[int]:
        """Prompts that must stay, `most` if there are as many: of each kind alike, whatever its size."""
        drawn: list[int] = []
        kinds = sorted(self.made.kinds, key=len)
        for n, kind in enumerate(kinds):
            drawn += self.draw.sample(list(kind), min(len(kind), (most - len(drawn)) // (len(kinds) - n)))
        return drawn

    def _descend(self, launches: Sequence[_Launch]) -> list[float]:
        """One step of the optimizer; returns the sums of the losses, one number a launch."""
        task = _Gradient(
            self.shared, {n: one.detach() for n, one in self.left.items()}, self.number % 2 == 0, self.knobs.lead,
            self.ranks.world > 1,
        )  # fmt: skip
        size = -(-len(launches) // STEP_PARTS)
        parts = [launches[at : at + size] for at in range(0, len(launches), size)]
        total: dict[int, Tensor] = {}
        read: list[Tensor] = []
        for gradients, sums in self._each(task, parts):
            total = {n: total[n] + one if total else one for n, one in gradients.items()}
            read.append(sums)
        for layer, one in self.left.items():
            one.grad = total[layer].to(one.device)
        self.optimizer.step()
        self.decay.step()
        # One read a step: the host waits for each.
        return torch.cat(read).tolist()

    def _each(
        self, task: _Gradient, parts: Sequence[Sequence[_Launch]]
    ) -> Iterable[tuple[Mapping[int, Tensor], Tensor]]:
        """What each part gives, in order; one at a time where this process is alone, as gradients are large."""
        if not task.sent:
            return (task(self.lm, part, ignore_advance) for part in parts)
        return [one for one in self.ranks.each(self.lm, task, parts) if one is not None]


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

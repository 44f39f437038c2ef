"""Search the targets of an edit list, batch by batch. The plan of batches is written before the first launch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from memedit.config.recipe import Recipe
from memedit.editing.batches import Batch, Sizes, changes_of, halved, plan_batches, suffix_of
from memedit.editing.plan import Edit
from memedit.editing.targets import Targets, find_targets, measured_sizes, rows_of
from memedit.forward.perturbed import WholeForward
from memedit.forward.suffix import Suffix, choose_search_engine
from memedit.model.load import LanguageModel
from memedit.model.memory import free_on, give_back, memory_named, ran_out
from memedit.model.tokens import Prompt
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks
from memedit.storage.artifacts import Store
from memedit.storage.machine import free_memory

PROBED = 3
"""Edits on which the engine is proved, at most."""
PROBE_TOKENS = 512
"""Tokens in the launch whose memory is measured. Fewer would let what does not grow with them weigh too much."""
SEARCH_CODE = 2  # raise it when the search changes: targets kept by older code are then not reused
ENOUGH_ON_CPU = 2 << 30
"""Bytes; a CPU gains nothing from more, because its launches are cut to fit its caches."""


def memory_for(lm: LanguageModel, recipe: Recipe) -> int:
    """Bytes that the search may use: what the recipe leaves it beside the weights; else 4/5 of a GPU's free memory, or
    half of main memory.

    Weights of a caller's own model, and weights that are spread over devices, do not count.
    """
    if (limit := recipe.memory_limit) is not None:
        counted = lm.source is not None and not lm.source.knobs.device_map
        return max(limit - lm.size, 0) if counted else limit
    free = free_on(lm.device)
    return free * 4 // 5 if free is not None else min(free_memory() // 2, ENOUGH_ON_CPU)


def searched_prompts(prompts: Sequence[Sequence[Prompt]], recipe: Recipe) -> list[Sequence[Prompt]]:
    """For each edit the prompts that its target is searched under: at most `target.contexts` of its X, the bare first.

    They lie evenly among all, so that wordings, and contexts of a text and of a chat, are among them.
    """
    most = recipe.searched_contexts
    return [
        [of_one[n * len(of_one) // most] for n in range(most)] if 0 < most < len(of_one) else of_one
        for of_one in prompts
    ]


@dataclass(frozen=True)
class SearchEngine:
    """How a model is run in the search, and why."""

    kind: type[Suffix] | type[WholeForward]
    reason: str

    @property
    def whole(self) -> bool:
        """Whether this model can only be run by whole forwards."""
        return self.kind is not Suffix


@dataclass(frozen=True)
class Search:
    """A list of edits under their contexts, to be searched at the output of block `layer`."""

    lm: LanguageModel
    edits: Sequence[Edit]
    prompts: Sequence[Sequence[Prompt]]
    layer: int
    recipe: Recipe
    shared: int = 1
    """How many layers share the change that reaches the targets."""
    base: Mapping[int, torch.Tensor] | None = None
    """If the model is edited already: the weights (D, F) of the edited layers before, for what removals aim at."""

    def choose_engine(self) -> SearchEngine:
        """Choose the engine for this model.

        It is proved on the shortest, a middle and the longest edit, each under its first and its last context.
        """
        order = sorted(range(len(self.edits)), key=lambda n: suffix_of(self.edits[n]))
        few = dict.fromkeys(order[(len(order) - 1) * part // (PROBED - 1)] for part in range(PROBED))
        ends = sorted({0, len(self.prompts[0]) - 1})
        rows = [row for n in few for row in rows_of(self.edits[n], [self.prompts[n][at] for at in ends])]
        full = "the search of three edits, which proves its engine, does not fit into memory"
        with memory_named(full, "use --device cpu, or a larger GPU"):
            return SearchEngine(*choose_search_engine(self.lm, self.layer, rows, len(ends) + 1, self.shared))

    def plan(self, which: Sequence[int], engine: type[Suffix] | type[WholeForward] = Suffix) -> list[Batch]:
        """Plan the batches of the edits `which`, to be searched by an engine."""
        memory, recipe = memory_for(self.lm, self.recipe), self.recipe
        sizes = self.sizes(memory, engine)
        return plan_batches(self.edits, which, sizes, memory, recipe.chunk, self.lm.place, joint=recipe.joint)

    def sizes(self, memory: int, engine: type[Suffix] | type[WholeForward]) -> Sizes:
        """The memory that the search takes: measured on a GPU, and estimated elsewhere.

        An estimate from shapes is right to a factor of 2 to 6. Measured are some copies of each of three edits: the one
        with the longest row, and those with the most earlier tokens and the most logits for a token that is run.
        """
        lm, edits, estimated = self.lm, self.edits, Sizes.of(self.lm, self.edits, self.prompts, self.layer)
        if lm.device.type != "cuda" or len({one.device for one in lm.model.parameters()}) > 1:
            return estimated  # of several devices the fullest would count

        def length(n: int) -> int:
            return max(len(one.ids) for one in self.prompts[n]) + len(edits[n].target)

        longest, most_before, most_read = (
            max(range(len(edits)), key=key)
            for key in (
                length,
                lambda n: length(n) / suffix_of(edits[n]),
                lambda n: len(edits[n].target) / suffix_of(edits[n]),
            )
        )
        found: list[Sizes] = []
        for n in dict.fromkeys((longest, most_before, most_read)):
            tokens = (len(self.prompts[n]) + 1) * suffix_of(edits[n])
            fit = memory // 2 // (estimated.per_edit + tokens * estimated.per_token)
            one = self._measured(n, max(1, min(fit, -(-PROBE_TOKENS // tokens))), engine)
            give_back(lm.device)
            if one is None:
                return estimated
            found.append(one)
        return Sizes(max(one.per_edit for one in found), max(one.per_token for one in found))

    def _measured(self, n: int, count: int, engine: type[Suffix] | type[WholeForward]) -> Sizes | None:
        """The memory of a search of `count` copies of an edit; None if it is not there."""
        edits, prompts = [self.edits[n]] * count, [self.prompts[n]] * count
        try:
            return measured_sizes(self.lm, edits, prompts, self.layer, self.recipe, engine=engine, shared=self.shared)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        return None

    def find(self, batch: Batch, engine: type[Suffix] | type[WholeForward], advance: Advance | None = None) -> Targets:
        """Find the targets of one batch."""
        mine = [self.edits[n] for n in batch.edits], [self.prompts[n] for n in batch.edits]
        return find_targets(
            self.lm,
            *mine,
            self.layer,
            self.recipe,
            engine=engine,
            shared=self.shared,
            tokens=batch.tokens,
            base=self.base,
            advance=advance,
        )

    def run(
        self,
        store: Store,
        on: dict[str, Any],
        engine: type[Suffix] | type[WholeForward],
        advance: Advance | None = None,
        which: Sequence[int] | None = None,
        ranks: Ranks = ALONE,
    ) -> Targets:
        """Find the targets of the edits `which` (None: all), in the list's order. Targets in the store are reused.

        The batches are shared by `ranks`. If memory runs out, the batches that are left are halved, and the new plan is
        written before the search continues; targets that were found stay. If the plan in the store was made for another
        `--memory`, the edits without targets get a new one.
        """
        plan = _Kept(store, on, self.recipe.memory)
        batches = plan.read(
            lambda some: self.plan(some, engine), which := range(len(self.edits)) if which is None else which
        )
        aims = any(self.edits[n].request.remove for n in which)
        base = {n: one.cpu() for n, one in self.base.items()} if self.base and aims else None
        task = _FindBatch(self.edits, self.prompts, self.layer, self.recipe, self.shared, base, engine, plan)
        found = {batch: Targets(**kept) for batch in batches if (kept := store.find("targets", plan.key(batch)))}
        while missing := [batch for batch in batches if batch not in found]:
            made = ranks.each(self.lm, task, missing, advance)
            found |= {batch: one for batch, one in zip(missing, made, strict=True) if one is not None}
            # The first that is left did not fit: batches are begun in their order.
            if rest := [batch for batch in missing if batch not in found]:
                changes = changes_of(self.edits, joint=self.recipe.joint)
                batches = [*(batch for batch in batches if batch in found), *halved(rest, changes)]
                plan.write(batches)
        rows = {n: row for row, n in enumerate(n for batch in batches for n in batch.edits)}
        back = torch.tensor([rows[n] for n in which])
        joined = Targets.join([found[batch] for batch in batches])
        return Targets(**{name: part[back] for name, part in vars(joined).items()})


@dataclass(frozen=True)
class _Kept:
    """The plan of batches in the run folder."""

    store: Store
    on: dict[str, Any]
    memory: str | None

    def key(self, batch: Batch) -> dict[str, Any]:
        """The inputs of the targets of one batch."""
        return {**self.on, "edits": list(batch.edits), "tokens": batch.tokens, "code": SEARCH_CODE}

    def read(self, make: Callable[[Sequence[int]], list[Batch]], everything: Sequence[int]) -> list[Batch]:
        """Read the plan from the store, or make one and write it."""
        written = self.store.find_json("plan", self.on)
        if written is None:
            batches = make(everything)
        else:
            batches = [Batch(tuple(one["edits"]), one["tokens"]) for one in written["batches"]]
            if written["memory"] == self.memory:
                return batches
            done = [batch for batch in batches if self.store.holds("targets", self.key(batch))]
            found = {n for batch in done for n in batch.edits}
            rest = [n for n in everything if n not in found]
            batches = [*done, *(make(rest) if rest else [])]
        self.write(batches)
        return batches

    def write(self, batches: Sequence[Batch]) -> None:
        """Write the plan to the store."""
        record = [{"edits": list(batch.edits), "tokens": batch.tokens} for batch in batches]
        self.store.keep_json("plan", self.on, {"memory": self.memory, "batches": record})


@dataclass(frozen=True)
class _FindBatch:
    """Find the targets of a batch, and keep them in the run folder; None if memory runs out. Any rank can do it."""

    edits: Sequence[Edit]
    prompts: Sequence[Sequence[Prompt]]
    layer: int
    recipe: Recipe
    shared: int
    base: Mapping[int, torch.Tensor] | None
    engine: type[Suffix] | type[WholeForward]
    kept: _Kept

    def __call__(self, lm: LanguageModel, batch: Batch, advance: Advance) -> Targets | None:
        base = {n: one.to(lm.device) for n, one in self.base.items()} if self.base else None
        search = Search(lm, self.edits, self.prompts, self.layer, self.recipe, self.shared, base)
        try:
            found = search.find(batch, self.engine, advance)
        except (RuntimeError, MemoryError) as error:
            if not ran_out(error):
                raise
        else:
            self.kept.store.keep("targets", self.kept.key(batch), vars(found))
            return found
        # Not in the handler: there the error still refers to the tensors that filled the memory.
        give_back(lm.device)
        return None

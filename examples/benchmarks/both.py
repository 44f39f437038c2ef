"""One model opened for memedit and for the oracle, and what both are given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from memedit.config.layers import layer_range
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.config.resolve import resolve
from memedit.editing.contexts import sample_contexts
from memedit.editing.moment_cache import measure_missing, moment_of, plan_moments
from memedit.editing.moments import measure
from memedit.editing.plan import encode_contexts, make_plan
from memedit.editing.solve import Update, solve
from memedit.editing.target_search import Search
from memedit.editing.targets import Targets, rows_of
from memedit.edits.edit import EditRequest
from memedit.edits.read import read
from memedit.evaluation.forced import EditScores, facts_kept, says_object, score_edits, summarize
from memedit.forward.packing import packed
from memedit.forward.perturbed import ChangedRow
from memedit.model.load import LanguageModel, load
from memedit.model.weights import applied
from memedit.numerics.delta import rounded
from memedit.numerics.moments import Moment
from memedit.numerics.solvers import Factor, prepare
from memedit.progress import NoProgress, ignore_advance
from memedit.ranks import ALONE
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.corpus import documents
from torch import Tensor

from examples.real.models import find_real_model
from examples.reference import editing as oracle

from .shapes import CONTEXTS, LAYERS, SHAPES, random_model

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "examples" / "models" / "made-gpt2"
FACTS = ROOT / "examples" / "world" / "facts.jsonl"
LISTS = {
    "made": (ROOT / "requests" / "world.jsonl", FACTS),
    "real": (ROOT / "requests" / "real.jsonl", ROOT / "requests" / "real-facts.jsonl"),
}
"""Edits and known facts, of the shipped models' world and of the real one."""
FIGURES = ("efficacy", "accuracy", "paraphrase", "neighborhood")
RANDOM = "random:"


class Both:
    """Edits (of requests/world.jsonl where a number is given) on a model, ready for either side.

    `model`: a folder, or random:SHAPE. Moments and factors are made at once unless they are handed over.
    """

    def __init__(
        self,
        model: Path | str,
        edits: int | Sequence[EditRequest],
        settings: dict[str, Any] | None = None,
        *,
        lm: LanguageModel | None = None,
        moments: dict[int, Moment] | None = None,
        contexts: Sequence[str] | None = None,
    ) -> None:
        self.name = name = str(model)
        self.recipe: Recipe = resolve([("flag", settings or {})])[0]
        self.lm = lm or open_model(name, self.recipe.model.device, self.recipe.model.dtype)
        requests = read(str(LISTS["made"][0]))[0][:edits] if isinstance(edits, int) else edits
        self.plan = make_plan(requests, self.lm.tokenizer, self.lm.architecture, self.recipe)
        shape = name.removeprefix(RANDOM) if name.startswith(RANDOM) else None
        self.layers = layer_range(LAYERS[shape], self.lm.architecture.n_layers) if shape else list(self.plan.layers)
        if contexts is None:
            contexts = CONTEXTS if shape else sample_contexts(self.lm, self.recipe.contexts, self.recipe.seed)
        self.contexts = contexts
        self.prompts = encode_contexts(self.plan.edits, contexts, self.lm.tokenizer, chat=False).prompts
        self.search = Search(self.lm, self.plan.edits, self.prompts, self.layers[-1], self.recipe, len(self.layers))
        self.is_random = shape is not None
        self.corpus = (SHIPPED if shape else Path(name)) / "memedit" / "corpus.jsonl.gz"
        self.moments: dict[int, Moment] = moments or self.measure()
        self.ridge = self.recipe.method.ridge * self.lm.architecture.mlp_width
        self._factors: dict[int, Factor] = {}
        self._before: dict[int | None, tuple[list[EditScores], list[bool]]] = {}
        self.stored = {n: self.lm.weight(n).cpu() for n in self.layers} if shape else self._stored(Path(name))
        self.edits = [
            oracle.OracleEdit(
                [(list(prompt.ids), prompt.subject_at) for prompt in of_one],
                list(edit.target),
                (list(edit.subject), len(edit.subject) - 1),
            )
            for edit, of_one in zip(self.plan.edits, self.prompts, strict=True)
        ]
        target = self.recipe.target
        self.knobs = oracle.OracleKnobs(
            self.layers, self.ridge, target.steps, target.ball, target.kl, target.stop,
            target.weight_decay, self.recipe.method.semantics,
        )  # fmt: skip

    def _stored(self, folder: Path) -> dict[int, Tensor]:
        base, architecture = Checkpoint.open(folder), self.lm.architecture
        return {n: architecture.turned(base.tensor(base.resolve(architecture.parameter(n)))) for n in self.layers}

    def measure(self) -> dict[int, Moment]:
        """memedit's moments, of as many tokens as `apply` reads; a random model's text is said again for as long.

        Of a model that has no corpus they are those of `apply`: from the cache, or from text that the model writes.
        """
        if not self.corpus.is_file():
            plan = plan_moments(self.lm, Path(self.name), self.layers, self.recipe)
            with ExitStack() as used:
                measure_missing(self.lm, plan, NoProgress(), ignore_advance, used, ALONE)
            return {layer: moment_of(plan, layer) for layer in self.layers}

        def texts() -> Iterator[str]:
            yield from documents(str(self.corpus))
            while self.is_random:
                yield from documents(str(self.corpus))

        rows = packed(texts(), self.lm.tokenizer, min(self.lm.architecture.positions or 512, 512))
        tokens = self.recipe.moments.tokens or 10 * self.lm.architecture.mlp_width
        return measure(self.lm, rows, self.layers, tokens)

    def targets(self) -> Targets:
        """memedit's targets, by a plan as `apply` makes it."""
        engine = self.search.choose_engine().kind
        batches = self.search.plan(range(len(self.plan.edits)), engine)
        found = Targets.join([self.search.find(batch, engine) for batch in batches])
        back = torch.tensor([n for batch in batches for n in batch.edits]).argsort()
        return Targets(**{name: rows[back] for name, rows in vars(found).items()})

    def factor(self, layer: int) -> Factor:
        """A layer's factor, made once, where float64 is fast."""
        if layer not in self._factors:
            moment = self.moments[layer]
            moment = Moment(moment.total.to(self.lm.device), moment.count)
            self._factors[layer] = prepare(moment, self.recipe.method.kind, self.ridge, self.recipe.method.null_space)
        return self._factors[layer]

    def update(self, wanted: Tensor) -> Update:
        """memedit's solve."""
        return solve(self.lm, self.prompts, wanted, self.factor, self.stored, self.recipe.method)

    def rows(self) -> list[list[ChangedRow]]:
        """The rows of every edit's search."""
        return [rows_of(edit, of_one) for edit, of_one in zip(self.plan.edits, self.prompts, strict=True)]

    def step_of(self, start: Tensor) -> list[float]:
        """Adam's step for each edit, which the oracle takes as a number."""
        target, width = self.recipe.target, self.lm.architecture.width
        return [target.step_absolute or target.step * float(one.norm()) / width**0.5 for one in start]

    def judged(self, few: int | None) -> tuple[list[EditScores], list[bool]]:
        """The model as it is, on the edits (the first `few`) and on the facts beside them."""
        facts = self.facts()
        return score_edits(self.lm, [edit.request for edit in self.plan.edits[:few]]), says_object(
            self.lm, facts
        ) if facts else []

    def facts(self) -> list[EditRequest]:
        """The facts beside the edits, for a model that may know them."""
        world = world_of(self.name)
        return read(str(LISTS[world][1]))[0] if world else []

    def scores(self, update: Update | None = None, few: int | None = None) -> dict[str, float | None]:
        """The means of the model's scores, as it is or with an update in it."""
        deltas = update.deltas if update else {}
        weights = {n: rounded(self.stored[n], delta).to(self.lm.device, self.lm.dtype) for n, delta in deltas.items()}
        if few not in self._before:
            self._before[few] = self.judged(few)
        with applied(self.lm, weights):
            return self._means(self.judged(few) if update else self._before[few], few)

    def oracle_scores(self, targets: Tensor) -> dict[str, float | None]:
        """The scores after the oracle's own solve; the model is put back."""
        before = {n: self.lm.weight(n).clone() for n in self.layers}
        means = {n: moment.mean for n, moment in self.moments.items()}
        dtype = self.stored[self.layers[0]].dtype
        if None not in self._before:
            self._before[None] = self.judged(None)
        try:
            oracle.edit_model(
                self.lm.model, self.edits, means, self.knobs, lambda _n: 0.0, targets=targets, store_dtype=dtype
            )
            return self._means(self.judged(None), None)
        finally:
            for n, weight in before.items():
                self.lm.weight(n).copy_(weight)

    def _means(self, now: tuple[list[EditScores], list[bool]], few: int | None) -> dict[str, float | None]:
        scores, edited = summarize(now[0]), [edit.request for edit in self.plan.edits]
        held = facts_kept(self.facts(), self._before[few][1], now[1], edited) if now[1] else {}
        figures = {name: getattr(scores, name) for name in FIGURES}
        figures |= {f"kept, {name}": figure for name, figure in held.items()}
        return {name: figure.mean if figure else None for name, figure in figures.items()}


def world_of(name: str) -> str | None:
    """Whose facts a model knows: the made world's or the real one's (a name in LISTS); None for neither."""
    if name.startswith(RANDOM):
        return None
    folder = Path(name).resolve()
    if folder.parent == SHIPPED.parent:
        return "made"
    real = find_real_model("smollm2")
    return "real" if real is not None and folder == real.resolve() else None


def open_model(name: str, device: str, dtype: str) -> LanguageModel:
    """A folder's model (on the CPU unless a device is named), or a random one of a real shape."""
    if not name.startswith(RANDOM):
        return load(Path(name), ModelKnobs(device="cpu" if device == "auto" else device, dtype=dtype))  # type: ignore[arg-type]
    shape = name.removeprefix(RANDOM)
    if shape not in SHAPES:
        raise SystemExit(f"there is no shape {shape!r}; there are {', '.join(SHAPES)}")
    return random_model(shape, device, dtype, SHIPPED)

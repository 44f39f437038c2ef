"""One model opened for memedit and for the oracle, and what both are given."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memedit.model.hooks import applied
from memedit.model.load import load
from memedit.numerics.delta import rounded
from memedit.numerics.moments import Moment
from memedit.numerics.solvers import prepare_memit
from memedit.recipe import ModelKnobs, Recipe, resolve
from memedit.report import Scores
from memedit.stages.contexts import sample_contexts
from memedit.stages.evaluation import judge, score
from memedit.stages.plan import make_plan, under
from memedit.stages.statistics import measure, packed
from memedit.stages.targets import Targets, find_targets
from memedit.stages.update import Update, solve
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.corpus import documents
from memedit.storage.requests import read
from tests import oracle
from torch import Tensor

ROOT = Path(__file__).parents[2]


class Both:
    """Edits of requests/world.jsonl on a shipped model, ready for either side."""

    def __init__(self, folder: Path, n_edits: int, settings: dict[str, Any] | None = None) -> None:
        self.recipe: Recipe = resolve([("flag", settings or {})])[0]
        self.lm = load(folder, ModelKnobs(device="cpu"))
        requests, _ = read(str(ROOT / "requests" / "world.jsonl"))
        self.plan = make_plan(requests[:n_edits], self.lm.tokenizer, self.lm.anatomy, self.recipe)
        self.layers = list(self.plan.layers)
        contexts = sample_contexts(self.lm, self.recipe.contexts, self.recipe.seed)
        self.prompts = [under(edit, contexts, self.lm.tokenizer, chat=False) for edit in self.plan.edits]
        text = documents(str(folder / "memedit" / "corpus.jsonl.gz"))
        rows = packed(text, self.lm.tokenizer, self.lm.anatomy.positions or 512)
        self.moments: dict[int, Moment] = measure(self.lm, rows, self.layers, 10 * self.lm.anatomy.mlp_width)
        self.ridge = self.recipe.method.ridge * self.lm.anatomy.mlp_width
        base, anatomy = Checkpoint.open(folder), self.lm.anatomy
        self.stored = {n: anatomy.turned(base.tensor(base.resolve(anatomy.parameter(n)))) for n in self.layers}
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

    def targets(self) -> Targets:
        """memedit's targets."""
        return find_targets(self.lm, self.plan.edits, self.prompts, self.layers[-1], self.recipe)

    def update(self, wanted: Tensor) -> Update:
        """memedit's solve."""
        factors = {n: prepare_memit(self.moments[n], self.ridge) for n in self.layers}
        return solve(self.lm, self.prompts, wanted, factors.__getitem__, self.stored, self.recipe.method)

    def step_of(self, start: Tensor) -> list[float]:
        """Adam's step for each edit, which the oracle takes as a number."""
        target, width = self.recipe.target, self.lm.anatomy.width
        return [target.step_absolute or target.step * float(one.norm()) / width**0.5 for one in start]

    def scores(self, update: Update | None = None) -> Scores:
        """The model's scores on the edits, as it is or with an update in it."""
        requests = [edit.request for edit in self.plan.edits]
        deltas = update.deltas if update else {}
        weights = {n: rounded(self.stored[n], delta).float() for n, delta in deltas.items()}
        with applied(self.lm, weights):
            return score(judge(self.lm, requests))

    def oracle_scores(self, targets: Tensor) -> Scores:
        """The scores after the oracle's own solve; the model is put back."""
        before = {n: self.lm.weight(n).clone() for n in self.layers}
        means = {n: moment.mean for n, moment in self.moments.items()}
        dtype = self.stored[self.layers[0]].dtype
        try:
            oracle.edit_model(
                self.lm.model, self.edits, means, self.knobs, lambda _n: 0.0, targets=targets, store_dtype=dtype
            )
            return score(judge(self.lm, [edit.request for edit in self.plan.edits]))
        finally:
            for n, weight in before.items():
                self.lm.weight(n).copy_(weight)

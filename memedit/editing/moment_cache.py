"""Second moments: read them from the cache, or measure them and keep them there. Used by `apply` and `stats`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from memedit.config.layers import layers_of
from memedit.config.methods import Metric
from memedit.config.recipe import MethodKnobs, Recipe
from memedit.editing.moments import Moments, measure
from memedit.editing.own_text import SELF, OwnText
from memedit.editing.resources import Pace, check_room, check_weights, streaming_note
from memedit.errors import StorageError, UsageError
from memedit.forward.packing import packed
from memedit.model.digests import feeding, of_tokenizer
from memedit.model.load import LanguageModel, ModelSource, load, locate
from memedit.numerics.moments import Moment
from memedit.numerics.solvers import Factor, decomposed, factor_metric
from memedit.progress import Advance, NoProgress, Progress
from memedit.ranks import ALONE, Ranks
from memedit.results.inspection import MomentRow
from memedit.storage.artifacts import Store, digest_file, digest_of
from memedit.storage.cache import cache_dir, trim_cache
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.corpus import corpus_digest, documents
from memedit.storage.moment_import import read_npz

MOMENT_CODE = 1  # raise it when the measurement changes: moments of older code are then measured again
FACTOR_CODE = 1  # the same for the way of factoring
_FACTORS: dict[Metric, str] = {"moment": "factor", "null space": "spectrum"}
TOKENS_PER_DIMENSION = 10  # arXiv 2506.04226: 2 suffice on GPT-J, 10 are the safe setting


@dataclass(frozen=True)
class MomentPlan:
    """The second moments of a run: those in the cache, and how to measure the others."""

    corpus: str | None
    """None: no text is needed, the cache has every moment."""
    tokens: int
    row: int
    on: dict[int, dict[str, Any]]
    """For each layer, the inputs of its moment."""
    cached: tuple[int, ...]
    """Layers whose moment is in the cache."""
    own_text: OwnText | None = None
    """The text that the model writes itself, where `corpus` is "self"."""
    model: str = ""
    """The model's name, which is kept beside what is measured."""

    @property
    def missing(self) -> list[int]:
        """Layers to measure."""
        return [layer for layer in self.on if layer not in self.cached]


def moment_store(model: str = "") -> Store:
    """The cache of the second moments of all models; what is kept gets this model's name."""
    return Store(cache_dir() / "moments", model=model)


READ = ("tokens", "row", "corpus", "imported")
"""Of a moment's inputs, those that say what was read."""


def digest_of_texts(on: Mapping[int, Mapping[str, Any]]) -> str:
    """A digest of the text that the moments of some layers were measured on, by their inputs."""
    return digest_of({str(layer): _text_of(one) for layer, one in on.items()})


def _text_of(on: Mapping[str, Any]) -> dict[str, Any]:
    return {name: on[name] for name in READ if name in on}


def plan_moments(
    lm: LanguageModel, folder: Path, layers: Sequence[int], recipe: Recipe, solved_with: str | None = None
) -> MomentPlan:
    """Plan which moments are read and which are measured, on which text: the recipe's corpus, or the model's own
    memedit/corpus.jsonl.gz, or where there is neither, and the cache lacks a moment, text that the model writes.

    If the cache has several that serve, those of as many tokens as asked for are taken, else the newest. With
    `solved_with` only those serve that were measured on the text of this digest. Raises UsageError if the corpus is no
    file.
    """
    knobs = recipe.moments
    own = folder / "memedit" / "corpus.jsonl.gz"
    corpus = knobs.corpus or (str(own) if own.is_file() else None)
    tokens = knobs.tokens or TOKENS_PER_DIMENSION * max(lm.architecture.mlp_widths[layer] for layer in layers)
    # A model limited to short rows was trained on rows that long; never longer than asked.
    row = min(knobs.row, lm.architecture.positions or knobs.row)
    weights = feeding(lm, layers)
    store = moment_store()
    at_hand: dict[int, dict[str, Any]] = {}
    serving: dict[int, list[dict[str, Any]]] = {}
    if knobs.corpus is None:
        # Without a named text any cached moment of these weights serves, an imported one first.
        for n in layers:
            found = store.like(f"moment-{n}", {"weights": weights[n]})
            imported = [on for on in found if "imported" in on and on.get("code") == MOMENT_CODE]
            measured = [on for on in found if "imported" not in on] if corpus is None else []
            measured.sort(key=lambda on: on.get("tokens") != tokens)  # stable: the newest first among equals
            if imported or measured:
                serving[n] = [*imported, *measured]
        newest = {n: some[0] for n, some in serving.items()}
        at_hand = newest if solved_with is None else _of_one_text(serving, solved_with)
        if corpus is None and len(at_hand) < len(layers):
            corpus = SELF
    same: dict[str, Any] = {"tokenizer": of_tokenizer(lm.tokenizer), "tokens": tokens, "row": row, "code": MOMENT_CODE}
    own_text = OwnText.of(lm, tokens, row, recipe.seed) if corpus == SELF else None
    if own_text:
        same |= {"corpus": SELF, "writer": own_text.on["writer"], "row": own_text.row, "seed": recipe.seed}
    else:
        same["corpus"] = corpus_digest(corpus) if corpus else None
    on = {layer: at_hand.get(layer) or {"weights": weights[layer], **same} for layer in layers}
    cached = tuple(layer for layer in layers if store.holds(f"moment-{layer}", on[layer]))
    return MomentPlan(corpus, tokens, row, on, cached, own_text, recipe.model.path)


def _of_one_text(serving: Mapping[int, Sequence[dict[str, Any]]], digest: str | None) -> dict[int, dict[str, Any]]:
    """Of the moments that serve each layer, the first on the text of this digest; empty: some layer has none."""
    texts = [_text_of(on) for on in next(iter(serving.values()), ())]
    for text in texts:
        chosen = {n: on for n, some in serving.items() for on in reversed(some) if _text_of(on) == text}
        if len(chosen) == len(serving) and digest_of_texts(chosen) == digest:
            return chosen
    return {}


def moments_for(
    lm: LanguageModel, plan: MomentPlan, progress: Progress, advance: Advance, ranks: Ranks = ALONE
) -> Moments:
    """All moments of a plan, in memory."""
    measure_missing(lm, plan, progress, advance, ranks=ranks)
    return {layer: moment_of(plan, layer) for layer in plan.on}


def measure_missing(
    lm: LanguageModel,
    plan: MomentPlan,
    progress: Progress,
    advance: Advance,
    used: ExitStack | None = None,
    ranks: Ranks = ALONE,
) -> None:
    """Measure the moments that the cache lacks, in one pass, and keep them. A killed run continues where it was.
    `ranks` share the text.

    All moments of the plan are marked as used until `used` is closed, so that no other process cleans them away.
    """
    store = moment_store(plan.model)
    with store.locked(progress.note):
        # Read whole: the header alone does not show damage, and a damaged moment is set aside by reading it.
        missing = [n for n in plan.on if store.find(f"moment-{n}", plan.on[n]) is None]
        if missing:
            if plan.corpus is None or any("imported" in plan.on[n] for n in missing):
                raise StorageError(
                    f"the second moment of layer {missing[0]} was damaged, and this run has no text to measure it on",
                    "give a corpus with --corpus FILE, or import the moment again: memedit stats --import FILE",
                )
            rows = _rows(lm, plan, store, progress, ranks)
            begun_on = {"layers": missing, **plan.on[missing[-1]]}

            def keep(moments: Moments) -> None:
                flat = {f"{layer}.{name}": part for layer, moment in moments.items() for name, part in _parts(moment)}
                store.keep("partial", begun_on, flat)

            begun = store.find("partial", begun_on)
            measured = measure(
                lm, rows, missing, plan.tokens, begun=_unflat(begun) if begun else None, keep=keep, advance=advance,
                ranks=ranks,
            )  # fmt: skip
            _complain_if_short(measured[missing[0]], plan, progress)
            for layer, moment in measured.items():
                store.keep(f"moment-{layer}", plan.on[layer], dict(_parts(moment)))
            store.drop("partial", begun_on)
        if used is not None:
            for layer, on in plan.on.items():
                used.enter_context(store.using(f"moment-{layer}", on))


def _rows(
    lm: LanguageModel, plan: MomentPlan, store: Store, progress: Progress, ranks: Ranks
) -> Iterator[tuple[int, ...]]:
    """The rows of token ids on which a plan measures."""
    if plan.own_text:
        progress.note("second moments are measured on text that the model writes itself; --corpus names another")
        # Written before the measurement, whose hooks would see the writing too.
        return iter(plan.own_text.rows(lm, store, progress, ranks))
    assert plan.corpus is not None
    return packed(documents(plan.corpus), lm.tokenizer, plan.row)


def moment_of(plan: MomentPlan, layer: int) -> Moment:
    """Read a layer's moment from the cache. Raises StorageError if it is missing or damaged."""
    found = moment_store().find(f"moment-{layer}", plan.on[layer])
    if found is None:
        hint = "run the same command again: it measures the moment again"
        raise StorageError(f"the second moment of layer {layer} is no longer in the cache, or was damaged", hint)
    return _moment(found)


def factor_of(plan: MomentPlan, layer: int, knobs: MethodKnobs) -> Factor:
    """Make a method's factor of a layer's moment. The decomposition is kept in the cache: other edits, another ridge or
    another share for the null space reuse it.

    Raises UsageError if the moment has no factor.
    """
    store, method = moment_store(plan.model), knobs.kind
    name, on = f"{_FACTORS[method.metric]}-{layer}", {**plan.on[layer], "factor": FACTOR_CODE}
    parts = store.find(name, on)
    try:
        if parts is None:
            parts = decomposed(moment_of(plan, layer), method.metric)
            with store.locked(lambda _text: None):
                store.keep(name, on, parts)
        width = max(map(len, (part for part in parts.values() if part.ndim)))
        return factor_metric(parts, method, knobs.ridge * width, knobs.null_space)
    except ValueError as error:
        hint = "read more text: --set moments.tokens=..., or for a null space raise --set method.null_space=..."
        raise UsageError(f"layer {layer}: {error}", hint) from error


def run_stats(
    recipe: Recipe,
    *,
    import_file: str | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
) -> list[MomentRow]:
    """Measure the second moments of the recipe's layers, or import one from a file; returns one row for each layer.
    `ranks` share the text.
    """
    progress = progress or NoProgress()
    folder = locate(recipe.model)
    memory = recipe.memory_limit
    check_weights(Checkpoint.open(folder), recipe.model, ranks.here, memory)
    if not (import_file or dry_run):
        ranks.open(ModelSource(folder, recipe.model, memory=memory))
    lm = load(folder, recipe.model, memory=memory)
    if lm.streamed and (said := streaming_note(lm, Pace.of(lm), recipe.memory)):
        progress.note(said)
    layers = layers_of(recipe.method.layers, lm.architecture.shape)
    lm.architecture.require(layers)
    if import_file:
        with moment_store().locked(progress.note):
            return [_import(lm, layers, Path(import_file).expanduser(), recipe.model.path)]
    plan = plan_moments(lm, folder, layers, recipe)
    if not dry_run:
        check_room(0, None, "auto", lm.architecture, layers, plan.missing)
        with progress.phase("moments", plan.tokens if plan.missing else None, "tokens") as advance:
            moments_for(lm, plan, progress, advance, ranks)
    rows = [
        _row(lm, layer, on, "cached" if layer in plan.cached else "missing" if dry_run else "measured")
        for layer, on in plan.on.items()
    ]
    if not dry_run:
        trim_cache(progress.note)
    return rows


def _row(lm: LanguageModel, layer: int, on: Mapping[str, Any], state: Any) -> MomentRow:
    width, file = lm.architecture.mlp_widths[layer], moment_store().file(f"moment-{layer}", on)
    size = file.stat().st_size if file.is_file() else 8 * width**2
    return MomentRow(layer=layer, width=width, tokens=int(on["tokens"]), bytes=size, state=state, file=str(file))


def _import(lm: LanguageModel, layers: Sequence[int], file: Path, model: str) -> MomentRow:
    """Import a moment that ROME, MEMIT or EasyEdit measured, for one layer of this model."""
    if len(layers) != 1:
        raise UsageError(f"one file holds the moment of one layer; {len(layers)} are named", "say which: --layers 5")
    layer, width = layers[0], lm.architecture.mlp_widths[layers[0]]
    total, count = read_npz(file)
    if total.shape != (width, width):
        said = f"the moment of {file.name} is {total.shape[0]:,} x {total.shape[1]:,}; this model has {width:,} units"
        raise UsageError(said, "give the file of this layer of this model")
    weights = feeding(lm, [layer])[layer]
    on = {"weights": weights, "tokens": count, "imported": digest_file(file), "code": MOMENT_CODE}
    moment_store(model).keep(f"moment-{layer}", on, dict(_parts(Moment(total, count))))
    return _row(lm, layer, on, "imported")


def _complain_if_short(moment: Moment, plan: MomentPlan, progress: Progress) -> None:
    if moment.count < plan.tokens:
        progress.note(f"the corpus {plan.corpus} has {moment.count:,} tokens; {plan.tokens:,} were asked")


def _parts(moment: Moment) -> list[tuple[str, Tensor]]:
    return [("total", moment.total), ("count", torch.tensor(moment.count))]


def _moment(parts: Mapping[str, Tensor]) -> Moment:
    return Moment(parts["total"], int(parts["count"]))


def _unflat(flat: Mapping[str, Tensor]) -> Moments:
    layers = sorted({int(name.split(".")[0]) for name in flat})
    return {n: _moment({"total": flat[f"{n}.total"], "count": flat[f"{n}.count"]}) for n in layers}

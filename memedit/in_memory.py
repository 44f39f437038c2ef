"""Edit a model that is loaded in memory, without a model folder or an output folder.

The steps are those of `memedit apply`, from the same functions: plan, contexts, moments, targets, solve, rounding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memedit.changes.stored_names import StoredNames
from memedit.config.layers import layers_text
from memedit.config.recipe import MethodKnobs, Recipe
from memedit.config.resolve import Source
from memedit.editing.auto_layers import choose_traced_layers
from memedit.editing.contexts import sample_contexts
from memedit.editing.moment_cache import (
    TOKENS_PER_DIMENSION,
    MomentPlan,
    factor_of,
    measure_missing,
    moment_of,
    plan_moments,
)
from memedit.editing.moments import measure
from memedit.editing.plan import Plan, encode_contexts, make_plan
from memedit.editing.preserve import choose_preserved
from memedit.editing.rounding import Rounding
from memedit.editing.solve import Update
from memedit.editing.solve_edits import solve_edits
from memedit.editing.target_search import Search, searched_prompts
from memedit.edits.edit import EditRequest, Finding
from memedit.edits.read import write_lines
from memedit.errors import MemeditError, UnsupportedModelError, UsageError
from memedit.evaluation.old_objects import name_old_objects
from memedit.evaluation.other_subjects import names_beside
from memedit.forward.packing import packed
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from memedit.model.probe import check_finite_weights, prove
from memedit.model.weights import applied, put_
from memedit.numerics.delta import Delta
from memedit.numerics.moments import Moment
from memedit.numerics.solvers import Factor, decomposed, factor_metric
from memedit.progress import NoProgress, Progress
from memedit.results.inspection import MomentRow
from memedit.results.report import LayerReport
from memedit.storage.artifacts import Store, write_whole
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.deltas import delta_bytes
from memedit.storage.records import DELTA, EDITS, RUN

LayerMoments = Mapping[int, Moment] | Sequence[MomentRow]
"""Second moments by layer, or the rows that `memedit.stats` returns."""


@dataclass(frozen=True, repr=False)
class InMemoryUpdate:
    """The change that a list of edits makes to a loaded model. Layers count from 0."""

    edits: tuple[EditRequest, ...]
    """The edits that were made; exact duplicates once."""
    contexts: tuple[str, ...]
    """The prefixes under which the edits were made; the empty one first."""
    deltas: dict[int, Delta]
    """For each edited layer its change, (D, F) float32."""
    layers: tuple[LayerReport, ...]
    """For each edited layer what the solve reports."""
    moments: dict[int, Moment]
    """The second moments that were measured from an iterable of texts, to be given to the next call; else empty."""
    method: str
    _lm: LanguageModel
    _stored: StoredNames | None
    _base: dict[int, Tensor]
    """The weights before the edit, (D, F), as the model holds them."""
    _edited: dict[int, Tensor]
    """The weights after it, (D, F), in the same dtype and on the same device."""
    _put_back: list[dict[int, Tensor]] = field(default_factory=list[dict[int, Tensor]])
    """What the end of each open `in_place` block puts back."""

    def __repr__(self) -> str:
        layers = layers_text(sorted(self.deltas))
        return f"InMemoryUpdate({len(self.edits)} edits by {self.method}, layers {layers})"

    @contextmanager
    def in_place(self) -> Generator[None]:
        """Hold the edited weights in the model for a `with` block; put the old ones back at its end."""
        with applied(self._lm, self._edited) as kept:
            self._put_back.append(kept)
            try:
                yield
            finally:
                self._put_back.remove(kept)

    def apply_(self, model: PreTrainedModel) -> None:
        """Write the edited weights into `model`, and keep them there when the `with` block ends.

        `model` is the model that was edited, or another that holds the same weights, such as a copy. Raises UsageError
        for one whose weights are different.
        """
        lm = LanguageModel(model, self._lm.tokenizer, self._lm.architecture)
        for layer, base in self._base.items():
            name = lm.architecture.parameter(layer)
            hint = "give the model that was edited, or a copy of it"
            try:
                now = lm.weight(layer)
            except AttributeError as error:
                raise UsageError(f"the model has no parameter {name}", hint) from error
            wanted = (base, self._edited[layer])
            if not any(now.shape == one.shape and torch.equal(now, one.to(now.device, now.dtype)) for one in wanted):
                raise UsageError(f"the weight {name} of this model is not the one that was edited", hint)
        for layer, weight in self._edited.items():
            put_(lm, layer, weight, {})
        if model is self._lm.model:
            for kept in self._put_back:
                kept.clear()

    def save(self, folder: str | Path) -> Path:
        """Write `folder`/memedit/delta.safetensors, which `memedit apply --delta` reads, and the edits beside it.

        The file names its base by a digest. Where the model was loaded from a local folder, and its weights are still
        that folder's, it is the digest of the folder: the file is then the one that `memedit apply` would write. Else
        it is a digest of the weights in memory before the edit, and applying the file to a folder needs `--any-base`.
        Weights outside the edited layers are read as they are now, so save before you change them. Returns the path of
        the file. Raises UsageError for the folder of an edited model, whose own change this would replace, and
        StorageError or ResourceError where it cannot be written.
        """
        if (Path(folder).expanduser() / RUN).exists():
            raise UsageError(f"{folder} is an edited model, which holds its own change", "save to a folder of its own")
        names = {layer: self._lm.architecture.parameter(layer) for layer in self.deltas}
        base = _still_same(self._lm, self._stored, self._base)
        if base is not None:
            names = {layer: base.name(name) for layer, name in names.items()}
        digest = _digest_of_weights(self._lm, self._base) if base is None else base.checkpoint.digest
        deltas = {names[layer]: delta for layer, delta in self.deltas.items()}
        file = Path(folder).expanduser() / DELTA
        write_whole(file, delta_bytes(deltas, digest, {"method": self.method}))
        write_whole(Path(folder).expanduser() / EDITS, write_lines(self.edits).encode())
        return file


def make_update(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    requests: Sequence[EditRequest],
    recipe: Recipe,
    *,
    sources: Mapping[str, Source],
    findings: Sequence[Finding] = (),
    moments: LayerMoments | None = None,
    corpus: Iterable[str] | None = None,
    progress: Progress | None = None,
) -> InMemoryUpdate:
    """Find the change that a list of edits makes to a loaded model; the model is unchanged when this returns.

    `moments`, or `corpus` (texts), replace the recipe's corpus. Raises EditListError with every finding, UsageError for
    a setting that needs a folder, UnsupportedModelError for a model that cannot be edited.
    """
    _check_settings(sources)
    with _inference(model):
        lm = _open(model, tokenizer).with_system_prompt(recipe.chat_system)
        return _make_update(lm, requests, recipe, findings, moments, corpus, progress or NoProgress())


def _check_settings(sources: Mapping[str, Source]) -> None:
    """Refuse the settings that a loaded model leaves no room for."""
    for name, source in sources.items():
        if source == "default" or name == "output.rounding":
            continue
        if name.startswith("model."):
            raise UsageError(f"{name} says how a model is opened, and this one is open", "leave the setting out")
        if name.startswith("output."):
            raise UsageError(f"{name} is about an output folder, and there is none", "leave the setting out")
        if name == "target.retry":
            raise UsageError("target.retry is not available for a model in memory", "use memedit.apply on its folder")


def _open(model: Any, tokenizer: Any) -> LanguageModel:
    """Check a loaded model and its tokenizer, and detect the architecture. Raises UsageError, UnsupportedModelError."""
    if not isinstance(model, PreTrainedModel):
        hint = "give what AutoModelForCausalLM.from_pretrained returns"
        raise UsageError(f"model must be a transformers model, not {type(model).__name__}", hint)
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        hint = "give what AutoTokenizer.from_pretrained returns"
        raise UsageError(f"tokenizer must be a transformers tokenizer, not {type(tokenizer).__name__}", hint)
    if not tokenizer.is_fast:
        hint = "load a fast one: AutoTokenizer.from_pretrained(..., use_fast=True)"
        raise UnsupportedModelError(f"the tokenizer ({type(tokenizer).__name__}) gives no character offsets", hint)
    config: Any = model.config
    if getattr(config, "quantization_config", None):
        hint = "edit the unquantized model; memedit.apply also edits folders of FP8 weights"
        raise UnsupportedModelError("the model is quantized: its weights cannot take a small change", hint)
    if getattr(config, "is_encoder_decoder", False):
        hint = "memedit edits causal (decoder-only) language models"
        raise UnsupportedModelError("the model is an encoder-decoder model", hint)
    if any(parameter.is_meta for parameter in model.parameters()):
        raise UsageError("some weights of the model are on the meta device", "load the model with its weights")
    check_finite_weights(model)
    return LanguageModel(model, tokenizer, prove(model, find_architecture(model)))


@contextmanager
def _inference(model: Any) -> Generator[None]:
    """Put a model into evaluation mode without parameter gradients; restore each module's and parameter's own state.

    Gradients with respect to states must be on, and autocast off, whatever the caller has set.
    """
    if not isinstance(model, nn.Module):
        yield  # refused by `_open`
        return
    training = [(module, module.training) for module in model.modules()]
    gradients = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    kind = next((parameter.device.type for parameter, _ in gradients), "cpu")
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(kind, enabled=False))
        model.eval().requires_grad_(False)
        try:
            yield
        finally:
            for module, was in training:
                module.training = was
            for parameter, was in gradients:
                parameter.requires_grad_(was)


def _make_update(
    lm: LanguageModel,
    requests: Sequence[EditRequest],
    recipe: Recipe,
    findings: Sequence[Finding],
    moments: LayerMoments | None,
    corpus: Iterable[str] | None,
    progress: Progress,
) -> InMemoryUpdate:
    """The steps of a run, from the edit list to the edited weights; the model is unchanged when this returns."""
    names = _stored_names(lm)
    requests = name_old_objects(lm, requests, chat=recipe.chat)
    plan = make_plan(requests, lm.tokenizer, lm.architecture, recipe, findings)
    if recipe.method.layers == "auto":
        recipe, plan, _, traces = choose_traced_layers(lm, _digest_of_weights(lm, {}), recipe, plan, progress)
        traces.remove()
    sums = _moments(lm, plan, recipe, moments, corpus, progress)
    with progress.phase("contexts"):
        contexts = sample_contexts(lm, recipe.contexts, recipe.seed, chat=recipe.chat)
    stored = {layer: _stored_weight(lm, names, layer) for layer in plan.layers}
    update = _solved_update(lm, plan, recipe, contexts, sums, stored, progress)
    return InMemoryUpdate(
        edits=tuple(edit.request for edit in plan.edits),
        contexts=tuple(contexts),
        deltas=dict(update.deltas),
        layers=update.layers,
        moments=sums.measured,
        method=recipe.method.name,
        _lm=lm,
        _stored=names,
        _base={layer: lm.weight(layer).clone() for layer in plan.layers},
        _edited={n: weight.to(lm.device, lm.dtype) for n, weight in update.weights.items()},
    )


def _solved_update(
    lm: LanguageModel,
    plan: Plan,
    recipe: Recipe,
    contexts: Sequence[str],
    sums: _Moments,
    stored: Mapping[int, Tensor],
    progress: Progress,
) -> Update:
    """Search the targets of all edits, and solve the layers for them. Rows go by the digests of their edits."""
    prompts = encode_contexts(plan.edits, contexts, lm.tokenizer, chat=recipe.chat, seed=recipe.seed).prompts
    searched = searched_prompts(prompts, recipe)
    search = Search(lm, plan.edits, searched, plan.layers[-1], recipe, len(plan.layers))
    with progress.phase("targets", len(prompts), "edits") as advance, TemporaryDirectory() as folder:
        engine = search.choose_engine()
        targets = search.run(Store(Path(folder)), {}, engine.kind, advance)
    order = sorted(range(len(prompts)), key=lambda n: plan.edits[n].request.digest)
    return solve_edits(
        lm, [plan.edits[n] for n in order], [prompts[n] for n in order], targets.wanted[order],
        torch.zeros(len(order), dtype=torch.bool), sums.factor, stored, recipe,
        preserve=lambda some: choose_preserved(some, names_beside(lm, some, recipe.seed), recipe.polish, recipe.seed),
        rounding=Rounding(recipe.output.rounding, sums.moment), whole=engine.whole, phase=progress.phase,
    )  # fmt: skip


@dataclass(frozen=True)
class _Moments:
    """The second moments of a run's layers: where a layer's factor and its moment are found."""

    factor: Callable[[int], Factor]
    moment: Callable[[int], Moment]
    measured: dict[int, Moment]


def _moments(
    lm: LanguageModel,
    plan: Plan,
    recipe: Recipe,
    moments: LayerMoments | None,
    corpus: Iterable[str] | None,
    progress: Progress,
) -> _Moments:
    """The moments given, or measured on the texts given, or those of the recipe's corpus through the cache."""
    if moments is not None:
        return _given(lm, plan.layers, moments, recipe.method)
    if corpus is not None:
        knobs, widths = recipe.moments, lm.architecture.mlp_widths
        tokens = knobs.tokens or TOKENS_PER_DIMENSION * max(widths[layer] for layer in plan.layers)
        row = min(knobs.row, lm.architecture.positions or knobs.row)
        with progress.phase("moments", tokens, "tokens") as advance:
            found = measure(lm, packed(_texts(corpus), lm.tokenizer, row), plan.layers, tokens, advance=advance)
        count = found[plan.layers[0]].count
        if not count:
            raise UsageError("corpus holds no text to measure second moments on", "give texts, or moments")
        if count < tokens:
            progress.note(f"the corpus has {count:,} tokens; {tokens:,} were asked for")
        return _of_mapping(found, recipe.method, found)
    folder = Path(str(lm.model.name_or_path or type(lm.model).__name__)).expanduser()
    cached = plan_moments(lm, folder, plan.layers, recipe)
    with progress.phase("moments", cached.tokens if cached.missing else None, "tokens") as advance:
        measure_missing(lm, cached, progress, advance)
    return _of_plan(cached, recipe.method)


def _given(lm: LanguageModel, layers: Sequence[int], moments: LayerMoments, method: MethodKnobs) -> _Moments:
    """Moments from the caller. Raises UsageError where a layer's is missing, or has another width."""
    if isinstance(moments, Mapping):
        for layer in layers:
            if layer not in moments:
                raise UsageError(f"moments has no layer {layer}", f"give layers {', '.join(map(str, layers))}")
            size, width = tuple(moments[layer].total.shape), lm.architecture.mlp_widths[layer]
            if size != (width, width):
                said = f"the moment of layer {layer} is {size[0]:,} x {size[-1]:,}, and its MLP has {width:,} units"
                raise UsageError(said, "give moments that were measured on this model")
        return _of_mapping(moments, method, {})
    rows = {row.layer: row for row in moments}
    inputs: dict[int, dict[str, Any]] = {}
    for layer in layers:
        kept = Store.inputs(Path(rows[layer].file)) if layer in rows else None
        if kept is None:
            raise UsageError(f"moments has no measured row for layer {layer}", "call memedit.stats for this layer")
        inputs[layer] = kept
        if rows[layer].width != lm.architecture.mlp_widths[layer]:
            said = f"the moment of layer {layer} has {rows[layer].width:,} units"
            raise UsageError(said, "give moments that were measured on this model")
    return _of_plan(MomentPlan(None, 0, 0, inputs, tuple(layers)), method)


def _of_plan(plan: MomentPlan, method: MethodKnobs) -> _Moments:
    return _Moments(lambda layer: factor_of(plan, layer, method), lambda layer: moment_of(plan, layer), {})


def _of_mapping(moments: Mapping[int, Moment], method: MethodKnobs, measured: dict[int, Moment]) -> _Moments:
    def factor(layer: int) -> Factor:
        moment, kind = moments[layer], method.kind
        try:
            parts = decomposed(moment, kind.metric)
            return factor_metric(parts, kind, method.ridge * moment.total.shape[0], method.null_space)
        except ValueError as error:
            hint = "use more text, or for a null space raise the setting method.null_space"
            raise UsageError(f"layer {layer}: {error}", hint) from error

    return _Moments(factor, lambda layer: moments[layer], measured)


def _texts(corpus: Iterable[str]) -> Generator[str]:
    for text in corpus:
        if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise UsageError(f"corpus must be a path or texts, and holds {type(text).__name__}", "give strings")
        yield text


def _stored_names(lm: LanguageModel) -> StoredNames | None:
    """The local checkpoint that a model was loaded from; None where there is none that can be read."""
    name = str(lm.model.name_or_path or "")
    try:
        if not name or not Path(name).expanduser().is_dir():
            return None
        checkpoint = Checkpoint.open(Path(name).expanduser())
        # The model in memory holds other numbers than an FP8 weight can: its edit is one of these.
        return None if checkpoint.fp8 else StoredNames.of(lm.model, checkpoint)
    except MemeditError:
        return None


def _stored_weight(lm: LanguageModel, stored: StoredNames | None, layer: int) -> Tensor:
    """The weight to edit, (D, F), on the CPU.

    In the checkpoint's dtype where the model still holds the checkpoint's value, so that the edited weight is the one
    that `memedit apply` writes; else as the model holds it.
    """
    if stored is not None:
        try:
            return stored.weight(lm, layer)
        except UnsupportedModelError:
            pass  # the model holds another value, or the checkpoint stores it in another form
    return lm.weight(layer).cpu().clone()


def _still_same(lm: LanguageModel, stored: StoredNames | None, base: Mapping[int, Tensor]) -> StoredNames | None:
    """The checkpoint, if every weight of the model is still its own; the edited layers count as they were before."""
    if stored is None:
        return None
    for name, tensor in _base_weights(lm, base):
        try:
            found = stored.checkpoint.tensor(stored.name(name))
        except UnsupportedModelError:
            if name in {lm.architecture.parameter(layer) for layer in base}:
                return None
            continue  # a weight that is made on loading, such as a tied one
        if found.shape != tensor.shape or not torch.equal(found.to(tensor.dtype), tensor):
            return None
    return stored


def _digest_of_weights(lm: LanguageModel, base: Mapping[int, Tensor]) -> str:
    """sha256 of the names, dtypes, shapes and bytes of all weights in memory, the edited layers as they were before."""
    running = hashlib.sha256()
    for name, tensor in _base_weights(lm, base):
        running.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        running.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return running.hexdigest()


def _base_weights(lm: LanguageModel, base: Mapping[int, Tensor]) -> Generator[tuple[str, Tensor]]:
    """Every parameter by name with its value before the edit, in its stored orientation, on the CPU."""
    edited = {lm.architecture.parameter(layer): lm.architecture.turned(weight) for layer, weight in base.items()}
    for name, parameter in sorted(lm.model.named_parameters()):
        yield name, edited.get(name, parameter.detach()).detach().cpu()

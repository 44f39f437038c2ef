"""The Python functions of memedit: each command, and `edited` for a model in memory. No call keeps state."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import wraps
from io import StringIO
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from memedit import pipeline
from memedit.config.recipe import Recipe
from memedit.config.resolve import Source, flatten, resolve
from memedit.editing.ledger import Mode
from memedit.edits.edit import EditRequest, Finding
from memedit.edits.lint import check_facts, lint, raise_errors, trimmed
from memedit.edits.read import STDIN, read
from memedit.errors import MemeditError, UsageError, file_error, is_file_error
from memedit.in_memory import InMemoryUpdate, LayerMoments, make_update
from memedit.pipeline import RunInputs
from memedit.progress import Progress
from memedit.results.cache import CacheCleaning, CacheEntry
from memedit.results.cache_kinds import CacheKind
from memedit.results.changes import Comparison, ExportKind, Outcome
from memedit.results.history import EditLog
from memedit.results.hub import Upload
from memedit.results.inspection import Inspection, MomentRow
from memedit.results.report import Report
from memedit.results.traces import TracingResult
from memedit.show.html import trace_page
from memedit.storage import cache

Folder = str | Path
Edits = str | Path | Iterable[EditRequest | Mapping[str, Any]]
"""A path to an edit list, or edits as EditRequest or as dicts with the fields of a JSON Lines record."""
Settings = Mapping[str, Any]
"""Settings of the recipe, dotted ({"method.ridge": 2}) or nested ({"method": {"ridge": 2}})."""

P = ParamSpec("P")
R = TypeVar("R")

IN_PYTHON: tuple[tuple[str, str], ...] = (
    (r"--(re-solve|on-top)\b, --on-top", 'mode="re-solve", mode="on top"'),
    (r"--re-solve\b", 'mode="re-solve"'),
    (r"--on-top\b", 'mode="on top"'),
    (r"--overwrite\b", 'settings={"output.overwrite": True}'),
    (r"--set ([\w.]+)=([^\s,;]+)", r'settings={"\1": \2}'),
    (r"--(corpus)(?: ([^\s,;]+))?", r'settings={"moments.corpus": \2}'),
    (r"--(method)(?: ([^\s,;]+))?", r'settings={"method.name": \2}'),
    (r"--(layers)(?: ([^\s;]*\w))?", r'settings={"method.layers": \2}'),
    (r"--(memory)(?: ([^\s,;]+))?", r'settings={"memory": \2}'),
    (r"--(dtype)(?: ([^\s,;]+))?", r'settings={"model.dtype": \2}'),
    (r"--(device-map)(?: (auto))?", r'settings={"model.device_map": \2}'),
    (r"--(device)(?: ([^\s,;]+))?", r'settings={"model.device": \2}'),
    (r"--any-base\b", "any_base=True"),
    (r"--base(?: ([A-Z]+))?", "base="),
    (r"--(rank|to|import|text|adapter)(?: ([^\s,;]+))?", r"\1=\2"),
    (r"(?<![\w-])-o\b(?: [\w.]+)?", "output="),
    (r"(?<![\w-])-m\b(?: [\w.]+)?", "model="),
)
"""Command-line options as they appear in messages, and the Python arguments that do the same."""


def in_python(text: str) -> str:
    """A message with the arguments of the Python functions instead of the options of the command line.

    >>> in_python("say --overwrite to replace it, or choose another")
    'say settings={"output.overwrite": True} to replace it, or choose another'
    """

    def argument(replacement: str) -> Callable[[re.Match[str]], str]:
        def made(match: re.Match[str]) -> str:
            groups = (*match.groups(), "", "")
            value = groups[1] or "..."
            if replacement.startswith("settings=") and value != "..." and "--set" not in match[0]:
                value = json.dumps(value)
            return replacement.replace(r"\1", groups[0] or "").replace(r"\2", value)

        return made

    for option, replacement in IN_PYTHON:
        text = re.sub(option, argument(replacement), text)
    return text


@contextmanager
def _python_face() -> Generator[None]:
    """Say errors in the terms of Python, and keep other libraries' progress bars off the screen meanwhile."""
    with _no_foreign_bars():
        try:
            yield
        except MemeditError as error:
            error.message, error.hint = in_python(error.message), in_python(error.hint)
            error.args = (error.message,)
            raise
        except OSError as error:
            if not is_file_error(error):
                raise
            raise file_error(error) from error


@contextmanager
def _no_foreign_bars() -> Generator[None]:
    """Switch off the progress bars of transformers, huggingface_hub and datasets; restore them as they were."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from transformers.utils import logging

    drawn, fetched = logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
    datasets: Any = sys.modules.get("datasets")
    if datasets is not None and not datasets.is_progress_bar_enabled():
        datasets = None
    logging.disable_progress_bar()
    disable_progress_bars()
    if datasets is not None:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if drawn:
            logging.enable_progress_bar()
        if fetched:
            enable_progress_bars()
        else:
            disable_progress_bars()
        if datasets is not None:
            datasets.enable_progress_bars()


def _python(function: Callable[P, R]) -> Callable[P, R]:
    """Run a public function with `_python_face` around it."""

    @wraps(function)
    def called(*args: P.args, **kwargs: P.kwargs) -> R:
        with _python_face():
            return function(*args, **kwargs)

    return called


@_python
def load_edits(source: str | Path, *, relations: str | Path | None = None) -> list[EditRequest]:
    """Read an edit list in any of memedit's formats.

    Raises EditListError with every error it has (`.findings`), or UsageError if it cannot be read.

    >>> edits = load_edits("requests/world.jsonl")
    >>> len(edits), edits[0].relation
    (1000, 'language')
    """
    requests, findings = read(_path("edits", source) or "", relations=_path("relations", relations))
    return _sound(requests, findings, f"the edit list {source}")


@_python
def check(edits: Edits, model: Folder | None = None, *, settings: Settings | None = None) -> list[Finding]:
    """Find everything that is wrong with an edit list; with `model`, with its tokenizer too.

    A finding has `.severity` ("error" or "warning"), `.code`, `.message`, `.origin` and `.line`, all of it as text.

    >>> [one.code for one in check([{"subject": "Ada", "prompt": "They live in", "object": "Rome"}])]
    ['E101']
    """
    requests, findings = _read("edits", edits)
    recipe, _ = _resolved(model or "", settings)
    return pipeline.run_check(RunInputs(recipe, requests, findings))


@_python
def stats(
    model: Folder,
    *,
    import_file: str | Path | None = None,
    dry_run: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> list[MomentRow]:
    """Measure the second moments of the layers to edit into the cache; one row a layer.

    With `import_file` one layer's moment is taken from an .npz file instead; with `dry_run` nothing is measured.

    >>> [row.layer for row in stats("examples/models/made-gpt2", settings={"moments.tokens": 500})]
    [0, 1, 2]
    """
    recipe, _ = _resolved(model, settings)
    file = _path("import_file", import_file)
    return pipeline.run_stats(recipe, import_file=file, dry_run=dry_run, progress=progress)


@_python
def apply(
    edits: Edits,
    model: Folder,
    output: Folder,
    *,
    facts: Edits = (),
    mode: Mode | None = None,
    base: Folder | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Report:
    """Edit facts in a model; when this returns, the edited checkpoint is in `output`.

    A model that was edited before, and has its ledger, is edited again: mode "re-solve" (the default) solves all its
    edits again from its base, which is at `base` if it was moved; "on top" edits the edited weights. `facts` are known
    facts; the report counts how many stay. Raises subclasses of MemeditError, before any heavy work if the input is
    wrong.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     edits = load_edits("requests/world.jsonl")[:2]
    ...     report = apply(edits, "examples/models/made-gpt2", folder + "/edited", settings={"target.steps": 20})
    >>> report.edits, [one.layer for one in report.layers]
    (2, [0, 1, 2])
    """
    if mode not in (None, "re-solve", "on top"):
        raise UsageError(f'mode must be "re-solve" or "on top", not {mode!r}', "leave it out for a model never edited")
    recipe, sources = _resolved(model, settings, output)
    requests, findings = _read("edits", edits)
    known, place = _facts(facts), _path("base", base)
    inputs = RunInputs(recipe, requests, findings, facts=known, sources=sources, mode=mode, base=place)
    return pipeline.run_apply(inputs, progress)


@_python
def forget(
    ids: Sequence[str],
    model: Folder,
    output: Folder,
    *,
    facts: Edits = (),
    base: Folder | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Report:
    """Remove edits from an edited model by their ids, as if they had never been made, and write it to `output`.

    The other edits are solved again from the base. If none is left, the base itself is written.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     edits, one, two = load_edits("requests/world.jsonl")[:2], folder + "/one", folder + "/two"
    ...     _ = apply(edits, "examples/models/made-gpt2", one, settings={"target.steps": 20})
    ...     report = forget([edits[0].id], one, two)
    >>> report.edits, report.ledger.kept
    (1, 1)
    """
    if isinstance(ids, str):
        ids = [ids]
    recipe, sources = _resolved(model, settings, output)
    inputs = RunInputs(recipe, facts=_facts(facts), sources=sources, base=_path("base", base))
    return pipeline.run_forget(ids, inputs, progress)


@_python
def evaluate(
    edits: Edits,
    model: Folder,
    *,
    base: Folder | None = None,
    adapter: Folder | None = None,
    facts: Edits = (),
    text: str | Path | None = None,
    generate: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Report:
    """Evaluate a model on an edit list, beside the model it was made from if `base` names it.

    `adapter` is a LoRA folder that is loaded into the model. `text` is held-out text that measures drift. `generate`
    asks for longer free answers, too.

    >>> report = evaluate(load_edits("requests/world.jsonl")[:5], "examples/models/made-gpt2")
    >>> report.after.efficacy.mean < 0.5
    True
    """
    requests, findings = _read("edits", edits)
    _sound(requests, findings, "the edit list", allowed=("E105", "E106"))
    recipe, _ = _resolved(model, settings)
    one = _path("adapter", adapter)
    inputs = RunInputs(recipe, requests, facts=_facts(facts), base=_path("base", base))
    return pipeline.run_evaluate(
        inputs, adapters=[one] if one else [], text=_path("text", text), generate=generate, progress=progress
    )


@_python
def trace(
    facts: Edits,
    model: Folder,
    output: Folder | None = None,
    *,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> TracingResult:
    """Trace where a model recalls facts: the old objects of an edit list, or what the model answers itself.

    `.facts` holds each fact's scores as tables; `.average` the effects with their intervals, and the layers that they
    suggest. With `output` all of it is written there, with a page of figures (trace.html).

    >>> edits, quick = load_edits("requests/world.jsonl")[:2], {"trace.samples": 2}
    >>> found = trace(edits, "examples/models/made-gpt2", settings=quick)
    >>> found.average.n_layers, sorted(found.facts[0].scores)[:3]
    (6, ['attention', 'attention severed', 'clean'])
    """

    def draw(tracing: TracingResult) -> dict[str, bytes]:
        return {"trace.html": trace_page(tracing).encode()}

    requests, findings = _read("facts", facts)
    recipe, _ = _resolved(model, settings)
    where = _path("output", output)
    folder = None if where is None else Path(where).expanduser()
    return pipeline.run_trace(RunInputs(recipe, requests, findings), output=folder, draw=draw, progress=progress)


@_python
def inspect(model: Folder, *, weights: bool = True, settings: Settings | None = None) -> Inspection:
    """Inspect how a model is built, which layers can be edited and why not. Without `weights`, read its config only.

    >>> found = inspect("examples/models/made-gpt2")
    >>> found.editable, found.head.tied, found.each[0].gain
    ('0-5', True, 1.0)
    """
    return pipeline.run_inspect(_resolved(model, settings)[0], weights=weights)


@_python
def export(
    delta: Folder,
    to: ExportKind,
    model: Folder,
    output: Folder,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    any_base: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Write a delta as a checkpoint ("full"), as a LoRA adapter ("lora"), or as one file of float32 changes ("dense").

    `delta` is a folder that `apply` wrote, or its delta.safetensors; `model` is its base. It can also be a LoRA
    adapter, which is merged into the base (only "full"). `rank` truncates the change to that rank per layer; `dtype` is
    that of the adapter's factors. `any_base` allows another base than the delta's.
    """
    if to not in ("full", "lora", "dense"):
        raise UsageError(f'to must be "full", "lora" or "dense", not {to!r}', "name one of them")
    recipe, _ = _resolved(model, settings, output)
    change = Path(_path("delta", delta) or "").expanduser()
    return pipeline.run_export(change, to, recipe, rank=rank, dtype=dtype, any_base=any_base, progress=progress)


@_python
def add(
    deltas: Folder | Sequence[Folder],
    model: Folder,
    output: Folder,
    *,
    any_base: bool = False,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Add deltas to their base model and write the checkpoint; their order does not matter.

    Raises UsageError for a delta that belongs to another base, unless `any_base` allows it.
    """
    several = [deltas] if isinstance(deltas, str | Path) else list(deltas)
    recipe, _ = _resolved(model, settings, output)
    paths = [Path(_path("deltas", delta) or "").expanduser() for delta in several]
    return pipeline.run_add(paths, recipe, any_base=any_base, progress=progress)


@_python
def revert(
    edited: Folder,
    output: Folder,
    *,
    model: Folder | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Write an edited model as it was before its edit: exact if the base or the kept originals are available.

    `model` is the base; without it, the base that the run recorded. `.exact` says whether the result is the base.
    """
    recipe, _ = _resolved(model or "", settings, output)
    return pipeline.run_revert(Path(_path("edited", edited) or "").expanduser(), recipe, progress=progress)


@_python
def diff(a: Folder, b: Folder, *, progress: Progress | None = None) -> Comparison:
    """Compare two model folders tensor by tensor and file by file.

    >>> diff("examples/models/made-gpt2", "examples/models/made-gpt2").same
    True
    """
    return pipeline.run_diff(_path("a", a) or "", _path("b", b) or "", progress=progress)


@_python
def log(edited: Folder) -> EditLog:
    """List the edits of an edited model in order, and what became of each.

    `.edits` have `.id`, `.prompt`, `.object` and `.state`. Raises UsageError for a model without a ledger.
    """
    return pipeline.run_log(_path("edited", edited) or "")


@_python
def push(
    output: Folder,
    repo: str,
    *,
    private: bool = False,
    update: bool = False,
    records: bool = True,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> Upload:
    """Upload a folder that memedit wrote to the Hub repository `repo` (OWNER/NAME); `dry_run` lists the files alone.

    Raises UsageError for a repository that has files, unless `update`. Without `records` the folder `memedit` stays.
    """
    return pipeline.run_push(
        _path("output", output) or "", repo, private=private, update=update, records=records, dry_run=dry_run,
        progress=progress,
    )  # fmt: skip


@_python
def list_cache(kinds: Sequence[CacheKind] = ()) -> list[CacheEntry]:
    """List what the cache keeps for later runs, the largest first; of some kinds, or of all.

    An entry has `.kind`, `.name`, `.model`, `.bytes` and `.used` (seconds since 1970).

    >>> all(one.bytes > 0 for one in list_cache())
    True
    """
    return cache.kept_entries(cache.checked_kinds(kinds))


@_python
def clean_cache(
    *,
    kinds: Sequence[CacheKind] = (),
    older_than: str | None = None,
    to_size: str | None = None,
    everything: bool = False,
    dry_run: bool = False,
) -> CacheCleaning:
    """Remove what the cache keeps: of some kinds, not used for so long ("30d"), or down to a size ("20GB").

    `everything` removes all of it; with `dry_run` nothing is removed. What a run that is going on uses stays.

    >>> clean_cache(older_than="30d", dry_run=True).removed
    ()
    """
    if everything == bool(kinds or older_than or to_size):
        said = "a condition was given beside everything" if everything else "nothing says what to remove"
        raise UsageError(said, "give kinds, older_than or to_size; or everything=True alone")
    return cache.remove_entries(
        kinds=cache.checked_kinds(kinds),
        older_than=None if older_than is None else cache.age_in_seconds(older_than, "older_than"),
        to_size=None if to_size is None else cache.size_in_bytes(to_size, "to_size"),
        dry_run=dry_run,
    )


def edited(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Edits,
    *,
    moments: LayerMoments | None = None,
    corpus: str | Path | Iterable[str] | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> AbstractContextManager[InMemoryUpdate]:
    """Edit a loaded transformers model for the length of a `with` block; its weights are put back at the end.

    The numbers are those of `apply` on the same model, to the bit: on a CPU load it with dtype=torch.float32, which is
    what `apply` does there. Second moments are `moments` (by layer, or what `stats` returned), or measured on `corpus`
    (a path, or texts), or those of the cache. `update.apply_(model)` keeps the edit; `update.save(folder)` writes it as
    a delta file. The model's training mode, requires_grad, device and dtype stay as they are.

    >>> from transformers import AutoModelForCausalLM, AutoTokenizer
    >>> folder = "examples/models/made-gpt2"
    >>> model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    >>> tokenizer, edits = AutoTokenizer.from_pretrained(folder), load_edits("requests/world.jsonl")[:2]
    >>> settings = {"target.steps": 2, "moments.tokens": 1000}
    >>> before = model.transformer.h[0].mlp.c_proj.weight.clone()
    >>> with edited(model, tokenizer, edits, settings=settings) as update:
    ...     sorted(update.deltas), bool((model.transformer.h[0].mlp.c_proj.weight == before).all())
    ([0, 1, 2], False)
    >>> bool((model.transformer.h[0].mlp.c_proj.weight == before).all())
    True
    """
    if moments is not None and corpus is not None:
        raise UsageError("moments and corpus were both given", "give moments, or a corpus to measure them on")
    return _edited(model, tokenizer, edits, moments, corpus, settings, progress)


@contextmanager
def _edited(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edits: Edits,
    moments: LayerMoments | None,
    corpus: str | Path | Iterable[str] | None,
    settings: Settings | None,
    progress: Progress | None,
) -> Generator[InMemoryUpdate]:
    with _python_face():
        requests, findings = _read("edits", edits)
        known = _settings(settings)
        texts: Iterable[str] | None = None
        if isinstance(corpus, str | Path):
            known["moments.corpus"] = str(corpus)
        elif corpus is not None:
            texts = _iterable("corpus", corpus, "a path or texts")
        recipe, sources = resolve([("flag", known)])
        update = make_update(
            model, tokenizer, requests, recipe, sources=sources, findings=findings, moments=moments, corpus=texts,
            progress=progress,
        )  # fmt: skip
    with update.in_place():
        yield update


def _read(name: str, edits: object) -> tuple[list[EditRequest], list[Finding]]:
    """Edits from a path, EditRequests or dicts, and what the reader finds wrong.

    Dicts go through the reader of JSON Lines, as the lines of a file do: the n-th, from 1, is `name`:n in findings. An
    EditRequest is a line too, so that dicts beside it get the ids that a file gives; it stays as it is.
    """
    if isinstance(edits, str | Path):
        return read(str(edits))
    items = list(_iterable(name, edits, "a path or a list of edits"))
    if not items:
        return [], [Finding(origin=f"{name}:1", code="E005", message="the list holds no edits")]
    lines: list[str] = []
    for number, item in enumerate(items, 1):
        if not isinstance(item, EditRequest | Mapping):
            raise UsageError(f"{name} must hold dicts or EditRequest, not {type(item).__name__}", "see load_edits")
        try:
            place = {"id": item.id, "prompt": "-", "object": "-"} if isinstance(item, EditRequest) else dict(item)
            lines.append(json.dumps(place))
        except (TypeError, ValueError) as error:
            raise UsageError(
                f"{name}[{number - 1}] cannot be written as JSON: {error}", "use text and lists"
            ) from error
    cut = {n: trimmed(one) for n, one in enumerate(items, 1) if isinstance(one, EditRequest)}
    made: dict[int, list[EditRequest]] = {n: [one] for n, (one, _) in cut.items()}
    found = [finding for _, findings in cut.values() for finding in findings]
    if len(made) == len(items):
        return [one for one, _ in cut.values()], found
    requests, findings = read(STDIN, input_format="jsonl", stdin=StringIO("\n".join(lines)), name=name)
    for one in requests:
        if (line := int(one.origin.rpartition(":")[2])) not in cut:
            made.setdefault(line, []).append(one)
    return [one for _, group in sorted(made.items()) for one in group], [*found, *findings]


def _facts(facts: object) -> list[EditRequest]:
    if facts == ():
        return []
    requests, findings = _read("facts", facts)
    errors = [one for one in (*findings, *check_facts(requests)) if one.severity == "error"]
    raise_errors("the list of facts", errors, hint="fix the errors in .findings")
    return requests


def _sound(
    requests: list[EditRequest], findings: list[Finding], name: str, allowed: tuple[str, ...] = ()
) -> list[EditRequest]:
    """The requests, if they have no error. Raises EditListError with every error but those of `allowed` codes."""
    errors = [one for one in (*findings, *lint(requests)) if one.severity == "error"]
    raise_errors(name, errors, allowed=allowed, hint="fix the errors in .findings")
    return requests


def _path(name: str, value: object) -> str | None:
    """A path as text. Raises UsageError for any other type."""
    if value is None or isinstance(value, str | Path):
        return None if value is None else str(value)
    raise UsageError(f"{name} must be a path, not {type(value).__name__}", "give a str or a pathlib.Path")


def _iterable(name: str, value: object, wanted: str) -> Iterable[Any]:
    if isinstance(value, Iterable) and not isinstance(value, Mapping | bytes | EditRequest):
        return value  # pyright: ignore[reportUnknownVariableType]
    raise UsageError(f"{name} must be {wanted}, not {type(value).__name__}", "see its help in Python")


def _settings(settings: object) -> dict[str, Any]:
    """Settings as dotted names. Raises UsageError where they are no mapping."""
    if settings is None:
        return {}
    if not isinstance(settings, Mapping):
        kind = type(settings).__name__
        raise UsageError(f"settings must be a dict, not {kind}", 'write settings={"method.ridge": 2}')
    return flatten(settings)  # pyright: ignore[reportUnknownArgumentType]


def _resolved(model: object, settings: Settings | None, output: object = None) -> tuple[Recipe, dict[str, Source]]:
    """The recipe of a call. Raises UsageError for an argument of the wrong type, RecipeError for a wrong setting."""
    named = {"model.path": _path("model", model), "output.dir": _path("output", output)}
    return resolve([("flag", {**_settings(settings), **{name: value for name, value in named.items() if value}})])

"""The commands for weight changes as files: export, add, revert, diff.

No model is loaded: tensors are read from files one at a time, and all other bytes are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from memedit.changes.base_checkpoint import BaseCheckpoint, originals, subtracted
from memedit.changes.delta_file import DeltaFile, in_dtype, sum_deltas
from memedit.changes.merge import run_merge
from memedit.config.recipe import ModelKnobs, Recipe
from memedit.errors import UsageError
from memedit.model.load import locate
from memedit.numerics.delta import Delta
from memedit.numerics.lowrank import balanced_factors, truncated
from memedit.progress import NoProgress, Progress
from memedit.results.changes import Comparison, ExportKind, Outcome, TensorChange
from memedit.results.versions import versions
from memedit.show import card
from memedit.storage.artifacts import digest_file
from memedit.storage.checkpoint import CARD, Checkpoint
from memedit.storage.comparison import compare
from memedit.storage.deltas import delta_bytes, originals_bytes
from memedit.storage.lora import CONFIG, adapter_bytes
from memedit.storage.records import DELTA, EDITS, ORIGINALS, RUN, base_of, card_of, records
from memedit.storage.tensorfile import stream
from memedit.storage.writer import BASE_CARD, check_output, write_checkpoint, write_files


def run_export(
    change: Path,
    to: ExportKind,
    recipe: Recipe,
    *,
    rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    any_base: bool = False,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Write a change as a checkpoint (`full`), a PEFT adapter (`lora`), or one file of float32 changes (`dense`).

    With `rank` the change is cut to that rank first. Raises UsageError for a change of another base. `change` can also
    be the folder of a LoRA adapter; it becomes a checkpoint only, and its base is not checked but for shapes.
    """
    progress = progress or NoProgress()
    if (change / CONFIG).is_file() and not (change / DELTA).is_file():
        if to != "full" or rank is not None:
            raise UsageError(f"{change} is a LoRA adapter, which is merged as it is", "say --to full, without --rank")
        return run_merge(change, _out(recipe), recipe, arguments, progress)
    base, found, out = BaseCheckpoint(recipe.model, progress), DeltaFile.open(change), _out(recipe)
    _check(base, [found], out, recipe, file=to == "dense")
    with progress.phase("base"):
        found = base.admitted(found, any_base=any_base)
    if to == "full":
        whole = rank is None and found.folder is not None and base.checkpoint.has_digest(found.base)
        extra = {**records(found.folder), CARD: card_of(found.folder)} if whole and found.folder else None
        return _checkpoint([found], found.deltas, base, recipe, "export", rank, arguments, progress, extra)
    make = _adapter if to == "lora" else _dense
    with progress.phase("write"):
        figures, rank = make(base, found, out, recipe, rank, dtype)
    return _outcome("export", base, recipe, [found], figures, arguments).model_copy(
        update={"kind": to, "rank": rank, "family": base.family}
    )


def run_add(
    changes: Sequence[Path],
    recipe: Recipe,
    *,
    any_base: bool = False,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Add the sum of changes to their base, round once, and write the checkpoint; their order does not matter."""
    progress = progress or NoProgress()
    base, found = BaseCheckpoint(recipe.model, progress), [DeltaFile.open(path) for path in changes]
    _check(base, found, _out(recipe), recipe)
    with progress.phase("base"):
        found = [base.admitted(change, any_base=any_base) for change in found]
    return _checkpoint(found, sum_deltas(found), base, recipe, "apply", None, arguments, progress, None)


def run_revert(
    edited: Path,
    recipe: Recipe,
    *,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Write an edited folder as it was before its edit, to the bit if the original tensors can be read.

    `recipe.model.path` names the base. Without it the originals that were kept with the edit are used, then the base
    of the run. If neither can be read, the change is subtracted, which is exact up to rounding.
    """
    progress, out = progress or NoProgress(), _out(recipe)
    recorded, base = base_of(edited)
    change, checkpoint = DeltaFile.open(edited), Checkpoint.open(edited)
    check_output(edited, out, overwrite=recipe.output.overwrite, force=recipe.output.force)
    origin, weights, folder = originals(checkpoint, change, recorded, recipe.model.path or None, progress)
    extra: dict[str, bytes | None] = {CARD: card_of(edited, BASE_CARD), BASE_CARD: None}
    if folder is not None:
        check_output(folder, out, overwrite=recipe.output.overwrite, force=recipe.output.force)
        extra |= {CARD: card_of(folder), **records(folder)}
    if origin == "subtraction":
        weights = subtracted(checkpoint, change.deltas, recipe.model)
        progress.note(f"cannot read the base {recorded.path}, and no originals were kept: the change is subtracted")
    with progress.phase("write"):
        knobs = recipe.output
        write_checkpoint(
            checkpoint, out, weights, extra,
            link=knobs.link, max_shard=knobs.max_shard, keep_copies=knobs.keep_copies, overwrite=knobs.overwrite,
            force=knobs.force, note=progress.note,
        )  # fmt: skip
        back = Checkpoint.open(out)
        exact, digest = back.has_digest(base), back.digest
    return Outcome(
        command="revert", versions=versions(), arguments=list(arguments), model=recorded.path, output=str(out),
        deltas=(str(change.file),), origin=origin, exact=exact, digests={"model": base, "output": digest},
    )  # fmt: skip


def run_diff(a: str, b: str, *, progress: Progress | None = None) -> Comparison:
    """Compare the folders of two models, tensor by tensor and file by file."""
    one, two = (locate(ModelKnobs(path=path)) for path in (a, b))
    return compare(one, two, a, b, progress or NoProgress())


def _checkpoint(
    found: Sequence[DeltaFile],
    deltas: dict[str, Delta],
    base: BaseCheckpoint,
    recipe: Recipe,
    command: str,
    rank: int | None,
    arguments: Sequence[str],
    progress: Progress,
    extra: dict[str, bytes | None] | None,
) -> Outcome:
    """Write the base with these changes; `extra` holds the records of the run, or None to make them here."""
    if rank is not None or len(found) > 1 or not base.checkpoint.has_digest(found[0].base):
        base.check_rounding(deltas, cut=rank is not None)
    with progress.phase("round", len(deltas), "tensors") as advance:
        weights, made, figures = dict[str, torch.Tensor](), dict[str, Delta](), list[TensorChange]()
        for name, delta in deltas.items():
            weights[name], made[name], one = base.put(name, delta, rank)
            figures.append(one)
            advance(1)
    outcome = _outcome(command, base, recipe, found, figures, arguments).model_copy(update={"kind": "full"})
    if extra is None:
        extra = _records(found, made, base, recipe, outcome)
    with progress.phase("write"):
        knobs = recipe.output
        write_checkpoint(
            base.checkpoint, _out(recipe), weights, extra,
            link=knobs.link, max_shard=knobs.max_shard, keep_copies=knobs.keep_copies, overwrite=knobs.overwrite,
            force=knobs.force, note=progress.note,
        )  # fmt: skip
    return outcome


def _records(
    found: Sequence[DeltaFile], made: dict[str, Delta], base: BaseCheckpoint, recipe: Recipe, outcome: Outcome
) -> dict[str, bytes | None]:
    """The files beside the weights of a sum: card, run record, delta file, edit lists, and originals if asked for."""
    digest = base.checkpoint.digest
    parameters = [one.parameter for one in outcome.tensors]
    lists = [records(change.folder).get(EDITS, b"") for change in found if change.folder]
    metadata = {"method": "sum", "of": sorted(outcome.digests["deltas"])}
    files: dict[str, bytes | None] = {
        CARD: card.sum_card(base.card, len(found), parameters).encode(),
        RUN: outcome.model_dump_json(indent=2).encode(),
        DELTA: delta_bytes(made, digest, metadata),
        **({EDITS: b"".join(lists)} if any(lists) else {}),
    }
    if recipe.output.keep_originals:
        files[ORIGINALS] = originals_bytes({name: base.checkpoint.tensor(name) for name in made}, digest)
    return files


def _adapter(
    base: BaseCheckpoint, change: DeltaFile, out: Path, recipe: Recipe, rank: int | None, dtype: torch.dtype
) -> tuple[list[TensorChange], int]:
    figures, factors = list[TensorChange](), dict[str, Delta]()
    for name, delta in change.deltas.items():
        _, _, one = base.put(name, delta)
        cut, lost = (balanced_factors(delta), 0.0) if rank is None else truncated(delta, rank)
        factors[one.parameter] = made = in_dtype(cut, dtype)
        distance = base.distance(name, delta, made)
        figures.append(one.model_copy(update={"rank": made.rank, "lost": lost, "distance": distance}))
    uniform = max(delta.left.shape[1] for delta in factors.values())
    conv1d = base.architecture.layout == "conv1d"
    model = recipe.model
    files = adapter_bytes(factors, model.path, revision=model.revision, conv1d=conv1d, dtype=dtype)
    files["README.md"] = card.adapter_card(base.card, uniform, list(factors), base.opened_by).encode()
    write_files(out, files, overwrite=recipe.output.overwrite, force=recipe.output.force)
    return figures, uniform


def _dense(
    base: BaseCheckpoint, change: DeltaFile, out: Path, recipe: Recipe, rank: int | None, _dtype: torch.dtype
) -> tuple[list[TensorChange], None]:
    figures: list[TensorChange] = []

    def make(name: str) -> torch.Tensor:
        delta = change.deltas[name]
        _, cut, one = base.put(name, delta, rank)
        made = Delta(cut.dense().float())
        figures.append(one.model_copy(update={"distance": base.distance(name, delta, made)}))
        return base.architecture.turned(made.left)

    shapes = {name: base.checkpoint.entries[name].shape for name in change.deltas}
    stream(out, shapes, make, {"format": "pt", "base": base.checkpoint.digest}, replace=recipe.output.overwrite)
    return figures, None


def _outcome(
    command: str,
    base: BaseCheckpoint,
    recipe: Recipe,
    found: Sequence[DeltaFile],
    figures: Sequence[TensorChange],
    arguments: Sequence[str],
) -> Outcome:
    return Outcome(
        command=command, versions=versions(), arguments=list(arguments), model=recipe.model.path,
        output=str(_out(recipe)), recipe=recipe.model_dump(mode="json"),
        deltas=tuple(str(change.file) for change in found), tensors=tuple(figures),
        digests={"model": base.checkpoint.digest, "deltas": [digest_file(change.file) for change in found]},
    )  # fmt: skip


def _out(recipe: Recipe) -> Path:
    if not recipe.output.dir:
        raise UsageError("no output was given", "say where to: -o OUT")
    return Path(recipe.output.dir).expanduser()


def _check(
    base: BaseCheckpoint, changes: Sequence[DeltaFile], out: Path, recipe: Recipe, *, file: bool = False
) -> None:
    """Refuse an output that would replace what is read, or that cannot be written. Raises UsageError."""
    if file and out.is_dir():
        raise UsageError(f"the output {out} is a folder", "dense changes are one file: -o change.safetensors")
    if file and out.exists() and not recipe.output.overwrite:
        raise UsageError(f"the output {out} exists", "say --overwrite to replace it, or choose another")
    for source in (base.folder, *(change.folder or change.file for change in changes)):
        if not file:
            check_output(source, out, overwrite=recipe.output.overwrite, force=recipe.output.force)
        elif source.resolve() in (out.resolve(), *out.resolve().parents):
            raise UsageError(f"the output {out} and {source}, which is read, overlap", "write to a place of its own")

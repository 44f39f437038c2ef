"""A change that is carried apart from its model: exported, summed with others, taken back, compared. The second page.

No model is opened for it: tensors are read from files one at a time, and all other bytes are copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from memedit.changes.base import BaseCheckpoint, DeltaFile, in_dtype, originals, subtracted, sum_deltas
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
from memedit.storage.base_card import read_base_card
from memedit.storage.checkpoint import CARD, Checkpoint
from memedit.storage.comparison import compare
from memedit.storage.deltas import delta_bytes, originals_bytes
from memedit.storage.lora import adapter_bytes
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
    """Write a change as a checkpoint (`full`), as PEFT's adapter (`lora`), or as float32 changes of tensors (`dense`).

    With `rank` it is cut to that many directions first. Raises UsageError for a change of another base.
    """
    progress = progress or NoProgress()
    ground, found, out = BaseCheckpoint(recipe.model, progress), DeltaFile.open(change), _out(recipe)
    _check(ground, out, recipe, file=to == "dense")
    with progress.phase("base"):
        found = ground.admitted(found, any_base=any_base)
    if to == "full":
        whole = rank is None and found.folder is not None and found.base == ground.checkpoint.digest
        extra = {**records(found.folder), CARD: card_of(found.folder)} if whole and found.folder else None
        return _checkpoint([found], found.deltas, ground, recipe, "export", rank, arguments, progress, extra)
    make = _adapter if to == "lora" else _dense
    with progress.phase("write"):
        told, rank = make(ground, found, out, recipe, rank, dtype)
    return _outcome("export", ground, recipe, [found], told, arguments).model_copy(
        update={"kind": to, "rank": rank, "family": ground.family}
    )


def run_add(
    changes: Sequence[Path],
    recipe: Recipe,
    *,
    any_base: bool = False,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Put the sum of changes on their base, rounded once, and write the checkpoint; their order decides nothing."""
    progress = progress or NoProgress()
    ground, found = BaseCheckpoint(recipe.model, progress), [DeltaFile.open(path) for path in changes]
    _check(ground, _out(recipe), recipe)
    with progress.phase("base"):
        found = [ground.admitted(change, any_base=any_base) for change in found]
    return _checkpoint(found, sum_deltas(found), ground, recipe, "apply", None, arguments, progress, None)


def run_revert(
    edited: Path,
    recipe: Recipe,
    *,
    arguments: Sequence[str] = (),
    progress: Progress | None = None,
) -> Outcome:
    """Write an edited folder as it was before its edit: to the bit where the original tensors are at hand.

    `recipe.model.path` names the base; without it, originals kept beside the edit are taken, then the base that the
    run was made from, where it can be read. Failing both, the change is subtracted, which is exact up to rounding.
    """
    progress, out = progress or NoProgress(), _out(recipe)
    recorded, base = base_of(edited)
    change, checkpoint = DeltaFile.open(edited), Checkpoint.open(edited)
    check_output(edited, out, overwrite=recipe.output.overwrite, force=recipe.output.force)
    origin, weights, folder = originals(edited, change, recorded, recipe.model.path or None, progress)
    extra: dict[str, bytes | None] = {CARD: card_of(edited, BASE_CARD), BASE_CARD: None}
    if folder is not None:
        check_output(folder, out, overwrite=recipe.output.overwrite, force=recipe.output.force)
        extra |= {CARD: card_of(folder), **records(folder)}
    if origin == "subtraction":
        progress.note(f"the base {recorded.path} is not at hand, and no originals were kept: the change is subtracted")
        weights = subtracted(checkpoint, change.deltas, recorded)
    with progress.phase("write"):
        knobs = recipe.output
        write_checkpoint(
            checkpoint, out, weights, extra,
            link=knobs.link, max_shard=knobs.max_shard, overwrite=knobs.overwrite, force=knobs.force,
            note=progress.note,
        )  # fmt: skip
        digest = Checkpoint.open(out).digest
    return Outcome(
        command="revert", versions=versions(), arguments=list(arguments), model=recorded.path, output=str(out),
        deltas=(str(change.file),), origin=origin, exact=digest == base, digests={"model": base, "output": digest},
    )  # fmt: skip


def run_diff(a: str, b: str, *, progress: Progress | None = None) -> Comparison:
    """How two models' folders differ, tensor by tensor and file by file."""
    one, two = (locate(ModelKnobs(path=path)) for path in (a, b))
    return compare(one, two, a, b, progress or NoProgress())


def _checkpoint(
    found: Sequence[DeltaFile],
    deltas: dict[str, Delta],
    ground: BaseCheckpoint,
    recipe: Recipe,
    command: str,
    rank: int | None,
    arguments: Sequence[str],
    progress: Progress,
    extra: dict[str, bytes | None] | None,
) -> Outcome:
    """Write the base with these changes; `extra` are the records of the run that made them, or they are made here."""
    with progress.phase("round", len(deltas), "tensors") as advance:
        weights, made, told = dict[str, torch.Tensor](), dict[str, Delta](), list[TensorChange]()
        for name, delta in deltas.items():
            weights[name], made[name], one = ground.put(name, delta, rank)
            told.append(one)
            advance(1)
    outcome = _outcome(command, ground, recipe, found, told, arguments).model_copy(update={"kind": "full"})
    if extra is None:
        parameters = [one.parameter for one in told]
        digest = ground.checkpoint.digest
        lists = [records(change.folder).get(EDITS, b"") for change in found if change.folder]
        about = {"method": "sum", "of": sorted(outcome.digests["deltas"])}
        extra = {
            CARD: card.sum_card(read_base_card(ground.folder, recipe.model.path), len(found), parameters).encode(),
            RUN: outcome.model_dump_json(indent=2).encode(),
            DELTA: delta_bytes(made, digest, about),
            **({EDITS: b"".join(lists)} if any(lists) else {}),
        }
        if recipe.output.keep_originals:
            extra[ORIGINALS] = originals_bytes({name: ground.checkpoint.tensor(name) for name in weights}, digest)
    with progress.phase("write"):
        knobs = recipe.output
        write_checkpoint(
            ground.checkpoint, _out(recipe), weights, extra,
            link=knobs.link, max_shard=knobs.max_shard, overwrite=knobs.overwrite, force=knobs.force,
            note=progress.note,
        )  # fmt: skip
    return outcome


def _adapter(
    ground: BaseCheckpoint, change: DeltaFile, out: Path, recipe: Recipe, rank: int | None, dtype: torch.dtype
) -> tuple[list[TensorChange], int]:
    told, factors = list[TensorChange](), dict[str, Delta]()
    for name, delta in change.deltas.items():
        _, _, one = ground.put(name, delta)
        cut, lost = (balanced_factors(delta), 0.0) if rank is None else truncated(delta, rank)
        factors[one.parameter] = made = in_dtype(cut, dtype)
        apart = ground.apart(name, delta, made)
        told.append(one.model_copy(update={"rank": made.rank, "lost": lost, "distance": apart}))
    uniform = max(delta.left.shape[1] for delta in factors.values())
    conv1d = ground.architecture.layout == "conv1d"
    model = recipe.model
    files = adapter_bytes(factors, model.path, revision=model.revision, conv1d=conv1d, dtype=dtype)
    files["README.md"] = card.adapter_card(read_base_card(ground.folder, model.path), uniform, list(factors)).encode()
    write_files(out, files, overwrite=recipe.output.overwrite, force=recipe.output.force)
    return told, uniform


def _dense(
    ground: BaseCheckpoint, change: DeltaFile, out: Path, recipe: Recipe, rank: int | None, _dtype: torch.dtype
) -> tuple[list[TensorChange], None]:
    told: list[TensorChange] = []

    def make(name: str) -> torch.Tensor:
        delta = change.deltas[name]
        _, cut, one = ground.put(name, delta, rank)
        made = Delta(cut.dense().float())
        told.append(one.model_copy(update={"distance": ground.apart(name, delta, made)}))
        return ground.architecture.turned(made.left)

    shapes = {name: ground.checkpoint.entries[name].shape for name in change.deltas}
    stream(out, shapes, make, {"format": "pt", "base": ground.checkpoint.digest}, replace=recipe.output.overwrite)
    return told, None


def _outcome(
    command: str,
    ground: BaseCheckpoint,
    recipe: Recipe,
    found: Sequence[DeltaFile],
    told: Sequence[TensorChange],
    arguments: Sequence[str],
) -> Outcome:
    return Outcome(
        command=command, versions=versions(), arguments=list(arguments), model=recipe.model.path,
        output=str(_out(recipe)), recipe=recipe.model_dump(mode="json"),
        deltas=tuple(str(change.file) for change in found), tensors=tuple(told),
        digests={"model": ground.checkpoint.digest, "deltas": [digest_file(change.file) for change in found]},
    )  # fmt: skip


def _out(recipe: Recipe) -> Path:
    if not recipe.output.dir:
        raise UsageError("no output was given", "say where to: -o OUT")
    return Path(recipe.output.dir).expanduser()


def _check(ground: BaseCheckpoint, out: Path, recipe: Recipe, *, file: bool = False) -> None:
    if not file:
        check_output(ground.folder, out, overwrite=recipe.output.overwrite, force=recipe.output.force)
    elif out.is_dir():
        raise UsageError(f"the output {out} is a folder", "dense changes are one file: -o change.safetensors")
    elif out.exists() and not recipe.output.overwrite:
        raise UsageError(f"the output {out} exists", "say --overwrite to replace it, or choose another")

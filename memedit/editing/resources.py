"""Check that a run fits into memory and disk, and estimate its time, before any heavy work."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from memedit.config.recipe import ModelKnobs, TargetKnobs
from memedit.errors import ResourceError
from memedit.model.architecture import Architecture
from memedit.model.load import LanguageModel, forward_dtype, pick_device
from memedit.model.memory import free_on
from memedit.model.streamed import fit_in
from memedit.results.units import bytes_text, range_text
from memedit.storage.cache import cache_dir, cache_limit
from memedit.storage.checkpoint import Checkpoint
from memedit.storage.machine import free_disk, free_memory
from memedit.storage.tensorfile import DTYPES

TIMED = (16, 256)
"""Tokens of the timed forward; the second is run if the first takes less than SHORT seconds."""
SHORT = 0.25  # seconds
MOSTLY_READING = 0.05  # of a forward's time, what its tokens count at least: two forwards differ by noise
USUAL = 1024
"""Tokens in a launch, about: what reading all blocks once is set against."""
ROWS_WRITTEN = 64
"""Rows of text that the model writes together: each pass gives a token to each of them."""
GRADIENT = 3.0  # forwards that a step of the search costs
STEPS_TAKEN = {"lbfgs": (0.1, 0.5), "adam": (0.25, 0.75)}
"""The share of `target.steps` that the search takes on average, on models that know the facts: with L-BFGS 0.10 (100
edits of made-gpt2) and 0.17 (60 edits of SmolLM2), with Adam 0.24 and 0.6; more where edits share a subject."""
WRITTEN = 2.5
"""Forwards that a token costs which the model writes itself: rows grow by one token at a time (SmolLM2-135M on two
cores, 60 rows, 2026-12-01: 4.4 ms a token, where a token of a long row takes 1.8; with 32 rows 6.2)."""

SLOWER = 1.2
"""Long runs take up to this much longer than the short forwards that are timed before them say (60 edits of SmolLM2:
8 min 52 s, where 7 to 8 min were estimated)."""
FOUND_SHARE = 0.1
"""A phase that ends in less than this share of its estimate found its results in the cache: it says nothing of the
speed."""
CORRECTED = (0.5, 4.0)
"""How far phases that ended may correct those that are left."""
WORTH_TELLING = 180.0
"""Seconds that must be left, or they are not told."""


def weight_bytes(base: Checkpoint, knobs: ModelKnobs) -> int:
    """Bytes of a checkpoint's floating-point tensors in the forward's dtype, from its headers."""
    dtype = forward_dtype(knobs)
    sizes = [
        # FP8 weights are opened in bfloat16 or wider.
        (math.prod(entry.shape), dtype.itemsize if dtype else max(2, DTYPES[entry.dtype].itemsize))
        for entry in base.entries.values()
        if entry.dtype in DTYPES
    ]
    return sum(count * size for count, size in sizes)


def moment_bytes(widths: Sequence[int]) -> int:
    """Bytes of main memory that the moments of layers of these widths take at most, beside the model.

    While measuring: for each layer its running sum and its moment, and a buffer to mirror one. While solving: one
    layer's moment, its mean, its factor and a product.
    """
    squares = [8 * width**2 for width in widths]
    largest = max(squares, default=0)
    return max(2 * sum(squares) + 2 * largest, 4 * largest)


def cache_bytes(widths: Sequence[int]) -> int:
    """Bytes of disk that the moments and factors of layers of these widths take."""
    return sum(16 * width**2 for width in widths)


def check_weights(base: Checkpoint, knobs: ModelKnobs, processes: int = 1, limit: int | None = None) -> None:
    """Raises ResourceError if a model's weights do not fit into memory; they are not read.

    `processes` of this machine hold them: on a CPU they share its memory, and each has a GPU of its own. limit: the
    bytes that each may use; weights that do not fit in it are read from disk as they are needed.
    """
    if knobs.device_map:
        return  # accelerate places the weights; a model that does not fit is refused when it is opened
    device, needed = pick_device(knobs.device), weight_bytes(base, knobs)
    if limit is not None and not fit_in(needed, limit):
        needed = limit
    on_gpu = free_on(device)
    free = free_memory() if on_gpu is None else on_gpu
    processes = processes if on_gpu is None else 1
    needed *= processes
    if needed > free:
        where = "main memory" if on_gpu is None else f"the memory of {device}"
        others = "or edit it on a machine with more" if on_gpu is None else "--device-map auto or --device cpu"
        fewer, of = ("start fewer processes, ", f" in {processes} processes") if processes > 1 else ("", "")
        raise ResourceError(
            f"the weights take {bytes_text(needed)}{of} and {where} has {bytes_text(free)} free",
            f"{fewer}say --dtype bfloat16, --memory {bytes_text(free * 3 // 4).replace(' ', '')} to read blocks from "
            f"disk as they are needed, {others}",
        )


def check_room(
    written: int,
    out: Path | None,
    link: str,
    architecture: Architecture,
    layers: Sequence[int],
    missing: Sequence[int],
) -> str:
    """Raises ResourceError if memory or disk is too small for these layers; returns what they take, as text.

    written: bytes of the output. missing: layers whose moments must be measured. Raises UsageError for a limit of the
    cache that is no size.
    """
    cache_limit()
    widths = [architecture.mlp_widths[layer] for layer in layers]
    memory = max(moment_bytes([architecture.mlp_widths[layer] for layer in missing]), moment_bytes([max(widths)]))
    if memory > free_memory():
        few = "fewer layers (--layers), or one at a time: memedit stats --layers N"
        raise ResourceError(
            f"the moments of {len(missing) or 1} layers of {max(widths):,} units take {bytes_text(memory)} "
            f"and main memory has {bytes_text(free_memory())} free",
            few,
        )
    cache = cache_bytes([architecture.mlp_widths[layer] for layer in missing])
    written = 0 if out is None or link == "hard" else written
    places = [
        (cache, cache_dir(), "MEMEDIT_CACHE"),
        *([(written, out, "-o, or --link hard")] if out is not None else []),
    ]
    for needed, folder, flag in places:
        if needed > free_disk(folder):
            said = f"{folder} needs {bytes_text(needed)} and its disk has {bytes_text(free_disk(folder))} free"
            raise ResourceError(said, f"free some space, or point at another disk: {flag}")
    disk = f"disk {bytes_text(written)} of output and {bytes_text(cache)} of cache"
    return f"memory {bytes_text(memory)} beside the model, {disk}"


@dataclass(frozen=True)
class Pace:
    """How fast a model runs on this machine, in seconds."""

    token: float
    """A token of a forward."""
    reading: float = 0.0
    """What a forward takes beside its tokens: reading blocks from disk."""

    @classmethod
    def of(cls, lm: LanguageModel) -> Pace:
        """Measure the pace of a model."""
        # The first forward also initializes libraries, which can take seconds.
        _forward_seconds(lm, 1)
        reading = _forward_seconds(lm, 1) if lm.streamed is not None else 0.0
        found = 0.0
        for count in TIMED:
            length = min(count, lm.architecture.positions or count)
            # Other programs make a forward longer, never shorter; one that reads from disk is not done twice.
            spent = min(_forward_seconds(lm, length) for _ in range(1 if reading else 2))
            found = max(spent - reading, MOSTLY_READING * spent) / length
            if spent - reading > SHORT:
                break
        return cls(found, reading)

    @property
    def slowdown(self) -> float:
        """How many times as long a launch of a usual size takes as it would with all weights in memory."""
        return 1 + self.reading / (self.token * USUAL)


@torch.no_grad()
def _forward_seconds(lm: LanguageModel, length: int) -> float:
    ids = torch.arange(length, device=lm.device)[None] % lm.architecture.vocabulary
    start = time.monotonic()
    lm.forward(input_ids=ids, use_cache=False, logits_to_keep=1).logits.cpu()
    return time.monotonic() - start


def streaming_note(lm: LanguageModel, pace: Pace, memory: str | None) -> str | None:
    """What to tell where blocks of a model are read from disk; None where its weights are in memory."""
    if lm.streamed is None:
        return None
    weights = sum(parameter.numel() * parameter.element_size() for parameter in lm.model.parameters())
    return (
        f"the weights ({bytes_text(weights)}) do not fit in --memory {memory}: blocks are read from disk as they are "
        f"needed; expect about {pace.slowdown:.1f} times the time"
    )


@dataclass(frozen=True)
class Work:
    """The tokens that a phase passes through the model, by what is done with them."""

    read: int = 0
    """For second moments."""
    written: int = 0
    """That the model writes: its own text, names of other subjects, and answers."""
    scored: int = 0
    """In questions: probes, facts, and those from which facts and owners are made."""
    searched: int = 0
    """In the rows of one step of the search, over all edits."""
    polished: int = 0
    """From the subjects on, in the rows of all steps of polish."""
    before_subjects: int = 0
    """Before the subjects in the same rows: forward alone."""


def estimate_seconds(
    lm: LanguageModel, layers: Sequence[int], work: Work, target: TargetKnobs, pace: Pace
) -> tuple[float, float]:
    """Estimate the seconds of a phase of a run that edits `layers`, at least and at most.

    At least: if the search ends early; at most: if it takes long, and everything `SLOWER` times as long.

    The search runs the blocks above the last edited layer, forward and backward. The products of a moment are counted
    in units of those of a forward. Opening the model and writing it are not counted.
    """
    architecture = lm.architecture
    parameters = sum(parameter.numel() for parameter in lm.model.parameters())
    reach = (max(layers) + 1) / architecture.n_layers
    products = sum(0.5 * architecture.mlp_widths[layer] ** 2 for layer in layers) / parameters
    polished = work.polished * GRADIENT + work.before_subjects
    fixed = work.read * (reach + products) + work.written * WRITTEN + work.scored + polished
    step = work.searched * (1 - reach) * GRADIENT
    passes = (work.read * reach + work.scored + polished) / USUAL + work.written / ROWS_WRITTEN
    # Each block above is read for the forward, and again for the gradient.
    step_reads = 2 * (1 - reach) if work.searched else 0.0
    few, many = (
        pace.token * (fixed + step * steps) + pace.reading * (passes + step_reads * steps)
        for steps in (share * target.steps for share in STEPS_TAKEN[target.optimizer])
    )
    return few, many * SLOWER


@dataclass
class TimeLeft:
    """The seconds that the phases of a run take, at least and at most, corrected by those that ended."""

    phases: dict[str, tuple[float, float]]
    """What is left, by phase."""
    estimated: float = 0.0
    spent: float = 0.0

    @property
    def seconds(self) -> tuple[float, float]:
        """What is left, at least and at most."""
        least, most = CORRECTED
        slower = min(max(self.spent / self.estimated, least), most) if self.estimated else 1.0
        few, many = (sum(one[n] for one in self.phases.values()) for n in (0, 1))
        return slower * few, slower * many

    def end(self, phase: str, seconds: float) -> str | None:
        """Take a phase as ended after `seconds`. Returns what to tell, where enough is left; None of another phase."""
        if (took := self.phases.pop(phase, None)) is None:
            return None
        if seconds > FOUND_SHARE * fmean(took):
            self.estimated, self.spent = self.estimated + fmean(took), self.spent + seconds
        return f"about {range_text(*self.seconds)} left" if fmean(self.seconds) >= WORTH_TELLING else None

"""Measure second moments of the down-projections' inputs over packed rows of text, in one pass for all layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, islice
from queue import Full, Queue
from threading import Event, Thread
from time import monotonic
from typing import Any, TypeVar

import torch
from torch import Tensor

from memedit.forward.passes import TOKENS_PER_LAUNCH, Site, capture, run
from memedit.model.load import LanguageModel
from memedit.model.memory import free_on
from memedit.numerics.moments import CHUNK, Moment, Running
from memedit.progress import Advance, ignore_advance
from memedit.ranks import ALONE, Ranks
from memedit.storage.machine import free_memory

LAUNCHES_SUMMED = 64  # launches that are summed by themselves; what is kept ends with such a sum
KEEP_SECONDS = 120.0
"""The time between two calls of `keep`, at least: each call writes F x F float64 a layer, which is 8 GB for five layers
of an MLP of width 14,336. A killed run loses at most this time and that of one chunk."""
TOKENS_ON_GPU = CHUNK  # in a launch: as many as enter one product, so that half as many products are added
LONGER_ON_GPU = 8
"""Times as many launches are summed by themselves on a GPU: by the number of operations, 64 are done there before
their sums, which grow with the square of the MLP's width, could be copied to the CPU."""
AHEAD = 8  # launches tokenized before they are run
PART_OF_FREE = 4
"""Sums stay on a GPU where they take at most this fraction of its free memory, as one part of N."""

T = TypeVar("T")

Moments = dict[int, Moment]


def measure(
    lm: LanguageModel,
    rows: Iterable[tuple[int, ...]],
    layers: Sequence[int],
    tokens: int,
    *,
    begun: Mapping[int, Moment] | None = None,
    keep: Callable[[Moments], None] | None = None,
    advance: Advance | None = None,
    ranks: Ranks = ALONE,
) -> Moments:
    """Measure the moments of `layers` over the first `tokens` tokens of `rows`, which all begin as the first row does.

    One forward serves all layers and stops at the highest. `begun` is what `keep` got in an earlier call with the same
    arguments: the rows that it covers are skipped. The last row is cut when the count is reached. `keep` is called
    in this process only, between two chunks, when `KEEP_SECONDS` have passed.

    Chunks of `LAUNCHES_SUMMED` launches are summed by themselves, and their sums are added in the order of the text. So
    the bits do not depend on how many `ranks` share the chunks, or on when the sums are kept.
    """
    ranks, advance = ranks if _worth_sharing(lm, layers, ranks) else ALONE, advance or ignore_advance
    widths, task = lm.architecture.mlp_widths, _SumLaunches(tuple(layers))
    size, chunk = _sizes(lm)
    total = dict(begun or {})
    if done := total[layers[0]].count if total else 0:
        advance(done)
    kept_at = monotonic()
    launched = ahead(_launches(rows, tokens, size, skip=done), AHEAD if ranks.world == 1 else chunk * ranks.world)
    for first in launched:
        if keep and total and total[layers[0]].count > done and monotonic() - kept_at >= KEEP_SECONDS:
            keep(dict(total))
            kept_at = monotonic()
        if ranks.world == 1:
            # Not as a list: the text of a chunk is tokenized while the model runs.
            parts = [task(lm, chain([first], islice(launched, chunk - 1)), advance)]
        else:
            together = list(chain([first], islice(launched, chunk * ranks.world - 1)))
            chunks = [together[at : at + chunk] for at in range(0, len(together), chunk)]
            parts = [part or {} for part in ranks.each(lm, task, chunks, advance)]
        for part in parts:
            for layer in layers:
                summed = part.pop(layer)
                total[layer] = total[layer] + summed if layer in total else summed
    return total or {layer: Moment.empty(widths[layer]) for layer in layers}


def _sizes(lm: LanguageModel) -> tuple[int, int]:
    """The tokens of a launch, and the launches that are summed by themselves."""
    free = free_on(lm.device)
    if free is None:
        return TOKENS_PER_LAUNCH, LAUNCHES_SUMMED
    shape = lm.architecture
    needed = TOKENS_ON_GPU * (8 * shape.width + 4 * max(shape.mlp_widths)) * lm.dtype.itemsize
    size = TOKENS_ON_GPU if PART_OF_FREE * needed <= free else TOKENS_PER_LAUNCH
    return size, LONGER_ON_GPU * LAUNCHES_SUMMED


def _worth_sharing(lm: LanguageModel, layers: Sequence[int], ranks: Ranks) -> bool:
    """Whether the sums of the ranks fit into memory together. On a GPU a chunk takes as long as sending its sums."""
    size = sum(torch.float64.itemsize * lm.architecture.mlp_widths[layer] ** 2 for layer in layers)
    return lm.device.type == "cpu" and 2 * (ranks.world + 2) * size < free_memory()


@dataclass(frozen=True)
class _SumLaunches:
    """The moments of some launches, ids (B, T) each. Any rank can do it."""

    layers: tuple[int, ...]

    def __call__(self, lm: LanguageModel, launched: Iterable[Tensor], advance: Advance) -> Moments:
        widths = lm.architecture.mlp_widths
        running = {layer: Running(widths[layer], home) for layer, home in _homes(lm, self.layers).items()}

        def see(site: Site, states: Tensor) -> None:
            running[site.layer].add_(states.reshape(-1, states.shape[-1]))

        for ids in launched:
            with torch.no_grad(), capture(lm, [Site(layer, "mlp.in") for layer in self.layers], see, stop=True):
                run(lm, ids)
            advance(ids.numel())
        return {layer: running.pop(layer).moment for layer in self.layers}


def _homes(lm: LanguageModel, layers: Sequence[int]) -> dict[int, torch.device]:
    """Where the sums of each layer stay: on the GPU that has the layer, where they fit, else on the CPU.

    A launch adds a matrix of the MLP's width in every layer. To copy it to the CPU takes longer than to compute it, and
    the host waits for it.
    """
    on = {layer: lm.device_of(layer) for layer in layers}
    needed = Counter[torch.device]()
    for layer, device in on.items():
        needed[device] += torch.float64.itemsize * lm.architecture.mlp_widths[layer] ** 2
    fits = {device for device, size in needed.items() if PART_OF_FREE * size <= (free_on(device) or 0)}
    return {layer: device if device in fits else torch.device("cpu") for layer, device in on.items()}


def _launches(rows: Iterable[tuple[int, ...]], tokens: int, size: int, skip: int) -> Generator[Tensor]:
    """Group rows of equal length into launches of at most `size` tokens, up to `tokens` in all, without the first
    `skip` tokens.

    The skipped tokens were summed in whole launches, so the launches after them equal those of an uninterrupted run.
    """
    batch: list[tuple[int, ...]] = []
    seen = 0
    for row in rows:
        if seen >= tokens:
            break
        row = row[: tokens - seen]
        if batch and (len(batch[0]) != len(row) or (len(batch) + 1) * len(row) > size):
            yield torch.tensor(batch)
            batch = []
        seen += len(row)
        if seen > skip:
            batch.append(row)
    if batch:
        yield torch.tensor(batch)


def ahead(items: Iterable[T], most: int = AHEAD) -> Generator[T]:
    """Iterate over the same items in the same order; a thread makes up to `most` of them in advance.

    Text is read and tokenized (which frees Python's lock) while the model runs. An error is raised in place of its
    item; if the reader stops early, the thread ends.
    """
    queue: Queue[tuple[str, Any]] = Queue(most)
    left = Event()

    def put(kind: str, what: Any) -> None:
        while not left.is_set():
            with suppress(Full):
                queue.put((kind, what), timeout=0.1)
                break

    def work() -> None:
        try:
            for item in items:
                if left.is_set():
                    return
                put("item", item)
            put("end", None)
        except BaseException as error:  # noqa: BLE001 - raised again by the reader
            put("error", error)

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            kind, what = queue.get()
            if kind == "end":
                return
            if kind == "error":
                raise what
            yield what
    finally:
        left.set()
        thread.join()

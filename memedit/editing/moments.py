"""Measure second moments of the down-projections' inputs over packed rows of text, in one pass for all layers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from queue import Full, Queue
from threading import Event, Thread
from typing import Any, TypeVar

import torch
from torch import Tensor

from memedit.forward.passes import TOKENS_PER_LAUNCH, Site, capture, run
from memedit.model.load import LanguageModel
from memedit.model.memory import free_on
from memedit.numerics.moments import Moment, Running
from memedit.progress import Advance

KEEP_EVERY = 64  # launches between two calls of `keep`
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
) -> Moments:
    """Measure the moments of `layers` over the first `tokens` tokens of `rows`, which all begin as the first row does.

    One forward serves all layers and stops at the highest. `begun` is what `keep` got in an earlier call with the same
    arguments: the rows that it covers are skipped. The last row is cut when the count is reached.
    """
    widths = lm.architecture.mlp_widths
    running = {
        layer: Running(begun[layer] if begun else Moment.empty(widths[layer]), home)
        for layer, home in _homes(lm, layers).items()
    }
    sites = [Site(layer, "mlp.in") for layer in layers]
    done = running[layers[0]].count

    def see(site: Site, states: Tensor) -> None:
        running[site.layer].add_(states.reshape(-1, states.shape[-1]))

    if done and advance:
        advance(done)
    for number, ids in enumerate(ahead(_launches(rows, tokens, skip=done)), 1):
        with torch.no_grad(), capture(lm, sites, see, stop=True):
            run(lm, ids)
        if advance:
            advance(ids.numel())
        if keep and number % KEEP_EVERY == 0:
            keep({layer: one.moment for layer, one in running.items()})
    return {layer: one.moment for layer, one in running.items()}


def _homes(lm: LanguageModel, layers: Sequence[int]) -> dict[int, torch.device]:
    """Where the sums of each layer stay: on the GPU that has the layer, where they fit, else on the CPU.

    A launch adds a matrix of the MLP's width in every layer. To copy it to the CPU takes longer than to compute it, and
    the host waits for it.
    """
    on = {layer: lm.weight(layer).device for layer in layers}
    needed = Counter[torch.device]()
    for layer, device in on.items():
        needed[device] += torch.float64.itemsize * lm.architecture.mlp_widths[layer] ** 2
    fits = {device for device, size in needed.items() if PART_OF_FREE * size <= (free_on(device) or 0)}
    return {layer: device if device in fits else torch.device("cpu") for layer, device in on.items()}


def _launches(rows: Iterable[tuple[int, ...]], tokens: int, skip: int) -> Generator[Tensor]:
    """Group rows of equal length into launches, up to `tokens` in all, without the first `skip` tokens.

    The skipped tokens were summed in whole launches, so the launches after them equal those of an uninterrupted run.
    """
    batch: list[tuple[int, ...]] = []
    seen = 0
    for row in rows:
        if seen >= tokens:
            break
        row = row[: tokens - seen]
        if batch and (len(batch[0]) != len(row) or (len(batch) + 1) * len(row) > TOKENS_PER_LAUNCH):
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

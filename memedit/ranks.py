"""Share work between the processes that torchrun starts.

Rank 0 runs the command as a single process does. The others run `serve`: they open the model that rank 0 opens, and do
parts of the work that it shares (`Ranks.each`). The parts are the items of a list, and every rank takes the next one
when it is free. The result of an item depends on the item alone, and rank 0 gets the results in the order of the list,
so N processes write the bytes of one.

Short values (orders, the number of the next item, progress) go through the key-value store that torchrun holds. Tasks
and results go through gloo, on GPUs too: they lie in main memory, and a rank that waits for NCCL keeps its GPU busy.
They are pickled, so only processes of one command exchange them: on one machine they do so through its loopback device.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from functools import cache
from itertools import count
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.rendezvous import rendezvous

from memedit.config.recipe import ModelKnobs
from memedit.errors import MemeditError, UsageError
from memedit.model.load import LanguageModel, ModelSource, pick_device
from memedit.model.weights import applied
from memedit.progress import Advance, ignore_advance

START = timedelta(minutes=10)
"""Time in which all processes must have started."""
SILENCE = timedelta(hours=1)
"""Time after which a run ends if it waits for ranks and none of them has done a step. It covers opening a model."""
IDLE = timedelta(days=365)
"""Time that a rank waits for the next order; rank 0 may solve for hours. If rank 0 ends, the wait ends."""
POLL = 0.02
"""Seconds between two looks at how far the other ranks are."""
FAREWELL = 1.0
"""Seconds that rank 0 waits at its end for the others, where it holds the store."""
OPEN = 2
"""Models that a rank keeps open: `eval` asks a model and its base in turn."""

Item = TypeVar("Item")
Result = TypeVar("Result")
Value = TypeVar("Value")
SharedTask = Callable[[LanguageModel, Item, Advance], Result | None]
"""Does one item with a model. It is sent to the other ranks, so it is a function of a module, or a value that can be
pickled and called."""


@dataclass(frozen=True)
class _Work:
    """Items to be shared: which model does them, and with which edited weights."""

    source: ModelSource
    task: Callable[[LanguageModel, Any, Advance], Any]
    items: tuple[Any, ...]
    weights: Mapping[int, Tensor]


@dataclass(frozen=True)
class Broadcast(Generic[Value]):
    """A value that every rank holds, by its number: tasks name it instead of carrying it (`Ranks.shared`)."""

    number: int

    @property
    def value(self) -> Value:
        """The value, in this process."""
        return _held[self.number]


_numbers = count(1)
_held: dict[int, Any] = {}
"""The values of `Ranks.shared` in this process, by number."""


@dataclass(frozen=True)
class _Hold:
    """An order to hold these values, by number, and no others."""

    values: Mapping[int, Any]

    def obey(self) -> None:
        _held.clear()
        _held.update(self.values)


@dataclass(frozen=True)
class Ranks:
    """The processes of one command, as one of them sees them: its number (rank), and how many there are (world)."""

    rank: int = 0
    world: int = 1
    here: int = 1
    """Processes on this machine."""
    store: Any = None
    """The key-value store that all processes reach; None where there is one process."""
    orders: Iterator[int] = field(default_factory=count)
    """Numbers the orders of rank 0."""
    weights: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])
    """The edited weights (D, F) that the model of rank 0 has now, by layer."""

    def edited(self, weights: Mapping[int, Tensor]) -> Ranks:
        """The same processes, for a model that has these weights (D, F) in some layers."""
        return replace(self, weights=weights)

    def open(self, source: ModelSource) -> None:
        """Let the other ranks open a model while this one does.

        Raises UsageError if the processes on this machine cannot have a device each.
        """
        if self.world > 1:
            _check_devices(source.knobs, self.here)
            self._send(source)

    def each(
        self,
        lm: LanguageModel,
        task: SharedTask[Item, Result],
        items: Sequence[Item],
        advance: Advance | None = None,
    ) -> list[Result | None]:
        """Do `task(lm, item, advance)` for every item, on all ranks; returns the results in the order of the items.

        A result of None stops the sharing: items that no rank had begun stay None. Results lie in main memory. Raises
        the first error of any rank, and MemeditError if a rank has ended.
        """
        advance = advance or ignore_advance
        if self.world == 1 or lm.source is None or len(items) < 2:
            return _alone(lm, task, items, advance)
        work = _Work(lm.source, task, tuple(items), {n: one.cpu() for n, one in self.weights.items()})
        number, seen = self._send(work), 0

        def advance_all(done: int = 0, under_way: float = 0.0, told: str = "") -> None:
            nonlocal seen
            others = self._add(f"{number} done", 0)
            advance(done + others - seen, under_way, told)
            seen = others

        mine = self._take(number, work, lm, advance_all)
        self._wait_for(f"{number} finished", advance_all)
        found = dict[int, Result]()
        for part in self._gather(mine):
            if isinstance(part, Exception):
                raise part
            found |= part
        return [found.get(n) for n in range(len(items))]

    @contextmanager
    def shared(self, lm: LanguageModel, value: Value) -> Generator[Broadcast[Value]]:
        """Hold a value on every rank for a `with` block, for tasks of many calls of `each`; it is sent once."""
        held = _Hold({next(_numbers): value})
        several = self.world > 1 and lm.source is not None
        held.obey()
        if several:
            self._send(held)
        try:
            yield Broadcast(*held.values)
            if several:
                self._send(_Hold({}))
        finally:
            _Hold({}).obey()

    def dismiss(self) -> None:
        """Let the other ranks end; also where a run ends with an error, when they may be at work."""
        if self.world == 1:
            return
        with suppress(Exception):
            self.store.set(f"order {next(self.orders)}", "end")
            # Without torchrun the store ends with this process: those that wait for an order read it before.
            until = time.monotonic() + FAREWELL
            while os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True" and time.monotonic() < until:
                if self._add("ended", 0) == self.world - 1:
                    break
                time.sleep(POLL)

    def serve(self) -> None:
        """Do what rank 0 shares, until it dismisses this rank. Errors are sent to rank 0, which raises them."""
        models: dict[int, tuple[ModelSource, LanguageModel]] = {}
        for number in self.orders:
            try:
                self.store.wait([f"order {number}"], IDLE)
                if self.store.get(f"order {number}") == b"end":
                    self.store.add("ended", 1)
                    return
            except RuntimeError:  # the store is gone, and rank 0 with it, which tells why
                return
            self._add(f"{number} ready", 1)
            box: list[Any] = [None]
            with _named():
                dist.broadcast_object_list(box, src=0)
            self._add("steps", 1)
            if isinstance(box[0], _Hold):
                box[0].obey()
            elif isinstance(box[0], ModelSource):
                with suppress(Exception):  # the work that needs it meets the same error, and sends it
                    _opened(box[0], models)
            else:
                self._help(number, box[0], models)

    def _help(self, number: int, work: _Work, models: dict[int, tuple[ModelSource, LanguageModel]]) -> None:
        """Take items of one piece of work, and send their results, or the error, to rank 0."""

        def advance(done: int, under_way: float = 0.0, told: str = "") -> None:
            self._add("steps", 1)
            if done:
                self._add(f"{number} done", done)

        found: dict[int, Any] | Exception
        try:
            lm = _opened(work.source, models)
            with applied(lm, work.weights):
                found = self._take(number, work, lm, advance)
        except Exception as error:  # noqa: BLE001 - raised again by rank 0
            self._stop(number, work)
            found = _portable(error)
        self._add(f"{number} finished", 1)
        self._gather(found)

    def _take(self, number: int, work: _Work, lm: LanguageModel, advance: Advance) -> dict[int, Any]:
        """Do the items that this rank takes: {its number: its result}."""
        found: dict[int, Any] = {}
        try:
            while (at := self._add(f"{number} next", 1) - 1) < len(work.items):
                result = work.task(lm, work.items[at], advance)
                self._add("steps", 1)
                if result is None:
                    self._stop(number, work)
                else:
                    found[at] = result
        except BaseException:
            with suppress(MemeditError):
                self._stop(number, work)
            raise
        return found

    def _stop(self, number: int, work: _Work) -> None:
        self._add(f"{number} next", len(work.items))

    def _send(self, message: ModelSource | _Work | _Hold) -> int:
        """Send an order to the other ranks, once all of them wait for it; returns its number."""
        number = next(self.orders)
        with _named():
            self.store.set(f"order {number}", "message")
        self._wait_for(f"{number} ready")
        with _named():
            dist.broadcast_object_list([message], src=0)
        return number

    def _gather(self, mine: dict[int, Any] | Exception) -> list[Any]:
        """The parts of all ranks, on rank 0; nothing on the others."""
        parts: list[Any] = [None] * self.world
        with _named():
            dist.gather_object(mine, parts if self.rank == 0 else None, dst=0)
        return parts if self.rank == 0 else []

    def _wait_for(self, key: str, look: Callable[[], object] | None = None) -> None:
        """Wait until all other ranks have counted up `key`. It sleeps in Python, where a signal is noticed.

        Raises MemeditError if they take no step for long.
        """
        steps, since = -1, time.monotonic()
        while self._add(key, 0) < self.world - 1:
            if (now := self._add("steps", 0)) != steps:
                steps, since = now, time.monotonic()
            elif time.monotonic() - since > SILENCE.total_seconds():
                hint = "end it, and run the same command again: finished work is kept"
                raise MemeditError(f"no other process of this run has done a step for {SILENCE}", hint)
            if look:
                look()
            time.sleep(POLL)

    def _add(self, key: str, amount: int) -> int:
        """Add to a number in the store; returns the sum."""
        with _named():
            return int(self.store.add(key, amount))


ALONE = Ranks()
"""A single process."""


def _alone(
    lm: LanguageModel, task: SharedTask[Item, Result], items: Sequence[Item], advance: Advance
) -> list[Result | None]:
    found: list[Result | None] = [None] * len(items)
    for n, item in enumerate(items):
        found[n] = task(lm, item, advance)
        if found[n] is None:
            break
    return found


@cache
def joined() -> Ranks:
    """The processes of this command, as torchrun names them in the environment; `ALONE` where it names none.

    WORLD_SIZE alone is no sign of torchrun: clusters set it in every container.

    Each process of a machine gets a GPU of its own, where there are GPUs. Raises MemeditError if the processes cannot
    reach each other.
    """
    if _number("WORLD_SIZE") < 2 or not _number("LOCAL_WORLD_SIZE", 0):
        return ALONE
    here = _number("LOCAL_WORLD_SIZE")
    if here == _number("WORLD_SIZE") and (loopback := [name for _, name in socket.if_nameindex() if name[:2] == "lo"]):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", loopback[0])
    if torch.cuda.is_available():
        torch.cuda.set_device(_number("LOCAL_RANK", 0) % torch.cuda.device_count())
    with _named():
        shared, rank, world = next(rendezvous("env://", timeout=START))
        # torchrun can keep its store when it restarts a run, which must not find the orders of the one before.
        named: Any = dist  # its type stubs do not export PrefixStore
        store = named.PrefixStore(f"memedit {os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
        gloo = named.PrefixStore("gloo", store)
        dist.init_process_group("gloo", store=gloo, rank=rank, world_size=world, timeout=SILENCE)
    return Ranks(rank, world, here, store)


def _number(name: str, otherwise: int = 1) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isdecimal() else otherwise


@contextmanager
def _named() -> Generator[None]:
    """Raise MemeditError where another process cannot be reached."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        hint = "finished work is kept: run the same command again"
        raise MemeditError(f"a process of this run has ended, or cannot be reached: {reason}", hint) from error


def _opened(source: ModelSource, models: dict[int, tuple[ModelSource, LanguageModel]]) -> LanguageModel:
    """Open a model, unless it is open; `models` are those open, the oldest first."""
    for kept, lm in models.values():
        if kept == source:
            return lm
    while len(models) >= OPEN:
        del models[min(models)]
    lm = source.load()
    models[max(models, default=0) + 1] = (source, lm)
    return lm


def _portable(error: Exception) -> Exception:
    """The error, or its text where it cannot be pickled."""
    with suppress(Exception):
        pickle.loads(pickle.dumps(error))
        return error
    return RuntimeError(f"{type(error).__name__}: {error}")


def _check_devices(knobs: ModelKnobs, here: int) -> None:
    """Raises UsageError if `here` processes on one machine cannot have a device each."""
    if here < 2:
        return
    if knobs.device_map:
        hint = "start one process on each machine: --nproc-per-node 1"
        raise UsageError(
            f"--device-map spreads a model over all GPUs of a machine, and {here} processes run here", hint
        )
    device = pick_device(knobs.device)
    if device.type != "cuda":
        return
    if ":" in knobs.device:
        hint = "leave out --device: each process takes a GPU of its own"
        raise UsageError(f"--device {knobs.device} names one GPU, and {here} processes run here", hint)
    if (gpus := torch.cuda.device_count()) < here:
        hint = f"start as many processes as there are GPUs: --nproc-per-node {gpus}"
        raise UsageError(f"{here} processes run on this machine, which has {gpus} GPUs", hint)

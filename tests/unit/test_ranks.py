"""Sharing work between processes: what a single process does, and the devices that several may have."""

from __future__ import annotations

import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from memedit import ranks
from memedit.config.recipe import ModelKnobs
from memedit.errors import ResourceError, UsageError
from memedit.progress import Advance
from memedit.ranks import ALONE, Ranks, joined


@pytest.mark.parametrize("world", [None, "1", "", "many", "8"])
def test_a_process_that_torchrun_did_not_start_with_others_is_alone(
    world: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    if world is not None:
        monkeypatch.setenv("WORLD_SIZE", world)
    assert joined.__wrapped__() is ALONE


def test_a_single_process_does_the_items_in_order_and_stops_at_none() -> None:
    lm: Any = SimpleNamespace(source=None)
    begun: list[int] = []

    def task(_lm: Any, item: int, advance: Advance) -> int | None:
        begun.append(item)
        advance(1)
        return None if item == 3 else 10 * item

    counted: list[int] = []
    found = ALONE.each(lm, task, [1, 2, 3, 4], lambda done, *_, **__: counted.append(done))
    assert found == [10, 20, None, None]
    assert (begun, counted) == ([1, 2, 3], [1, 1, 1])
    # A model that no other process can open is not shared, and neither is a single item: the store is not touched.
    assert Ranks(0, 2, 2, None).each(lm, task, [5, 6]) == [50, 60]
    lm.source = object()
    assert Ranks(0, 2, 2, None).each(lm, task, [7]) == [70]


def test_a_value_is_held_for_a_block_and_the_last_one_alone() -> None:
    lm: Any = SimpleNamespace(source=None)
    with ALONE.shared(lm, "first") as first:
        assert first.value == "first"
    with pytest.raises(KeyError):
        first.value  # noqa: B018 - it is read
    with pytest.raises(ValueError, match="inside"), ALONE.shared(lm, "second"):
        raise ValueError("inside")
    assert not ranks._held


def test_each_process_of_a_machine_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(here: int, **knobs: Any) -> None:
        ranks._check_devices(ModelKnobs(**knobs), here)

    check(4, device="cpu")
    with pytest.raises(UsageError, match="4 processes run here"):
        check(4, device_map="auto")
    check(1, device_map="auto")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check(2)
    with pytest.raises(UsageError, match="3 processes run on this machine, which has 2 GPUs"):
        check(3)
    with pytest.raises(UsageError, match="cuda:1 names one GPU"):
        check(2, device="cuda:1")


def test_errors_are_sent_whole_or_as_text() -> None:
    error = pickle.loads(pickle.dumps(ranks._portable(ResourceError("the GPU is full", "take another"))))
    assert (error.message, error.hint, error.exit_code) == ("the GPU is full", "take another", 5)

    class Local(Exception):  # noqa: N818 - not to be pickled: its class is inside a function
        pass

    assert str(ranks._portable(Local("broken"))) == "Local: broken"
    assert isinstance(ranks._portable(torch.OutOfMemoryError("full")), torch.OutOfMemoryError)

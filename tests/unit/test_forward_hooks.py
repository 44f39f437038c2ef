"""Hooks are registered in one place, run in order, and are gone afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.model.forward_hooks import hooked
from torch import nn


def registered(module: nn.Module) -> int:
    return len(module._forward_hooks) + len(module._forward_pre_hooks)


def test_hooks_run_in_order_and_are_removed() -> None:
    module, seen = nn.Linear(2, 2), list[str]()
    note = lambda name: lambda *_: seen.append(name)  # noqa: E731
    with hooked([(module, note("one")), (module, note("two"))], [(module, note("first"))]):
        module(torch.zeros(1, 2))
        assert registered(module) == 3
    module(torch.zeros(1, 2))
    assert seen == ["first", "one", "two"]
    assert registered(module) == 0


def test_hooks_are_removed_after_an_error_inside() -> None:
    module = nn.Linear(2, 2)
    with pytest.raises(RuntimeError, match="stop"), hooked([(module, print)], [(module, print)]):
        raise RuntimeError("stop")
    assert registered(module) == 0


def test_hooks_are_removed_where_a_later_one_cannot_be_registered() -> None:
    module, no_module = nn.Linear(2, 2), object()
    broken: list[Any] = [(module, print), (no_module, print)]
    with pytest.raises(AttributeError), hooked(broken):
        pass
    assert registered(module) == 0


def test_hooks_see_keyword_arguments_where_asked() -> None:
    module, seen = nn.Linear(2, 2), list[Any]()
    with hooked([(module, lambda _module, _args, kwargs, _output: seen.append(kwargs))], with_kwargs=True):
        module(input=torch.zeros(1, 2))
    assert list(seen[0]) == ["input"]


def test_no_other_file_registers_hooks() -> None:
    package = Path(memedit.__file__).parent
    files = {file.name for file in package.rglob("*.py") if "register_forward" in file.read_text()}
    assert files == {"forward_hooks.py"}

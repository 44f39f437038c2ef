"""Run code at modules during a forward: the one place that registers hooks, and removes them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

Hook = Callable[..., Any]


@contextmanager
def hooked(
    after: Iterable[tuple[nn.Module, Hook]] = (),
    before: Iterable[tuple[nn.Module, Hook]] = (),
    *,
    with_kwargs: bool = False,
) -> Generator[None]:
    """Register forward hooks (`after`) and forward pre-hooks (`before`); remove them at the end, also on an error.

    Hooks are called as torch calls them: `after` with (module, args, output), `before` with (module, args); and
    with the keyword arguments behind `args` where `with_kwargs` is set. Hooks of one module run in the order given.
    """
    with ExitStack() as stack:
        for module, hook in before:
            stack.callback(module.register_forward_pre_hook(hook, with_kwargs=with_kwargs).remove)
        for module, hook in after:
            stack.callback(module.register_forward_hook(hook, with_kwargs=with_kwargs).remove)
        yield

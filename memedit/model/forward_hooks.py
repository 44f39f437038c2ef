"""Forward hooks on a model's modules, taken off again at the end."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any

from memedit.model.load import LanguageModel


@contextmanager
def hooked(lm: LanguageModel, hooks: Mapping[str, Any]) -> Generator[None]:
    """Forward hooks on modules, by path."""
    handles = [lm.model.get_submodule(path).register_forward_hook(hook) for path, hook in hooks.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()

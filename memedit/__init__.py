"""memedit: batch mass-editing of a language model's factual memories."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memedit.api import apply as apply
    from memedit.api import evaluate as evaluate
    from memedit.api import forget as forget
    from memedit.api import inspect as inspect
    from memedit.api import load_edits as load_edits
    from memedit.api import trace as trace
    from memedit.edits.edit import EditRequest as EditRequest

__version__ = "0.1.0"
__all__ = ["EditRequest", "__version__", "apply", "evaluate", "forget", "inspect", "load_edits", "trace"]

_HOMES = {
    **dict.fromkeys(("apply", "evaluate", "forget", "inspect", "load_edits", "trace"), "api"),
    "EditRequest": "request",
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: `memedit --help` must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module 'memedit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"memedit.{_HOMES[name]}"), name)

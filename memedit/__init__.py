"""memedit: edit facts in a language model, many at a time.

>>> import memedit
>>> report = memedit.apply("edits.yaml", "MODEL", "OUT")  # doctest: +SKIP

Functions: `check`, `stats`, `trace`, `apply`, `forget`, `evaluate`, `inspect`, `export`, `add`, `revert`, `diff`,
`log`, `push`, `list_cache`, `clean_cache`, `load_edits`, and `edited` for a model that is loaded in memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memedit.api import add as add
    from memedit.api import apply as apply
    from memedit.api import check as check
    from memedit.api import clean_cache as clean_cache
    from memedit.api import diff as diff
    from memedit.api import edited as edited
    from memedit.api import evaluate as evaluate
    from memedit.api import export as export
    from memedit.api import forget as forget
    from memedit.api import inspect as inspect
    from memedit.api import list_cache as list_cache
    from memedit.api import load_edits as load_edits
    from memedit.api import log as log
    from memedit.api import push as push
    from memedit.api import revert as revert
    from memedit.api import stats as stats
    from memedit.api import trace as trace
    from memedit.edits.edit import EditRequest as EditRequest
    from memedit.errors import MemeditError as MemeditError

__version__ = "0.1.0"
__all__ = [
    "EditRequest", "MemeditError", "__version__", "add", "apply", "check", "clean_cache", "diff", "edited", "evaluate",
    "export", "forget", "inspect", "list_cache", "load_edits", "log", "push", "revert", "stats", "trace",
]  # fmt: skip

_OTHER_HOMES = {"EditRequest": "edits.edit", "MemeditError": "errors"}


def __getattr__(name: str) -> Any:
    # Imported on first use: `memedit --help` must not wait for torch.
    if name not in __all__:
        raise AttributeError(f"module 'memedit' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"memedit.{_OTHER_HOMES.get(name, 'api')}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)

"""What was run with what."""

from __future__ import annotations

import platform
from importlib.metadata import version


def versions() -> dict[str, str]:
    """Python's, memedit's, and those of the libraries that decide its numbers."""
    names = ("memedit", "torch", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}

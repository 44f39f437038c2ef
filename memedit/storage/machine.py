"""What the machine has free, and what runs on it."""

from __future__ import annotations

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path


def free_memory() -> int:
    """Bytes of main memory that could be used now."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        # No Linux: half of what is there is a fair guess.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def free_disk(folder: Path) -> int:
    """Bytes free where a folder is, or where it would be made."""
    here = folder.expanduser().resolve()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free


def versions() -> dict[str, str]:
    """What was run with what."""
    names = ("memedit", "torch", "transformers", "safetensors")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}

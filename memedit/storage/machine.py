"""Measure free memory and free disk space."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def free_memory() -> int:
    """Return the bytes of main memory that can be used now, within the limit of a container."""
    free, limited = _machine_memory(), container_memory()
    return free if limited is None else min(free, limited)


def container_memory(root: Path = CGROUPS, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Return the bytes that this process's control groups (cgroup v2) still allow; None where they set no limit.

    Every group above counts too. Cached file pages are free for use, so they are not counted as used.
    """
    try:
        lines = membership.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return None
    own = next((line.removeprefix("0::").strip("/") for line in lines if line.startswith("0::")), None)
    if own is None or ".." in Path(own).parts:
        return None
    here, found = root / own, list[int]()
    for group in (here, *here.parents):
        if not group.is_relative_to(root):
            break
        try:
            limit = int((group / "memory.max").read_text(encoding="ascii"))
            used = int((group / "memory.current").read_text(encoding="ascii"))
        except (OSError, ValueError):  # no such group, no limit ("max"), or cgroup v1
            continue
        found.append(max(limit - used + _file_pages(group), 0))
    return min(found, default=None)


def _file_pages(group: Path) -> int:
    try:
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
    except (OSError, ValueError, StopIteration):
        return 0


def _machine_memory() -> int:
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError):
        # Not Linux: guess half of the memory.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2


def free_disk(folder: Path) -> int:
    """Return the bytes free on the disk of a folder; the folder need not exist yet."""
    here = folder.expanduser().resolve()
    while not here.exists():
        here = here.parent
    return shutil.disk_usage(here).free

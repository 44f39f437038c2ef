"""What the cache keeps, and what was removed from it: plain values that turn into JSON."""

from __future__ import annotations

from datetime import UTC, datetime

from pydantic import BaseModel, ConfigDict

from memedit.results.cache_kinds import CacheKind


class CacheEntry(BaseModel):
    """One thing that the cache keeps: a file, or the folder of a run that has not finished."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: CacheKind
    """moment: second moment of a layer; factor: its decomposition; text: written by a model itself; partial: a
    measurement that has not finished; run and trace: the finished steps of a command that has not finished; damaged:
    set aside, because its checksum was wrong; temporary: left by a process that was killed."""
    name: str
    """Path inside the cache folder."""
    model: str | None = None
    """The model, as the command that kept it named it; None where it is not recorded."""
    layer: int | None = None
    holds: str = ""
    """For a folder: what is in it."""
    bytes: int
    used: float
    """When it was last written or read, in seconds since 1970."""

    @property
    def used_text(self) -> str:
        """The time of the last use as ISO 8601 in UTC."""
        return datetime.fromtimestamp(self.used, UTC).isoformat(timespec="seconds")


class CacheCleaning(BaseModel):
    """What was removed from the cache, or with `dry_run` would be."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    folder: str
    dry_run: bool = False
    removed: tuple[CacheEntry, ...] = ()
    in_use: tuple[CacheEntry, ...] = ()
    """Asked for, and left because a run that is going on uses it."""
    kept: int = 0
    """Entries that are left."""
    bytes: int = 0
    """Bytes that are left."""

    @property
    def freed(self) -> int:
        """Bytes that were removed."""
        return sum(one.bytes for one in self.removed)

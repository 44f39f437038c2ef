"""Find, list and remove what memedit keeps for later runs. Only files that memedit's own names match are touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from memedit.config.recipe import SIZE, bytes_of
from memedit.errors import UsageError
from memedit.results.cache import CacheCleaning, CacheEntry
from memedit.results.cache_kinds import CACHE_KINDS, CacheKind
from memedit.results.units import bytes_text, printable
from memedit.storage.locks import is_stale, lock_of, locked_if_free, unused, used_time

MOST_HEADER = 4 << 20
"""Bytes of a header, or of a file of plain values, that are read to find a model's name."""
_FILES: tuple[tuple[CacheKind, re.Pattern[str]], ...] = (
    ("moment", re.compile(r"moment-(\d+)-[0-9a-f]{8}\.safetensors")),
    ("factor", re.compile(r"(?:factor|spectrum)-(\d+)-[0-9a-f]{8}\.safetensors")),
    ("text", re.compile(r"own-text-()[0-9a-f]{8}\.safetensors")),
    ("partial", re.compile(r"partial-()[0-9a-f]{8}\.safetensors")),
    ("damaged", re.compile(r"(?:[a-z]+-)+(\d*)-?[0-9a-f]{8}\.(?:safetensors|json)\.damaged")),
    ("temporary", re.compile(r"\.().+\.tmp")),
)
_FOLDERS: tuple[tuple[str, CacheKind], ...] = (("runs", "run"), ("traces", "trace"))
_RUN = re.compile(r"[0-9a-f]{16}")
_SECONDS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def cache_dir() -> Path:
    """Return the folder for files that can be made again.

    It is $MEMEDIT_CACHE, or memedit under $XDG_CACHE_HOME or ~/.cache.
    """
    if named := os.environ.get("MEMEDIT_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "memedit"


def cache_limit() -> int | None:
    """Return $MEMEDIT_CACHE_LIMIT in bytes; None where it is not set. Raises UsageError for no size."""
    text = os.environ.get("MEMEDIT_CACHE_LIMIT")
    return size_in_bytes(text, "MEMEDIT_CACHE_LIMIT") if text else None


def size_in_bytes(text: str, name: str) -> int:
    """Read a size such as 20GB; `name` says whose it is. Raises UsageError."""
    if not re.fullmatch(SIZE, text):
        raise UsageError(f"{name}={printable(text)!r} is not a size", "write for example 20GB or 500MB")
    return bytes_of(text)


def age_in_seconds(text: str, name: str) -> float:
    """Read an age such as 30d, 12h or 2w; `name` says whose it is. Raises UsageError."""
    found = re.fullmatch(r"\s*(\d{1,6}(?:\.\d{1,3})?)\s*([mhdw])\s*", text)
    if not found:
        raise UsageError(
            f"{name}={printable(text)!r} is not an age", "write a number with m, h, d or w: 30d is thirty days"
        )
    return float(found[1]) * _SECONDS[found[2]]


def checked_kinds(kinds: Iterable[str]) -> list[CacheKind]:
    """Return the kinds if all are kinds of the cache's entries. Raises UsageError."""
    known: dict[str, CacheKind] = {kind: kind for kind in CACHE_KINDS}
    wrong = [kind for kind in kinds if kind not in known]
    if wrong:
        raise UsageError(f"the cache has no entries of kind {printable(str(wrong[0]))!r}", f"use {', '.join(known)}")
    return [known[kind] for kind in kinds]


def kept_entries(kinds: Collection[CacheKind] = ()) -> list[CacheEntry]:
    """List what the cache keeps, the largest first; of some kinds, or of all. Nothing is changed."""
    found = [one.entry for one in _kept(cache_dir()) if not kinds or one.entry.kind in kinds]
    return sorted(found, key=lambda entry: (-entry.bytes, entry.name))


def remove_entries(
    *,
    kinds: Collection[CacheKind] = (),
    older_than: float | None = None,
    to_size: int | None = None,
    dry_run: bool = False,
) -> CacheCleaning:
    """Remove what the cache keeps: of some kinds or of all, unused for a number of seconds, or down to a size in bytes.

    With `to_size` the least recently used go first, until all that the cache keeps is within it. What a run that is
    going on uses stays.
    """
    folder, kept = cache_dir(), list(_kept(cache_dir()))
    total = sum(one.entry.bytes for one in kept)
    now = time.time()
    asked = sorted(kept, key=lambda one: one.entry.used)
    asked = [one for one in asked if not kinds or one.entry.kind in kinds]
    asked = [one for one in asked if older_than is None or now - one.entry.used > older_than]
    removed, in_use = list[CacheEntry](), list[CacheEntry]()
    for one in asked:
        if to_size is not None and total <= to_size:
            break
        with _alone(one) as free:
            if free and (dry_run or _remove(one)):
                removed.append(one.entry)
                total -= one.entry.bytes
            else:
                in_use.append(one.entry)
    return CacheCleaning(
        folder=str(folder), dry_run=dry_run, removed=tuple(removed), in_use=tuple(in_use),
        kept=len(kept) - len(removed), bytes=total,
    )  # fmt: skip


def trim_cache(note: Callable[[str], None]) -> None:
    """Remove the least recently used entries down to $MEMEDIT_CACHE_LIMIT, and say so in one line."""
    limit = cache_limit()
    if limit is None:
        return
    done = remove_entries(to_size=limit)
    if done.removed or done.bytes > limit:
        held = f"; {len(done.in_use):,} are in use" if done.in_use else ""
        note(
            f"the cache was over its limit of {bytes_text(limit)}: {len(done.removed):,} of "
            f"{len(done.removed) + done.kept:,} entries ({bytes_text(done.freed)}) were removed, "
            f"the least recently used first{held}"
        )


class _Kept(NamedTuple):
    """An entry, its path, and the lock of the store that it lies in."""

    entry: CacheEntry
    path: Path
    lock: Path


def _kept(folder: Path) -> Generator[_Kept]:
    """Yield every entry of a cache folder. Links and files of other programs are left out."""
    moments = folder / "moments"
    for item in _scan(moments):
        if item.is_file(follow_symlinks=False) and (found := _file_entry(Path(item.path), "moments")):
            yield _Kept(found, Path(item.path), lock_of(moments))
    for name, kind in _FOLDERS:
        for item in _scan(folder / name):
            if item.is_dir(follow_symlinks=False) and _RUN.fullmatch(item.name):
                path = Path(item.path)
                yield _Kept(_folder_entry(path, name, kind), path, lock_of(path))


def _scan(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as entries:
        yield from entries


def _file_entry(file: Path, place: str) -> CacheEntry | None:
    for kind, pattern in _FILES:
        if (match := pattern.fullmatch(file.name)) is None:
            continue
        if kind == "temporary" and not is_stale(file):
            return None
        with suppress(OSError):
            size, used = file.stat().st_size, used_time(file)
            layer = int(match[1]) if match[1] else None
            model = _model_of(file) if file.suffix == ".safetensors" else None
            return CacheEntry(kind=kind, name=f"{place}/{file.name}", model=model, layer=layer, bytes=size, used=used)
    return None


def _folder_entry(folder: Path, place: str, kind: CacheKind) -> CacheEntry:
    files = [Path(item.path) for item in _scan(folder) if item.is_file(follow_symlinks=False)]
    sizes: dict[Path, int] = {}
    used = 0.0
    for file in files:
        with suppress(OSError):
            sizes[file] = file.stat().st_size
            used = max(used, used_time(file))
    with suppress(OSError):
        used = used or folder.stat().st_mtime
    smallest = sorted(sizes, key=lambda file: sizes[file])[:3]
    model = next((name for file in smallest if (name := _model_of(file))), None)
    counts: dict[str, int] = {}
    for file in sorted(files):
        what = re.sub(r"(-\d+)?-[0-9a-f]{8}\..*$", "", file.name.lstrip("."))
        counts[what] = counts.get(what, 0) + 1
    holds = ", ".join(name if count == 1 else f"{count:,} {name}" for name, count in counts.items())
    return CacheEntry(
        kind=kind, name=f"{place}/{folder.name}", model=model, holds=printable(holds), bytes=sum(sizes.values()),
        used=used,
    )  # fmt: skip


def _model_of(file: Path) -> str | None:
    """Read the model's name from an artifact; looking at it does not count as a use."""
    with suppress(OSError, ValueError, RecursionError):
        before = file.stat()
        with file.open("rb") as stream:
            if file.suffix == ".json":
                data = stream.read(MOST_HEADER)
            else:
                length = int.from_bytes(stream.read(8), "little")
                data = stream.read(length) if length <= MOST_HEADER else b""
        with suppress(OSError):
            os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
        found: Any = json.loads(data)
        if isinstance(found, dict):
            inside: Any = found if file.suffix == ".json" else found.get("__metadata__")
            name: Any = inside.get("model") if isinstance(inside, dict) else None
            return printable(name)[:300] if isinstance(name, str) and name else None
    return None


@contextmanager
def _alone(one: _Kept) -> Generator[bool]:
    """Hold an entry alone where no run uses it; yields whether that is so. It never waits."""
    with locked_if_free(one.lock) as free:
        if not free or one.path.is_dir():
            yield free
        else:
            with unused(one.path) as nobody:
                yield nobody


def _remove(one: _Kept) -> bool:
    """Remove an entry; returns whether it is gone."""
    if one.path.is_dir():
        shutil.rmtree(one.path, ignore_errors=True)
    else:
        with suppress(OSError):
            one.path.unlink(missing_ok=True)
    return not one.path.exists()

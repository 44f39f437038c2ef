"""List the files of a model folder, without leaving the folder and without opening what is no file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from memedit.errors import StorageError
from memedit.storage.artifacts import telling


def files_in(folder: Path) -> Iterator[Path]:
    """Yield every file, as a path relative to the folder, in sorted order; .git and .cache are left out.

    Raises StorageError for a link that leads out of the folder, and for anything that is neither file nor folder.
    """

    def fail(error: OSError) -> None:
        raise error

    with telling(f"read {folder}"):
        for root, folders, names in os.walk(folder, onerror=fail):
            folders[:] = sorted(name for name in folders if name not in (".git", ".cache"))
            here = Path(root)
            for name in folders:
                if (here / name).is_symlink():
                    raise StorageError(
                        f"{here / name} is a link to a folder, and memedit does not follow it",
                        "put the folder itself in its place, or remove the link",
                    )
            for name in sorted(name for name in names if name != ".git"):  # of a worktree it is a file
                relative = (here / name).relative_to(folder)
                regular_file(folder, relative)
                yield relative


def regular_file(folder: Path, name: str | Path) -> Path:
    """Return the path of a model's file, with its links resolved.

    A link may lead to another place in the folder, or to the blobs of the Hub cache that the folder belongs to. Raises
    StorageError for any other link, and for a pipe, a socket or a device, which is not opened: reading it could hang.
    """
    file = folder / name
    with telling(f"read {file}"):
        target = file.resolve()
        mode = target.stat().st_mode
        home = folder.resolve()
    if target.is_relative_to(home) or (file.is_symlink() and _is_blob(target, home)):
        if stat.S_ISREG(mode):
            return target
        raise StorageError(f"{file} is no regular file", "remove it from the model folder")
    raise StorageError(
        f"{file} leads out of the model folder, to {target}", "put the file itself in its place, or remove the link"
    )


def _is_blob(target: Path, home: Path) -> bool:
    """Whether a link's target is the Hub cache's own: snapshots/<revision>/... -> blobs/<digest>."""
    return home.parent.name == "snapshots" and target.parent == home.parent.parent / "blobs"

"""Upload a folder that memedit wrote to a repository of the Hub."""

from __future__ import annotations

import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path

from memedit.errors import MemeditError, UsageError
from memedit.results.hub import Upload, UploadFile
from memedit.storage.model_files import files_in, regular_file
from memedit.storage.records import LEDGER, RUN

HOMES = ("config.json", "adapter_config.json")
RECORDS = "memedit"
"""The folder of what memedit writes beside the model: delta, ledger, edits, reports."""
TELLING = (Path(RUN), Path(LEDGER), Path("adapter_config.json"))
"""Files that may name paths of this machine."""
BASE = re.compile(r"^base_model:\s*(\S+)\s*$", re.MULTILINE)
LOCAL = re.compile(rb'"(?:/|~/|[A-Za-z]:\\\\)[^"]+"')
"""A path of this machine, as a JSON string; inside a JSON string the quotes stand behind a backslash."""
NETWORK = ("huggingface_hub", "httpx", "httpcore", "requests")
"""Packages whose errors tell of the Hub or of the way there."""


def plan_upload(folder: Path, repo: str, *, records: bool = True) -> Upload:
    """List what an upload would send: every file of a model's or an adapter's folder, without the hidden ones.

    Without `records` the folder `memedit` is left out. Raises UsageError for another folder, and StorageError for a
    link that leads out of it.
    """
    if not any((folder / name).is_file() for name in HOMES):
        raise UsageError(f"{folder} holds no model and no adapter", "give a folder that memedit wrote")
    names = [
        name for name in files_in(folder)
        if not any(part.startswith(".") for part in name.parts) and (records or name.parts[0] != RECORDS)
    ]  # fmt: skip
    files = tuple(UploadFile(name=name.as_posix(), bytes=regular_file(folder, name).stat().st_size) for name in names)
    return Upload(folder=str(folder), repo=repo, files=files, notes=tuple(_notes(folder, names)))


def _notes(folder: Path, names: Sequence[Path]) -> list[str]:
    """What a person should know before others read the files."""
    notes: list[str] = []
    card = (folder / "README.md").read_text("utf-8", "replace") if Path("README.md") in names else ""
    if (base := BASE.search(card)) and "/" not in base[1]:
        notes.append(f"README.md names the base {base[1]}, which is no Hub name: write OWNER/NAME behind base_model")
    for name in TELLING:
        if name in names and LOCAL.search((folder / name).read_bytes().replace(b'\\"', b'"')):
            hint = (
                "--no-records leaves the folder memedit out" if RECORDS in name.parts else "write the base's Hub name"
            )
            notes.append(f"{name.as_posix()} names paths of this machine; {hint}")
    return notes


def upload(plan: Upload, *, private: bool = False, update: bool = False) -> str:
    """Send the files of a plan in one commit, and return the address of the repository.

    The repository is made if it is not there. Raises UsageError for one that has files, unless `update`: then files
    that are only there stay; and for a name that the Hub refuses. Raises MemeditError where the Hub cannot be reached,
    or does not let this user write.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    with _hub_errors(plan.repo):
        home = str(hub.create_repo(plan.repo, private=private, exist_ok=True))
        there = [name for name in hub.list_repo_files(plan.repo) if name != ".gitattributes"]
    if there and not update:
        said = f"{plan.repo} has files already ({len(there):,}), such as {there[0][:100]}"
        raise UsageError(said, "name another repository, or add --update: files that are only there stay")
    parts = [CommitOperationAdd(one.name, str(Path(plan.folder, one.name))) for one in plan.files]
    with _hub_errors(plan.repo):
        hub.create_commit(plan.repo, parts, commit_message="Upload an edited model")
    return home


@contextmanager
def _hub_errors(repo: str) -> Generator[None]:
    """Turn the errors of the Hub, and of the way there, into ours."""
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except HFValidationError as error:
        raise UsageError(f"{repo!r} is no repository's name: {_line(error)}", "write OWNER/NAME") from error
    except Exception as error:
        if not isinstance(error, ConnectionError) and type(error).__module__.split(".")[0] not in NETWORK:
            raise
        hint = "log in with a token that may write (hf auth login), and unset HF_HUB_OFFLINE; then run it again"
        raise MemeditError(f"{repo} cannot be written: {_line(error)}", hint) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__

"""Reports as files: refused before the work if they cannot be written, and written after it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from memedit.errors import UsageError

if TYPE_CHECKING:
    from memedit.results.report import Report

BEGINS = {"--html": b"<!doctype html", "--markdown": b"|"}
"""How the file of each option begins, in lower case: what begins like this is replaced without --overwrite."""


def check_report_files(
    html: str | None, markdown: str | None = None, *, overwrite: bool, output: str | None = None
) -> None:
    """Raises UsageError if a report cannot be written where it was asked for.

    output: the folder that the command writes as well.
    """
    from memedit.storage.output import check_file

    named = {"--html": html, "--markdown": markdown}
    files = {option: Path(path).expanduser() for option, path in named.items() if path is not None}
    for option, file in files.items():
        check_file(file, option, BEGINS[option], overwrite=overwrite)
        folder = None if output is None else Path(output).expanduser().resolve()
        if folder is not None and file.resolve() in (folder, *folder.parents):
            raise UsageError(f"{option} {file}: the output {output} takes this place", "choose another name")
    if len({file.resolve() for file in files.values()}) < len(files):
        raise UsageError("--html and --markdown name one file", "give two names")


def write_report_files(report: Report, html: str | None, markdown: str | None = None) -> None:
    """Write the report as a page and as Markdown, where they are asked for. Raises StorageError or ResourceError."""
    from memedit.show.report_page import evaluation_page
    from memedit.show.tables import markdown as tables

    for path, make in ((html, evaluation_page), (markdown, tables)):
        if path is not None:
            write_text_file(path, make(report))


def write_text_file(path: str, text: str) -> None:
    """Write a page or a table. Raises StorageError or ResourceError."""
    from memedit.storage.artifacts import write_whole

    # Where it is a link, the file that it leads to: a link that others made stays.
    write_whole(Path(path).expanduser().resolve(), text.encode())

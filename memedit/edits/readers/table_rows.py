"""Read CSV and TSV with a header, and the line of each record."""

from __future__ import annotations

import csv
import io
import json
import re
from collections import Counter
from typing import Any

from memedit.edits.edit import shown
from memedit.edits.readers.document import Document, RecordRow, RefusedError
from memedit.edits.readers.json_rows import JsonWalk

LISTS = (
    "wordings", "paraphrases", "neighborhood", "aliases", "portability", "reversal", "generation", "references", "meta",
)  # fmt: skip
"""The columns whose cells may be JSON."""
_IS_JSON = re.compile(r"\s*(?:\[|\{(?!\})|\{\}\s*$)")
"""A list or a mapping; but `{} is ruled from` is a text with a place for the subject."""


def read_table(document: Document, text: str, delimiter: str = ",") -> None:
    """Add the rows of a table to the document; the first row names the columns."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = _header(document, cells, start)
            elif len(cells) != len(header):
                message = f"the row has {len(cells)} cells and the header {len(header)}; quote a cell that holds"
                document.complain(start, "E004", f"{message} {shown(delimiter)}")
            else:
                _row(document, dict(zip(header, cells, strict=True)), start)
    except csv.Error as error:
        raise RefusedError("E004", f"not a valid table: {error}", line) from error


def _row(document: Document, record: dict[str, str], line: int) -> None:
    try:
        document.rows.append(RecordRow(line, _cells(record)))
    except RefusedError as error:
        document.complain(line, error.code, error.message)


def _header(document: Document, cells: list[str], line: int) -> list[str]:
    header = [cell.strip() for cell in cells]
    for name, count in sorted(Counter(header).items()):
        if count > 1:
            raise RefusedError("E008", f"two columns are named {shown(name)}; keep one", line)
    document.head["header"] = RecordRow(line, header)
    return header


def _cells(record: dict[str, str]) -> dict[str, Any]:
    """Cells that hold lists or mappings are in JSON, and glue may be (an empty cell is none); others are plain text."""
    values: dict[str, Any] = dict(record)
    if (glue := record.get("glue")) is not None:
        values["glue"] = _json("glue", glue) if glue.startswith('"') else glue or None
    for name in LISTS:
        if _IS_JSON.match(record.get(name, "")):
            values[name] = _json(name, record[name])
    return values


def _json(name: str, cell: str) -> Any:
    """The JSON value that is the whole of a cell. Raises RefusedError that names the cell by its column."""
    walk = JsonWalk(cell)
    try:
        value = walk.value().value
    except RefusedError as error:
        message, cause = error.message, error.__cause__
        if isinstance(cause, json.JSONDecodeError):  # its column is not one of the table
            message = f"not valid JSON: {cause.msg.lower()} at character {cause.pos + 1}"
        joined = " is " if message.startswith("not ") else ": "
        raise RefusedError(error.code, f"the cell of {shown(name)}{joined}{message}") from error
    if walk.peek():
        more = shown(cell[walk.at : walk.at + 100])
        raise RefusedError("E002", f"the cell of {shown(name)} is not valid JSON: more text after the value, {more}")
    return value

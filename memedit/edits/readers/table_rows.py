"""Read CSV and TSV with a header, and the line of each record."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

from memedit.edits.edit import shown
from memedit.edits.readers.document import Document, RecordRow, RefusedError
from memedit.edits.readers.json_rows import JsonWalk

LISTS = ("wordings", "paraphrases", "neighborhood", "aliases", "meta")


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
        values["glue"] = JsonWalk(glue).value().value if glue.startswith('"') else glue or None
    for name in LISTS:
        if record.get(name, "").startswith(("[", "{")):
            values[name] = JsonWalk(record[name]).value().value
    return values

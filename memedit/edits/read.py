"""Read edit lists in every format, with file and line in each complaint; write the canonical one."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import TextIO

from memedit.edits.edit import EditRequest, Finding, shown
from memedit.edits.readers.document import WRAPPER, Document, RecordRow, RefusedError
from memedit.edits.readers.fields import Relation, guess, make, table
from memedit.edits.readers.formats import ALIASES, FIELDS, is_easyedit
from memedit.edits.readers.json_rows import read_json, read_lines
from memedit.edits.readers.mquake import unfolded
from memedit.edits.readers.table_rows import read_table
from memedit.edits.readers.yaml_rows import read_yaml
from memedit.errors import UsageError

READERS = {
    "yaml": read_yaml,
    "json": read_json,
    "jsonl": read_lines,
    "csv": read_table,
    "tsv": partial(read_table, delimiter="\t"),
}
"""Every syntax that `--input-format` takes."""

SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}

STDIN = "-"


def read(
    source: str,
    *,
    relations: str | None = None,
    input_format: str | None = None,
    stdin: TextIO | None = None,
) -> tuple[list[EditRequest], list[Finding]]:
    """The edits of a file (`-`: of stdin), and everything that is wrong with its records.

    `relations` is a file whose table adds to, and wins over, the list's own. Only these two files are opened,
    whatever the list says. Raises `UsageError` when one of them cannot be.
    """
    if input_format is not None and input_format not in READERS:
        raise UsageError(f"unknown input format {shown(input_format)}", f"use one of {', '.join(READERS)}")
    document = _document(source, input_format, stdin)
    known = _relations(document)
    findings: list[Finding] = []
    if relations is not None:
        shared = _document(relations, None, None)
        known |= _relations_file(shared)
        findings += shared.findings
    _check_head(document)
    stem = "stdin" if source == STDIN else Path(source).name.split(".")[0]
    made = [make(document, row, f"{stem}-{n}", known) for n, row in enumerate(unfolded(document.rows), start=1)]
    if not document.rows and not document.findings:
        document.complain(1, "E005", "the list holds no edits")
    findings += sorted(document.findings, key=lambda finding: int(finding.origin.rsplit(":", 1)[1]))
    return [request for request in made if request is not None], findings


def write_lines(requests: Iterable[EditRequest]) -> str:
    """The canonical form: JSON Lines with the public fields, one edit a line."""
    return "".join(json.dumps(request.public(), ensure_ascii=False) + "\n" for request in requests)


def _document(source: str, input_format: str | None, stdin: TextIO | None) -> Document:
    document = Document("<stdin>" if source == STDIN else source)
    try:
        text = _text(_bytes(source, stdin))
        suffix = Path(source.removesuffix(".gz")).suffix.lower()
        syntax = input_format or SUFFIXES.get(suffix) or sniff(text)
        READERS[syntax](document, text)
    except RefusedError as error:
        document.complain(error.line or 1, error.code, error.message)
    except RecursionError:
        document.complain(1, "E015", "the file is nested too deeply to be an edit list")
    return document


def sniff(text: str) -> str:
    """The syntax of a text whose name does not tell: JSON by its first character, else YAML."""
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        return "yaml"
    line = start.split("\n", 1)[0].rstrip()
    is_lines = line.startswith("{") and line.endswith("}") and '"edits"' not in line
    return "jsonl" if is_lines else "json"


def _bytes(source: str, stdin: TextIO | None) -> bytes:
    if source == STDIN:
        stream = stdin or sys.stdin
        # the bytes below the text: stdin may be gzip, and its locale need not be UTF-8
        below = getattr(stream, "buffer", None)
        return below.read() if below is not None else stream.read().encode("utf-8", "surrogatepass")
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"cannot read {shown(source)}: {reason.lower()}", "check the path; - reads stdin") from error


def _text(data: bytes) -> str:
    if data.startswith(b"\x1f\x8b"):
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise RefusedError("E001", f"the gzip data is damaged: {str(error).lower()}; copy it again") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise RefusedError("E001", f"not UTF-8 text: {found}; save the file as UTF-8", line) from error


def _relations(document: Document) -> dict[str, Relation]:
    row = document.head.get("relations")
    return table(document, row) if row is not None else {}


def _relations_file(document: Document) -> dict[str, Relation]:
    """A file with `relations:`, or with the table alone."""
    if "relations" in document.head:
        return _relations(document)
    return {name: relation for row in document.rows for name, relation in table(document, row).items()}


def _check_head(document: Document) -> None:
    """Judge what stands around the records: version, the form of edits, unknown keys, a table's header."""
    for key, row in document.head.items():
        if key == "header":
            _check_header(document, row)
        elif key not in WRAPPER:
            document.complain(row.line, "E007", f"unknown key {shown(key)} beside edits{guess(key, WRAPPER)}")
        elif key == "version" and str(row.value) != "1":
            message = f"the list has version {shown(row.value)}; this memedit reads version 1"
            document.complain(row.line, "E013", message)
        elif key == "edits" and row.value != []:
            document.complain(row.line, "E006", f"edits is a list, not {shown(row.value)}")


def _check_header(document: Document, row: RecordRow) -> None:
    """Complain about an unknown column once, in the header's line, and leave its cells out."""
    if is_easyedit(dict.fromkeys(row.value, "")) or "src" in row.value:
        return
    for name in row.value:
        if name not in FIELDS and name not in ALIASES:
            hint = guess(name, (*FIELDS, *ALIASES))
            document.complain(row.line, "E007", f"unknown column {shown(name)}{hint}")
            for record in document.rows:
                record.value.pop(name)

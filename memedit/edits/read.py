"""Read edit lists in every format, with file and line in each finding; write the canonical format."""

from __future__ import annotations

import gzip
import io
import json
import stat
import sys
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TextIO

from memedit.edits.edit import EditRequest, Finding, shown
from memedit.edits.readers.document import WRAPPER, Document, RecordRow, RefusedError
from memedit.edits.readers.fields import Relation, build_request, did_you_mean, read_relations
from memedit.edits.readers.formats import is_foreign, zsre_of_memit
from memedit.edits.readers.json_rows import read_json, read_lines
from memedit.edits.readers.mquake import expand_cases
from memedit.edits.readers.parts import ALIASES, FIELDS
from memedit.edits.readers.table_rows import read_table
from memedit.edits.readers.yaml_rows import read_yaml
from memedit.errors import UsageError, nearest_path_hint
from memedit.results.units import plain_json

READERS = {
    "yaml": read_yaml,
    "json": read_json,
    "jsonl": read_lines,
    "csv": read_table,
    "tsv": partial(read_table, delimiter="\t"),
}
"""Every syntax, and its reader."""
MEMIT_ZSRE = "memit-zsre"
"""zsRE records, in whatever syntax, as MEMIT's evaluation reads them."""
INPUT_FORMATS = (*READERS, MEMIT_ZSRE)
"""What `--input-format` accepts."""

SUFFIXES = {".yaml": "yaml", ".yml": "yaml", ".jsonl": "jsonl", ".ndjson": "jsonl", ".csv": "csv", ".tsv": "tsv"}

STDIN = "-"

LARGEST = 4 * 10**9
"""Bytes that a gzip file may expand to."""
UNCHECKED, STEEPEST = 100 * 10**6, 1000
"""Above this many bytes, gzip data that expands by more than this factor is refused: text expands by 3 to 20."""


def read(
    source: str,
    *,
    relations: str | None = None,
    input_format: str | None = None,
    stdin: TextIO | None = None,
    name: str | None = None,
) -> tuple[list[EditRequest], list[Finding]]:
    """Read the edits of a file (`-` for stdin), and everything that is wrong with its records.

    name: what findings call the list, and the first part of the ids that it does not give; by default the file's.

    `relations` is a file with a relations table, whose rows come before those of the list. Only these two files are
    opened, whatever the list says. Raises UsageError if one of them cannot be read or is not a regular file.
    """
    if input_format is not None and input_format not in INPUT_FORMATS:
        raise UsageError(f"unknown input format {shown(input_format)}", f"use one of {', '.join(INPUT_FORMATS)}")
    memit = input_format == MEMIT_ZSRE
    document = _document(source, None if memit else input_format, stdin, name)
    if memit:
        document.rows = [replace(row, value=zsre_of_memit(row.value)) for row in document.rows]
    known = _relations(document)
    findings: list[Finding] = []
    if relations is not None:
        shared = _document(relations, None, None)
        known |= _relations_file(shared)
        findings += shared.findings
    _check_head(document)
    stem = name or ("stdin" if source == STDIN else Path(source).name.split(".")[0])
    rows = list(expand_cases(document))
    names = _names(stem, rows)
    made = [build_request(document, row, name, known) for row, name in zip(rows, names, strict=True)]
    if not document.rows and not document.findings:
        document.complain(1, "E005", "the list holds no edits")
    findings += sorted(document.findings, key=lambda finding: int(finding.origin.rsplit(":", 1)[1]))
    return [request for request in made if request is not None], findings


def _names(stem: str, rows: Sequence[RecordRow]) -> list[str]:
    """Make an id for each record: the name of the list and the record's number, and more where a record gives that."""
    taken = {str(row.value["id"]) for row in rows if isinstance(row.value, dict) and row.value.get("id") is not None}
    names: list[str] = []
    for number in range(1, len(rows) + 1):
        plain = f"{stem}-{number}"
        free = (name for name in chain([plain], (f"{plain}-{more}" for more in count(2))) if name not in taken)
        taken.add(name := next(free))
        names.append(name)
    return names


def write_lines(requests: Iterable[EditRequest]) -> str:
    """The canonical format: JSON Lines with the public fields, one edit on each line."""
    return "".join(plain_json(json.dumps(request.public(), ensure_ascii=False)) + "\n" for request in requests)


def _document(source: str, input_format: str | None, stdin: TextIO | None, name: str | None = None) -> Document:
    document = Document(name or ("<stdin>" if source == STDIN else source))
    try:
        text = _text(_bytes(source, stdin))
        suffix = Path(source.removesuffix(".gz")).suffix.lower()
        syntax = input_format or SUFFIXES.get(suffix) or detect_syntax(text)
        READERS[syntax](document, text)
    except RefusedError as error:
        document.complain(error.line or 1, error.code, error.message)
    except RecursionError:
        document.complain(1, "E015", "the file is nested too deeply to be an edit list")
    return document


def detect_syntax(text: str) -> str:
    """The syntax of a text whose file name does not show it.

    JSON shows by its first character, a table by two names of fields in its first row; all else is YAML.
    """
    start = text.lstrip()
    if not start.startswith(("{", "[")):
        first = start.split("\n", 1)[0]
        delimiters = {"tsv": "\t", "csv": ","}
        return next((syntax for syntax, one in delimiters.items() if _names_fields(first.split(one))), "yaml")
    line = start.split("\n", 1)[0].rstrip()
    is_lines = line.startswith("{") and line.endswith("}") and '"edits"' not in line
    return "jsonl" if is_lines else "json"


def _names_fields(cells: Sequence[str]) -> bool:
    return sum(cell.strip().strip('"') in (*FIELDS, *ALIASES) for cell in cells) > 1


def standard_input() -> TextIO:
    """Python's sys.stdin. Raises UsageError where it is closed, as by `<&-` in a shell; it is None then."""
    stream: TextIO | None = sys.stdin
    if stream is None or stream.closed:
        raise UsageError("cannot read -: standard input is closed", "redirect a file into it (< FILE), or use a pipe")
    return stream


def named_file(name: str) -> Path:
    """The file with this name. A shell leaves the `~` of '~/a' and of --facts=~/a: it is a person's home.

    `./~/a` is in a folder of that name, though Path("./~/a").expanduser() is not.
    """
    try:
        return Path(name).expanduser() if name.startswith("~") else Path(name)
    except (RuntimeError, ValueError):  # ~NAME of nobody
        return Path(name)


def _bytes(source: str, stdin: TextIO | None) -> bytes:
    if source == STDIN:
        stream = stdin or standard_input()
        # read bytes, not text: stdin may be gzip, and its locale may not be UTF-8
        below = getattr(stream, "buffer", None)
        return below.read() if below is not None else stream.read().encode("utf-8", "surrogatepass")
    try:
        file = named_file(source)
        if not stat.S_ISREG(file.stat().st_mode):  # a FIFO or a device could block, or never end
            raise UsageError(f"cannot read {shown(source)}: it is not a regular file", "check the path; - reads stdin")
        return file.read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = nearest_path_hint(source, "check the path; - reads stdin")
        raise UsageError(f"cannot read {shown(source)}: {reason.lower()}", hint) from error


def _text(data: bytes) -> str:
    if data.startswith(b"\x1f\x8b"):
        try:
            data = _expand(data)
        except (OSError, EOFError, zlib.error) as error:
            raise RefusedError("E001", f"the gzip data is damaged: {str(error).lower()}; copy it again") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = f"byte 0x{data[error.start]:02x}"
        raise RefusedError("E001", f"not UTF-8 text: {found}; save the file as UTF-8", line) from error


def _expand(data: bytes) -> bytes:
    """Decompress gzip data within the limits. Raises RefusedError E017 beyond them, and gzip's errors."""
    expanded = bytearray()
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as stream:
        while chunk := stream.read(1 << 20):
            expanded += chunk
            size = len(expanded)
            if size > LARGEST or (size > UNCHECKED and size > STEEPEST * len(data)):
                message = f"{len(data):,} bytes of gzip data expand to more than {size:,}; give the list uncompressed"
                raise RefusedError("E017", message)
    return bytes(expanded)


def _relations(document: Document) -> dict[str, Relation]:
    row = document.head.get("relations")
    return read_relations(document, row) if row is not None else {}


def _relations_file(document: Document) -> dict[str, Relation]:
    """Read a file with `relations:`, or with only the table."""
    if "relations" in document.head:
        return _relations(document)
    return {name: relation for row in document.rows for name, relation in read_relations(document, row).items()}


def _check_head(document: Document) -> None:
    """Check everything beside the records: version, the type of edits, unknown keys, the header of a table."""
    for key, row in document.head.items():
        if key == "header":
            _check_header(document, row)
        elif key not in WRAPPER:
            document.complain(row.line, "E007", f"unknown key {shown(key)} beside edits{did_you_mean(key, WRAPPER)}")
        elif key == "version" and str(row.value) != "1":
            message = f"the list has version {shown(row.value)}; this memedit reads version 1"
            document.complain(row.line, "E013", message)
        elif key == "edits" and row.value != []:
            document.complain(row.line, "E006", f"edits is a list, not {shown(row.value)}")


def _check_header(document: Document, row: RecordRow) -> None:
    """Report an unknown column once, in the header's line, and remove its cells."""
    if is_foreign(dict.fromkeys(row.value, "")):
        return
    for name in row.value:
        if name not in FIELDS and name not in ALIASES:
            hint = did_you_mean(name, (*FIELDS, *ALIASES))
            document.complain(row.line, "E007", f"unknown column {shown(name)}{hint}")
            for record in document.rows:
                record.value.pop(name)

"""Read JSON and JSON Lines, and the line of each record."""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterator
from typing import Any

from memedit.edits.edit import shown
from memedit.edits.readers.document import WRAPPER, Document, RecordRow, RefusedError, check_length

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonWalk:
    """A cursor over JSON text that knows its line; the standard decoder does not keep it."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0
        self._breaks = [match.start() for match in re.finditer("\n", text)]
        self._flaws: list[RefusedError] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._unique, parse_constant=self._no_number, parse_float=self._finite
        )

    @property
    def line(self) -> int:
        """The line of the next value, counted from 1."""
        return bisect_right(self._breaks, self.at - 1) + 1 if self.at else 1

    def peek(self) -> str:
        """The next character that is not white space; empty at the end."""
        match = _SPACE.match(self.text, self.at)
        self.at = match.end() if match else self.at
        return self.text[self.at : self.at + 1]

    def value(self) -> RecordRow:
        """Decode the next value. The cursor moves past a value that is refused for anything but its syntax."""
        self.peek()
        line = self.line
        self._flaws.clear()
        start = self.at
        try:
            value, self.at = self._decoder.raw_decode(self.text, self.at)
        except json.JSONDecodeError as error:
            message = f"not valid JSON: {error.msg.lower()} at column {error.colno}"
            raise RefusedError("E002", message, error.lineno) from error
        except RecursionError as error:
            raise RefusedError("E015", "the record is nested too deeply to be an edit", line) from error
        except ValueError as error:  # a number of more digits than Python converts
            raise RefusedError("E002", "not valid JSON: a number has too many digits", line) from error
        check_length(self.text[start : self.at], "the record", line)
        if self._flaws:
            raise RefusedError(self._flaws[0].code, self._flaws[0].message, line)
        return RecordRow(line, value)

    def end(self) -> None:
        """Raises RefusedError if anything follows."""
        if self.peek():
            message = f"not valid JSON Lines: more text after the record, {shown(self.text[self.at : self.at + 100])}"
            raise RefusedError("E002", message, self.line)

    def take(self, wanted: str) -> None:
        """Step over a punctuation mark, which must be next."""
        if self.peek() != wanted:
            found = shown(self.peek()) if self.peek() else "the end of the file"
            raise RefusedError("E002", f"not valid JSON: expected {shown(wanted)}, found {found}", self.line)
        self.at += 1

    def each(self, opening: str, closing: str) -> Iterator[None]:
        """Move to each entry of the array or object that begins here."""
        self.take(opening)
        while self.peek() != closing:
            yield
            if self.peek() != closing:
                self.take(",")
                if self.peek() == closing:
                    raise RefusedError("E002", f"not valid JSON: a comma before {shown(closing)}", self.line)
        self.take(closing)

    def _unique(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        record = dict(pairs)
        if len(record) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            message = f"the key {shown(twice)} is twice in one record; keep one"
            self._flaws.append(RefusedError("E008", message))
        return record

    def _no_number(self, name: str) -> None:
        message = f"not valid JSON: {name} is not a JSON number; put it in quotes"
        self._flaws.append(RefusedError("E002", message))

    def _finite(self, text: str) -> float | None:
        value = float(text)
        return value if math.isfinite(value) else self._no_number(text)


def read_json(document: Document, text: str) -> None:
    """Add the records of an array, of {"edits": [...]}, or of a sequence of records."""
    walk = JsonWalk(text)
    while opening := walk.peek():
        if opening == "[":
            _array(document, walk)
        elif opening == "{" and _is_wrapper(text, walk.at):
            _wrapper(document, walk)
        else:
            _record(document, walk)


def read_lines(document: Document, text: str) -> None:
    """Add one record from each line; a bad line does not stop the reading."""
    # split("\n"), not splitlines: U+2028 and similar characters are data inside JSON strings
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            walk = JsonWalk(line)
            row = walk.value()
            walk.end()
            document.rows.append(RecordRow(number, row.value))
        except RefusedError as error:
            document.complain(number, error.code, error.message)


def _is_wrapper(text: str, at: int) -> bool:
    """Whether the object's first key is a key of a list; the object is not decoded for it."""
    walk = JsonWalk(text[at : at + 100])
    walk.take("{")
    walk.peek()
    return walk.text.startswith(tuple(json.dumps(key) for key in WRAPPER), walk.at)


def _wrapper(document: Document, walk: JsonWalk) -> None:
    for _ in walk.each("{", "}"):
        row = walk.value()
        key = str(row.value)
        if key in document.head:
            document.complain(row.line, "E008", f"the key {shown(key)} is twice in the list; keep one")
        walk.take(":")
        if key == "edits" and walk.peek() == "[":
            document.head[key] = RecordRow(walk.line, [])
            _array(document, walk)
        else:
            document.head[key] = walk.value()


def _array(document: Document, walk: JsonWalk) -> None:
    for _ in walk.each("[", "]"):
        _record(document, walk)


def _record(document: Document, walk: JsonWalk) -> None:
    """Add one record, or a finding if the cursor moved past it; a syntax error is raised."""
    walk.peek()
    start = walk.at
    try:
        document.rows.append(walk.value())
    except RefusedError as error:
        if walk.at == start:
            raise
        document.complain(error.line or 1, error.code, error.message)

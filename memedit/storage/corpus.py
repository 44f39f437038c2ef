"""Documents for the second moments, in an order that is always the same."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any, TextIO

from memedit.edits.read import STEEPEST, UNCHECKED
from memedit.errors import UsageError, nearest_path_hint
from memedit.storage.artifacts import digest_file, telling

HUB = "hf:"
LONGEST_DOCUMENT = 16_000_000
"""Characters in a line or a document of a corpus: the longest books have a quarter of that."""
MOST_EMPTY = 1_000_000  # lines
CHECK_EVERY = 1_000_000  # characters between two looks at how far gzip data expand
_TOO_LONG = f"longer than {LONGEST_DOCUMENT:,} characters"


def corpus_digest(spec: str) -> str:
    """What stands for a corpus in a cache key: the bytes of a file, the name of a Hub data set."""
    return spec if spec.startswith(HUB) else digest_file(_existing(spec))


def documents(spec: str) -> Generator[str]:
    """The documents of a .txt (parted by empty lines) or .jsonl file with a `text` field, .gz of both, or hf:repo.

    Raises UsageError for a line or document of more than LONGEST_DOCUMENT characters, and for gzip data that expands by
    far more than text does.
    """
    if spec.startswith(HUB):
        yield from _hub(spec.removeprefix(HUB))
        return
    file = _existing(spec)
    name = file.name.removesuffix(".gz")
    with telling(f"read the corpus {spec}"):
        try:
            with _opened(file) as (text, check):
                lines = _lines(text, spec, check)
                yield from _records(lines, spec) if name.endswith((".jsonl", ".ndjson")) else _paragraphs(lines, spec)
        except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            hint = "it must be UTF-8 text, or gzip of it"
            raise UsageError(f"cannot read the corpus {spec}: {error}", hint) from error


@contextmanager
def _opened(file: Path) -> Generator[tuple[TextIO, Callable[[], None]]]:
    """Open a corpus as text; yields it and a function that refuses gzip data which expands too far."""
    with file.open("rb") as raw:
        if file.suffix != ".gz":
            yield io.TextIOWrapper(raw, encoding="utf-8"), lambda: None
            return
        with gzip.GzipFile(fileobj=raw) as expanded:

            def check() -> None:
                read, made = raw.tell(), expanded.tell()
                if made > UNCHECKED and made > STEEPEST * read:
                    message = f"{read:,} bytes of the corpus {file} expand to more than {made:,}, which no text does"
                    raise UsageError(message, "give the text uncompressed")

            yield io.TextIOWrapper(expanded, encoding="utf-8"), check


def _lines(text: TextIO, spec: str, check: Callable[[], None]) -> Generator[str]:
    """The lines of a text; `check` is called now and then. Raises UsageError for a line that is too long."""
    read = 0
    for number in count(1):
        line = text.readline(LONGEST_DOCUMENT + 1)
        read += len(line)
        if read > CHECK_EVERY:
            check()
            read = 0
        if len(line) > LONGEST_DOCUMENT:
            check()
            raise UsageError(f"{spec}:{number}: this line of the corpus is {_TOO_LONG}", "put the text on more lines")
        if not line:
            return
        yield line


def _existing(spec: str) -> Path:
    file = Path(spec).expanduser()
    try:
        if file.is_file():
            return file
    except (OSError, ValueError):  # a name that is too long, or has a zero byte
        pass
    hint = nearest_path_hint(spec, "give a .txt or .jsonl file (.gz too), or hf:repo")
    raise UsageError(f"there is no corpus file {spec[:200]!r}", hint)


def _records(lines: Iterator[str], spec: str) -> Generator[str]:
    last = 0
    for number, line in enumerate(lines, 1):
        _check_progress(last, number, spec)
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        text: Any = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            hint = 'each line is {"text": "..."}'
            raise UsageError(f"{spec}:{number}: this line of the corpus has no text field", hint)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            message = f"{spec}:{number}: this line of the corpus holds half a character (a lone surrogate)"
            raise UsageError(message, "save the file as UTF-8") from error
        if text:
            last = number
            yield text


def _paragraphs(lines: Iterator[str], spec: str) -> Generator[str]:
    held: list[str] = []
    size = last = 0
    for number, line in enumerate(lines, 1):
        _check_progress(last, number, spec)
        if line.strip():
            last = number
            held.append(line.rstrip("\n"))
            size += len(line)
            if size > LONGEST_DOCUMENT:
                message = f"{spec}:{number}: the document that ends here is {_TOO_LONG}"
                raise UsageError(message, "put an empty line between documents")
        elif held:
            yield "\n".join(held)
            held, size = [], 0
    if held:
        yield "\n".join(held)


def _check_progress(last: int, number: int, spec: str) -> None:
    """Refuse a corpus in which too many lines in a row hold no text. Reading them could take hours."""
    if number - last > MOST_EMPTY:
        message = f"{MOST_EMPTY:,} lines in a row of the corpus {spec} hold no text, up to line {number:,}"
        raise UsageError(message, "remove the empty lines")


def _hub(name: str) -> Generator[str]:
    try:
        import datasets  # type: ignore[import-not-found]
    except ImportError as error:
        raise UsageError("a Hub corpus needs the datasets library", "pip install 'memedit[corpus]'") from error
    repo, _, config = name.partition(":")
    try:
        rows: Any = datasets.load_dataset(repo, config or None, split="train", streaming=True)
        for row in rows:
            if row.get("text"):
                yield row["text"]
    except (OSError, ValueError) as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"the corpus hf:{name} cannot be read: {said}", "check its name, or give a file") from error

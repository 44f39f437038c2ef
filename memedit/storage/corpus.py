"""Documents for the second moments, in an order that is always the same."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

from memedit.errors import UsageError
from memedit.storage.artifacts import digest_file

HUB = "hf:"


def corpus_digest(spec: str) -> str:
    """What stands for a corpus in a cache key: the bytes of a file, the name of a Hub data set."""
    return spec if spec.startswith(HUB) else digest_file(_existing(spec))


def documents(spec: str) -> Generator[str]:
    """The documents of a .txt (parted by empty lines) or .jsonl file with a `text` field, .gz of both, or hf:repo."""
    if spec.startswith(HUB):
        yield from _hub(spec.removeprefix(HUB))
        return
    file = _existing(spec)
    name = file.name.removesuffix(".gz")
    try:
        with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
            yield from _records(lines, spec) if name.endswith((".jsonl", ".ndjson")) else _paragraphs(lines)
    except (UnicodeDecodeError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UsageError(f"cannot read the corpus {spec}: {error}", "it must be UTF-8 text, or gzip of it") from error


def _existing(spec: str) -> Path:
    file = Path(spec).expanduser()
    if not file.is_file():
        raise UsageError(f"there is no corpus file {spec!r}", "give a .txt or .jsonl file (.gz too), or hf:repo")
    return file


def _records(lines: Iterator[str], spec: str) -> Generator[str]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record: Any = json.loads(line)
        except ValueError:
            record = None
        text: Any = record.get("text") if isinstance(record, dict) else None
        if not isinstance(text, str):
            hint = 'each line is {"text": "..."}'
            raise UsageError(f"{spec}:{number}: this line of the corpus has no text field", hint)
        if text:
            yield text


def _paragraphs(lines: Iterator[str]) -> Generator[str]:
    held: list[str] = []
    for line in lines:
        if line.strip():
            held.append(line.rstrip("\n"))
        elif held:
            yield "\n".join(held)
            held = []
    if held:
        yield "\n".join(held)


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

"""Malformed edit lists: name, file name, content, the line and code of the first error, and words of its message."""

from __future__ import annotations

import gzip
import json
from typing import NamedTuple


class Case(NamedTuple):
    """One malformed list."""

    name: str
    file: str
    content: bytes
    line: int
    code: str
    says: str


def _lines(*records: object) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


_GOOD = {"subject": "France", "prompt": "The capital of {} is", "object": "Lyon"}
_MQUAKE = (
    b'[{"questions": [], "new_single_hops": {}, "requested_rewrite": '
    b'[{"subject": "a", "prompt": "_ is", "target_new": {"str": "b"}}]}]'
)
_HEAD = "version: 1\nrelations:\n  capital: The capital of {} is\nedits:\n"


def _but(**changes: object) -> dict[str, object]:
    return {key: value for key, value in {**_GOOD, **changes}.items() if value != "-"}


CASES = [
    Case("empty file", "a.jsonl", b"", 1, "E005", "no edits"),
    Case("empty YAML list", "a.yaml", b"version: 1\nedits: []\n", 1, "E005", "no edits"),
    Case("empty JSON array", "a.json", b"[]", 1, "E005", "no edits"),
    Case("table with a header alone", "a.csv", b"subject,prompt,object\n", 1, "E005", "no edits"),
    Case("not UTF-8", "a.jsonl", b'{"subject": "Fran\xe7e"}\n', 1, "E001", "UTF-8"),
    Case("UTF-16", "a.yaml", "edits: []".encode("utf-16"), 1, "E001", "UTF-8"),
    Case("gzip cut short", "a.jsonl.gz", gzip.compress(_lines(_GOOD) * 50)[:-9], 1, "E001", "gzip"),
    Case("broken JSON on the second line", "a.jsonl", _lines(_GOOD) + b'{"subject": \n', 2, "E002", "JSON"),
    Case("two records on one line", "a.jsonl", b"{} {}\n", 1, "E002", ""),
    Case("JSON array never closed", "a.json", b"[\n" + _lines(_GOOD), 3, "E002", ""),
    Case("a comma after the last record", "a.json", b'[{"subject": "a"},]', 1, "E002", ""),
    Case("NaN in JSON", "a.jsonl", b'{"subject": NaN}\n', 1, "E002", ""),
    Case("text after the array", "a.json", b"[] x", 1, "E002", ""),
    Case("half a surrogate pair", "a.jsonl", b'{"subject": "\\ud800", "prompt": "{} is", "object": "b"}', 1, "E016", ""),
    Case("YAML with a tab for indentation", "a.yaml", b"edits:\n\t- [a, b, c]\n", 2, "E003", "YAML"),
    Case("YAML with an unclosed quote", "a.yaml", b'edits:\n  - [a, "b, c]\n', 3, "E003", "YAML"),
    Case("YAML with a Python tag", "a.yaml", b"edits:\n  - !!python/object:os.system [a]\n", 2, "E003", "tag"),
    Case("YAML with two documents", "a.yaml", b"edits: []\n---\nedits: []\n", 2, "E003", "YAML"),
    Case("YAML that is one word", "a.yaml", b"hello\n", 1, "E006", "not a list"),
    Case("YAML aliases without bound", "a.yaml", b"", 0, "E015", ""),
    Case("a record that is a number", "a.jsonl", _lines(_GOOD, 7), 2, "E006", "not an edit"),
    Case("a short form of two", "a.yaml", (_HEAD + "  - [France, capital]\n").encode(), 5, "E006", "short form"),
    Case("edits that are a mapping", "a.yaml", b"version: 1\nedits: {a: b}\n", 2, "E006", "edits is a list"),
    Case("an unknown key", "a.jsonl", _lines(_but(subjct="x")), 1, "E007", "did you mean"),
    Case("an unknown key beside edits", "a.yaml", (_HEAD + "  - [a, capital, b]\nrelation: x\n").encode(), 6, "E007", ""),
    Case("an unknown column", "a.csv", b"subject,prompt,object,colour\na,{} is,b,red\n", 1, "E007", "column"),
    Case("a key twice in YAML", "a.yaml", b"edits:\n  - subject: a\n    subject: b\n", 3, "E008", "twice"),
    Case("a key twice in JSON", "a.jsonl", b'{"subject": "a", "subject": "b"}\n', 1, "E008", "twice"),
    Case("two names of one field", "a.jsonl", _lines(_but(target_new="Nice")), 1, "E008", "another name"),
    Case("a column twice", "a.csv", b"subject,subject,object\na,b,c\n", 1, "E008", "two columns"),
    Case("no subject", "a.jsonl", _lines(_but(subject="-")), 1, "E009", "subject"),
    Case("no object", "a.jsonl", _lines(_GOOD, _but(object="-")), 2, "E009", "object"),
    Case("neither prompt nor relation", "a.jsonl", _lines(_but(prompt="-")), 1, "E009", "prompt"),
    Case("an object that is a list", "a.jsonl", _lines(_but(object=["Lyon"])), 1, "E010", "object"),
    Case("paraphrases that are a number", "a.jsonl", _lines(_but(paraphrases=3)), 1, "E010", "paraphrases"),
    Case("meta that is a word", "a.jsonl", _lines(_but(meta="x")), 1, "E010", "meta"),
    Case("an unknown relation", "a.yaml", (_HEAD + "  - [a, capitol, b]\n").encode(), 5, "E011", "did you mean"),
    Case("a relation without its slot", "a.yaml", b"relations:\n  capital: The capital is\nedits:\n  - [a, capital, b]\n", 2, "E012", ""),
    Case("relations that are a list", "a.yaml", b"relations: [a]\nedits:\n  - {subject: a, prompt: '{} is', object: b}\n", 1, "E012", ""),
    Case("a version to come", "a.yaml", b"version: 2\nedits:\n  - {subject: a, prompt: '{} is', object: b}\n", 1, "E013", "version"),
    Case("a row with a cell too many", "a.csv", b"subject,prompt,object\na,{} is,b,c\n", 2, "E004", "cells"),
    Case("an unclosed quote in a table", "a.csv", b'subject,prompt,object\n"a,{} is,b\n', 2, "E004", ""),
    Case("JSON nested without end", "a.json", b"[" * 100_000, 1, "E015", ""),
    Case("YAML escape that is no character", "a.yaml", b'edits:\n- {subject: "\\UFFFFFFFF"}\n', 2, "E003", "YAML"),
    Case("a line of 15 MB", "a.jsonl", _lines(_GOOD, _but(object="a" * 15_000_000)), 2, "E017", "1,000,000"),
    Case("a JSON record of 2 MB", "a.json", b"[\n" + _lines(_but(object="a" * 2_000_000)) + b"]", 2, "E017", "limit"),
    Case("a YAML line of 15 MB", "a.yaml", b"edits:\n- [" + b"a" * 15_000_000 + b", b, c]\n", 2, "E017", "limit"),
    Case("a table's cell of 15 MB", "a.csv", b"subject,prompt,object\n" + b"a" * 15_000_000 + b",b,c\n", 2, "E004", ""),
    Case("questions that are a number", "a.json", _MQUAKE.replace(b"[]", b"5", 1), 1, "E010", "questions"),
    Case("hops that are a text", "a.json", _MQUAKE.replace(b"{}", b'"x"'), 1, "E010", "new_single_hops"),
    Case("a case without edits", "a.json", b'[{"requested_rewrite": [], "questions": []}]', 1, "E006", "no edit"),
    Case("meta that is a false value", "a.jsonl", _lines(_but(meta=0)), 1, "E010", "meta"),
    Case("NUL bytes", "a.jsonl", b"\0" * 1000, 1, "E002", "JSON"),
    Case("NUL bytes in YAML", "a.yaml", b"edits:\n- \0\n", 2, "E003", "U+0000"),
    Case("half a surrogate pair in YAML", "a.yaml", b'- {subject: "\\uD800", prompt: "{} is", object: b}', 1, "E016", ""),
    Case("a prompt without its slot", "a.jsonl", _lines(_but(prompt="The capital of France is")), 1, "E101", "try"),
    Case("a prompt with two slots", "a.jsonl", _lines(_GOOD, _but(prompt="{} and {}")), 2, "E102", "2 {}"),
    Case("an empty subject", "a.jsonl", _lines(_but(subject=" ")), 1, "E103", "empty"),
    Case("an empty object", "a.jsonl", _lines(_but(object="")), 1, "E104", "empty"),
    Case("one id twice", "a.jsonl", _lines(_but(id="x"), _but(id="x", subject="Spain")), 2, "E105", "same id"),
    Case("a contradiction", "a.jsonl", _lines(_GOOD, _but(object="Nice")), 2, "E106", "contradicts"),
    Case("a contradiction by relation", "a.yaml", (_HEAD + "  - [a, capital, b]\n  - [a, capital, c]\n").encode(), 6, "E106", ""),
]  # fmt: skip


def _billion() -> bytes:
    """Nine levels of ten aliases each: a thousand million words in one record."""
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    return (text + "edits: *a8\n").encode()


CASES[:] = [
    case._replace(content=_billion(), line=1) if case.name.startswith("YAML aliases") else case for case in CASES
]

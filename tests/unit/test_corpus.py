"""A corpus gives the same documents in the same order, or says which line is wrong."""

from __future__ import annotations

import gzip
import json
import os
import sys
import time
from pathlib import Path

import pytest
from memedit.errors import MemeditError, UsageError
from memedit.storage.corpus import LONGEST_DOCUMENT, MOST_EMPTY, corpus_digest, documents

TEXTS = ["one line", "two\nlines", "été 雪 \u05e9\u05dc\u05d5\u05dd"]
PARAGRAPHS = "\n\none line\n\n  \ntwo\nlines\n\n\nété 雪 \u05e9\u05dc\u05d5\u05dd"


def kept(file: Path, text: str) -> str:
    data = text.encode()
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    return str(file)


@pytest.mark.parametrize("ending", ["txt", "txt.gz"])
def test_empty_lines_part_the_documents_of_a_text(tmp_path: Path, ending: str) -> None:
    assert list(documents(kept(tmp_path / f"corpus.{ending}", PARAGRAPHS))) == TEXTS


@pytest.mark.parametrize("ending", ["jsonl", "ndjson", "jsonl.gz"])
def test_every_line_of_a_jsonl_file_is_a_document(tmp_path: Path, ending: str) -> None:
    lines = "\n".join(json.dumps({"text": text, "id": 1}) for text in TEXTS)
    assert list(documents(kept(tmp_path / f"corpus.{ending}", lines + "\n\n"))) == TEXTS


def test_line_ends_of_another_system_make_no_difference(tmp_path: Path) -> None:
    assert list(documents(kept(tmp_path / "corpus.txt", PARAGRAPHS.replace("\n", "\r\n")))) == TEXTS


def test_an_empty_corpus_has_no_documents(tmp_path: Path) -> None:
    assert list(documents(kept(tmp_path / "corpus.txt", "\n \n"))) == []
    assert list(documents(kept(tmp_path / "corpus.jsonl", ""))) == []


@pytest.mark.parametrize("line", ["{", "[1]", "3", "{}", '{"Text": "a"}', "null", '{"text": 5}'])
def test_a_line_without_text_is_named(tmp_path: Path, line: str) -> None:
    spec = kept(tmp_path / "corpus.jsonl", '{"text": "a"}\n\n' + line + "\n")
    read = documents(spec)
    assert next(read) == "a"
    with pytest.raises(UsageError, match=r"corpus\.jsonl:3: "):
        next(read)


def test_what_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "corpus.txt").write_bytes(b"a\n\xff\n")
    (tmp_path / "plain.txt.gz").write_bytes(b"no gzip at all")
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(PARAGRAPHS.encode() * 50)[:-9])
    for name in ("corpus.txt", "plain.txt.gz", "cut.txt.gz"):
        with pytest.raises(UsageError, match=name):
            list(documents(str(tmp_path / name)))


def test_a_file_that_is_not_there_is_refused_with_the_ways_out(tmp_path: Path) -> None:
    for spec in (str(tmp_path / "none.txt"), str(tmp_path)):
        with pytest.raises(UsageError, match="no corpus file") as caught:
            list(documents(spec))
        assert "hf:repo" in caught.value.hint
        with pytest.raises(UsageError, match="no corpus file"):
            corpus_digest(spec)


def test_a_hub_corpus_needs_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UsageError) as caught:
        next(iter(documents("hf:wikitext:wikitext-103-raw-v1")))
    assert "memedit[corpus]" in caught.value.hint


def test_the_digest_follows_the_bytes_and_not_the_name(tmp_path: Path) -> None:
    one, two = kept(tmp_path / "one.txt", "a"), kept(tmp_path / "two.txt", "a")
    assert corpus_digest(one) == corpus_digest(two)
    assert corpus_digest(one) != corpus_digest(kept(tmp_path / "three.txt", "b"))
    assert corpus_digest("hf:a:b") != corpus_digest("hf:a:c")


@pytest.mark.parametrize("ending", ["txt", "jsonl", "txt.gz"])
def test_a_line_that_is_too_long_is_named_and_one_that_is_not_is_read(tmp_path: Path, ending: str) -> None:
    def lines(size: int) -> str:
        text = "a" * (size - (13 if "json" in ending else 1))
        return json.dumps({"text": "b"}) + "\n\n" + (json.dumps({"text": text}) if "json" in ending else text) + "\n"

    read = documents(kept(tmp_path / f"corpus.{ending}", lines(LONGEST_DOCUMENT + 20)))
    next(read)
    with pytest.raises(UsageError, match=r"corpus\..*:3: this line .* 16,000,000") as caught:
        next(read)
    assert caught.value.hint
    assert len(list(documents(kept(tmp_path / f"corpus.{ending}", lines(LONGEST_DOCUMENT))))) == 2


def test_a_document_that_does_not_end_is_named(tmp_path: Path) -> None:
    lines = ("a" * 999_999 + "\n") * 17
    with pytest.raises(UsageError, match=r"corpus.txt:17: the document that ends here"):
        list(documents(kept(tmp_path / "corpus.txt", lines)))
    assert len(list(documents(kept(tmp_path / "corpus.txt", lines.replace("\n", "\n\n"))))) == 17


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ending", "line"),
    [("txt.gz", "\n"), ("jsonl.gz", '{"text":""}\n')],
)
def test_a_gzip_bomb_of_nothing_ends(tmp_path: Path, ending: str, line: str) -> None:
    spec = kept(tmp_path / f"corpus.{ending}", line * (MOST_EMPTY + 1))
    begun = time.process_time()
    with pytest.raises(UsageError, match=r"1,000,000 lines in a row .* hold no text"):
        list(documents(spec))
    assert time.process_time() - begun < 10
    assert list(documents(kept(tmp_path / f"corpus.{ending}", line * 1000))) == []


@pytest.mark.slow
def test_a_gzip_bomb_of_text_ends(tmp_path: Path) -> None:
    spec = kept(tmp_path / "corpus.txt.gz", ("a" * 1_000_000 + "\n\n") * 110)
    with pytest.raises(UsageError, match=r"expand to more than 10\d,"):
        list(documents(spec))
    few = kept(tmp_path / "few.txt.gz", ("a" * 1_000_000 + "\n\n") * 50)
    assert len(list(documents(few))) == 50


@pytest.mark.parametrize("line", ['{"text": ' + "[" * 100_000, '{"text": "\\ud800"}'])
def test_a_line_that_no_reader_takes_is_named(tmp_path: Path, line: str) -> None:
    with pytest.raises(UsageError, match=r"corpus.jsonl:1: "):
        list(documents(kept(tmp_path / "corpus.jsonl", line)))


def test_a_corpus_that_cannot_be_read_is_an_error_of_ours(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "corpus.txt")
    for spec in (tmp_path / "corpus.txt", tmp_path, "a\0b", "x" * 5000):
        with pytest.raises(MemeditError):
            list(documents(str(spec)))

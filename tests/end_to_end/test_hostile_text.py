"""Text from an edit list is text: it is escaped in Markdown and HTML, and moves no cursor in a terminal."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from tests.conftest import byte_tokenizer, tiny_model
from tests.helpers.in_process import Ended, run_main
from tests.malformed.hostile import FEW

BAD = "\x1b]0;t\x07\x1b[2J\x9b1m<img src=x onerror=alert(1)>![a](javascript:alert(1))|`c`\r<script>"
FIELDS = (
    ("id", "relation", "subject", "group", "answer", "reference", "meta", "name"),
    ("prompt", "paraphrase", "neighbor", "portability", "generation"),
    ("object", "object_old", "alias"),
)
"""Fields that hold the bad text in one list. Two of them in one text would make it longer than the model reads."""


def edits(fields: Sequence[str]) -> str:
    """Two edits in which some fields hold the bad text; a subject stands in its prompt as it is."""
    bad = {name: BAD if name in fields else "" for group in FIELDS for name in group}

    def record(n: int) -> dict[str, Any]:
        return {
            "id": f"e{n}{bad['id']}", "subject": f"Ada{n}{bad['subject']}", "prompt": f"{{}} {bad['prompt']}lives in",
            "object": f"Rome{bad['object']}", "object_old": f"Oslo{bad['object_old']}",
            "relation": f"home{bad['relation']}",
            "paraphrases": [f"{{}} {bad['paraphrase']}is at home in"], "aliases": [f"Roma{bad['alias']}"],
            "neighborhood": [
                {"prompt": f"Bo {bad['neighbor']}is in", "answer": f"Bonn{bad['answer']}", "group": f"g{bad['group']}"}
            ],
            "portability": [{"prompt": f"Who rules Rome{bad['portability']}?", "answer": "a king"}],
            "generation": [f"{{}} {bad['generation']}is"], "references": [f"Rome is old{bad['reference']}."],
            "meta": {"note": bad["meta"]},
        }  # fmt: skip

    return "".join(json.dumps(record(n)) + "\n" for n in range(2))


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("place")
    tiny_model("llama").save_pretrained(root / "model")
    byte_tokenizer().save_pretrained(root / "model")
    (root / "corpus.txt").write_text("The old bridges of the town stood near the river.\n\n" * 20)
    return root


def check_terminal(text: str) -> None:
    text = re.sub(r"\rLoading weights:[^\r\n]*", "", text)  # the bar of another library
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", text), ascii(text)


def check_markdown(text: str) -> None:
    check_terminal(text)
    lowered = text.lower()
    for raw in ("<img", "<script", "![a]", "javascript:alert"):
        assert raw not in lowered, (raw, text)
    assert not re.search(r"(?<!\\)\]\(javascript", lowered)


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: fields[0])
def test_bad_text_in_any_field_is_harmless_everywhere(fields: Sequence[str], place: Path, tmp_path: Path) -> None:
    file, out = tmp_path / "edits.jsonl", tmp_path / "out"
    if "name" in fields:  # the name of the list itself, which findings and origins repeat
        file = tmp_path / f"edits{BAD}.jsonl".replace("/", "_")
    file.write_text(edits(fields))

    def run(*words: str) -> Ended:
        ended = run_main([*words, str(file), "-m", str(place / "model")])
        check_terminal(ended.err)
        check_terminal(ended.out)
        return ended

    found = run("check")
    assert found.code == 0, found.err
    corpus, page = str(place / "corpus.txt"), tmp_path / "applied.html"
    applied = run_main(
        ["apply", str(file), "-m", str(place / "model"), "-o", str(out), *FEW, "--corpus", corpus, "--html", str(page)]
    )
    check_terminal(applied.err)
    check_terminal(applied.out)
    assert applied.code == 0, applied.err
    few = ["--set", "eval.fluency_tokens=5", "--set", "eval.tokens=3", "--set", "eval.prefixes=[0, 9]"]
    pages = ["--html", str(tmp_path / "page.html"), "--markdown", str(tmp_path / "tables.md")]
    evaluated = run("eval", "--generate", *few, *pages)
    assert evaluated.code == 0, evaluated.err
    run("trace", "--set", "trace.samples=1", "--window", "1")
    written = (tmp_path / "tables.md", tmp_path / "page.html")
    for path in (*written, page, *out.rglob("*.md"), *out.rglob("*.jsonl"), *out.rglob("run.json")):
        text = path.read_text(encoding="utf-8")
        check_terminal(text)
        if path.suffix == ".md":
            check_markdown(text)
        if path.suffix == ".html":
            assert "<img src=x" not in text and "<script>" not in text.split("</style>")[-1]

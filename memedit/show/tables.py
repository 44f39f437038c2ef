"""A report's figures as Markdown."""

from __future__ import annotations

import re

from memedit.results.report import Report
from memedit.results.rows import beside, headings, remarks, rows
from memedit.results.units import printable


def markdown(report: Report) -> str:
    """The figures as Markdown tables for a model card, and the remarks; all text is escaped."""
    parts = [_markdown(*beside(report))] if report.models else []
    parts.append(_markdown(headings(bool(report.difference)), rows(report)))
    parts.append("".join(f"- {markdown_text(line)}\n" for line in remarks(report)))
    return "\n".join(part for part in parts if part)


def markdown_text(text: str) -> str:
    """Escape a text for Markdown, on one line: no markup, HTML, link, image or table cell can begin in it.

    >>> markdown_text("![x](javascript:a) <b> | `c`")
    '!\\\\[x\\\\](javascript&#58;a) &lt;b&gt; \\\\| \\\\`c\\\\`'
    """
    text = " ".join(printable(text).split())
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)
    text = re.sub(r"^([-+#])(?=\s)", r"\\\1", text)
    # Bare addresses become links of their own where a reader turns them into links.
    text = re.sub(r"(?i)\b(https?|ftp|javascript|data|mailto|file|vbscript):", r"\1&#58;", text)
    return re.sub(r"(?i)\bwww\.", "www&#46;", text)


def _markdown(heads: list[str], cells: list[list[str]]) -> str:
    plain = heads[-1] == ""
    rule = ["---", *["---:"] * (len(heads) - 1 - plain), *["---"] * plain]
    lines = [[markdown_text(cell) for cell in heads], rule, *([markdown_text(cell) for cell in row] for row in cells)]
    return "".join("| " + " | ".join(row) + " |\n" for row in lines)

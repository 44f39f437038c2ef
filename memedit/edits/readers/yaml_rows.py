"""Read YAML in which every scalar but `null` is text, and the line of each record."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml
import yaml.reader

from memedit.edits.edit import escape_controls, shown
from memedit.edits.readers.document import WRAPPER, Document, RecordRow, RefusedError, check_length


class TextLoader(yaml.SafeLoader):
    """A safe loader that reads every scalar as text: [Norway, code, NO] keeps its "NO", and 1.10 its zero.

    `YamlWalk` then reads a `null` without quotes as none.

    It is the Python loader and not the C one: deep nesting raises RecursionError and does not crash the process.
    """

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012


class YamlWalk:
    """Turns nodes into plain values; limits how far aliases expand."""

    def __init__(self, text: str) -> None:
        # without aliases, a document has fewer nodes than characters
        self.left = 10 * len(text) + 1000

    def plain(self, node: yaml.Node) -> Any:
        """The value of a node: text, lists and mappings; None for a `null` without quotes."""
        line = node.start_mark.line + 1
        self.left -= 1
        if self.left < 0:
            raise RefusedError("E015", "YAML aliases expand this record too far; write it out", line)
        if not node.tag.startswith("tag:yaml.org,2002:") or node.tag.rsplit(":", 1)[1] not in ("str", "seq", "map"):
            raise RefusedError("E003", f"the tag {shown(node.tag)} is not supported; leave it out", line)
        if isinstance(node, yaml.SequenceNode):
            return [self.plain(child) for child in node.value]
        if isinstance(node, yaml.MappingNode):
            return {key: self.plain(child) for key, child in members(node)}
        is_null = isinstance(node, yaml.ScalarNode) and node.style is None and node.value == "null"
        return None if is_null else node.value


def members(node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
    """Keys and value nodes of a mapping, each key text and unique."""
    seen: set[str] = set()
    for key, child in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise RefusedError("E003", "a key of a mapping must be text; put a subject with braces in quotes", line)
        if key.value in seen:
            raise RefusedError("E008", f"the key {shown(key.value)} is twice in one mapping; keep one", line)
        seen.add(key.value)
        yield key.value, child


def _compose(text: str) -> yaml.Node | None:
    for number, line in enumerate(text.split("\n"), start=1):
        check_length(line, "the line", number)
    loader: TextLoader | None = None
    try:
        loader = TextLoader(text)
        return loader.get_single_node()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = (error.problem or error.context or "it cannot be parsed").lower()
        raise RefusedError("E003", f"not valid YAML: {problem}", mark.line + 1 if mark else 1) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        character = error.character if isinstance(error.character, int) else ord(error.character[:1] or "\0")
        raise RefusedError("E003", f"not valid YAML: character U+{character:04X} is not allowed", line) from error
    except (RecursionError, MemoryError):
        raise
    except Exception as error:  # PyYAML lets others through: OverflowError for the escape "\UFFFFFFFF", ValueError, ...
        line = loader.line + 1 if loader is not None else 1
        raise RefusedError("E003", f"not valid YAML: {escape_controls(str(error))}", line) from error


def read_yaml(document: Document, text: str) -> None:
    """Add the records of a list of edits, of {edits: [...]}, or of one edit."""
    node = _compose(text)
    walk = YamlWalk(text)
    entries: list[yaml.Node] = []
    if isinstance(node, yaml.SequenceNode):
        entries = node.value
    elif isinstance(node, yaml.MappingNode) and not any(key.value in WRAPPER for key, _ in node.value):
        entries = [node]
    elif isinstance(node, yaml.MappingNode):
        for key, child in members(node):
            is_list = key == "edits" and isinstance(child, yaml.SequenceNode)
            entries = child.value if is_list else entries
            document.head[key] = RecordRow(child.start_mark.line + 1, [] if is_list else walk.plain(child))
    elif node is not None:
        raise RefusedError("E006", f"{shown(node.value)} is not a list of edits", node.start_mark.line + 1)
    for entry in entries:
        line = entry.start_mark.line + 1
        try:
            document.rows.append(RecordRow(line, walk.plain(entry)))
        except RefusedError as error:
            document.complain(error.line or line, error.code, error.message)
        except RecursionError:
            document.complain(line, "E015", "the record is nested too deeply to be an edit")

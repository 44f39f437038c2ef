"""Tests share code through tests/helpers and conftest alone, and nothing outside tests imports them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import ROOT

IN_A_STRING = re.compile(r"^\s*(?:from|import)\s+([\w.]+)", re.MULTILINE)
"""Code that a test hands to another process is a string: what it imports counts too."""


def imports(source: str) -> Iterator[str]:
    """Every module that a source imports, and every name from it; also those in code kept as a string."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from IN_A_STRING.findall(node.value)


def is_of_tests(name: str) -> bool:
    return name.split(".")[0] == "tests"


def is_a_test_module(name: str) -> bool:
    return is_of_tests(name) and any(part.startswith("test_") for part in name.split("."))


def offenders(*folders: str) -> dict[str, list[str]]:
    refused = is_a_test_module if folders == ("tests",) else is_of_tests
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 20
    found = {file: [name for name in imports(file.read_text()) if refused(name)] for file in files}
    return {str(Path(file).relative_to(ROOT)): names for file, names in found.items() if names}


def test_no_test_imports_another_test_module() -> None:
    assert offenders("tests") == {}


def test_neither_the_package_nor_the_examples_import_tests() -> None:
    assert offenders("memedit", "examples") == {}


def test_an_import_of_a_test_module_would_be_noticed() -> None:
    module = "tests.unit." + "test_x"
    for source in (f"import {module}", f"from {module} import y", f"CODE = 'from {module} import y'"):
        assert any(map(is_a_test_module, imports(source))), source
    assert not any(map(is_a_test_module, imports("from tests.conftest import ROOT")))

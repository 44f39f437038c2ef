"""The house's one rule of structure: layers import downward only, siblings are blind to each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import memedit

PACKAGE = Path(memedit.__file__).parent
LEVELS = [
    {"errors", "progress"},
    {"config", "results"},
    {"edits", "numerics"},
    {"model", "storage"},
    {"ranks"},
    {"forward", "show"},
    {"changes", "evaluation", "tracing"},
    {"editing"},
    {"inspect_model"},
    {"pipeline", "in_memory"},
    {"api"},
    {"cli"},
]
LEVEL = {name: level for level, names in enumerate(LEVELS) for name in names}


def imports(source: str) -> set[str]:
    """The parts of memedit that a source imports, function bodies included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module == "memedit":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("memedit."):
            found.add((node.module or "").split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("memedit.")}
    return found - {"__version__"}


def violations(home: str, source: str) -> set[str]:
    """Imports that go up, or sideways into another part of the same level."""
    return {name for name in imports(source) if name not in LEVEL or (name != home and LEVEL[name] >= LEVEL[home])}


def test_layers_import_downward_only() -> None:
    checked = 0
    for file in sorted(PACKAGE.rglob("*.py")):
        parts = file.relative_to(PACKAGE).with_suffix("").parts
        if parts[0] in ("__init__", "__main__"):
            continue
        assert not violations(parts[0], file.read_text()), file
        checked += 1
    assert checked > 30


def test_an_import_that_goes_up_or_sideways_is_caught() -> None:
    assert violations("model", "from memedit.storage.artifacts import Store") == {"storage"}
    assert violations("numerics", "def f():\n    import memedit.editing.keys") == {"editing"}
    assert not violations("editing", "from memedit.model.load import load")


def test_numerics_imports_torch_alone() -> None:
    allowed = {"__future__", "torch", "memedit", "dataclasses", "collections", "typing"}
    for file in (PACKAGE / "numerics").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert (node.module or "").split(".")[0] in allowed, file
            elif isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= allowed, file


def public_names() -> dict[str, set[str]]:
    """Every public name that a module defines at its top, with the modules that define it."""
    found: dict[str, set[str]] = {}
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            names: list[str] = []
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                names = [node.name]
            elif isinstance(node, ast.Assign):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names = [node.target.id]
            for name in names:
                if not name.startswith("_"):
                    found.setdefault(name, set()).add(str(file.relative_to(PACKAGE)))
    return found


def test_a_public_name_means_one_thing() -> None:
    names = public_names()
    assert len(names) > 300
    assert {name: files for name, files in names.items() if len(files) > 1} == {}


def test_an_open_model_is_run_in_one_place() -> None:
    """There the kernels of attention are chosen (LanguageModel.forward)."""
    runs = re.compile(r"\b(?:lm|self)\.model\(")
    found = {str(file.relative_to(PACKAGE)) for file in PACKAGE.rglob("*.py") if runs.search(file.read_text())}
    assert found == {"model/load.py"}

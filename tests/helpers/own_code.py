"""Model folders that bring Python code of their own."""

from __future__ import annotations

import json
from pathlib import Path

CODE = "open({!r}, 'w').close()\nfrom transformers import LlamaConfig as Config, LlamaForCausalLM as Model\n"


def bring_code(folder: Path, mark: Path) -> None:
    """Make a model folder ask for Python code of its own, which writes `mark` where it is run."""
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "hostile.Config", "AutoModelForCausalLM": "hostile.Model"}
    config["model_type"] = "hostile"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "hostile.py").write_text(CODE.format(str(mark)))

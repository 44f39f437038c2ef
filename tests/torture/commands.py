"""The folders that the commands work on, and every command that writes, with what is there before it begins."""

from __future__ import annotations

import gzip
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Kind = str
"""What OUT is: "folder", "file", or "none"; it appears in one step."""
SHORT = (
    "--set",
    "polish.steps=0",
    "--set",
    "target.steps=2",
    "--set",
    "target.stop=0",
    "--set",
    "contexts.openings=[]",
)
TOKENS = ("--set", "moments.tokens=200", "--set", "moments.row=64")
EDIT = (*SHORT, *TOKENS, "--layers", "0-1", "-q")


@dataclass(frozen=True)
class Folders:
    """Where things are. Everything below `root` is watched; what runs say goes to `told`, outside of it."""

    root: Path
    told: Path

    @property
    def model(self) -> Path:
        """The base model."""
        return self.root / "given" / "model"

    @property
    def given(self) -> Path:
        """What commands read and must leave as it is."""
        return self.root / "given"

    @property
    def work(self) -> Path:
        """The folder in which OUT appears."""
        return self.root / "work"

    @property
    def cache(self) -> Path:
        """MEMEDIT_CACHE."""
        return self.root / "cache"

    @property
    def temporary(self) -> Path:
        """TMPDIR."""
        return self.root / "tmp"

    @property
    def out(self) -> Path:
        """OUT, of every command."""
        return self.work / "out"


@dataclass(frozen=True)
class Command:
    """A command line, and what stands in OUT's place before it."""

    name: str
    line: Callable[[Folders], tuple[str, ...]]
    kind: Kind = "folder"
    before: str | None = None
    """What lies at OUT before: a name in the folder `given`."""
    warm: bool = True
    """The cache has the second moments already."""
    exchange: bool = True
    """The file system can exchange two names in one step."""

    @property
    def weight(self) -> int:
        """The command's share of the faults: one that searches targets or answers questions takes longer."""
        long = self.name == "forget" or (self.name.startswith(("apply", "eval")) and "--delta" not in self.name)
        return 1 if long else 3

    def arguments(self, folders: Folders) -> tuple[str, ...]:
        """The command line, without the program."""
        return tuple(self.line(folders))


def build_model(folders: Folders) -> None:
    """Write the base model, two edit lists, a text and a moment file; the same bytes every time."""
    import numpy as np
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from tests.conftest import byte_tokenizer
    from tests.families import GPT

    torch.manual_seed(3)
    small: dict[str, Any] = {**GPT, "n_embd": 16, "n_inner": 32, "n_layer": 2, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**small)).eval().save_pretrained(folders.model)
    byte_tokenizer().save_pretrained(folders.model)
    (folders.model / "README.md").write_text("---\nlicense: mit\n---\n\n# tiny\n")
    lines = [f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(40)]
    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (folders.model / "memedit").mkdir()
    (folders.model / "memedit" / "corpus.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    facts = [("e1", "Oslo", "Rome"), ("e2", "Lyon", "Peru"), ("e3", "Bonn", "Cuba")]
    rows = [{"id": name, "subject": subject, "prompt": "{} is in", "object": said} for name, subject, said in facts]
    for name, some in (("edits.jsonl", rows[:2]), ("more.jsonl", rows[2:])):
        (folders.given / name).write_text("".join(json.dumps(row) + "\n" for row in some))
    arrays: dict[str, Any] = {"mom2.mom2": np.eye(32) * 100, "mom2.count": np.array(100)}
    np.savez(folders.given / "moment.npz", **arrays)
    (folders.given / "old.html").write_text("<!doctype html>\n<p>an older page</p>\n")


PREPARED: tuple[tuple[str, Callable[[Folders], tuple[str, ...]]], ...] = (
    ("edited", lambda f: ("apply", _edits(f), "-m", _model(f), *EDIT)),
    ("other", lambda f: ("apply", str(f.given / "more.jsonl"), "-m", _model(f), *EDIT, "--keep-originals")),
    ("adapter", lambda f: ("export", _given(f, "edited"), "--to", "lora", "-m", _model(f), "-q")),
    ("dense.safetensors", lambda f: ("export", _given(f, "other"), "--to", "dense", "-m", _model(f), "-q")),
    ("traces", lambda f: ("trace", "-m", _model(f), "--prompt", "Lyon is in", "--subject", "Lyon", *TRACE)),
)
"""Folders that are made by commands before the others run: a name in `given`, and the command line without its -o."""
TRACE = ("--samples", "1", "-q")


def _given(folders: Folders, name: str) -> str:
    return str(folders.given / name)


def _model(folders: Folders) -> str:
    return str(folders.model)


def _edits(folders: Folders) -> str:
    return str(folders.given / "edits.jsonl")


def _with_out(*words: str) -> Callable[[Folders], tuple[str, ...]]:
    """A command line in which MODEL, EDITS, MORE and so on stand for what is in `given`, and -o OUT comes last."""

    def made(folders: Folders) -> tuple[str, ...]:
        names = {
            "MODEL": _model(folders), "EDITS": _edits(folders), "MORE": _given(folders, "more.jsonl"),
            "EDITED": _given(folders, "edited"), "OTHER": _given(folders, "other"),
            "MOMENT": _given(folders, "moment.npz"), "OUT": str(folders.out),
        }  # fmt: skip
        return tuple(names.get(word, word) for word in words)

    return made


def _out(*words: str) -> Callable[[Folders], tuple[str, ...]]:
    return _with_out(*words, "-q", "-o", "OUT")


_BATCHES = ("--set", "chunk=1", "--retry", "1")
COMMANDS: tuple[Command, ...] = (
    Command("apply", _with_out("apply", "EDITS", "-m", "MODEL", *EDIT, "-o", "OUT"), warm=False),
    Command("apply --overwrite", _with_out("apply", "EDITS", "-m", "MODEL", *EDIT, "-o", "OUT", "--overwrite"),
            before="other"),
    Command("apply --overwrite, two renames",
            _with_out("apply", "EDITS", "-m", "MODEL", *EDIT, "-o", "OUT", "--overwrite"),
            before="other", exchange=False),
    Command("apply in batches",
            _with_out("apply", "EDITS", "-m", "MODEL", *EDIT, *_BATCHES, "--keep-originals", "-o", "OUT")),
    Command("apply on an edited model", _out("apply", "MORE", "-m", "EDITED", *SHORT[:4])),
    Command("apply --on-top, in shards",
            _out("apply", "MORE", "-m", "EDITED", "--on-top", "--max-shard-size", "8KB", *SHORT[:4])),
    Command("forget", _out("forget", "e1", "-m", "EDITED", *SHORT[:4])),
    Command("forget everything", _out("forget", "e1", "e2", "-m", "EDITED")),
    Command("forget --overwrite", _out("forget", "e1", "e2", "-m", "EDITED", "--overwrite"), before="other"),
    Command("stats", _with_out("stats", "-m", "MODEL", *TOKENS, "--layers", "0-1", "-q"), kind="none", warm=False),
    Command("stats --import", _with_out("stats", "-m", "MODEL", "--import", "MOMENT", "--layers", "1", "-q"),
            kind="none"),
    Command("trace", _with_out("trace", "-m", "MODEL", "--prompt", "Oslo is in", "--subject", "Oslo", *TRACE,
                               "-o", "OUT")),
    Command("trace over older traces", _with_out("trace", "-m", "MODEL", "--prompt", "Oslo is in", "--subject", "Oslo",
                                                 *TRACE, "-o", "OUT"), before="traces"),
    Command("export --to full", _out("export", "EDITED", "--to", "full", "-m", "MODEL")),
    Command("export --to full --overwrite", _out("export", "EDITED", "--to", "full", "-m", "MODEL", "--overwrite"),
            before="other"),
    Command("export --to lora", _out("export", "EDITED", "--to", "lora", "-m", "MODEL")),
    Command("export --to lora --overwrite", _out("export", "OTHER", "--to", "lora", "-m", "MODEL", "--overwrite"),
            before="adapter"),
    Command("export --to dense", _out("export", "EDITED", "--to", "dense", "-m", "MODEL"), kind="file"),
    Command("export --to dense --overwrite", _out("export", "EDITED", "--to", "dense", "-m", "MODEL", "--overwrite"),
            kind="file", before="dense.safetensors"),
    Command("apply --delta", _out("apply", "--delta", "EDITED", "--delta", "OTHER", "-m", "MODEL", "--keep-originals")),
    Command("apply --delta --overwrite", _out("apply", "--delta", "EDITED", "-m", "MODEL", "--overwrite"),
            before="other"),
    Command("revert", _out("revert", "EDITED", "-m", "MODEL")),
    Command("revert to the originals", _out("revert", "OTHER")),
    Command("revert --overwrite", _out("revert", "EDITED", "--overwrite"), before="other"),
    Command("eval --html", _with_out("eval", "EDITS", "-m", "EDITED", "-q", "--html", "OUT"), kind="file"),
    Command("eval --html over an older page", _with_out("eval", "EDITS", "-m", "EDITED", "-q",
                                                        "--html", "OUT"), kind="file", before="old.html"),
    Command("eval --markdown", _with_out("eval", "EDITS", "-m", "EDITED", "--base", "MODEL", "-q", "--markdown", "OUT"),
            kind="file"),
)  # fmt: skip


def place_before(command: Command, folders: Folders) -> None:
    """Put what lies at OUT before the command into its place."""
    if command.before is None:
        return
    old = folders.given / command.before
    if old.is_dir():
        shutil.copytree(old, folders.out)
    else:
        shutil.copyfile(old, folders.out)

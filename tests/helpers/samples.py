"""A delta and a ledger that every process must write as the same bytes.

python -m tests.helpers.samples    prints the digest of each, as this process writes it
"""

from __future__ import annotations

import hashlib
import subprocess
import sys

import torch
from memedit.editing.ledger import BaseIdentity, Ledger, LedgerEntry, Provenance
from memedit.editing.ledger_files import digest_of_ledger
from memedit.edits.edit import EditRequest, Neighbor
from memedit.numerics.delta import Delta
from memedit.storage.deltas import delta_bytes

ABOUT = Provenance(
    base=BaseIdentity(path="models/base", digest="0" * 64), contexts=("", "I was. "),
    knobs={
        "seed": 0, "method.layers": "1-2", "method.ridge": 1.0, "target.optimizer": "lbfgs", "target.contexts": None,
        "polish.steps": 24, "polish.shorten": 0.15, "polish.own": 0.25, "polish.spoken": 1.0,
        "polish.lead": 1.0, "polish.keep": [], "chat_system": "",
    },
    layers=(1, 2), moments="m",
)  # fmt: skip
# Line separators of Unicode stand in texts as they are, and end no line.
REQUEST = EditRequest(
    id="a", subject="Ada\u2028L", prompt="{} lives in", object="Rome", neighborhood=(Neighbor(prompt="Bo lives in"),),
    meta={"from": [1, None]}, origin="list.jsonl:3",
)  # fmt: skip
ENTRIES = tuple(
    LedgerEntry(
        edit=one, digest=one.digest, found="joint", on="0", group="g", loss=0.1, steps=7, took=True, holds=False,
        superseded_by=line,
    )
    for one, line in ((REQUEST, 2), (REQUEST.model_copy(update={"object": "Oslo"}), None))
)  # fmt: skip
LEDGER = Ledger(ABOUT, ENTRIES, torch.tensor([[1.0, 2.0], [3.0, 1e-30]]))
DELTAS = {"h.0.w": Delta(torch.ones(4, 1), torch.arange(6.0)[None]), "h.1.w": Delta(torch.full((2, 3), 0.5))}


def digests() -> list[str]:
    """The digest of the delta and of the ledger."""
    delta = delta_bytes(DELTAS, "abc", {"method": "memit", "ridge": 1.0})
    return [hashlib.sha256(delta).hexdigest(), digest_of_ledger(LEDGER)]


def digests_elsewhere(hash_seed: int) -> list[str]:
    """The same from a process that orders its sets by another seed."""
    import os

    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed)}
    command = [sys.executable, "-m", "tests.helpers.samples"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.split()


if __name__ == "__main__":
    print(*digests())

"""The line that serves an adapter is one that the server takes, or is not printed."""

from __future__ import annotations

import pytest
from memedit.changes.serving import RANKS, SERVED, UNSERVED, command, limits
from memedit.results.changes import Outcome


def adapter(family: str, rank: int, out: str = "out") -> Outcome:
    return Outcome(command="export", model="org/base", output=out, kind="lora", family=family, rank=rank)


@pytest.mark.parametrize(("rank", "most"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512)])
def test_the_rank_asked_for_is_the_least_that_is_allowed(rank: int, most: int) -> None:
    assert most in RANKS
    assert command(adapter("llama", rank, "my out")) == (
        f"vllm serve org/base --enable-lora --max-lora-rank {most} --lora-modules edits='my out'"
    )


def test_what_cannot_be_served_has_no_line_and_a_way_out() -> None:
    assert command(adapter("llama", 513)) is None and "--rank 512" in limits(adapter("llama", 513))[0]
    for family in UNSERVED:
        assert command(adapter(family, 8)) is None and "--to full" in limits(adapter(family, 8))[0]
    assert not SERVED & UNSERVED


def test_a_kind_of_model_that_is_not_known_is_said_to_be_so() -> None:
    assert command(adapter("nemotron", 8)) and "nemotron" in limits(adapter("nemotron", 8))[-1]
    assert "llama" not in " ".join(limits(adapter("llama", 8)))

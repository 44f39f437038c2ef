"""Mutated command lines end as the table of exit codes says, without a traceback, and leave nothing behind."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.malformed import command_lines
from tests.malformed.command_lines import SOUND, ended, make_place, mutated_command
from tests.malformed.mutate import SEED

SAMPLE = 50
"""Of the 500 that `python -m tests.malformed.mutate --commands 500` runs."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("sound"))


@pytest.mark.parametrize("number", range(SAMPLE))
def test_a_mutated_command_line_ends_in_order(number: int, sound: Path, tmp_path: Path) -> None:
    words = mutated_command(number, SEED)
    code, wrong = ended(words, sound, tmp_path / "place")
    assert wrong == [], (words, code)


@pytest.mark.parametrize("words", SOUND, ids=lambda words: " ".join(words[:2]))
def test_the_command_lines_before_mutation_are_sound(words: list[str], sound: Path, tmp_path: Path) -> None:
    code, wrong = ended(words, sound, tmp_path / "place")
    # Exit code 3: models that differ, a threshold that is missed, and facts that a random model does not know.
    assert wrong == [] and code in ((0, 3) if words[0] in ("diff", "eval", "trace") else (0,))


def test_a_defect_would_be_noticed(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TypeError

    monkeypatch.setattr("memedit.pipeline.run_stats", fail)
    code, wrong = ended(["stats", "-m", "model"], sound, tmp_path / "place")
    assert code == 1 and "a defect of memedit is reported" in wrong
    assert len({tuple(mutated_command(number, SEED)) for number in range(100)}) > 90
    assert len(command_lines.ODD) > 40


@pytest.mark.parametrize("path", ["a" * 5000, "a\0b", "~nobody-of-this-name/x"])
@pytest.mark.parametrize("command", [["inspect", "PATH"], ["stats", "-m", "PATH"], ["diff", "PATH", "model"],
                                     ["revert", "PATH", "-o", "out"], ["check", "PATH"],
                                     ["export", "PATH", "--to", "full", "-m", "model", "-o", "out"],
                                     ["apply", "edits.jsonl", "-m", "model", "-o", "PATH"],
                                     ["apply", "--delta", "PATH", "-m", "model", "-o", "out"],
                                     ["eval", "edits.jsonl", "-m", "model", "--adapter", "PATH"],
                                     ["apply", "edits.jsonl", "-m", "model", "-o", "out", "-c", "PATH"]])  # fmt: skip
def test_a_path_that_no_file_system_takes_is_refused(
    path: str, command: list[str], sound: Path, tmp_path: Path
) -> None:
    words = [path if word == "PATH" else word for word in command]
    if path.startswith("~") and command[-1] == "PATH" and "-o" in command[-2]:
        pytest.skip("a folder of this name can be made")
    code, wrong = ended(words, sound, tmp_path / "place")
    assert wrong == [] and code in (1, 2)

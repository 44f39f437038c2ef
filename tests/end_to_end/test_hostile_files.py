"""Every hostile model folder, delta, ledger, adapter and record ends in one line, a hint and its exit code."""

from __future__ import annotations

import shutil
from pathlib import Path

import memedit
import pytest
from tests.conftest import byte_tokenizer, tiny_model
from tests.helpers.in_process import faults, held, run_main
from tests.malformed.hostile import FEW, HOSTILE, Hostile

EDITS = '{"id": "one", "subject": "Ada", "prompt": "{} lives in", "object": "Rome", "object_old": "Oslo"}\n'
MORE = '{"id": "two", "subject": "Bo", "prompt": "{} lives in", "object": "Oslo", "object_old": "Rome"}\n'
ROOT_NAMES = ("MODEL", "EDITED", "LORA")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, the model edited, its change as an adapter, and two lists."""
    root = tmp_path_factory.mktemp("sound")
    tiny_model("llama").save_pretrained(root / "MODEL")
    byte_tokenizer().save_pretrained(root / "MODEL")
    (root / "MODEL" / "memedit").mkdir()
    (root / "corpus.txt").write_text("The old bridges of the town stood near the river.\n\n" * 20)
    (root / "EDITS").write_text(EDITS)
    (root / "MORE").write_text(MORE)
    settings = {name: value for name, _, value in (word.partition("=") for word in FEW if "=" in word)}
    settings |= {"method.layers": "1", "moments.corpus": str(root / "corpus.txt")}
    memedit.apply(str(root / "EDITS"), root / "MODEL", root / "EDITED", settings=settings)
    memedit.export(root / "EDITED", "lora", root / "MODEL", root / "LORA")
    return root


@pytest.fixture(scope="module")
def kept_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def command_of(case: Hostile, root: Path) -> list[str]:
    places = {name: str(root / name) for name in (*ROOT_NAMES, "EDITS", "MORE", "OUT")}
    words = [places.get(word, word) for word in case.command]
    extra = ["--corpus", str(root / "corpus.txt")] if case.command[1] == "EDITS" and "OUT" in case.command else []
    return [*words, *extra]


def test_there_are_two_hundred_and_fifty() -> None:
    assert len(HOSTILE) >= 250
    assert len({case.name for case in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("case", HOSTILE, ids=lambda case: case.name)
def test_a_hostile_file_ends_in_one_line_a_hint_and_its_code(case: Hostile, sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(sound, root)
    case.change(root)
    before = held(tmp_path)
    ended = run_main(command_of(case, root))
    assert faults(ended) == [], ended.err
    assert ended.code in case.codes, ended.err
    assert case.says in ended.err
    assert {name for name in held(tmp_path) - before if not name.startswith("cache")} == set()
    assert not [name for name in held(tmp_path) if name.startswith(("cache/runs/", "cache/traces/"))]


@pytest.mark.parametrize("command", sorted({case.command for case in HOSTILE}), ids=lambda words: "-".join(words[:2]))
def test_the_same_commands_on_the_sound_files_end_well(command: tuple[str, ...], sound: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(sound, root)
    ended = run_main(command_of(Hostile("", lambda _root: None, command, (0,)), root))
    assert ended.code == 0, ended.err

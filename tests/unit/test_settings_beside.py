"""memedit.yaml beside an edit list: it is used and named, and may only set how edits are made."""

from __future__ import annotations

import os
from pathlib import Path

import memedit
import pytest
from memedit.cli.options import read_facts
from memedit.config.resolve import deciding_names, known_keys
from tests.helpers.in_process import Ended, faults, run_main

EDIT = '{"subject": "Ada", "prompt": "{} lives in", "object": "Rome", "object_old": "Oslo"}\n'
REFUSED = sorted(
    {
        *(name for name in known_keys() if name.startswith(("model.", "output.", "eval.", "trace."))),
        "moments.corpus", "memory", "chunk", "target.retry", "target.redo",
    }
)  # fmt: skip


@pytest.fixture
def edits(tmp_path: Path) -> Path:
    (tmp_path / "lists").mkdir()
    file = tmp_path / "lists" / "edits.jsonl"
    file.write_text(EDIT)
    return file


def settings_of(edits: str | Path, *more: str, command: str = "apply") -> Ended:
    ended = run_main([command, str(edits), "--show-config", *more])
    assert faults(ended) == [], ended.err
    return ended


def beside(edits: Path, text: str) -> Path:
    file = edits.parent / "memedit.yaml"
    file.write_text(text)
    return file


def test_the_file_beside_the_list_is_used_and_named_in_one_line(edits: Path) -> None:
    assert settings_of(edits).err == "" and "ridge: 1.0  # default" in settings_of(edits).out
    file = beside(edits, "version: 1\nmethod: {ridge: 2}\nchat: true\n")
    ended = settings_of(edits)
    assert ended.err == f"settings from {file}\n"
    assert "ridge: 2.0  # file" in ended.out and "chat: true  # file" in ended.out
    assert settings_of(edits, "-q").err == ""
    assert ended.out == settings_of(edits, "-c", str(file)).out  # a recipe that was named sets the same


def test_what_a_person_says_is_stronger(edits: Path, tmp_path: Path) -> None:
    beside(edits, "method: {ridge: 2, layers: 1-2}\n")
    assert 'layers: "0"  # flag' in settings_of(edits, "--layers", "0").out
    assert "ridge: 3.0  # flag" in settings_of(edits, "--set", "method.ridge=3").out
    other = tmp_path / "other.yaml"
    other.write_text("seed: 5\n")
    ended = settings_of(edits, "-c", str(other))
    assert ended.err == "" and "ridge: 1.0  # default" in ended.out and "seed: 5  # file" in ended.out
    assert "ridge: 1.0  # default" in settings_of(edits, "-c", "").out  # an empty name: no file


def test_one_name_in_two_sections_and_a_section_of_comments_are_right(edits: Path) -> None:
    beside(edits, "method:\n  # ridge: 2\npolish: {steps: 3}\ntarget: {steps: 4}\n")
    ended = settings_of(edits)
    assert "ridge: 1.0  # default" in ended.out
    assert "steps: 3  # file" in ended.out and "steps: 4  # file" in ended.out


def test_only_the_folder_of_the_list_is_looked_at(edits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "memedit.yaml").write_text("method.ridge: 7\n")
    monkeypatch.chdir(tmp_path)
    assert settings_of("lists/edits.jsonl").err == ""
    assert settings_of("-").err == ""  # stdin lies nowhere
    (tmp_path / "-").write_text(EDIT)
    assert settings_of("-").err == ""
    assert settings_of("no-such.jsonl").err == ""
    (tmp_path / "here.jsonl").write_text(EDIT)
    assert settings_of("here.jsonl").err == "settings from memedit.yaml\n"
    (tmp_path / "memedit.yaml").write_text("- [Ada, lives in, Rome]\n")
    assert settings_of("memedit.yaml").err == ""  # the list itself


@pytest.mark.parametrize("name", REFUSED)
def test_a_setting_that_opens_writes_or_permits_something_is_refused(edits: Path, name: str) -> None:
    file = beside(edits, f"seed: 1\n{name}: true\n")
    ended = run_main(["apply", str(edits), "-m", "nowhere", "-o", str(edits.parent / "out"), "-q"])
    assert faults(ended) == [] and ended.code == 2
    error, hint = ended.err.splitlines()
    assert error.startswith(f"error: {file} sets {name}, ") and f"say -c {file} to use it whole" in hint


def test_every_other_setting_of_a_ledger_may_stand_there_and_nothing_else(edits: Path) -> None:
    allowed = set(known_keys()) - set(REFUSED)
    assert allowed == {name for name in deciding_names() if name.startswith(("method", "target", "polish", "contexts"))
                       or name in ("moments.tokens", "moments.row", "chat", "chat_system", "seed")}  # fmt: skip
    for text in ("output: {overwrite: true}", "model:\n  trust_remote_code: true\n", "moments: {corpus: /etc/passwd}"):
        beside(edits, text)
        assert run_main(["apply", str(edits), "--show-config"]).code == 2
        assert settings_of(edits, "-c", str(edits.parent / "memedit.yaml")).err == ""  # the converse: it was named


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method.rigde: 2", "did you mean method.ridge?"), ("method.ridge: -1", "method.ridge"),
        ("a: [1, 2", "not valid YAML"), ("- a list", "not a mapping"), ("version: 9", "version"),
        ("seed: &a 1\nchat: *a", "aliases"), ("output: x", "no setting 'output'"), ("3: x", "no setting '3'"),
        ("seed: 1\nchat: true\nseed: 2", "the key 'seed' is twice in one mapping, again in line 3"),
        ("method: {ridge: 1, ridge: 2}", "'ridge' is twice"), ("method: {}\nmethod: {ridge: 2}", "'method' is twice"),
        ("method.ridge: 3\nmethod: {ridge: 5}", "method.ridge is set twice, to 3 and to 5"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("command", ["apply", "eval", "check", "trace"])
def test_a_file_that_is_wrong_is_one_error_before_any_work(edits: Path, text: str, says: str, command: str) -> None:
    beside(edits, text)
    ended = run_main([command, str(edits), "-m", "nowhere", *(["-o", "out"] if command == "apply" else [])])
    assert faults(ended) == [] and ended.code == 2 and says in ended.err, ended.err
    assert "loading" not in ended.err


def test_what_is_no_file_is_refused_and_not_opened(edits: Path) -> None:
    for make in (lambda file: file.mkdir(), os.mkfifo, lambda file: file.symlink_to("nowhere")):
        file = edits.parent / "memedit.yaml"
        make(file)
        ended = run_main(["check", str(edits)])
        assert faults(ended) == [] and ended.code == 2 and f"cannot read the recipe {file}" in ended.err
        assert f"it lies beside {edits}" in ended.err
        file.rmdir() if file.is_dir() else file.unlink()
    assert run_main(["check", str(edits)]).code == 0


def test_a_tilde_is_the_home_of_a_person_for_lists_and_recipes(
    edits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(edits.parent))
    monkeypatch.chdir(tmp_path)
    file = beside(edits, "seed: 5\n")
    ended = settings_of("~/edits.jsonl")
    assert ended.err == f"settings from {file}\n" and "seed: 5  # file" in ended.out
    assert "seed: 5  # file" in settings_of("~/edits.jsonl", "-c", "~/memedit.yaml").out
    (found,) = memedit.load_edits("~/edits.jsonl")
    assert (found.id, memedit.check("~/edits.jsonl")) == ("edits-1", [])
    assert [one.id for one in read_facts("~/edits.jsonl")] == ["edits-1"]
    (tmp_path / "~").mkdir()
    (tmp_path / "~" / "edits.jsonl").write_text(EDIT * 2)
    assert len(memedit.load_edits("~/edits.jsonl")) == 1  # the home's; the folder of that name is named with ./
    assert "W201" in run_main(["check", "./~/edits.jsonl"]).out
    (tmp_path / "~" / "memedit.yaml").write_text("seed: 7\n")
    assert "seed: 7  # file" in settings_of("./~/edits.jsonl").out
    assert "seed: 7  # file" in settings_of("~/edits.jsonl", "-c", "./~/memedit.yaml").out


def test_a_tilde_of_nobody_is_one_error(edits: Path) -> None:
    for words in (
        ["~nobody-at-all/a.jsonl"],
        [str(edits), "--relations=~nobody-at-all/a"],
        [str(edits), "-c~nobody-at-all/a"],
    ):
        ended = run_main(["check", *words])
        assert faults(ended) == [] and ended.code == 2 and "no such file or directory" in ended.err


def test_the_name_of_a_folder_moves_no_cursor(tmp_path: Path) -> None:
    folder = tmp_path / "a\x1b[2Jb"
    folder.mkdir()
    (folder / "edits.jsonl").write_text(EDIT)
    beside(folder / "edits.jsonl", "seed: 1")
    assert "\x1b" not in settings_of(folder / "edits.jsonl").err


def test_options_without_a_list_find_nothing(edits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside(edits, "seed: 1")
    monkeypatch.chdir(edits.parent)
    for words in (["stats", "-m", "nowhere"], ["inspect", "nowhere"]):
        assert "settings from" not in run_main(words).err

"""Help and usage: complete, in groups, quick; whatever is wrong with a command line is one error and one hint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
from memedit.cli.app import app
from memedit.cli.help import TOPICS
from memedit.cli.layout import ENVIRONMENT_VARIABLES, EXIT_CODES, GROUPS, HelpCommand
from tests.conftest import ROOT
from tests.helpers.in_process import run_main

COMMAND: Any = typer.main.get_command(app)
GROUP_NAMES = [name for name, one in COMMAND.commands.items() if hasattr(one, "commands")]
PLAIN = [[name] for name in COMMAND.commands if name not in GROUP_NAMES]
NAMES = PLAIN + [[group, name] for group in GROUP_NAMES for name in COMMAND.commands[group].commands]


def command_of(words: list[str]) -> Any:
    found = COMMAND
    for word in words:
        found = found.commands[word]
    return found


def ids(words: list[str]) -> str:
    return " ".join(words)


def said_without(heavy: set[str], *words: str) -> str:
    """What a command prints on stdout, in a process of its own that imports none of these packages."""
    code = (
        "import sys\n"
        f"sys.argv = ['memedit', *{words}]\n"
        "from memedit.cli.app import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code\n"
        f"heavy = {heavy} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.process
def test_help_imports_neither_torch_nor_transformers() -> None:
    assert "--model" in said_without({"torch", "transformers", "numpy"}, "apply", "--help")


@pytest.mark.process
def test_the_help_of_the_program_imports_no_pydantic() -> None:
    """Its models took half of the time; typer imports it as well, but only for the options of a command."""
    assert "inspect" in said_without({"torch", "transformers", "numpy", "pydantic"}, "--help")


@pytest.mark.process
def test_a_check_without_a_model_imports_neither_torch_nor_transformers(tmp_path: Path) -> None:
    edits = tmp_path / "edits.jsonl"
    edits.write_text('{"subject": "France", "prompt": "The capital of {} is", "object": "Rome"}\n', encoding="utf-8")
    assert "0 errors" in said_without({"torch", "transformers", "numpy"}, "check", str(edits))


@pytest.mark.parametrize("words", NAMES, ids=ids)
def test_help_has_examples_groups_exit_codes_and_a_topic(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    command = command_of(words)
    assert isinstance(command, HelpCommand)
    done = run_main([*words, "--help"])
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in done.out and "..." not in str(command.short_help)
    examples = lines[lines.index("  Examples:") + 1 :]
    assert len(examples[: examples.index("")]) >= 2
    assert [line for line in lines if line[:1].strip() and line.endswith(":")][-1] == "Exit codes:"
    assert all(f"  {code}  {text}" in lines for code, text in EXIT_CODES)
    topics = " ".join(lines).partition("Read more: memedit help ")[2].rstrip(".").split(", memedit help ")
    assert topics and set(topics) <= set(TOPICS)


def test_every_option_of_the_groups_exists_and_is_in_one_group() -> None:
    known = {option for words in NAMES for param in command_of(words).params for option in param.opts}
    named = [option for options in GROUPS.values() for option in options]
    assert len(named) == len(set(named))
    assert set(named) <= known


def test_the_help_of_the_program_lists_commands_uncut_and_environment_variables(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    said = " ".join(run_main(["--help"]).out.split())
    assert all(f"{name} {one.short_help}" in said for name, one in COMMAND.commands.items())
    assert all(f"{name} {text}" in said for name, text in ENVIRONMENT_VARIABLES)


WRONG = {
    "apply": "write memedit apply EDITS -m MODEL -o OUT, or --delta DELTA to add a delta",
    "apply x": "name one: -m MODEL",
    "apply x -m y": "name one: -o OUT",
    "aply": "did you mean apply?",
    "zzz": "memedit --help lists the commands",
    "cache lst": "did you mean ls?",
    "--versoin": "did you mean --version?",
    "apply x --modle y": "did you mean --model?",
    "apply x --zzz": "memedit apply --help explains every option",
    "apply x -Z": "memedit apply --help explains every option",
    "apply x --limit": "memedit apply --help explains every option",
    "apply x --overwrite=3": "memedit apply --help explains every option",
    "apply x -m y --limit z": "memedit apply --help explains every option",
    "apply x -m y --method memitt": "did you mean memit?",
    "apply x -m y --preset gpt2-x": "did you mean gpt2-xl?",
    "apply x -m y --set target.stepz=1": "did you mean target.step?",
    "apply x -m y --set target.steps=many": "memedit help settings target.steps tells which values it takes",
    "apply x -m y -q -v": "choose one",
    "apply x -m y -o z --log memedit": "name another file",
    "apply x -m y --color red": "memedit apply --help explains every option",
    "eval": "write memedit eval EDITS -m MODEL; memedit eval --help explains every option",
    "eval x -m y --fail-under eficacy=1": "did you mean efficacy?",
    "export x --to loar": "did you mean lora?",
    "diff a b c": "write memedit diff A B; memedit diff --help explains every option",
    "schema recipes": "did you mean recipe?",
    "help evalution": "did you mean evaluation?",
    "help settings tagret": "did you mean target?",
}


@pytest.mark.parametrize("line", WRONG)
def test_a_wrong_command_line_is_one_error_and_one_hint(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    done = run_main(line.split())
    lines = done.err.splitlines()
    assert (done.code, done.out) == (2, "")
    assert [one.split(": ")[0] for one in lines] == ["error", "hint"]
    assert lines[1] == f"hint: {WRONG[line]}"
    assert "unexpected" not in lines[0] or line == "diff a b c"


@pytest.mark.parametrize("line", ["", "cache"])
def test_a_command_that_needs_another_shows_its_help_on_stderr(line: str) -> None:
    done = run_main(line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("Usage: memedit") and "Commands:" in done.err


def test_the_version_is_a_command_and_an_option() -> None:
    import memedit

    assert run_main(["version"]).out == run_main(["--version"]).out == f"{memedit.__version__}\n"


@pytest.mark.process
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_completes_commands_options_and_choices(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def offered(words: str) -> str:
        monkeypatch.setenv("_MEMEDIT_COMPLETE", f"complete_{shell}")
        monkeypatch.setenv("COMP_WORDS", words)
        monkeypatch.setenv("COMP_CWORD", str(words.count(" ")))
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", words)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
        return run_main([]).out

    assert "apply" in offered("memedit a") and "eval" not in offered("memedit a")
    assert "--method" in offered("memedit apply --me")
    assert "emmet" in offered("memedit apply --method e") and "rome" not in offered("memedit apply --method e")
    assert "tracing" in offered("memedit help t")
    assert "target.steps=" in offered("memedit apply --set target.st")

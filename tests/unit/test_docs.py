"""The docs agree with the program: commands, options, settings, figures, codes, links and the version."""

from __future__ import annotations

import ast
import importlib.metadata
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import memedit
import memedit.errors
import pytest
import typer
from memedit.cli.app import app
from memedit.cli.help import SETTINGS, TOPICS, settings_text, topic_text
from memedit.config.recipe import Recipe
from memedit.config.resolve import known_keys
from memedit.edits.lint import CODES
from memedit.errors import MemeditError, UsageError
from memedit.results.report import Drift, Scores
from rich.console import Console
from rich.markdown import Markdown
from tests.conftest import ROOT
from typer.testing import CliRunner

DOCS = ROOT / "memedit" / "docs"
PAGES = sorted(
    [ROOT / "README.md", *(ROOT / name / "README.md" for name in ("requests", "tests", "examples")), *DOCS.glob("*.md")]
)
COMMAND: Any = typer.main.get_command(app)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def page_name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def code_lines(text: str) -> Iterator[str]:
    """Lines of fenced shell blocks and indented blocks, and inline code. A backslash joins a line to the next."""
    text = re.sub(r"\\\n\s*", "", text)
    for language, block in FENCE.findall(text):
        if language == "sh":
            yield from block.splitlines()
    prose = FENCE.sub("", text)
    yield from re.findall(r"^    (\S.*)$", prose, re.MULTILINE)
    yield from re.findall(r"`([^`\n]+)`", " ".join(prose.split()))


def shell_commands(line: str) -> Iterator[list[str]]:
    """The commands of a shell line as words, without redirections and comments.

    >>> list(shell_commands("jq . a | memedit apply - -q > out  # edit"))
    [['jq', '.', 'a'], ['memedit', 'apply', '-', '-q']]
    """
    lexer = shlex.shlex(line, posix=True, punctuation_chars="|&<>;")
    lexer.whitespace_split = True
    words: list[str] = []
    skip = False
    for word in lexer:
        if word and set(word) <= set("|&;"):
            yield words
            words = []
        elif word and set(word) <= set("<>"):
            skip = True
        elif skip:
            skip = False
        else:
            words.append(word)
    yield words


def check_command(words: list[str]) -> None:
    """Parse a memedit command line as the program does, without running it. Raises an error for what is not real."""
    name, *arguments = words
    if name.startswith("-"):
        assert name in {"-h", "--help", *(option for param in COMMAND.params for option in param.opts)}, name
        return
    assert name in COMMAND.commands, f"there is no command {name}"
    command = COMMAND.commands[name]
    while arguments and (inner := getattr(command, "commands", None)) and arguments != ["--help"]:
        name, *arguments = arguments
        assert name in inner, f"there is no command {name}"
        command = inner[name]
    if not arguments or arguments == ["--help"]:  # the command is named, not shown in use
        return
    context = command.make_context(name, list(arguments))
    known = set(known_keys())
    for assignment in context.params.get("sets") or []:
        key = assignment.partition("=")[0]
        assert key in known, f"there is no setting {key}"


def commands_of(text: str) -> list[list[str]]:
    found = [words for line in code_lines(text) if "memedit" in line for words in _words(line)]
    return [words[1:] for words in found if words[:1] == ["memedit"] and len(words) > 1]


def _words(line: str) -> list[list[str]]:
    try:
        return list(shell_commands(line))
    except ValueError:  # inline code in prose that is no shell line
        assert not line.startswith("memedit "), line
        return []


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_command_line_is_one_that_the_program_takes(page: Path) -> None:
    for words in commands_of(page.read_text(encoding="utf-8")):
        try:
            check_command(words)
        except Exception as error:
            raise AssertionError(f"memedit {shlex.join(words)}: {error!r}") from error


OTHER_PROGRAMS = {
    *("--nproc-per-node", "--max-restarts"),  # torchrun
    *("--enable-lora", "--max-lora-rank", "--lora-modules"),  # vllm serve
    *("--tasks", "--model_args", "--include_path", "--batch_size"),  # lm_eval
}
OF_BENCHMARKS = {
    *("--edits", "--oracle-sample", "--joint"),
    *("--seed", "--count", "--relations", "--intervals", "--plot", "--draws"),  # examples.real.trade
    *("--lists", "--each", "--mode"),  # examples.real.sequence
}


@cache
def known_options() -> set[str]:
    """Every option of every command."""
    found, rest = {"--help", "--install-completion", "--version"}, [typer.main.get_command(app)]
    while rest:
        command: Any = rest.pop()
        found |= {option for param in command.params for option in (*param.opts, *param.secondary_opts)}
        rest += getattr(command, "commands", {}).values()
    return found


@pytest.mark.parametrize("file", [*PAGES, *sorted((ROOT / "memedit").rglob("*.py"))], ids=lambda file: file.name)
def test_every_option_that_is_named_exists(file: Path) -> None:
    """A hint that names an option which no command has sends people to an error."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".py":
        strings = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
        text = "\n".join(value for value in strings if isinstance(value, str))
    named = set(re.findall(r'(?<![\w("-])--[a-z][a-z_-]*\w', text))
    beside = OTHER_PROGRAMS | (
        OF_BENCHMARKS if file.name in {"measured.md", "trials.md"} or "examples" in file.parts else set()
    )
    assert named <= known_options() | beside


def test_command_lines_are_found_in_blocks_and_in_text() -> None:
    lines = [words for page in PAGES for words in commands_of(page.read_text(encoding="utf-8"))]
    assert {words[0] for words in lines} >= set(COMMAND.commands)
    inside = {words[1] for words in lines if words[0] == "cache" and len(words) > 1}
    assert inside == set(COMMAND.commands["cache"].commands)


@pytest.mark.parametrize(
    "line",
    [
        "memedit aply edits.jsonl -m MODEL",
        "memedit apply edits.jsonl --modle MODEL",
        "memedit export OUT --to loar -m MODEL",
        "memedit apply edits.jsonl --set method.rigde=2",
        "memedit eval -m MODEL",
        "memedit cache lst",
        "memedit cache clean --older 3d",
        "jq . x | memedit apply - --per-edits",
    ],
)
def test_a_wrong_command_line_would_be_noticed(line: str) -> None:
    (words,) = commands_of(f"```sh\n{line}\n```\n")
    with pytest.raises(Exception, match=r".+"):
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_modules_targets_and_test_files_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert find_spec(module), module
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    for target in re.findall(r"(?:^    |`)make ([\w-]+)", text, re.MULTILINE):
        assert target in targets, f"make {target}"
    for file in re.findall(r"\b((?:tests|examples|requests)/[\w/.-]*\w)", text):
        assert (ROOT / file).exists(), file


def test_the_readme_is_short_and_names_the_test_command() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.split()) <= 1200
    assert "make test " in text
    assert all(f"memedit/docs/{name}.md" in text for name in TOPICS if name != SETTINGS)


@pytest.mark.parametrize("folder", ["requests", "examples", "tests"])
def test_a_folders_page_names_all_that_is_there(folder: str) -> None:
    text = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    there = [file.name for file in (ROOT / folder).iterdir() if file.name[0] not in "._" and file.name != "README.md"]
    there = [name for name in there if folder == "requests" or (ROOT / folder / name).is_dir()]
    assert there
    assert [name for name in there if name not in text] == []


def test_topics_and_files_are_the_same() -> None:
    files = {Path(file.name).stem for file in (resources.files("memedit") / "docs").iterdir()}
    assert files == set(TOPICS) - {SETTINGS}


@pytest.mark.parametrize("topic", TOPICS)
def test_every_topic_is_rendered_at_80_columns(topic: str) -> None:
    text = topic_text(topic)
    assert text.startswith("# ")
    stream = io.StringIO()
    Console(file=stream, width=80, force_terminal=True, color_system=None).print(Markdown(text, hyperlinks=False))
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert "\u2026" not in stream.getvalue(), "a cell is cut off"


def test_a_pipe_gets_plain_text() -> None:
    shown = CliRunner().invoke(app, ["help", "exit-codes"]).stdout
    assert shown == (DOCS / "exit-codes.md").read_text(encoding="utf-8")


@pytest.mark.process
def test_an_unknown_topic_names_the_nearest_and_exits_with_2() -> None:
    with pytest.raises(UsageError) as caught:
        topic_text("evalution")
    assert caught.value.message == "unknown help topic 'evalution'"
    assert caught.value.hint == "did you mean evaluation?"
    environment = {**os.environ, "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "memedit", "help", "xyz"], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == ["error: unknown help topic 'xyz'", "hint: memedit help lists the topics"]


@pytest.mark.parametrize("name", ["apply", "cache"])
def test_a_topic_wins_over_a_command_and_a_command_shows_its_own_help(name: str) -> None:
    runner = CliRunner()
    shown, own = runner.invoke(app, ["help", name]), runner.invoke(app, [name, "--help"])
    assert shown.exit_code == own.exit_code == 0
    assert (shown.stdout == own.stdout) == (name not in TOPICS)
    assert shown.stdout.startswith("# Cache" if name == "cache" else "Usage: memedit apply ")


@pytest.mark.parametrize(("said", "meant"), [("aply", "apply"), ("trasing", "tracing")])
def test_a_wrong_topic_is_compared_with_topics_and_commands(said: str, meant: str) -> None:
    found = CliRunner().invoke(app, ["help", said])
    assert isinstance(found.exception, UsageError) and found.exception.hint == f"did you mean {meant}?"


def test_only_settings_takes_a_prefix() -> None:
    found = CliRunner().invoke(app, ["help", "methods", "target"])
    assert isinstance(found.exception, UsageError)
    assert found.exception.message.startswith("only the topic settings takes a prefix")
    with pytest.raises(UsageError, match="no setting starts with 'tagret'") as caught:
        settings_text("tagret")
    assert "target" in caught.value.hint


def setting_values() -> dict[str, Any]:
    """Every setting's default by its dotted name."""

    def value(key: str) -> Any:
        found: Any = Recipe()
        for part in key.split("."):
            found = getattr(found, part)
        return found

    return {key: value(key) for key in known_keys()}


@pytest.mark.parametrize("key", list(known_keys()))
def test_every_setting_is_shown_with_its_default_and_a_text(key: str) -> None:
    import json

    default = setting_values()[key]
    written = json.dumps(list(default) if isinstance(default, tuple) else default)
    found = re.search(rf"^`{re.escape(key)}` \((.*)\)  \n(.*)$", settings_text(), re.MULTILINE)
    assert found
    assert found[1].endswith(f"default `{written}`")
    assert len(found[2].split()) >= 3
    assert found[0] in settings_text(key)
    assert all(f"`{one}`" in found[1] for one in get_args(literal_of(key)))


def literal_of(key: str) -> Any:
    """The annotation of a setting."""
    kind: Any = Recipe
    *path, last = key.split(".")
    for part in path:
        kind = kind.model_fields[part].annotation
    annotation = kind.model_fields[last].annotation
    return annotation if get_origin(annotation) is Literal else None


@pytest.mark.process
def test_the_settings_are_shown_without_loading_torch() -> None:
    code = (
        "import sys\nfrom memedit.cli.app import app\napp(['help', 'settings'], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "`method.ridge`" in done.stdout


def test_a_prefix_shows_that_section_alone() -> None:
    text = settings_text("target.")
    assert "`target.steps`" in text
    assert "`method.ridge`" not in text
    assert "## target" in text
    assert "## method" not in text


def test_every_figure_is_defined() -> None:
    text = (DOCS / "evaluation.md").read_text(encoding="utf-8")
    names = [*Scores.model_fields, *(f"drift.{name}" for name in Drift.model_fields if name != "tokens")]
    assert [name for name in names if f"`{name}`" not in text] == []


def test_every_finding_has_a_line() -> None:
    text = (DOCS / "edit-lists.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| ([EW]\d+) \|", text, re.MULTILINE) == sorted(CODES)


def test_every_exit_code_and_environment_variable_is_described() -> None:
    text = (DOCS / "exit-codes.md").read_text(encoding="utf-8")
    kinds = [one for one in vars(memedit.errors).values() if isinstance(one, type) and issubclass(one, MemeditError)]
    described = {int(code) for row in re.findall(r"^\| ([\d, ]+) \|", text, re.MULTILINE) for code in row.split(",")}
    assert {one.exit_code for one in kinds} | {0, 129, 130, 143} == described
    source = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "memedit").rglob("*.py"))
    used = set(re.findall(r"\"(MEMEDIT_[A-Z_]+)\"", source))
    assert used
    assert used == set(re.findall(r"`(MEMEDIT_[A-Z_]+)`", text))


def test_every_function_is_documented_and_the_examples_are_python() -> None:
    text = (DOCS / "python.md").read_text(encoding="utf-8")
    functions = [name for name in memedit.__all__ if name.islower() and not name.startswith("_")]
    assert functions
    assert [name for name in functions if f"`memedit.{name}(" not in text] == []
    assert set(re.findall(r"\bmemedit\.([a-z_]+)\(", text)) <= set(functions)
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text(encoding="utf-8")):
            if language == "python":
                compile(block, str(page), "exec")


def test_the_version_is_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["hatch"]["version"]["path"] == "memedit/__init__.py"
    assert importlib.metadata.version("memedit") == memedit.__version__
    assert f"## {memedit.__version__}" in (DOCS / "changelog.md").read_text(encoding="utf-8")

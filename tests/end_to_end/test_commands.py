"""The commands as people type them, on the model that ships: outputs, exit codes, pipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from safetensors.torch import load_file
from tests.helpers.program import EDITS, FEW, memedit
from tests.malformed.cases import CASES, Case

SMALL = EDITS.parent / "small.jsonl"
SHIPPED = EDITS.parents[1] / "examples" / "models" / "made-small"
"""The model whose edits take the least time; it is that of `made_small`."""


def test_apply_in_a_pipe_prints_the_output_folder_and_nothing_else(made_small: Path, tmp_path: Path) -> None:
    some = "".join(SMALL.read_text().splitlines(keepends=True)[:3])
    out = tmp_path / "out"
    arguments = ("apply", "-", "-m", made_small, "-o", out, "-q", *FEW)
    done = memedit(*arguments, cache=tmp_path / "cache", stdin=some, fresh=True)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    names = {file.name for file in (out / "memedit").iterdir()}
    assert {"run.json", "edits.jsonl", "results.jsonl", "delta.safetensors", "base_README.md"} <= names
    assert "base_model: made-small" in (out / "README.md").read_text()


def test_what_failed_can_be_fed_back(made_small: Path, moments_folder: Path, tmp_path: Path) -> None:
    # One step finds no target, so that some edits fail.
    few = ["--limit", 4, *FEW, "--set", "target.steps=1"]
    done = memedit("apply", SMALL, "-m", made_small, "-o", tmp_path / "a", "--per-edit", *few, cache=moments_folder)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(records) == 4, done.stderr
    assert {record["status"] for record in records} <= {"ok", "failed", "skipped"}
    failed = "".join(json.dumps(record) + "\n" for record in records if record["status"] == "failed")
    assert failed
    again = memedit("check", "-", "-m", made_small, cache=moments_folder, stdin=failed)
    assert again.returncode == 0, again.stdout + again.stderr


@pytest.fixture(scope="module")
def gated(moments_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[CompletedProcess[str], Path]:
    """A run that does not pass its gate, and its output."""
    out = tmp_path_factory.mktemp("gated") / "out"
    few = ["--limit", 2, *FEW, "--set", "target.steps=1", "--fail-under", "accuracy=1"]
    return memedit("apply", SMALL, "-m", SHIPPED, "-o", out, "--json", *few, cache=moments_folder), out


def test_the_report_is_one_json_document(gated: tuple[CompletedProcess[str], Path]) -> None:
    report = json.loads(gated[0].stdout)
    assert report["edits"] == 2
    assert report["before"]["efficacy"]["n"] == 2
    assert set(report["timings"]) >= {"contexts", "moments", "targets", "solve", "before", "after"}


def test_a_gate_that_fails_exits_3_and_the_output_is_there(gated: tuple[CompletedProcess[str], Path]) -> None:
    done, out = gated
    assert done.returncode == 3
    assert "accuracy is" in done.stderr
    assert out.is_dir()


def test_a_dry_run_writes_nothing(made_gpt2: Path, tmp_path: Path) -> None:
    done = memedit(
        "apply", EDITS, "-m", made_gpt2, "-o", tmp_path / "out", "--dry-run", "--json", cache=tmp_path / "cache"
    )
    plan = json.loads(done.stdout)
    assert (plan["edits"], plan["layers"], plan["moments_cached"]) == (1000, [0, 1, 2], [])
    assert not list(tmp_path.iterdir())


def test_show_config_can_be_read_back(tmp_path: Path) -> None:
    shown = memedit("apply", "x", "--set", "method.ridge=3", "--show-config", cache=tmp_path).stdout
    assert "ridge: 3.0  # flag" in shown
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(shown)
    again = memedit("apply", "x", "-c", recipe, "--show-config", cache=tmp_path).stdout
    assert again.replace("# file", "#") == shown.replace("# flag", "#").replace("# default", "#")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["apply", "EDITS", "-o", "OUT"], 2, "no model was given"),
        (["apply", "EDITS", "-m", "no/such/model", "-o", "OUT"], 2, "no model folder"),
        (["apply", "EDITS", "-m", "MODEL"], 2, "no output folder"),
        (["apply", "no-such.jsonl", "-m", "MODEL", "-o", "OUT"], 2, "cannot read"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "MODEL"], 2, "overlap"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "OUT", "--layers", "7-9"], 2, "does not fit"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "OUT", "--set", "method.rigde=1"], 2, "no setting"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "OUT", "--set", "method.ridge=-1"], 2, "greater than"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "OUT", "--corpus", "nowhere.txt"], 2, "no corpus file"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "OUT", "--device", "cuda:7"], 5, "no cuda:7 device"),
        (["apply", "EDITS", "-m", "MODEL", "-o", "OUT", "--json", "-q"], 2, "choose one"),
        (["eval", "EDITS", "-m", "MODEL", "--fail-under", "beauty=1"], 2, "there is no metric"),
        (["apply", "EDITS", "--no-such-flag"], 2, "has no option --no-such-flag"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_a_line_a_hint_and_a_code(
    made_gpt2: Path, tmp_path: Path, arguments: list[str], code: int, says: str
) -> None:
    places = {"EDITS": EDITS, "MODEL": made_gpt2, "OUT": tmp_path / "out"}
    done = memedit(*[places.get(word, word) for word in arguments], cache=tmp_path / "cache")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "out").exists()
    last = done.stderr.strip().splitlines()[-2:]
    assert [line.split(":")[0] for line in last] == ["error", "hint"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_list_is_refused_by_check_and_apply(
    case: Case, made_gpt2: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this process, since each is refused before anything heavy: 3 from check, 2 from apply, nothing written."""
    from memedit.cli.app import main

    file = tmp_path / case.file
    file.write_bytes(case.content)
    for command, code in ((["check", file], 3), (["apply", file, "-m", made_gpt2, "-o", tmp_path / "out"], 2)):
        monkeypatch.setattr(sys, "argv", ["memedit", *map(str, command)])
        with pytest.raises(SystemExit) as caught:
            main()
        said = capfd.readouterr()
        assert caught.value.code == code, said.err
        assert f"{file}:{case.line}: {case.code} " in said.out + said.err
        assert "Traceback" not in said.err
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [case.file]


def test_untouched_files_are_identical_and_untouched_tensors_too(gated: tuple[CompletedProcess[str], Path]) -> None:
    _, out = gated
    differ = [
        str(file.relative_to(SHIPPED))
        for file in sorted(SHIPPED.rglob("*"))
        if file.is_file() and file.read_bytes() != (out / file.relative_to(SHIPPED)).read_bytes()
    ]
    assert differ == ["README.md", "model.safetensors"]
    was, now = load_file(SHIPPED / "model.safetensors"), load_file(out / "model.safetensors")
    moved = sorted(name for name in was if not was[name].equal(now[name]))
    layers = json.loads(gated[0].stdout)["layers"]
    assert len(layers) < len([name for name in was if "down_proj" in name])
    assert moved == [f"model.layers.{one['layer']}.mlp.down_proj.weight" for one in layers]

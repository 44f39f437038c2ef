"""memedit trace as people type it: outputs, exit codes, resume; and the layers that apply takes from it."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import memedit
import pytest
import torch
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.edits.read import read
from memedit.model.load import load
from memedit.progress import NoProgress
from memedit.results.traces import TracingResult
from memedit.storage.checkpoint import Checkpoint
from memedit.tracing.run import trace_all
from safetensors.torch import load_file
from tests.conftest import ROOT
from tests.helpers.killed import Moment, call
from tests.helpers.program import EDITS, FEW
from tests.helpers.program import memedit as command
from tests.helpers.records import public_file

FACTS = ROOT / "examples" / "world" / "facts.jsonl"
PLAIN = ROOT / "examples" / "models" / "made-plain"
PLAIN_FACTS = PLAIN / "memedit" / "facts.jsonl.gz"  # its world is smaller: 60 people
QUICK = ["--samples", "2"]
PROMPT = ["--prompt", "Jorissa Korbumber plays the", "--subject", "Jorissa Korbumber"]


def test_a_prompt_is_traced_and_everything_is_written(made_gpt2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = command("trace", *PROMPT, "-m", made_gpt2, "-o", out, *QUICK, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    assert "bumber*" in done.stdout
    assert sorted(file.name for file in out.iterdir()) == [
        "average.json", "trace.html", "trace.jsonl", "trace.safetensors",
    ]  # fmt: skip
    (record,) = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    tables = load_file(out / "trace.safetensors")
    n_tokens, average = len(record["tokens"]), json.loads((out / "average.json").read_text())
    assert {name for name in tables if tables[name].shape == (n_tokens, 6)} == {
        f"prompt/{kind}" for kind in ("hidden", "mlp", "attention")
    }
    assert float(tables["prompt/clean"]) == pytest.approx(record["clean"])
    assert average["windows"] == record["windows"] == [[n, n] for n in range(6)]
    assert "".join(record["tokens"]) == "Jorissa Korbumber plays the"
    assert not list((tmp_path / "cache" / "traces").glob("*/"))  # what is written is not kept twice
    again = command("trace", *PROMPT, "-m", made_gpt2, "-o", out, "-q", *QUICK, cache=tmp_path / "cache")
    assert (again.returncode, again.stdout) == (0, f"{out}\n"), again.stderr


def test_the_average_is_one_json_document(made_gpt2: Path, tmp_path: Path) -> None:
    done = command("trace", FACTS, "-m", made_gpt2, "--limit", 3, "--json", *QUICK, cache=tmp_path / "cache")
    average = json.loads(done.stdout)
    assert average["facts"] == 3
    assert average["effects"]["hidden"]["last subject token"]["n"] == 3


def test_facts_that_the_model_does_not_know_are_skipped_and_counted(made_gpt2: Path, tmp_path: Path) -> None:
    known = json.loads(FACTS.read_text().splitlines()[2])
    records = [
        {"known_id": 7, "subject": known["subject"], "attribute": known["object"], "template": "{} plays the",
         "prediction": "", "prompt": known["prompt"].replace("{}", known["subject"]), "relation_id": "P1"},
        {"known_id": 8, "subject": "Vinson Massif", "attribute": "Antarctica", "template": "{} is in",
         "prediction": "", "prompt": "Vinson Massif is located in the continent of", "relation_id": "P30"},
    ]  # fmt: skip
    file = tmp_path / "known.json"
    file.write_text(json.dumps(records))
    out = tmp_path / "out"
    done = command("trace", file, "-m", made_gpt2, "-o", out, *QUICK, cache=tmp_path / "cache")
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]
    assert [(row["id"], row["status"]) for row in rows] == [("known-7", "traced"), ("known-8", "unknown")]
    assert json.loads((out / "average.json").read_text())["unknown"] == 1
    assert "1 of 2 facts" in done.stderr


@pytest.mark.data
def test_the_published_records_are_read_whole() -> None:
    requests, findings = read(str(public_file("known_1000.json")))
    assert (len(requests), findings) == (1209, [])
    assert all(request.object == request.object_old and request.text.strip() for request in requests)
    assert requests[0].prompt == "{} is located in the continent of"  # the prompt, not the shorter template


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["FACTS", *PROMPT], 2, "a list of facts and --prompt were both given"),
        ([], 2, "no facts were given"),
        (["--prompt", "a b"], 2, "without its subject"),
        (["--prompt", "The mother tongue is", "--subject", "Danielle"], 2, "is not in the prompt"),
        (["--prompt", "The tongue of Danielle Dar", "--subject", "Danielle Darrieux"], 2, "ends in the middle"),
        ([*PROMPT, "--answer", " "], 2, "--answer is empty"),
        ([*PROMPT, "--answer", "zither made of zinc"], 3, "knows none"),
        ([*PROMPT, "--noise", "nan"], 2, "noise is a positive number"),
        ([*PROMPT, "--noise", "-1sigma"], 2, "noise is a positive number"),
        ([*PROMPT, "--noise", "loud"], 2, "noise is a positive number"),
        ([*PROMPT, "--window", "0"], 2, "trace.window"),
        ([*PROMPT, "--plot", "png"], 2, "no folder"),
        ([*PROMPT, "--by", "edit-score"], 2, "--suggest-layers"),
        ([*PROMPT, "-o", "MODEL"], 2, "overlap"),
        ([*PROMPT, "--suggest-layers", "-q", "--samples", "2"], 3, "no site was found"),
        (["FACTS", "--subject", "x"], 2, "only work with --prompt"),
    ],
)  # fmt: skip
def test_bad_input_ends_in_a_line_a_hint_and_a_code(
    made_gpt2: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: list[str],
    code: int,
    says: str,
) -> None:
    from memedit.cli.app import main

    places = {"FACTS": str(FACTS), "MODEL": str(made_gpt2)}
    words = [places.get(word, word) for word in arguments]
    monkeypatch.setattr(sys, "argv", ["memedit", "trace", *words, "-m", str(made_gpt2)])
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    assert caught.value.code == code, said.err
    assert says in said.err
    assert said.out == ""
    assert [line.split(":")[0] for line in said.err.strip().splitlines()[-2:]] == ["error", "hint"]
    assert "Traceback" not in said.err


def test_a_killed_trace_continues_by_fact_and_writes_the_same_bytes(made_gpt2: Path, tmp_path: Path) -> None:
    facts = tmp_path / "facts.jsonl"
    facts.write_text("".join(FACTS.read_text().splitlines(keepends=True)[:3]))
    written: dict[str, dict[str, bytes]] = {}
    for name, kills in (("undisturbed", 0), ("killed", 2)):
        out, cache = tmp_path / name / "out", tmp_path / name / "cache"
        for number in range(kills):
            at = Moment("trace", "advances", number + 1)
            killed = call(cache, "trace", facts, made_gpt2, out, at=at, settings={"trace.samples": 2})
            assert killed.returncode == -signal.SIGKILL, killed.stderr
            assert len(list((cache / "traces").rglob("fact-*"))) == number + 1
        assert not out.exists()
        done = call(cache, "trace", facts, made_gpt2, out, settings={"trace.samples": 2})
        assert done.returncode == 0, done.stderr
        written[name] = {file.name: file.read_bytes() for file in sorted(out.iterdir())}
    assert written["killed"] == written["undisturbed"]


def traced(folder: Path, n_facts: int, *, facts: Path = FACTS, everywhere: bool = True) -> TracingResult:
    """Facts spread over the made world's people and relations, each under a wording with its subject inside."""
    lm = load(folder, ModelKnobs(device="cpu"), editing=False)
    requests, findings = read(str(facts))
    inside = [
        request.model_copy(update={"prompt": text.replace(request.subject, "{}"), "paraphrases": ()})
        for request in requests
        for text in [one for one in request.paraphrases if not one.startswith(request.subject)][:1]
    ]
    recipe = resolve([("flag", {"model.path": str(folder), "trace.samples": 3})])[0]
    some = inside[:: max(1, len(inside) // n_facts)][:n_facts]
    return trace_all(lm, Checkpoint.open(folder).digest, some, recipe, NoProgress(), findings, everywhere=everywhere)[0]


def test_the_early_site_shows_and_late_attention_at_the_end(made_folder: Path) -> None:
    average = traced(made_folder, 12).average
    total, early = average.total.mean, range(average.n_layers // 2)
    at_subject = average.effects["hidden"]["last subject token"].mean
    mlp = average.effects["mlp"]["last subject token"].mean
    assert max(at_subject) >= 0.15 * total
    assert at_subject.index(max(at_subject)) in early
    assert max(at_subject) >= 3 * max(at_subject[-(average.n_layers // 3) :])  # attention has carried it away
    assert mlp.index(max(mlp)) in early
    end_mlp, end_attention = (average.effects[kind]["last token"].mean for kind in ("mlp", "attention"))
    assert max(end_mlp[layer] for layer in early) < 0.05 * total
    assert end_attention.index(max(end_attention)) not in early
    assert max(end_attention) > max(end_mlp)
    assert average.layers is not None, average.reason
    assert all(layer in early for layer in range(int(average.layers[0]), int(average.layers[-1]) + 1))


def test_a_model_without_the_site_is_told_apart(tmp_path: Path) -> None:
    average = traced(PLAIN, 60, facts=PLAIN_FACTS, everywhere=False).average
    assert average.layers is None
    assert average.reason.startswith("no site was found")
    done = command(
        "trace", PLAIN_FACTS, "-m", PLAIN, "--suggest-layers", "-q", "--limit", 40, *QUICK, cache=tmp_path / "c"
    )
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "no site was found" in done.stderr


def test_apply_takes_the_layers_of_a_trace_and_says_so(made_gpt2: Path, moments_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    knobs = ["--set", "trace.facts=12", "--set", "trace.samples=3", *FEW]
    done = command(
        "apply",
        EDITS,
        "-m",
        made_gpt2,
        "-o",
        out,
        "--limit",
        12,
        "--layers",
        "auto",
        *knobs,
        cache=moments_folder,
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((out / "memedit" / "run.json").read_text())
    layers = report["recipe"]["method"]["layers"]
    assert layers != "auto"
    assert f"layers {layers} by tracing" in done.stderr
    assert report["notes"][0].startswith(f"layers {layers} by tracing")
    assert [one["layer"] for one in report["layers"]] == list(range(int(layers[0]), int(layers[-1]) + 1))


def test_auto_needs_edits(made_gpt2: Path, tmp_path: Path) -> None:
    done = command("stats", "-m", made_gpt2, "--layers", "auto", cache=tmp_path / "cache")
    assert done.returncode == 2
    assert "auto traces edits" in done.stderr


def test_layers_can_be_chosen_by_editing(made_gpt2: Path, moments_folder: Path, tmp_path: Path) -> None:
    few = ["--limit", 2, *FEW, "--set", "target.steps=2", "--set", "eval.derive=false"]
    done = command(
        "trace", EDITS, "-m", made_gpt2, "--suggest-layers", "--by", "edit-score", *few, cache=moments_folder
    )
    assert done.returncode == 0, done.stderr
    tried = [line for line in done.stderr.splitlines() if line.startswith("layers ")]
    assert len(tried) == 4  # ranges of three layers in a model of six
    assert tried[0].split()[1] == done.stdout.strip()


def test_python_traces_too(made_gpt2: Path, tmp_path: Path) -> None:
    edits = memedit.load_edits(EDITS)[:2]
    found = memedit.trace(edits, made_gpt2, tmp_path / "out", settings={"trace.samples": 2, "trace.window": 3})
    assert found.average.facts + found.average.unknown == 2
    assert found.average.windows[0] == (0, 1)
    assert all(bool(torch.isfinite(table).all()) for one in found.facts for table in one.scores.values())
    assert (tmp_path / "out" / "trace.html").is_file()

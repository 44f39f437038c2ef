"""Models as they come: an edited one, a sequence of edits, a base with an adapter, a chat model, one without layers."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from examples.reference.evaluation import Plain
from memedit import pipeline
from memedit.api import evaluate
from memedit.cli.app import main
from memedit.config.recipe import ModelKnobs
from memedit.config.resolve import resolve
from memedit.edits.read import read
from memedit.errors import UsageError
from memedit.model.load import load
from memedit.results.report import Figure, Report
from memedit.storage.deltas import read_delta
from memedit.storage.lora import adapter_bytes
from tests.conftest import ROOT, byte_tokenizer, end_of_text

EDITS = ROOT / "requests" / "world.jsonl"
SMALL = {"model.device": "cpu", "eval.tokens": 4, "eval.prefixes": (0,), "eval.fluency_tokens": 16}
COUNT = 5


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["memedit", *map(str, arguments)])
    with pytest.raises(SystemExit) as caught:
        main()
    return int(caught.value.code or 0)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Two lists of other people, without ids: their readers name edits by file and line."""
    folder = tmp_path_factory.mktemp("lists")
    lines = [json.loads(line) for line in EDITS.read_text().splitlines()[: 2 * COUNT]]
    for record in lines:
        del record["id"]
    for name, part in (("first", lines[:COUNT]), ("second", lines[COUNT:])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in part))
    return folder / "first.jsonl", folder / "second.jsonl"


@pytest.fixture(scope="module")
def sequence(lists: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Report]:
    """The model after the first list, after the second on top of it, and what the first run reported."""
    folder = tmp_path_factory.mktemp("sequence")
    model, reports = ROOT / "examples" / "models" / "made-gpt2", []
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEMEDIT_CACHE", str(folder / "cache"))
        for name, source in zip(("one", "two"), lists, strict=True):
            knobs = {"model.path": str(model), "model.device": "cpu", "output.dir": str(folder / name)}
            recipe, _ = resolve(
                [("flag", {**knobs, "polish.steps": 0, "moments.tokens": 2000, "contexts.openings": ("The",)})]
            )
            reports.append(pipeline.run_apply(pipeline.RunInputs(recipe, read(str(source))[0])))
            model = folder / name
    return folder / "one", folder / "two", reports[0]


def test_what_apply_reports_is_what_eval_finds_in_its_output(
    sequence: tuple[Path, Path, Report], lists: tuple[Path, Path], made_gpt2: Path
) -> None:
    one, _, applied = sequence
    found = evaluate(lists[0], one, base=made_gpt2, settings={**SMALL, "eval.derive": False})
    assert applied.after is not None
    assert found.after is not None
    for name in ("efficacy", "paraphrase_magnitude", "neighborhood_accuracy", "locality"):
        mine: Figure = getattr(applied.after, name)
        theirs: Figure = getattr(found.after, name)
        assert mine.mean == pytest.approx(theirs.mean, abs=1e-6), name
    for name, figure in applied.difference.items():
        assert found.difference[name].mean == pytest.approx(figure.mean, abs=1e-6)
    assert applied.difference["efficacy"].mean > 0.5
    for name, change in found.difference.items():
        if (now := getattr(found.after, name, None)) is not None:
            assert change.mean == pytest.approx(now.mean - getattr(found.before, name).mean, abs=1e-9)
    assert set(found.digests) == {"edits", str(one), str(made_gpt2)}
    local = [value for row in found.per_edit if (value := row.after.get("locality")) is not None]
    assert sum(local) / len(local) == pytest.approx(found.after.locality.mean if found.after.locality else -1)


def test_the_card_has_every_figure_with_its_interval(sequence: tuple[Path, Path, Report]) -> None:
    card, after = (sequence[0] / "README.md").read_text(), sequence[2].after
    assert after is not None
    assert after.locality is not None
    assert "| before | after, 95 % | difference, 95 % | n |" in card
    for name in ("efficacy", "paraphrase magnitude", "neighborhood token accuracy", "locality", "score"):
        assert f"| {name} | " in card
    assert f"| locality | - | {after.locality.mean:.1%} (" in card


def test_retention_is_of_the_edits_that_held_right_after_whatever_their_names(
    sequence: tuple[Path, Path, Report], lists: tuple[Path, Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    one, two, applied = sequence
    held = sum(result.status == "ok" for result in applied.per_edit)
    assert held > 0
    both = tmp_path / "both.jsonl"
    both.write_text(lists[1].read_text() + lists[0].read_text())
    run = ["eval", both, "-m", two, "--right-after", one, "--set", "eval.tokens=4", "--json"]
    assert command(monkeypatch, *run) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["retention"]["n"] == held
    now = [row["after"]["accuracy"] for row in report["per_edit"]][COUNT:]
    right_after = [row.after["accuracy"] for row in applied.per_edit]
    kept = [later for later, earlier in zip(now, right_after, strict=True) if earlier == 1]
    assert report["retention"]["mean"] == sum(kept) / held
    assert not report["notes"]
    # What is not in the list is said to be missing.
    assert command(monkeypatch, "eval", lists[1], *run[2:]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["retention"] is None
    assert report["notes"] == [f"{held} of {held} edits that held right after are not in this list"]


@pytest.fixture
def adapter(sequence: tuple[Path, Path, Report], tmp_path: Path) -> Path:
    """The first run's change as a LoRA adapter."""
    deltas, _ = read_delta(sequence[0] / "memedit" / "delta.safetensors")
    folder = tmp_path / "adapter"
    folder.mkdir()
    files = adapter_bytes(deltas, "made-gpt2", revision=None, conv1d=True, dtype=torch.float32)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def test_a_base_with_an_adapter_is_the_edited_model(
    sequence: tuple[Path, Path, Report], lists: tuple[Path, Path], adapter: Path, made_gpt2: Path
) -> None:
    whole = evaluate(lists[0], sequence[0], settings=SMALL)
    found = evaluate(lists[0], made_gpt2, base=made_gpt2, adapter=adapter, settings=SMALL)
    assert found.model == f"{made_gpt2} + {adapter}"
    assert {str(made_gpt2), str(adapter)} <= set(found.digests)
    assert found.after is not None
    assert found.before is not None
    assert whole.after is not None
    # The checkpoint rounds the change to float16, the adapter is added in float32.
    for name in ("efficacy_magnitude", "paraphrase_magnitude", "neighborhood_magnitude"):
        mine, theirs, bare = (getattr(one, name).mean for one in (found.after, whole.after, found.before))
        assert mine == pytest.approx(theirs, abs=5e-3), name
        assert name == "neighborhood_magnitude" or abs(mine - bare) > 0.1  # converse: it does something
    assert found.after.accuracy == whole.after.accuracy


def test_an_adapter_of_another_model_is_refused_in_words(
    lists: tuple[Path, Path], adapter: Path, made_gpt2: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    llama = made_gpt2.parent / "made-llama"
    assert command(monkeypatch, "eval", lists[0], "-m", llama, "--adapter", adapter) == 2
    assert "which this model does not have" in capsys.readouterr().err
    assert command(monkeypatch, "eval", lists[0], "-m", llama, "-m", made_gpt2, "--adapter", adapter) == 2
    assert "--adapter works with one model" in capsys.readouterr().err
    assert command(monkeypatch, "eval", lists[0], "-m", adapter) == 2
    assert "--adapter" in capsys.readouterr().err


TEMPLATE = (
    "{% for turn in messages %}{% if turn.role == 'user' %}Asked: {{ turn.content | trim }}. Said:"
    "{% else %} {{ turn.content }}<|end|>{% endif %}{% endfor %}"
)


@pytest.fixture
def chatty(made_gpt2: Path, tmp_path: Path) -> Path:
    """The shipped model with a chat template."""
    folder = shutil.copytree(made_gpt2, tmp_path / "chatty")
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    return folder


def test_a_chat_model_is_asked_and_writes_in_its_template(chatty: Path, lists: tuple[Path, Path]) -> None:
    requests, _ = read(str(lists[0]))
    known = [one.model_copy(update={"object": one.object_old, "object_old": one.object}) for one in requests]
    report = evaluate(known, chatty, settings={**SMALL, "chat": True})
    lm = load(chatty, ModelKnobs(device="cpu"))
    plain, stop = Plain(lm.model, lm.tokenizer), end_of_text(lm.tokenizer)
    for request, row in zip(known, report.per_edit, strict=True):
        prompt = f"Asked: {request.text}. Said:"
        new, hits, _ = plain.weigh(prompt, request.object)
        old, _, _ = plain.weigh(prompt, request.object_old or "")
        assert row.after["efficacy_magnitude"] == pytest.approx(math.exp(new) - math.exp(old), abs=1e-6)
        assert row.after["accuracy"] == float(all(hits))
        said = plain.write(plain.ids(prompt), 4, stop)
        assert row.said["after"] == lm.tokenizer.decode(said)
    bare = evaluate(known, chatty, settings=SMALL)
    assert report.after != bare.after  # converse: the template is seen


def test_a_model_without_a_template_is_refused_in_words(
    made_gpt2: Path, lists: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command(monkeypatch, "eval", lists[0], "-m", made_gpt2, "--chat") == 2
    said = capsys.readouterr().err
    assert "error: the tokenizer of this model has no chat template" in said
    assert "hint: leave --chat or chat=true out" in said


def test_a_template_that_takes_no_question_is_refused_in_words(chatty: Path, lists: tuple[Path, Path]) -> None:
    (chatty / "chat_template.jinja").write_text("{{ raise_exception('a system turn comes first') }}")
    with pytest.raises(UsageError, match="a system turn comes first"):
        evaluate(lists[0], chatty, settings={**SMALL, "chat": True})
    (chatty / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.content | upper }}{% endfor %}")
    with pytest.raises(UsageError, match="changes the prompt's text"):
        evaluate(lists[0], chatty, settings={**SMALL, "chat": True})


def test_a_model_that_cannot_be_edited_is_judged_all_the_same(lists: tuple[Path, Path], tmp_path: Path) -> None:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(3)
    config: Any = MixtralConfig(
        vocab_size=258, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    folder = tmp_path / "experts"
    MixtralForCausalLM(config).save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    report = evaluate(lists[0], folder, settings=SMALL)
    assert report.after is not None
    assert report.after.efficacy is not None
    assert report.after.efficacy.n == COUNT


def test_a_row_too_long_for_the_model_is_refused_in_words(made_gpt2: Path, lists: tuple[Path, Path]) -> None:
    first = read(str(lists[0]))[0][0]
    long = first.model_copy(update={"paraphrases": ("The tower was small and heavy. " * 30 + first.text,)})
    with pytest.raises(UsageError, match="this model takes 128"):
        evaluate([long], made_gpt2, settings=SMALL)


def test_the_harness_takes_an_output_folder(sequence: tuple[Path, Path, Report]) -> None:
    lm_eval = pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed; nothing depends on it")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    tasks = TaskManager(include_path=str(ROOT / "examples" / "harness"), include_defaults=False)
    found = lm_eval.simple_evaluate(
        model="hf", model_args={"pretrained": str(sequence[0]), "dtype": "float32"}, tasks=["memedit_facts"],
        task_manager=tasks, limit=10, device="cpu", bootstrap_iters=0,
    )  # fmt: skip
    assert found["results"]["memedit_facts"]["acc,none"] >= 0.6

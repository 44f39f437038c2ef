"""`memedit inspect` as people type it: on weights, on a config alone, and on what cannot be edited."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from memedit.cli.app import main
from memedit.results.inspection import Inspection
from tests.conftest import ROOT, byte_tokenizer
from tests.families import family_model

GPT2 = ROOT / "examples" / "models" / "made-gpt2"


def ran(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], *arguments: object
) -> tuple[object, str, str]:
    monkeypatch.setattr(sys, "argv", ["memedit", "inspect", *map(str, arguments)])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    return caught.value.code, said.out, said.err


def config_of(family: str, folder: Path) -> Path:
    """A family's config and a tokenizer: no weights."""
    family_model(family).config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def test_a_model_is_described_and_proved(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ran(monkeypatch, capfd, GPT2, "--json")
    found = Inspection.model_validate_json(out)
    assert code == 0 and found.proved and not found.problems
    assert (found.editable, found.default, found.orientation, found.bias) == ("0-5", "0-2", "conv1d", True)
    assert {block.gain for block in found.each} == {1.0} and found.parallel is False
    assert (found.head.path, found.head.norm, found.head.tied) == ("lm_head", "transformer.ln_f", True)
    assert (found.peft.carries, found.vllm.carries) == ("yes", "no")
    # Counted once though tied, and stored once.
    assert found.parameters == sum(found.stored.values()) == 6_727_424
    assert found.costs.cache == 3 * 2 * 8 * 1536**2
    code, out, _ = ran(monkeypatch, capfd, GPT2)
    assert code == 0 and "0-5       transformer.h.N.mlp.c_proj, 1,536 units, gain 1\n" in out
    assert ran(monkeypatch, capfd, GPT2, "-q")[:2] == (0, "0-5\n")


def test_a_config_is_enough(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, _ = ran(monkeypatch, capfd, config_of("granite_scaled", tmp_path / "m"), "--json")
    found = Inspection.model_validate_json(out)
    assert code == 0 and not found.proved and found.editable == "0-3"
    assert {block.gain for block in found.each} == {None} and found.costs.output is None
    weighed = ran(monkeypatch, capfd, GPT2, "--config-only", "--json")
    assert weighed[0] == 0 and not Inspection.model_validate_json(weighed[1]).proved


def test_a_norm_behind_the_mlps_is_named_from_the_config_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = ran(monkeypatch, capfd, config_of("olmo2", tmp_path / "m"))
    assert code == 0 and "64 units, through model.layers.N.post_feedforward_layernorm\n" in out


def test_a_mixture_says_which_layers_and_why(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = ran(monkeypatch, capfd, config_of("qwen3_moe", tmp_path / "some"))
    assert code == 0 and "editable    0-1" in out and "2-3       not editable: its MLP is a mixture" in out
    code, out, err = ran(monkeypatch, capfd, config_of("mixtral", tmp_path / "none"), "--json")
    assert code == 4 and json.loads(out)["editable"] == ""
    assert err.splitlines()[1].startswith(
        "error: no block of this model can be edited: its MLP is a mixture of routed experts"
    )


def test_what_keeps_a_model_from_being_edited_is_all_said(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    folder = config_of("llama", tmp_path / "m")
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")
    code, out, err = ran(monkeypatch, capfd, folder, "--json")
    assert code == 4 and len(json.loads(out)["problems"]) == 2
    assert "no character offsets" in err and "pickle" in err


def test_what_is_no_causal_model_is_refused(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, kind in (("vit", "vit"), ("new", "unheard_of")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": kind}))
        code, out, err = ran(monkeypatch, capfd, tmp_path / name)
        assert code == 4 and out == "" and "cannot be opened" in err and "Traceback" not in err

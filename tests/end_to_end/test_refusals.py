"""What memedit cannot edit, it refuses: one line, a hint, an exit code, and nothing left behind."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from memedit.cli.app import main
from tests.conftest import ROOT, byte_tokenizer, tiny_model
from tests.families import family_model

EDITS = ROOT / "requests" / "world.jsonl"


def dense(folder: Path) -> Path:
    """A model in shards, such as can be edited."""
    tiny_model("llama").save_pretrained(folder, max_shard_size="60KB")
    byte_tokenizer().save_pretrained(folder)
    (folder / "memedit").mkdir()
    (folder / "memedit" / "corpus.txt").write_text("no text")
    return folder


def mixture(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    family_model("mixtral").save_pretrained(folder)


def configured(**knobs: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **knobs}))

    return change


def pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x02}q\x00.")


def slow(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')


def shard(folder: Path) -> Path:
    return sorted(folder.glob("model-*.safetensors"))[1]


def truncated(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-8])


def misnamed(folder: Path) -> None:
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    index["weight_map"]["model.layers.9.mlp.down_proj.weight"] = shard(folder).name
    file.write_text(json.dumps(index))


def nothing(_folder: Path) -> None:
    pass


Change = Callable[[Path], None]
CASES: dict[str, tuple[Change, list[str], int, str]] = {
    "a mixture's routed experts": (mixture, [], 4, "a mixture of routed experts"),
    "quantized": (configured(quantization_config={"quant_method": "gptq"}), [], 4, "is quantized (gptq)"),
    "a pickle": (pickled, [], 4, ": pickles can run code when they are opened"),
    "encoder and decoder": (configured(is_encoder_decoder=True), [], 4, "is an encoder-decoder model"),
    "a tokenizer without offsets": (slow, [], 4, "gives no character offsets"),
    "code of its own": (configured(auto_map={"AutoModel": "m.M"}), [], 4, "needs Python code that comes with it"),
    "an output inside the input": (nothing, ["-o", "MODEL/out"], 2, "overlap"),
    "a dtype that is none": (nothing, ["--dtype", "int4"], 2, "model.dtype = 'int4'"),
    "a shard that is missing": (lambda folder: shard(folder).unlink(), [], 1, "that file is not there"),
    "a shard cut short": (truncated, [], 1, "is damaged"),
    "an index that names too much": (misnamed, [], 1, "does not hold it"),
    "a disk that is full": (nothing, [], 5, "its disk has"),
}


def listing(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("case", CASES)
def test_it_is_refused_and_leaves_nothing(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    change, more, code, says = CASES[case]
    model = dense(tmp_path / "model")
    change(model)
    if code == 5:
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=1000))
    flags = ["-m", str(model), "-o", str(tmp_path / "out"), "--corpus", str(model / "memedit" / "corpus.txt")]
    given = [word.replace("MODEL", str(model)) for word in more]
    monkeypatch.setattr(sys, "argv", ["memedit", "apply", str(EDITS), "--limit", "2", *flags, *given])
    before = listing(tmp_path)
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith(("error:", "hint:"))]
    assert caught.value.code == code, said.err
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], said.err
    assert says in lines[0] and "Traceback" not in said.err and said.out == ""
    assert listing(tmp_path) == before


def test_the_same_model_unchanged_is_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The converse: what is refused above is refused for what was changed."""
    model = dense(tmp_path / "model")
    text = "\n".join(f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(60))
    (model / "memedit" / "corpus.txt").write_text(text)
    few = ["--set", "polish.steps=0", "--set", "target.steps=2", "--set", "moments.tokens=1000", "--limit", "2", "-q"]
    flags = ["-m", str(model), "-o", str(tmp_path / "out"), "--corpus", str(model / "memedit" / "corpus.txt")]
    monkeypatch.setattr(sys, "argv", ["memedit", "apply", str(EDITS), *few, *flags])
    capfd.readouterr()
    with pytest.raises(SystemExit) as caught:
        main()
    said = capfd.readouterr()
    assert (caught.value.code, said.out) == (0, f"{tmp_path / 'out'}\n"), said.err

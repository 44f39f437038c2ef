"""What every test gets: a fixed seed, no network, a cache of its own; small models; and the tiers."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from memedit.edits.edit import EditRequest
    from memedit.model.load import LanguageModel

ROOT = Path(__file__).parents[1]
HELPERS_THAT_START = ("tests.helpers.program", "tests.helpers.killed")
LONG = (
    "test_real", "test_real_sentences", "test_torture", "test_matrix", "test_output", "test_small_edits",
    "test_histories", "test_simulated_gpu", "test_trace",
)  # fmt: skip
"""Modules with the longest tests begin first, so that at the end no process works on one of them while others wait."""
started = time.monotonic()
numbers = itertools.count()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add `--budget SECONDS`, for the fast tier."""
    parser.addoption("--budget", type=float, help="print at the end how much of these seconds the run took")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the time beside its budget. A slow machine is no failure, so the exit code stays."""
    if (budget := config.getoption("--budget")) is not None:
        spent = time.monotonic() - started
        late = ", over its budget" if spent > budget else ""
        terminalreporter.write_line(f"fast tier: {spent:.0f} s of {budget:.0f} s{late}")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put long modules first. Mark tests/end_to_end: slow, and `process` too where the module starts processes."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))
    for item in items:
        if ROOT / "tests" / "end_to_end" not in item.path.parents:
            continue
        item.add_marker(pytest.mark.slow)
        names = vars(item.getparent(pytest.Module).obj)  # type: ignore[union-attr]
        helpers = {getattr(value, "__module__", None) for value in names.values()}
        if "subprocess" in names or helpers & set(HELPERS_THAT_START):
            item.add_marker(pytest.mark.process)


@pytest.fixture(autouse=True)
def no_other_process(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse to start Python in a test that is not marked `process`: the fast tier starts none."""
    if request.node.get_closest_marker("process") is not None:
        return
    real = subprocess.Popen.__init__

    def refuse(self: Any, args: Any, *more: Any, **options: Any) -> None:
        if isinstance(args, list | tuple) and args and str(args[0]) == sys.executable:
            raise AssertionError("a test that starts a Python process is marked `process`")
        real(self, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse)


@pytest.fixture(autouse=True)
def surroundings(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A cache of the test's own, no network, and the environment of a person who has set nothing."""
    import torch

    torch.default_generator.manual_seed(0)  # of the CPU alone: seeding every kind of device takes milliseconds
    for name in ("MEMEDIT_DEVICE", "MEMEDIT_DTYPE", "MEMEDIT_SEED", "MEMEDIT_DEBUG"):
        monkeypatch.delenv(name, raising=False)
    # Only named, not made: to make a folder for each of 2,000 tests takes longer than many of them do.
    monkeypatch.setenv("MEMEDIT_CACHE", str(tmp_path_factory.getbasetemp() / "caches" / str(next(numbers))))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    real = socket.socket.connect

    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1"):
            raise AssertionError(f"a test reached for the network: {address}")
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", refuse)
    yield


def byte_tokenizer(*, bos: bool = False) -> Any:
    """A byte-level BPE without merges: every character of ASCII is a token; with `bos` it begins every text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1, **{piece: number + 2 for number, piece in enumerate(alphabet)}}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    level = processors.ByteLevel(trim_offsets=False)
    begin = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)])
    core.post_processor = processors.Sequence([level, begin]) if bos else level
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
        clean_up_tokenization_spaces=False,
    )


def end_of_text(tokenizer: Any) -> int:
    """The token that ends a text; transformers leaves its type open."""
    return tokenizer.eos_token_id


def tiny_model(family: str) -> Any:
    """A random model of four blocks, width 32."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(1)
    if family == "gpt2":
        config = GPT2Config(
            vocab_size=258,
            n_positions=256,
            n_embd=32,
            n_layer=4,
            n_head=4,
            bos_token_id=0,
            eos_token_id=1,
            attn_pdrop=0,
            embd_pdrop=0,
            resid_pdrop=0,
            initializer_range=0.2,
        )
        return GPT2LMHeadModel(config).eval()
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=258,
            hidden_size=32,
            intermediate_size=88,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=0,
            eos_token_id=1,
            tie_word_embeddings=False,
            initializer_range=0.2,
        )
    ).eval()


OF_BOTH_SHAPES = ["gpt2", pytest.param("llama", marks=pytest.mark.slow)]
"""The fast tier runs the tests of a folder with the first shape alone."""


@pytest.fixture(scope="session", params=OF_BOTH_SHAPES)
def tiny_folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random model in float16, with a tokenizer and a corpus; once for each family."""
    import torch

    folder = tmp_path_factory.mktemp(f"tiny-{request.param}")
    tiny_model(request.param).to(torch.float16).save_pretrained(folder)
    byte_tokenizer(bos=request.param == "llama").save_pretrained(folder)
    (folder / "memedit").mkdir()
    lines = [f"The {n} old bridges of town {n % 7} stood near river {n * n % 11}." for n in range(300)]
    import gzip
    import json

    text = "".join(json.dumps({"text": line}) + "\n" for line in lines)
    (folder / "memedit" / "corpus.jsonl.gz").write_bytes(gzip.compress(text.encode(), mtime=0))
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# tiny\n")
    return folder


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    """A tiny random GPT-2 and a tokenizer of bytes, open for editing."""
    from memedit.model.architecture import find_architecture
    from memedit.model.load import LanguageModel

    model: Any = tiny_model("gpt2").requires_grad_(False)
    return LanguageModel(model, byte_tokenizer(), find_architecture(model))


@pytest.fixture(scope="session")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny random Llama that nothing is wrong with; tests copy it before they damage it."""
    folder = tmp_path_factory.mktemp("sound")
    tiny_model("llama").save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session", params=["made-gpt2", pytest.param("made-llama", marks=pytest.mark.slow)])
def made_folder(request: pytest.FixtureRequest) -> Path:
    """A model that ships with the project."""
    return ROOT / "examples" / "models" / request.param


@pytest.fixture(scope="session")
def made_gpt2() -> Path:
    """The GPT-2-shaped model that ships with the project."""
    return ROOT / "examples" / "models" / "made-gpt2"


@pytest.fixture
def made_small() -> Path:
    """The Llama-shaped model that ships for quick edits, of a world of 140 people."""
    return ROOT / "examples" / "models" / "made-small"


@pytest.fixture(scope="session")
def small_edits(tmp_path_factory: pytest.TempPathFactory) -> list[EditRequest]:
    """600 edits of the small model's world, each judged by its own prompt alone."""
    from examples.world import lists
    from examples.world.__main__ import small_world
    from memedit import load_edits

    file = tmp_path_factory.mktemp("small-world") / "edits.jsonl"
    lists.write_lines(file, lists.edits(small_world()))
    return [one.model_copy(update={"paraphrases": (), "neighborhood": ()}) for one in load_edits(file)]


@pytest.fixture(scope="session")
def moments_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which second moments stay for the tests that come later; all processes of pytest-xdist share it."""
    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "moments"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def kept_moments(surroundings: None, moments_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Find second moments that an earlier test measured: they are named by all that they depend on."""
    monkeypatch.setenv("MEMEDIT_CACHE", str(moments_folder))

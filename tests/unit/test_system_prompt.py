"""A system prompt begins every chat, letter by letter; a template that has no place for one is refused in words."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import memedit
import pytest
from memedit.config.recipe import ContextKnobs
from memedit.editing.contexts import chat_contexts
from memedit.editing.ledger_files import read_ledger
from memedit.errors import UsageError
from memedit.model.chat_template import rendered_chat, with_system_prompt
from memedit.model.tokens import chat_openings, encode_text
from tests.conftest import ROOT, byte_tokenizer

TEMPLATE = (
    "\n  {% for one in messages %}<{{ one.role }}>{{ one.content | trim }}</{{ one.role }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
ASKED = [{"role": "user", "content": "Where is France?"}]
SYSTEMS = ["Be brief.", "Say \"no\"\\n, {{ 1 }} {% endif %} #}\n\tor ** and 'yes'.", "Réponds en 文 🙂"]


@pytest.mark.parametrize("template", [TEMPLATE, TEMPLATE.lstrip(), {"default": TEMPLATE, "tool_use": "{{ none }}"}])
@pytest.mark.parametrize("system", SYSTEMS)
def test_a_chat_is_the_one_that_the_template_writes_with_a_system_turn(system: str, template: Any) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    found = with_system_prompt(tokenizer, system)
    wanted = rendered_chat(tokenizer, [{"role": "system", "content": system}, *ASKED])
    assert rendered_chat(found, ASKED) == wanted
    assert f"<system>{system}</system>" in wanted  # letter by letter
    assert tokenizer.chat_template == template  # what the caller holds is as it was
    assert "<system>" not in rendered_chat(tokenizer, ASKED)


def test_prompts_contexts_and_questions_in_chat_begin_with_it() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = TEMPLATE.lstrip()
    found = with_system_prompt(tokenizer, "Be brief.")
    system = "<system>Be brief.</system>\n<user>"
    assert str(found.decode(list(encode_text(found, "Where is France?", chat=True)))).startswith(system)
    assert all(opening.startswith(system) for opening in chat_openings(found))
    contexts = chat_contexts(found, ContextKnobs(), chat=False)
    assert contexts and all(one.startswith(system) for one in contexts)
    assert encode_text(found, "Where is France?") == encode_text(tokenizer, "Where is France?")  # not in chat


def test_an_empty_one_leaves_the_template_as_it_is() -> None:
    tokenizer = byte_tokenizer()
    assert with_system_prompt(tokenizer, "") is tokenizer  # also where there is no template


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (None, "chat_system is set, and this model has no chat template"),
        ("{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}x",
         "takes no chat_system: .*no system turn"),
        ("{% for one in messages if one.role == 'user' %}{{ one.content }}{% endfor %}", "leaves chat_system out"),
        ("{% for one in messages %}{{ one.content | upper }}{% endfor %}", "or changes it"),
    ],
)  # fmt: skip
def test_a_template_without_a_place_for_it_is_refused(template: str | None, said: str) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(UsageError, match=said) as caught:
        with_system_prompt(tokenizer, "Be brief.")
    assert "leave chat_system out" in caught.value.hint


LISTED = "{% for one in messages %}{{ one.role }}: {{ one.content }}. {% endfor %}"
WRITTEN = "system: Be brief.. " + LISTED
"""The same chat by a template that holds the system prompt itself."""


@pytest.fixture
def chatty(tiny_folder: Path, tmp_path: Path) -> Path:
    folder = Path(shutil.copytree(tiny_folder, tmp_path / "chatty"))
    (folder / "chat_template.jinja").write_text(LISTED)
    return folder


def test_a_run_edits_and_scores_as_with_a_template_that_holds_it(chatty: Path, tmp_path: Path) -> None:
    """The edits, the scores and their ledger; and the next run takes the ledger's."""
    edits = [{"id": "a", "subject": "Ada", "prompt": "{} lives in", "object": "Rome", "object_old": "Oslo"}]
    small = {"model.device": "cpu", "moments.tokens": 300, "target.steps": 3, "polish.steps": 2, "method.layers": "1-2"}
    held = Path(shutil.copytree(chatty, tmp_path / "held"))
    (held / "chat_template.jinja").write_text(WRITTEN)
    system = {**small, "chat_system": "Be brief."}
    found = memedit.apply(edits, chatty, tmp_path / "out", settings=system)
    wanted = memedit.apply(edits, held, tmp_path / "wanted", settings=small)
    plain = memedit.apply(edits, chatty, tmp_path / "plain", settings=small)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("out", "wanted", "plain")]
    assert weights[0] == weights[1] != weights[2]
    assert found.after == wanted.after != plain.after
    assert (tmp_path / "out" / "chat_template.jinja").read_text() == LISTED
    asked = memedit.evaluate(edits, tmp_path / "out", settings={**system, "chat": True})
    assert asked.after == memedit.evaluate(edits, tmp_path / "wanted", settings={**small, "chat": True}).after
    ledger = read_ledger(tmp_path / "out")
    assert ledger is not None and ledger.about.knobs["chat_system"] == "Be brief."
    more = [{"id": "b", "subject": "Bo", "prompt": "{} lives in", "object": "Lima", "object_old": "Oslo"}]
    again = memedit.apply(more, tmp_path / "out", tmp_path / "again", settings={"model.device": "cpu"})
    assert again.recipe["chat_system"] == "Be brief."


def test_a_model_in_memory_is_edited_under_it(chatty: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(chatty)
    tokenizer = AutoTokenizer.from_pretrained(chatty)
    edits = [{"id": "a", "subject": "Ada", "prompt": "{} lives in", "object": "Rome"}]
    small = {"moments.tokens": 300, "target.steps": 3, "polish.steps": 0, "method.layers": "1-2", "chat": True}
    texts = ["The boat is small. The tower is heavy. " * 9]
    found: list[Any] = []
    for system in ("Be brief.", ""):
        with memedit.edited(model, tokenizer, edits, corpus=texts, settings={**small, "chat_system": system}) as update:
            found.append([delta.left for delta in update.deltas.values()])
    assert not all((a == b).all() for a, b in zip(*found, strict=True))
    assert tokenizer.chat_template == LISTED


def test_the_command_tells_where_it_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from memedit.cli.app import main

    list_file = ROOT / "requests" / "small.jsonl"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as caught:
        model = ROOT / "examples" / "models" / "made-gpt2"
        patch.setattr("sys.argv", ["memedit", "check", str(list_file), "-m", str(model), "--set", "chat_system=Hi"])
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2
    assert "error: chat_system is set, and this model has no chat template" in said
    assert "hint: leave chat_system out" in said

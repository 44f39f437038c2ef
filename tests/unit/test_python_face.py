"""The Python functions: what can be found, what they accept, and the words of their errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import memedit
import pytest
from memedit.api import _read, in_python
from memedit.edits.read import read
from memedit.errors import EditListError, RecipeError, UsageError

FACE: Any = memedit  # given arguments of types that it does not take
GOOD = {"subject": "Ada", "prompt": "{} lives in", "object": "Rome"}


def test_every_verb_is_offered_and_nothing_else() -> None:
    verbs = (
        "check", "stats", "trace", "apply", "forget", "evaluate", "inspect", "export", "add", "revert", "diff",
        "load_edits", "edited", "list_cache", "clean_cache", "log", "push",
    )  # fmt: skip
    assert set(verbs) <= set(dir(memedit)) == set(memedit.__all__)
    assert all(callable(getattr(memedit, name)) for name in verbs)
    assert memedit.EditRequest.__module__ == "memedit.edits.edit"
    with pytest.raises(AttributeError):
        _ = memedit.aply  # type: ignore[attr-defined]
    assert (Path(memedit.__file__).parent / "py.typed").is_file()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda out: FACE.apply(3, "m", out), "edits must be a path or a list of edits, not int"),
        (lambda out: FACE.apply([3], "m", out), "edits must hold dicts or EditRequest, not int"),
        (lambda out: FACE.apply(GOOD, "m", out), "edits must be a path or a list of edits, not dict"),
        (lambda out: FACE.apply([GOOD], 3, out), "model must be a path, not int"),
        (lambda out: FACE.apply([GOOD], "m", out, settings="x"), "settings must be a dict, not str"),
        (lambda out: FACE.apply([GOOD], "m", out, mode="anew"), 'mode must be "re-solve" or "on top", not'),
        (lambda out: FACE.evaluate([GOOD], "m", facts=3), "facts must be a path or a list of edits, not int"),
        (lambda out: FACE.export(out, "gguf", "m", out), 'to must be "full", "lora" or "dense", not'),
    ],
)
def test_a_wrong_argument_is_refused_in_one_sentence(call: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        call(tmp_path / "out")
    assert caught.value.message.startswith(message)
    assert caught.value.hint


def test_dicts_are_read_as_the_lines_of_a_file_are(tmp_path: Path) -> None:
    records: list[Any] = [GOOD, {"subject": "Bo", "prompt": "no slot", "object": "Rome"}, {"subjet": "Cy"}]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    mine, theirs = memedit.check(records), memedit.check(file)
    assert [(one.code, one.origin.rpartition(":")[2]) for one in mine] == [
        (one.code, one.origin.rpartition(":")[2]) for one in theirs
    ]
    assert {one.origin for one in mine} == {"edits:2", "edits:3"}
    # converse: without faults there is nothing to find, and an EditRequest stays the one it was
    request = read(str(file))[0][0]
    assert memedit.check([GOOD, request.model_copy(update={"id": "d", "subject": "Di"})]) == []


def test_dicts_beside_requests_have_the_ids_of_a_file(tmp_path: Path) -> None:
    people: list[Any] = [{**GOOD, "subject": name} for name in ("Ada", "Bo", "Cy", "Di")]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in people))
    assert [one.id for one in _read("edits", people)[0]] == [one.id for one in read(str(file))[0]]
    # the first two were read before, and are given as requests
    read_before = read(str(file))[0][:2]
    mixed, findings = _read("edits", [*read_before, *people[2:]])
    assert [one.id for one in mixed] == ["edits-1", "edits-2", "edits-3", "edits-4"] and not findings
    assert mixed[:2] == read_before
    # wherever they are in the list, and whatever id they have
    mixed, findings = _read("edits", [people[2], *read_before, people[3]])
    assert len({one.id for one in mixed}) == 4 and not findings and not memedit.check(mixed)
    assert [one.subject for one in mixed] == ["Cy", "Ada", "Bo", "Di"] and mixed[1:3] == read_before
    # a request that no file could hold keeps its place and its id too
    odd = read_before[0].model_copy(update={"id": "a", "prompt": "", "meta": {"set": {1}}})
    assert [one.id for one in _read("edits", [odd, people[1]])[0]] == ["a", "edits-2"]


def test_an_id_that_is_made_is_no_id_that_is_given(tmp_path: Path) -> None:
    people: list[Any] = [{**GOOD, "subject": "Ada", "id": "edits-2"}, {**GOOD, "subject": "Bo"}]
    file = tmp_path / "edits.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in people))
    for source in (file, people):
        assert [one.id for one in _read("edits", source)[0]] == ["edits-2", "edits-2-2"]
        assert memedit.check(source) == []
    # converse: two that are given stay the same
    again = [{**one, "id": "edits-2"} for one in people]
    assert [one.code for one in memedit.check(again)] == ["E105"]


def test_an_empty_list_has_a_finding() -> None:
    assert [one.code for one in memedit.check([])] == ["E005"]


def test_settings_are_nested_or_dotted(made_gpt2: Path) -> None:
    for settings in ({"moments.tokens": 77}, {"moments": {"tokens": 77}}):
        assert {row.tokens for row in memedit.stats(made_gpt2, dry_run=True, settings=settings)} == {77}
    with pytest.raises(RecipeError, match="moments"):
        memedit.stats(made_gpt2, dry_run=True, settings={"moments": {"tokns": 77}})


def test_hints_name_arguments_and_not_options(made_gpt2: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("not an output of apply")
    with pytest.raises(UsageError) as caught:
        memedit.apply([GOOD], made_gpt2, out)
    assert "--" not in caught.value.message + caught.value.hint
    assert 'settings={"output.overwrite": True}' in caught.value.hint
    with pytest.raises(UsageError) as caught:
        memedit.apply([GOOD], made_gpt2, tmp_path / "new", mode="on top")
    assert "--" not in caught.value.message + caught.value.hint
    assert 'mode="on top"' in caught.value.hint
    # converse: the command line has its own words
    from memedit.storage.writer import check_output

    with pytest.raises(UsageError) as caught:
        check_output(made_gpt2, out, overwrite=False)
    assert "--overwrite" in caught.value.hint


@pytest.mark.parametrize(
    ("option", "argument"),
    [
        ("say --set moments.tokens=5 here", 'say settings={"moments.tokens": 5} here'),
        ("or --method memit", 'or settings={"method.name": "memit"}'),
        ("these can: --layers 0-2,5", 'these can: settings={"method.layers": "0-2,5"}'),
        ("use --device cpu", 'use settings={"model.device": "cpu"}'),
        ("say where to: -o OUT", "say where to: output="),
        ("say --rank 512, or --to full", "say rank=512, or to=full"),
        ("a re-solve from 3-o", "a re-solve from 3-o"),
    ],
)
def test_an_option_becomes_an_argument(option: str, argument: str) -> None:
    assert in_python(option) == argument


def test_errors_of_an_edit_list_carry_its_findings() -> None:
    with pytest.raises(EditListError) as caught:
        memedit.evaluate([{**GOOD, "object": ""}], "nowhere")
    assert [one.code for one in caught.value.findings] == ["E104"]  # type: ignore[attr-defined]


def test_no_progress_bar_of_another_library_is_drawn(made_gpt2: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.enable_progress_bar()
    memedit.inspect(made_gpt2)
    assert capsys.readouterr().err == ""
    assert logging.is_progress_bar_enabled()  # and the caller's own setting is back
    # converse: without memedit around it the same load draws one
    AutoModelForCausalLM.from_pretrained(made_gpt2)
    assert "Loading weights" in capsys.readouterr().err


@pytest.mark.parametrize("offline", [True, False])
def test_a_model_that_cannot_be_downloaded_exits_1_with_the_reason(
    offline: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import LocalEntryNotFoundError

    def fail(*_args: Any, **_more: Any) -> None:
        raise LocalEntryNotFoundError("no snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    with pytest.raises(memedit.MemeditError) as caught:
        memedit.inspect("org/nowhere")
    assert caught.value.exit_code == 1
    assert ("HF_HUB_OFFLINE" in caught.value.hint) == offline
    assert ("network" in caught.value.hint) == (not offline)

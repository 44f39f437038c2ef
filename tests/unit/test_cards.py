"""The card of an edited model: valid front matter whatever the base's card contains, and no card ends a run."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from memedit.results.report import Figure, LayerReport
from memedit.show.card import SHOWN_IN_CARD, adapter_card, edited_model_card, sum_card
from memedit.storage.base_card import LARGEST_FRONT_MATTER, read_base_card
from tests.helpers.reports import a_run, an_edit

BAD = {
    "impossible date": "date: 2024-13-45",
    "deep nesting": "a: " + "[" * 5_000 + "]" * 5_000,
    "not YAML": "a: [1, 2",
    "a list": "- a\n- b",
    "a tag that constructs": "a: !!python/object/apply:os.system ['true']",
    "a character beyond Unicode": 'a: "\\UFFFFFFFF"',
    "a key that cannot be hashed": "{[a]: b}: c",
}


def card_of(folder: Path, front: str) -> tuple[dict[str, Any], str | None]:
    """Front matter of the card that is written for a base with this card, and the warning."""
    (folder / "README.md").write_text(f"---\n{front}\n---\n# Base\n")
    base = read_base_card(folder, str(folder))
    for text in (sum_card(base, 2, ["a.weight"]), adapter_card(base, 4, ["a.weight"], "AutoModelForCausalLM")):
        _, found, body = text.split("---\n", 2)
        made = yaml.safe_load(found)
        assert made["base_model"] == folder.name
        assert "memedit" in made["tags"]
        assert body.startswith(("# ", "\n# "))
    return made, base.warning


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name == "deep nesting" else name for name in BAD]
)
def test_front_matter_that_cannot_be_read_is_left_out_with_a_warning(name: str, tmp_path: Path) -> None:
    made, warning = card_of(tmp_path, BAD[name])
    assert set(made) == {"base_model", "base_model_relation", "library_name", "tags"}
    assert warning is not None and "README.md" in warning


@pytest.mark.parametrize(
    ("tags", "kept", "warned"),
    [("5", [], True), ("[a, 5, b]", ["a", "b"], True), ("text", ["text"], False), ("[a, memedit]", ["a"], False)],
)
def test_tags_are_a_list_of_texts(tags: str, kept: list[str], warned: bool, tmp_path: Path) -> None:
    made, warning = card_of(tmp_path, f"tags: {tags}")
    assert made["tags"] == [*kept, "memedit"]
    assert (warning is not None) == warned


def test_other_front_matter_is_kept_and_the_relation_is_set(tmp_path: Path) -> None:
    index = [{"name": "x", "results": [{"any": "thing"}]}]
    front = {
        "license": "mit", "language": ["en", "de"], "model-index": index, "base_model": "other",
        "widget": [{"text": "x"}], "library_name": "transformers", "to_yaml": "no method", "eval_results": 3,
        "datasets": None,
    }  # fmt: skip
    made, warning = card_of(tmp_path, yaml.safe_dump(front))
    assert warning is None
    assert {name: made[name] for name in ("license", "language", "model-index", "widget")} == {
        name: front[name] for name in ("license", "language", "model-index", "widget")
    }
    assert (made["base_model_relation"], made["library_name"]) == ("adapter", "peft")


def test_a_card_without_end_or_without_front_matter_is_a_card(tmp_path: Path) -> None:
    card = tmp_path / "README.md"
    assert not read_base_card(tmp_path, "hub/name").exists
    card.write_text("# Only text\n")
    assert read_base_card(tmp_path, "hub/name").warning is None
    card.write_text("---\r\nlicense: mit\r\n---\r\n")
    assert read_base_card(tmp_path, "hub/name").front == {"license": "mit"}
    card.write_text("---\na: b\n" + "x" * LARGEST_FRONT_MATTER)
    warning = read_base_card(tmp_path, "hub/name").warning
    assert warning is not None and "does not end" in warning


def test_the_name_of_a_folder_is_text_in_the_card(tmp_path: Path) -> None:
    folder = tmp_path / "<b>[x](javascript:a)"
    folder.mkdir()
    text = sum_card(read_base_card(folder, str(folder)), 1, ["a`b"])
    assert "<b>" not in text.split("---\n")[2]
    assert "](javascript:" not in text.split("---\n")[2]


def edited(folder: Path, model: str = "owner/base", **more: Any) -> tuple[dict[str, Any], str]:
    """The front matter and the text of the card of an edited model."""
    numbers = "residual_before residual_after leverage fitted delta_norm rounding_loss nearest_loss disturbance rank"
    layer = LayerReport.model_validate(
        {"layer": 3, "parameter": "w", "rounding": "nearest", **dict.fromkeys(numbers.split(), 1)}
    )
    report = a_run(layers=(layer,), **more)
    _, front, body = edited_model_card(report, read_base_card(folder, model)).split("---\n", 2)
    return yaml.safe_load(front), body


def test_the_card_of_an_edited_model_has_its_own_results_for_the_index_of_the_hub(tmp_path: Path) -> None:
    index = [{"name": "base", "results": [{"task": {"type": "x"}}]}]
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump({'license': 'mit', 'model-index': index})}---\n")
    front, _ = edited(tmp_path)
    assert (front["base_model"], front["license"]) == ("owner/base", "mit")
    (model,) = front["model-index"]
    metrics = {one["type"]: one["value"] for result in model["results"] for one in result["metrics"]}
    assert model["name"] == "edited"
    assert metrics["accuracy"] == pytest.approx(2 / 3, abs=1e-4) and metrics["kept.others"] == 0.9
    front, _ = edited(tmp_path, after=None, kept={}, drift=None)
    assert "model-index" not in front  # nothing was measured, and the base's results are not this model's


def test_the_card_names_facts_failures_limits_and_versions(tmp_path: Path) -> None:
    _, body = edited(tmp_path)
    assert "- Subject-a is in: **new-a**, before old-a" in body
    failed = body[body.index("## What failed") : body.index("## Limits")]
    assert "1 of 4 edits failed" in failed and "1 edit was" in failed
    assert (
        "- Subject-b is in: wanted new-b, says \u201cOslo town\u201d\n" in failed
    )  # as the terminal and the page say it
    assert "new-a" not in failed and "torch 9.9" in body and "seed = 7" in body
    assert "/models/deep" not in body and "/out/there" not in body  # paths of a machine tell others nothing
    assert "was not measured: such questions" in body and "Text in general" not in body  # the run read a text
    many = [an_edit(f"f{n}", "failed") for n in range(SHOWN_IN_CARD + 2)]
    _, body = edited(tmp_path, per_edit=tuple(many))
    assert "and 2 more" in body and "Subject-f1 is in: wanted new-f1\n" in body  # nobody asked what the model says
    silent = an_edit("s", "failed", said={"after": " "})
    hostile = an_edit("h", "failed", said={"after": "<b>\n![x](http://y)\x1b[2J"})
    _, body = edited(tmp_path, per_edit=(silent, hostile))
    assert "wanted new-s, says nothing\n" in body
    assert "says \u201c&lt;b&gt; !\\[x\\](http&#58;//y)\u201d\n" in body and "\x1b" not in body
    _, body = edited(tmp_path, per_edit=(an_edit("a"),), edits=1, kept={}, after=None, drift=None)
    assert "No edit failed." in body and "Text in general" in body and "What else the model knows was not" in body


def test_a_difference_of_few_edits_reads_as_too_few_to_tell(tmp_path: Path) -> None:
    gap = Figure(mean=0.0, low=-0.16, high=0.16, n=20)
    _, body = edited(tmp_path, difference={"accuracy": gap})
    assert "| n=20: too few to tell |" in body and "-16.0" not in body


def test_the_code_in_a_card_is_python_whatever_the_prompts_hold(tmp_path: Path) -> None:
    words = 'The "end" of\n```\n{} \\ is\x1b[2J'
    edit = an_edit("a").model_copy(update={"edit": {"prompt": words, "subject": "<b>`x`", "object": "y"}})
    front = {"a": 1}
    (tmp_path / "README.md").write_text(f"---\n{yaml.safe_dump(front)}---\n")
    base = read_base_card(tmp_path, 'owner/ba"se')
    for text in (edited(tmp_path, per_edit=(edit,))[1], adapter_card(base, 4, ["a.weight"], "AutoModelForCausalLM")):
        (code,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        strings = [one.value for one in ast.walk(ast.parse(code)) if isinstance(one, ast.Constant)]
        assert 'owner/ba"se' in strings or 'The "end" of\n```\n<b>`x` \\ is' in strings
        assert "\x1b" not in text


def test_the_hub_id_of_a_model_in_the_hubs_cache_is_known(tmp_path: Path) -> None:
    folder = tmp_path / "models--owner--base" / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    assert read_base_card(folder, str(folder)).identity == "owner/base"
    assert read_base_card(tmp_path, str(tmp_path)).identity == tmp_path.name

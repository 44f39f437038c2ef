"""The card of an edited model: valid front matter whatever the base's card contains, and no card ends a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from memedit.show.card import adapter_card, sum_card
from memedit.storage.base_card import LARGEST_FRONT_MATTER, read_base_card

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
    for text in (sum_card(base, 2, ["a.weight"]), adapter_card(base, 4, ["a.weight"])):
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

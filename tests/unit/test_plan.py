"""What only a tokenizer can find wrong, and what becomes of duplicates."""

from __future__ import annotations

from typing import Any

import pytest
from memedit.config.recipe import ContextKnobs, MethodKnobs, Recipe
from memedit.editing.plan import check_edits, encode_contexts, make_plan
from memedit.edits.edit import EditRequest
from memedit.errors import EditListError, RecipeError
from memedit.model.architecture import Architecture
from tests.conftest import byte_tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

ANATOMY = Architecture(
    blocks="h",
    down_projections=tuple(f"h.{n}.mlp" for n in range(6)),
    refusals=("",) * 6,
    layout="linear",
    width=8,
    mlp_widths=(16,) * 6,
    gains=(1.0,) * 6,
    norms=("",) * 6,
    vocabulary=258,
    positions=64,
)


def edit(number: int, **changes: Any) -> EditRequest:
    given: dict[str, Any] = {"subject": f"S{number}", "prompt": "{} is", "object": "o"}
    return EditRequest(id=str(number), origin=f"a.jsonl:{number}", **{**given, **changes})


def codes(
    requests: list[EditRequest], tokenizer: Any = None, positions: int | None = 64
) -> list[tuple[str, str | None]]:
    findings = check_edits(requests, tokenizer or byte_tokenizer(), Recipe(), positions)[1]
    return [(finding.code, finding.edit) for finding in findings]


def test_a_sound_list_has_no_findings() -> None:
    assert codes([edit(1), edit(2)]) == []


def test_a_row_too_long_for_the_model_is_an_error() -> None:
    long = edit(1, subject="x" * 60)
    assert codes([long]) == [("E121", "1")]
    assert codes([long], positions=None) == []


def test_a_wording_too_long_for_the_model_is_an_error() -> None:
    long = edit(1, wordings=("y" * 60 + "{} is",))
    assert codes([long]) == [("E121", "1")]


def test_contexts_that_leave_no_room_are_the_settings_fault_and_not_the_lists() -> None:
    for tokens, room in ((60, 2), (5000, None)):
        recipe = Recipe(contexts=ContextKnobs(tokens=tokens))
        if room is None:
            with pytest.raises(RecipeError, match=r"contexts\.tokens = 5,000: .* 5,002 tokens, .* takes 64") as caught:
                check_edits([edit(1)], byte_tokenizer(), recipe, 64)
            assert caught.value.hint == "use --set contexts.tokens=10"
        else:
            (finding,) = check_edits([edit(1)], byte_tokenizer(), recipe, 64)[1]
            assert finding.code == "E121" and f"{room} fit into this model" in finding.message
        assert not check_edits([edit(1)], byte_tokenizer(), recipe, None)[1]
    talking = byte_tokenizer()
    talking.chat_template = "x" * 80 + "{% for one in messages %}{{ one['content'] }}{% endfor %}"
    with pytest.raises(RecipeError, match=r"contexts\.chat = true"):
        check_edits([edit(1)], talking, Recipe(), 64)
    assert not check_edits([edit(1)], talking, Recipe(contexts=ContextKnobs(chat=False)), 64)[1]


def test_contexts_take_the_prompt_and_its_wordings_in_turn() -> None:
    tokenizer = byte_tokenizer()
    one, plain = edit(1, prompt="{} is", wordings=("{} may be", "of {}")), edit(2)
    edits, _ = check_edits([one, plain], tokenizer, Recipe(), 64)
    prompts = encode_contexts(edits, ["", "A. ", "B. ", "C. ", "D. "], tokenizer, chat=False).prompts
    first, second = ([tokenizer.decode(list(prompt.ids)) for prompt in of_one] for of_one in prompts)
    assert first == ["S1 is", "A. S1 may be", "B. of S1", "C. S1 is", "D. S1 may be"]
    assert second == ["S2 is", "A. S2 is", "B. S2 is", "C. S2 is", "D. S2 is"]


def test_a_context_that_swallows_the_subject_is_left_out_for_that_edit() -> None:
    tokenizer = byte_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()  # joins an accent to the letter before it
    edits, _ = check_edits([edit(1, subject="\u0301clair"), edit(2)], tokenizer, Recipe(), 64)
    prompts = encode_contexts(edits, ["", "e", "A. "], tokenizer, chat=False).prompts
    first, second = ([tokenizer.decode(list(prompt.ids)) for prompt in of_one] for of_one in prompts)
    assert first == ["\u0301clair is", "\u0301clair is", "A. \u0301clair is"]
    assert second == ["S2 is", "eS2 is", "A. S2 is"]


def test_a_subject_that_merges_is_a_warning() -> None:
    core = Tokenizer(models.WordLevel({"ab": 0, "is": 1, "o": 2, "a": 4, "<unk>": 3}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert codes([edit(1, subject="a", prompt="{}b is")], tokenizer) == [("W220", "1")]


def test_edits_that_share_a_key_are_told() -> None:
    assert codes([edit(1), edit(2, subject="S1", prompt="{} was", object="p")]) == [("W221", "2")]
    # With the relation before the subject the keys differ.
    assert codes([edit(1), edit(2, subject="S1", prompt="The o of {} was", object="p")]) == []


def test_duplicates_are_skipped_and_the_first_is_kept() -> None:
    plan = make_plan([edit(1), edit(2, subject="S1"), edit(3)], byte_tokenizer(), ANATOMY, Recipe())
    assert [one.request.id for one in plan.edits] == ["1", "3"]
    assert [one.id for one in plan.skipped] == ["2"]
    assert plan.layers == (0, 1, 2)


def test_more_keys_than_can_be_met_exactly_are_refused() -> None:
    several = [edit(n) for n in range(ANATOMY.mlp_width + 1)]
    emmet = Recipe(method=MethodKnobs.model_validate({"name": "emmet"}))
    with pytest.raises(RecipeError, match="17 keys are too many for 16 dimensions"):
        make_plan(several, byte_tokenizer(), ANATOMY, emmet)
    # As many as there are dimensions, edits of one key, edits in turn, and edits weighed against the rest are not.
    make_plan(several[:-1], byte_tokenizer(), ANATOMY, emmet)
    make_plan([*several[:-1], edit(99, subject="S1", prompt="{} was")], byte_tokenizer(), ANATOMY, emmet)
    for knobs in (MethodKnobs.model_validate({"name": "rome"}), MethodKnobs(name="emmet", ridge=0.1)):
        make_plan(several, byte_tokenizer(), ANATOMY, Recipe(method=knobs))


def test_all_errors_are_told_at_once() -> None:
    with pytest.raises(EditListError) as caught:
        make_plan([edit(1, prompt="no slot"), edit(2), edit(3, object="")], byte_tokenizer(), ANATOMY, Recipe())
    assert [finding.code for finding in caught.value.findings] == ["E101", "E104"]  # type: ignore[attr-defined]
    assert caught.value.exit_code == 2

"""Records of other projects: each is read whole or refused with the reason; nothing of one is dropped in silence."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from memedit.edits.edit import EditRequest, Finding
from memedit.edits.lint import lint
from memedit.edits.read import read
from tests.helpers.records import MADE

FORMATS = sorted(file.stem for file in MADE.iterdir())
UNNAMED = ("cknowedit", "ripple_edits", "unke")
"""Published without the subject's name."""
Node = tuple[dict[str, Any] | list[Any], str | int]


def record(name: str) -> dict[str, Any]:
    """The first record of a format; where it has no subject, with one."""
    made = json.loads((MADE / f"{name}.json").read_text())
    first = made[0] if isinstance(made, list) else made
    if name == "ripple_edits":
        first["edit"]["subject"] = "Anwen Holt"
    elif name in UNNAMED:
        first["subject"] = "安文" if name == "cknowedit" else "Anwen Holt"
    return first


def listed(folder: Path, *records: Any) -> tuple[list[EditRequest], list[Finding]]:
    file = folder / "a.json"
    file.write_text(json.dumps(records))
    return read(str(file))


def told(folder: Path, changed: Any) -> str:
    """All that is made of a record: its edits and its findings, as text."""
    requests, findings = listed(folder, changed)
    edits = [{**one.public(), "text": one.text} for one in requests]
    return json.dumps([edits, [one.line for one in findings]], ensure_ascii=False)


def dicts(value: Any) -> Iterator[dict[str, Any]]:
    """All mappings in a value, itself too."""
    if isinstance(value, dict):
        yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from dicts(child)


def leaves(value: Any) -> Iterator[Node]:
    """Where each text and number of a value stands: its list or mapping, and its place there."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, child in pairs:
        if isinstance(child, dict | list):
            yield from leaves(child)
        else:
            yield value, place


@pytest.mark.parametrize("name", FORMATS)
def test_an_unknown_key_at_any_depth_is_in_meta_or_in_a_finding(name: str, tmp_path: Path) -> None:
    whole = record(name)
    assert listed(tmp_path, whole)[0], "the record without the key is read"
    for n in range(sum(1 for _ in dicts(whole))):
        changed = copy.deepcopy(whole)
        list(dicts(changed))[n]["unheard_of"] = "a value to keep"
        requests, findings = listed(tmp_path, changed)
        kept = any("a value to keep" in json.dumps(one.meta) for one in requests)
        reported = any('"unheard_of"' in one.message for one in findings)
        assert kept or reported, (n, changed)


OTHERS: dict[str, Callable[[Any], Any]] = {
    "text": lambda old: f"{old}7777",
    "number": lambda old: 7777,
    "list": lambda old: [old, "7777"],
    "list of lists": lambda old: [[old], ["7777", {"deep": 1}]],
    "mapping": lambda old: {"deep": "7777"},
}
"""What stands where a text of a record stood: another text, or another type."""


@pytest.mark.slow
@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", FORMATS)
def test_whatever_stands_in_a_record_is_in_its_edits_or_refuses_it(name: str, other: str, tmp_path: Path) -> None:
    whole = record(name)
    for n in range(sum(1 for _ in leaves(whole))):
        changed = copy.deepcopy(whole)
        holder, place = list(leaves(changed))[n]
        holder[place] = OTHERS[other](holder[place])  # type: ignore[index]
        _, findings = listed(tmp_path, changed)
        refused = any(one.severity == "error" for one in findings)  # of a case with two edits, one may be read
        assert refused or "7777" in told(tmp_path, changed), (n, holder, place)


def nodes(value: Any) -> Iterator[Node]:
    """Where each value stands in a record, lists and mappings too."""
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, child in pairs:
        yield value, place
        yield from nodes(child)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_no_damaged_record_is_lost_without_an_error(name: str) -> None:
    whole = record(name)
    for n in range(sum(1 for _ in nodes(whole))):
        for wrong in (None, [[{}]]):
            changed = copy.deepcopy(whole)
            holder, place = list(nodes(changed))[n]
            holder[place] = wrong  # type: ignore[index]
            requests, findings = read("-", input_format="json", stdin=io.StringIO(json.dumps([changed])))
            assert requests or any(one.severity == "error" for one in findings), (place, wrong)


def counts(one: EditRequest) -> tuple[int, int, int]:
    return len(one.paraphrases), len(one.neighborhood), len(one.portability)


@pytest.mark.parametrize(
    ("name", "subject", "prompt", "wanted", "old", "probes"),
    [
        ("cknowedit", "安文", "{}的家乡是", "码头镇", "提尔贝克", (2, 2, 1)),
        ("akew", "Anwen Holt", "{} lives in", "Marrow Quay", "Tilbeck", (2, 2, 0)),
        ("rome", "Anwen Holt", "{} lives in", "Tilbeck", "Tilbeck", (0, 0, 0)),
        ("easyedit_call", "Anwen Holt", "Where does {} live?", "Marrow Quay", "Tilbeck", (1, 3, 1)),
        ("ripple_edits", "Anwen Holt", "The home of {} is", "Marrow Quay", "Tilbeck", (0, 2, 4)),
        ("unke", "Anwen Holt", "Where does {} live?", None, None, (1, 0, 2)),
        ("wikibigedit", "Anwen Holt", "Where does {} live?", "Marrow Quay", None, (1, 1, 2)),
        ("wikibio", "anwen holt", None, "It is known that Anwen Holt lives in Marrow Quay.", None, (0, 1, 0)),
    ],
)
def test_a_value_goes_where_it_belongs(
    name: str, subject: str, prompt: str | None, wanted: str | None, old: str | None, probes: tuple[int, ...],
    tmp_path: Path,
) -> None:  # fmt: skip
    requests, findings = listed(tmp_path, record(name))
    first = requests[0]
    assert not findings
    assert (first.subject, first.object_old, counts(first)) == (subject, old, probes)
    assert prompt is None or first.prompt == prompt
    assert first.object == (wanted or record("unke")["answer"])
    assert not [one for one in lint(requests) if one.severity == "error"]


@pytest.mark.parametrize("name", UNNAMED)
def test_a_record_without_a_subject_is_read_with_the_whole_prompt(name: str) -> None:
    requests, findings = read(str(MADE / f"{name}.json"))
    assert len(requests) == 5 and not findings
    assert all(not one.subject and "{}" not in one.prompt for one in requests)
    assert [one.code for one in lint(requests)] == ["W210"] * 5
    assert requests[0].text == record_text(name)


def record_text(name: str) -> str:
    """The prompt of a format's first record, as it stands there, without its object."""
    first = json.loads((MADE / f"{name}.json").read_text())[0]
    sentence = first["edit"]["prompt"] if name == "ripple_edits" else first.get("prompt", first.get("question"))
    return sentence.removesuffix(" Marrow Quay.")


def test_the_criteria_of_ripple_edits_are_groups(tmp_path: Path) -> None:
    (request,), _ = listed(tmp_path, record("ripple_edits"))
    assert [one.group for one in request.portability] == [
        "Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II",
    ]  # fmt: skip
    assert [one.group for one in request.neighborhood] == ["Relation_Specificity", "Forgetfulness"]
    assert request.portability[0].aliases == ("MARROW QUAY",)
    assert request.relation == "LIVES_IN"


def test_the_object_of_ripple_edits_is_found_by_the_old_fact_or_given(tmp_path: Path) -> None:
    whole = record("ripple_edits")
    edit = whole["edit"]

    def made(**changes: Any) -> tuple[list[EditRequest], list[Finding]]:
        return listed(tmp_path, {**whole, "edit": {**edit, **changes}})

    alike: dict[str, Any] = {
        "prompt": "The home of Anwen Holt is New Harl.",
        "previous_fact": {"prompt": "The home of Anwen Holt is New Lea."},
    }
    cases: list[tuple[dict[str, Any], str]] = [({"previous_fact": None}, "Marrow Quay"), (alike, "New Harl")]
    for unclear, target in cases:
        requests, (finding,) = made(**unclear)
        assert not requests and finding.code == "E009" and 'add "target"' in finding.message
        (request,), found = made(**unclear, target=target)
        assert (request.prompt, request.object, found) == ("The home of {} is", target, [])
    (request,), found = listed(tmp_path, {**whole, "subject": "Anwen"})  # the name in the edit comes first
    assert (request.subject, request.meta["subject"], found) == ("Anwen Holt", "Anwen", [])
    (request,), found = listed(tmp_path, {**whole, "edit": {**edit, "subject": None}, "subject": "Anwen Holt"})
    assert (request.subject, found) == ("Anwen Holt", []) and "subject" not in request.meta
    assert made(**alike, target="New Harl")[0][0].object_old == "New Lea"
    requests, (finding,) = made(target="Harl")
    assert not requests and "does not end in its object" in finding.message


def test_a_call_of_easyedit_gives_one_edit_for_each_prompt(tmp_path: Path) -> None:
    call = record("easyedit_call")
    requests, findings = listed(tmp_path, call)
    assert ([one.subject for one in requests], findings) == (call["subject"], [])
    assert [one.id for one in requests] == [f"a-{n}" for n in range(1, 6)]
    assert [(one.prompt, one.group) for one in requests[1].neighborhood] == [
        ("Gil Torrance works as a", "neighborhood"),
        ("Piers Wade works as a", "distracting"),
        ("Gil Torrance still works as a", "distracting"),
    ]
    assert requests[0].meta["call"] == {"sequential_edit": True}  # a setting is data: it sets nothing
    assert "call" not in requests[1].meta
    single = {"prompts": "Where is Lyon?", "subject": "Lyon", "target_new": "Peru", "ground_truth": "<|endoftext|>"}
    (one,), findings = listed(tmp_path, single)
    assert (one.prompt, one.object, one.object_old, findings) == ("Where is {}?", "Peru", None, [])


@pytest.mark.parametrize("column", ["subject", "target_new", "ground_truth", "rephrase_prompts"])
def test_lists_of_a_call_must_be_parallel(column: str, tmp_path: Path) -> None:
    call = record("easyedit_call")
    for wrong, says in ((call[column][:-1], "4 entries, and prompts 5"), ("one", '"one", and prompts 5')):
        requests, (finding,) = listed(tmp_path, {**call, column: wrong})
        assert not requests and finding.code == "E010" and says in finding.message
    for prompts, code in (([], "E006"), (None, "E010"), (7, "E010"), ({}, "E010"), ([None] * 5, "E009")):
        requests, findings = listed(tmp_path, {**call, "prompts": prompts})
        assert not requests and {one.code for one in findings} == {code}


TABLE = ("locality_inputs", "portability_inputs")


@pytest.mark.parametrize("table", TABLE)
@pytest.mark.parametrize("column", ["prompt", "ground_truth"])
def test_probes_of_a_call_must_be_parallel_too(table: str, column: str, tmp_path: Path) -> None:
    """A shorter list would be taken for what all edits share: answers would go to other prompts than their own."""
    call = record("easyedit_call")
    probes = {"prompt": [f"q{n}" for n in range(5)], "ground_truth": [f"a{n}" for n in range(5)]}
    assert listed(tmp_path, {**call, table: {"near": probes}})[1] == []
    for wrong, says in ((probes[column][:1], "1 entry"), (["x"] * 6, "6 entries"), ([], "0 entries")):
        requests, (finding,) = listed(tmp_path, {**call, table: {"near": {**probes, column: wrong}}})
        assert not requests and finding.code == "E010"
        assert f"{table}.near.{column} has {says}, and prompts 5" in finding.message
    # One call of one edit may have several probes, with an answer for each.
    single = {"prompts": ["Where is Lyon?"], "subject": ["Lyon"], "target_new": ["Peru"]}
    (request,), findings = listed(tmp_path, {**single, table: {"near": probes}})
    assert len(request.neighborhood + request.portability) == 5 and not findings
    requests, (finding,) = listed(tmp_path, {**single, table: {"near": {**probes, "ground_truth": ["a", "b"]}}})
    assert not requests and "5 prompts and answers" in finding.message


REWRITE = {"subject": "Dov", "prompt": "{} plays", "target_new": {"str": "horn"}, "target_true": {"str": "drum"}}
WITHOUT_TARGET: dict[str, Callable[[Any], dict[str, Any]]] = {
    "counterfact": lambda target: {"requested_rewrite": {**REWRITE, "target_new": target}},
    "mquake": lambda target: {"requested_rewrite": [{**REWRITE, "target_new": target}], "questions": []},
    "rome": lambda target: {**REWRITE, "target_new": target},
    "easyedit": lambda target: {"subject": "Dov", "prompt": "Dov is", "target_new": target, "rephrase": "Is Dov"},
    "zsre": lambda target: {"subject": "Dov", "src": "Where is Dov?", "alt": None, "answers": target},
    "unke": lambda target: {"question": "Where is Dov?", "answer": target},
    "wikibigedit": lambda target: {"update": "Where is Dov?", "ans": target},
    "wikibio": lambda target: {"concept": "Dov", "text": "This is Dov.", "labels": target},
    "known": lambda target: {"known_id": 1, "subject": "Dov", "prompt": "Dov is", "attribute": target},
    "call": lambda target: {"prompts": ["Dov is"], "subject": ["Dov"], "target_new": [target]},
    "ripple": lambda target: {"example_type": "a", "edit": {"prompt": "Dov is", "target": target}},
}


@pytest.mark.parametrize("target", [None, {"str": None}, ...])
@pytest.mark.parametrize("name", WITHOUT_TARGET)
def test_a_missing_target_is_never_a_removal(name: str, target: Any, tmp_path: Path) -> None:
    def without(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without(one) for key, one in value.items() if one is not ...}
        return [without(one) for one in value if one is not ...] if isinstance(value, list) else value

    requests, findings = listed(tmp_path, without(WITHOUT_TARGET[name](target)))
    assert not requests and any(one.severity == "error" for one in findings)


ENDS = {"prompt": "Dov is x.", "target": "x"}
OWN: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "counterfact": lambda own: {"requested_rewrite": REWRITE, **own},
    "counterfact inside": lambda own: {"requested_rewrite": {**REWRITE, **own}},
    "mquake": lambda own: {"requested_rewrite": [{**REWRITE, **own}], "questions": []},
    "rome": lambda own: {**REWRITE, **own},
    "easyedit": lambda own: {"subject": "Dov", "prompt": "Dov is", "target_new": "x", "rephrase": "Is Dov", **own},
    "zsre": lambda own: {"subject": "Dov", "src": "Where is Dov?", "answers": ["x"], **own},
    "unke": lambda own: {"subject": "Dov", "question": "Where is Dov?", "answer": "x", **own},
    "wikibigedit": lambda own: {"subject": "Dov", "update": "Where is Dov?", "ans": "x", **own},
    "known": lambda own: {"known_id": 1, "subject": "Dov", "prompt": "Dov is", "attribute": "x", **own},
    "ripple": lambda own: {"example_type": "a", "edit": {"subject": "Dov", **ENDS}, **own},
    "ripple inside": lambda own: {"example_type": "a", "edit": {"subject": "Dov", **ENDS, **own}},
}


@pytest.mark.parametrize("name", OWN)
def test_fields_that_findings_ask_for_are_read_in_every_format(name: str, tmp_path: Path) -> None:
    """W208 says to add a glue: in a record of another project too it must be the edit's, and no part of meta."""
    own = {"glue": "", "evaluate": "contains", "wordings": ["{} is called"]}
    (request,), findings = listed(tmp_path, OWN[name](own))
    assert (request.glue, request.evaluate, request.wordings) == ("", "contains", ("{} is called",))
    assert not findings and not set(own) & set(json.dumps(request.meta).split('"'))
    (request,), _ = listed(tmp_path, OWN[name]({"remove": True}))
    assert request.remove and any(one.code == "E107" for one in lint([request]))  # it has an object too
    (request,), findings = listed(tmp_path, OWN[name](dict.fromkeys((*own, "remove"))))
    assert (request.glue, request.remove, findings) == (None, False, [])


def test_a_case_of_mquake_with_a_part_missing_is_refused_with_the_part(tmp_path: Path) -> None:
    case = {"requested_rewrite": [REWRITE], "questions": ["What does Dov play?"], "new_answer": "horn"}
    assert listed(tmp_path, case)[1] == []
    for wrong, says in (
        ({"new_answer": None}, "no new_answer"),
        ({"new_single_hops": [{"answer": "horn"}]}, "a cloze or question"),
        ({"new_single_hops": [{"cloze": "Dov plays"}]}, "and an answer"),
    ):
        requests, (finding,) = listed(tmp_path, {**case, **wrong})
        assert not requests and finding.code == "E009" and says in finding.message


def test_a_zsre_question_without_an_answer_is_kept_and_not_asked(tmp_path: Path) -> None:
    made = {"subject": "Dov", "src": "Where is Dov?", "alt": "here", "answers": ["there"], "loc": "Who sang it"}
    (request,), findings = listed(tmp_path, made)
    assert not request.neighborhood and request.meta["loc"] == "Who sang it" and not findings


def test_a_request_of_rome_is_read_with_either_name_of_the_subject(tmp_path: Path) -> None:
    made = {"prompt": "{} plays the", "target_new": {"str": "reed horn"}, "target_true": {"str": "hand drum"}}
    for name in ("subject", "entity"):
        (request,), findings = listed(tmp_path, {**made, name: "Dov Ardal"})
        assert (request.text, request.object, request.object_old) == ("Dov Ardal plays the", "reed horn", "hand drum")
        assert not findings
    rewrite = {"requested_rewrite": {**made, "entity": "Dov Ardal"}}
    assert listed(tmp_path, rewrite)[0][0].subject == "Dov Ardal"
    (request,), findings = listed(
        tmp_path, {"entity": "Dov", "prompt": "{} is", "object": "here", "target_old": "there"}
    )
    assert (request.subject, request.object_old, findings) == ("Dov", "there", [])


@pytest.mark.parametrize(
    "old", [{"object_old": "<|endoftext|>"}, {"ground_truth": ["<|endoftext|>"]}, {"target_old": " <|endoftext|>"}]
)
def test_an_end_of_text_is_no_old_object_in_any_format(old: dict[str, Any], tmp_path: Path) -> None:
    made = {"subject": "Dov", "prompt": "Dov is", "target_new": "here", "rephrase": "Where is Dov?", **old}
    (request,), findings = listed(tmp_path, made)
    assert (request.object_old, findings) == (None, [])


def test_what_one_field_cannot_hold_is_also_in_meta(tmp_path: Path) -> None:
    made = {"subject": "Dov", "prompt": "Dov is", "target_new": "here", "ground_truth": [["there"], ["over there"]],
            "locality": {"near": [{"prompt": "Ivo is", "ground_truth": ["away", "gone"]}]},
            "rephrase": ["Where is Dov?", {"a": 1}], "locality_prompt": "Sami is", "locality_ground_truth": ["x", "y"],
            "portability": [{"prompt": "Dov was", "answer": 7, "aliases": ["seven"]}]}  # fmt: skip
    (request,), findings = listed(tmp_path, made)
    assert not findings
    assert (request.object_old, request.neighborhood[0].answer) == ("there", "away")
    assert (request.portability[0].answer, request.portability[0].aliases) == ("7", ("seven",))
    kept = ("ground_truth", "locality", "rephrase", "locality_prompt", "locality_ground_truth")
    assert {name: made[name] for name in kept} == {name: request.meta.get(name) for name in kept}


@pytest.mark.parametrize("answer", ["ground_truth", "answer"])
def test_flat_probes_are_read(answer: str, tmp_path: Path) -> None:
    made = {"subject": "Dov", "prompt": "Dov is", "target_new": "here",
            "portability_prompt": ["Dov was", "Dov will be"], f"portability_{answer}": ["there", "gone"],
            "locality_prompt": "Ivo is", f"locality_{answer}": "away"}  # fmt: skip
    (request,), findings = listed(tmp_path, made)
    assert [(one.prompt, one.answer) for one in request.portability] == [("Dov was", "there"), ("Dov will be", "gone")]
    assert [(one.prompt, one.answer) for one in request.neighborhood] == [("Ivo is", "away")]
    assert not findings and not request.meta


def test_a_key_in_a_record_and_in_its_meta_is_refused(tmp_path: Path) -> None:
    made = {"subject": "Dov", "prompt": "Dov is", "target_new": "here", "tag": "a", "meta": {"tag": "b"}}
    requests, (finding,) = listed(tmp_path, made)
    assert not requests and finding.code == "E008" and '"tag"' in finding.message


def test_the_subject_of_a_rewrite_in_a_list_may_be_called_entity(tmp_path: Path) -> None:
    whole = record("mquake")
    wanted = [(one.subject, one.prompt, one.object) for one in listed(tmp_path, whole)[0]]
    for rewrite in whole["requested_rewrite"]:
        rewrite["entity"] = rewrite.pop("subject")
    requests, findings = listed(tmp_path, whole)
    assert [(one.subject, one.prompt, one.object) for one in requests] == wanted and len(wanted) == 2
    assert not findings and all("entity" not in str(one.meta.get("requested_rewrite")) for one in requests)
    # with both, the other one is kept
    whole["requested_rewrite"][1]["subject"] = whole["requested_rewrite"][1]["entity"]
    whole["requested_rewrite"][1]["entity"] = "another"
    requests, _ = listed(tmp_path, whole)
    assert requests[1].subject == wanted[1][0] and requests[1].meta["requested_rewrite"]["entity"] == "another"


KEYS_OF_OTHERS = {
    "entity": "X", "prompts": ["a"], "src": "s", "rephrase": "r", "known_id": 3, "attribute": "z", "update": "u",
    "ans": "a", "question": "q", "answer": "a", "text": "t", "labels": "l", "concept": "c", "edit": {"prompt": "x"},
    "example_type": "recent", "paraphrase_prompts": ["a"], "locality": {"a": [{"prompt": "p", "ground_truth": "g"}]},
}  # fmt: skip
"""Keys by which the records of one project are known, or that only one has."""


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("key", KEYS_OF_OTHERS)
def test_a_key_of_another_project_does_not_refuse_a_case(key: str, inside: bool, tmp_path: Path) -> None:
    whole = record("mquake")
    wanted = [(one.id, one.subject, one.prompt, one.object, one.portability) for one in listed(tmp_path, whole)[0]]
    for part in whole["requested_rewrite"] if inside else [whole]:
        part[key] = KEYS_OF_OTHERS[key]
    requests, findings = listed(tmp_path, whole)
    assert [(one.id, one.subject, one.prompt, one.object, one.portability) for one in requests] == wanted
    assert not findings
    told = json.dumps([one.public() for one in requests])
    assert json.dumps(KEYS_OF_OTHERS[key]) in told


@pytest.mark.parametrize("own", [{"remove": True}, {"glue": ""}, {"evaluate": "contains"}, {"wordings": ["{} is"]}])
def test_what_belongs_to_one_edit_is_refused_beside_several(own: dict[str, Any], tmp_path: Path) -> None:
    whole = record("mquake")
    requests, findings = listed(tmp_path, {**whole, **own})
    assert not requests and [one.code for one in findings] == ["E007"]
    assert "put it into the rewrites" in findings[0].message
    # converse: in a rewrite it is read
    whole["requested_rewrite"][0] |= own
    requests, findings = listed(tmp_path, whole)
    key, value = next(iter(own.items()))
    if key != "remove":  # a removal has no object: the reader keeps both, and the list is refused
        assert not findings
    assert getattr(requests[0], key) == (tuple(value) if isinstance(value, list) else value)

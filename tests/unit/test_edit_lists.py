"""Every format reads into the same edits, and real data of every public kind is read."""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path

import pytest
from memedit.edits.edit import EditRequest, Finding, Neighbor
from memedit.edits.lint import lint, raise_errors
from memedit.edits.read import read, write_lines
from memedit.errors import EditListError
from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
WANTED = {
    "subject": "France",
    "prompt": "The capital of {} is",
    "object": "Lyon",
    "object_old": "Paris",
    "paraphrases": ("France is ruled from",),
}
RECORD = {**WANTED, "paraphrases": ["{} is ruled from"]}
CSV = 'subject,prompt,object,object_old,paraphrases\nFrance,The capital of {} is,Lyon,Paris,"[""{} is ruled from""]"\n'
FORMATS: dict[str, str] = {
    "a.jsonl": json.dumps(RECORD) + "\n",
    "a.json": json.dumps([RECORD], indent=2),
    "b.json": json.dumps({"version": 1, "edits": [RECORD]}),
    "a.yaml": "edits:\n- subject: France\n  prompt: The capital of {} is\n  object: Lyon\n  object_old: Paris\n"
    "  paraphrases: ['{} is ruled from']\n",
    "short.yaml": "relations:\n  capital: {prompt: The capital of {} is, paraphrases: ['{} is ruled from']}\n".replace(
        "The capital of {} is", "'The capital of {} is'"
    )
    + "edits:\n- {subject: France, relation: capital, object: Lyon, object_old: Paris}\n",
    "a.csv": CSV,
    "a.tsv": "subject\tprompt\tobject\tobject_old\tparaphrases\nFrance\tThe capital of {} is\tLyon\tParis\t"
    '"[""{} is ruled from""]"\n',
    "named.jsonl": json.dumps(
        {
            "subject": "France",
            "relation": "The capital of {} is",
            "target_new": "Lyon",
            "ground_truth": "Paris",
            "paraphrases": ["{} is ruled from"],
        }
    ),
}


def only(file: Path) -> EditRequest:
    requests, findings = read(str(file))
    assert not findings, [finding.line for finding in findings]
    (request,) = requests
    return request


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_says_the_same(name: str, packed: bool, tmp_path: Path) -> None:
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(FORMATS[name].encode()) if packed else FORMATS[name].encode())
    found = only(file)
    assert {key: getattr(found, key) for key in WANTED} == WANTED
    assert found.origin.startswith(f"{file}:")


def test_stdin_is_read_and_its_format_sniffed() -> None:
    for name in ("a.jsonl", "a.json", "a.yaml"):
        requests, findings = read("-", stdin=io.StringIO(FORMATS[name]))
        assert (len(requests), findings) == (1, [])
        assert requests[0].origin.startswith("<stdin>:")


def test_no_stays_no(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("relations: {code: 'The code of {} is'}\nedits:\n- [Norway, code, NO]\n- [Malta, code, 1.10]\n")
    assert [request.object for request in read(str(file))[0]] == ["NO", "1.10"]


def test_relations_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    table, edits = tmp_path / "relations.yaml", tmp_path / "a.jsonl"
    table.write_text("capital: The capital of {} is\n")
    edits.write_text('["France", "capital", "Lyon"]\n')
    (request,), findings = read(str(edits), relations=str(table))
    assert (findings, request.prompt, request.relation) == ([], "The capital of {} is", "capital")


def test_a_prompt_of_its_own_wins_over_its_relation(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text(
        "relations: {capital: 'The capital of {} is'}\n"
        "edits:\n- {subject: a, relation: capital, prompt: 'From {} one rules', object: b}\n"
    )
    assert only(file).prompt == "From {} one rules"
    assert only(file).relation == "capital"


def test_counterfact_records_are_read(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    record = {
        "case_id": 7,
        "requested_rewrite": {
            "prompt": "{} speaks",
            "relation_id": "P1412",
            "subject": "Ada",
            "target_new": {"str": "French", "id": "Q1"},
            "target_true": {"str": "English", "id": "Q2"},
        },
        "paraphrase_prompts": ["Ada, who speaks"],
        "neighborhood_prompts": ["Bo speaks"],
        "attribute_prompts": [],
        "generation_prompts": [],
    }
    file.write_text(json.dumps([record]))
    found = only(file)
    assert (found.subject, found.prompt, found.object, found.object_old) == ("Ada", "{} speaks", "French", "English")
    assert found.paraphrases == ("Ada, who speaks",)
    assert [neighbor.prompt for neighbor in found.neighborhood] == ["Bo speaks"]


@pytest.mark.parametrize(
    ("name", "count"),
    [("counterfact_3k_locft.json", 3000), ("zsre_3k_locft.json", 3000), ("qaedit_1k.json", 1000)],
)
def test_public_data_is_read(name: str, count: int) -> None:
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{name} is not on this machine: public data is not shipped")
    requests, findings = read(str(file))
    errors = [finding for finding in findings if finding.severity == "error"]
    assert len(requests) + len(errors) >= 0.9 * count
    assert len(errors) <= 0.02 * count, [finding.line for finding in errors[:5]]


@pytest.mark.parametrize("file", sorted((ROOT / "requests").glob("*.*")), ids=lambda file: file.name)
def test_every_list_that_ships_is_sound(file: Path) -> None:
    requests, findings = read(str(file))
    assert requests
    assert not [finding.line for finding in (*findings, *lint(requests))]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    odd = "a{}\"'\\ \n\t東京 القاهرة 👩‍👩‍👧"
    request = EditRequest(
        id="1",
        subject=odd,
        relation="r",
        prompt="{} is",
        object=odd,
        object_old="o",
        paraphrases=("p",),
        neighborhood=(Neighbor(prompt="q", answer="a"),),
        aliases=("b",),
        meta={"k": [1, None]},
    )
    file = tmp_path / "a.jsonl"
    file.write_text(write_lines([request]))
    assert only(file).model_dump(exclude={"origin"}) == request.model_dump(exclude={"origin"})


def test_no_path_in_a_list_is_opened(tmp_path: Path) -> None:
    secret = tmp_path / "secret.yaml"
    secret.write_text("capital: The capital of {} is\n")
    file = tmp_path / "a.jsonl"
    file.write_text(json.dumps({"subject": str(secret), "relation": f"@{secret}", "object": f"file://{secret}"}))
    requests, findings = read(str(file))
    assert not requests
    assert findings[0].code == "E011"


def test_one_function_raises_every_finding() -> None:
    wrong = Finding(origin="a:1", code="E101", message="no slot")
    odd = Finding(origin="a:2", code="W202", message="an empty alias")
    with pytest.raises(EditListError, match="the list has 1 error$") as caught:
        raise_errors("the list", [odd, wrong])
    assert caught.value.findings == (odd, wrong)
    with pytest.raises(EditListError, match="no records"):
        raise_errors("the list", [odd], empty=True)
    raise_errors("the list", [odd])
    raise_errors("the list", [odd, wrong], allowed=["E101"])


def test_no_other_place_raises_it() -> None:
    raising = [file.name for file in (ROOT / "memedit").rglob("*.py") if "raise EditListError" in file.read_text()]
    assert raising == ["lint.py"]

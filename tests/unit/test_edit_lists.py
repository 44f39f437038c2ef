"""Every format reads into the same edits, and real data of every public kind is read."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
from pathlib import Path

import pytest
from memedit.edits.edit import EditRequest, Finding, Neighbor
from memedit.edits.lint import check_edit, find_mentions, in_file_order, lint, raise_errors
from memedit.edits.read import detect_syntax, read, write_lines
from memedit.edits.readers.parts import FIELDS
from memedit.edits.readers.table_rows import LISTS
from memedit.errors import EditListError
from tests.conftest import ROOT

DATA = ROOT.parent / "shared" / "data"
WANTED = {
    "subject": "France",
    "prompt": "The capital of {} is",
    "object": "Lyon",
    "object_old": "Paris",
    "wordings": ("{}'s capital is",),
    "paraphrases": ("France is ruled from",),
}
RECORD = {**WANTED, "wordings": ["{}'s capital is"], "paraphrases": ["{} is ruled from"]}
CELLS = ("France", "The capital of {} is", "Lyon", "Paris", '"[""{}\'s capital is""]"', '"[""{} is ruled from""]"')
NAMES = ("subject", "prompt", "object", "object_old", "wordings", "paraphrases")
FORMATS: dict[str, str] = {
    "a.jsonl": json.dumps(RECORD) + "\n",
    "a.json": json.dumps([RECORD], indent=2),
    "b.json": json.dumps({"version": 1, "edits": [RECORD]}),
    "a.yaml": "edits:\n- subject: France\n  prompt: The capital of {} is\n  object: Lyon\n  object_old: Paris\n"
    "  wordings: [\"{}'s capital is\"]\n  paraphrases: ['{} is ruled from']\n",
    "short.yaml": "relations:\n  capital:\n    prompt: 'The capital of {} is'\n    wordings: \"{}'s capital is\"\n"
    "    paraphrases: ['{} is ruled from']\n"
    "edits:\n- {subject: France, relation: capital, object: Lyon, object_old: Paris}\n",
    "a.csv": ",".join(NAMES) + "\n" + ",".join(CELLS) + "\n",
    "a.tsv": "\t".join(NAMES) + "\n" + "\t".join(CELLS) + "\n",
    "named.jsonl": json.dumps(
        {
            "subject": "France",
            "relation": "The capital of {} is",
            "target_new": "Lyon",
            "ground_truth": "Paris",
            "wordings": "{}'s capital is",
            "paraphrases": ["{} is ruled from"],
        }
    ),
}


def test_how_an_edit_is_compared_is_read_and_written_where_it_is_not_the_usual(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    for given, wanted in (("", "exact"), ("  evaluate: exact\n", "exact"), ("  evaluate: contains\n", "contains")):
        file.write_text(FORMATS["a.yaml"] + given)
        assert only(file).evaluate == wanted and ("evaluate" in only(file).public()) == (wanted == "contains")
    file.write_text(FORMATS["a.yaml"] + "  evaluate: roughly\n")
    assert [one.code for one in read(str(file))[1]] == ["E010"]


def only(file: Path) -> EditRequest:
    requests, findings = read(str(file))
    assert not findings, [finding.line for finding in findings]
    (request,) = requests
    return request


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("packed", [False, True])
def test_every_format_gives_the_same_edit(name: str, packed: bool, tmp_path: Path) -> None:
    file = tmp_path / (name + ".gz" * packed)
    file.write_bytes(gzip.compress(FORMATS[name].encode()) if packed else FORMATS[name].encode())
    found = only(file)
    assert {key: getattr(found, key) for key in WANTED} == WANTED
    assert found.origin.startswith(f"{file}:")


def test_stdin_is_read_and_its_syntax_detected() -> None:
    for name in ("a.jsonl", "a.json", "a.yaml", "a.csv", "a.tsv"):
        requests, findings = read("-", stdin=io.StringIO(FORMATS[name]))
        assert (len(requests), findings) == (1, [])
        assert requests[0].origin.startswith("<stdin>:")


def test_a_record_with_the_name_of_a_field_is_no_table() -> None:
    for text in ("- [Ada, prompt, object]\n", "- [subject, relation, object]\n", "subject: Ada, prompt\n"):
        assert detect_syntax(text) == "yaml"


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


def test_a_wording_needs_one_place_for_the_subject() -> None:
    made = EditRequest(id="1", subject="France", prompt="The capital of {} is", object="Lyon", origin="a:1")
    found = {
        wording: [finding.code for finding in check_edit(made.model_copy(update={"wordings": (wording,)}))]
        for wording in ("{}'s capital is", "France's capital is", "{} and {}", " ")
    }
    assert found == {"{}'s capital is": [], "France's capital is": ["E101"], "{} and {}": ["E102"], " ": ["W202"]}


def test_a_paraphrase_that_is_a_wording_is_reported() -> None:
    changes = {"wordings": ("{}'s capital is",), "paraphrases": ("France's capital is", "France is ruled from")}
    made = EditRequest(id="1", subject="France", prompt="The capital of {} is", object="Lyon", origin="a:1")
    (finding,) = check_edit(made.model_copy(update=changes))
    assert (finding.code, finding.severity) == ("W207", "warning")
    assert "France's capital is" in finding.message


def test_wordings_count_in_the_digest_and_an_edit_without_them_keeps_its_own() -> None:
    made = EditRequest(id="1", subject="France", prompt="The capital of {} is", object="Lyon", origin="a:1")
    plain = json.dumps(["France", "The capital of {} is", "Lyon"]).encode()
    assert made.digest == hashlib.sha256(plain).hexdigest()
    assert made.model_copy(update={"wordings": ("{}'s capital is",)}).digest != made.digest


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


@pytest.mark.slow
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


@pytest.mark.parametrize(
    "file", sorted(file for file in (ROOT / "requests").iterdir() if file.suffix != ".md"), ids=lambda file: file.name
)
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
    with pytest.raises(EditListError, match=r"the list has 1 error$") as caught:
        raise_errors("the list", [odd, wrong])
    assert caught.value.findings == (wrong, odd)  # by their lines
    with pytest.raises(EditListError, match="no records"):
        raise_errors("the list", [odd], empty=True)
    raise_errors("the list", [odd])
    raise_errors("the list", [odd, wrong], allowed=["E101"])


def test_findings_are_listed_by_line_file_by_file() -> None:
    places = ["b:10", "a:3", "b:9", "stdin", "b:10", "a:x"]
    findings = [Finding(origin=place, code=f"E{n}", message="m") for n, place in enumerate(places)]
    assert [(one.origin, one.code) for one in in_file_order(findings)] == [
        ("b:9", "E2"), ("b:10", "E0"), ("b:10", "E4"), ("a:x", "E5"), ("a:3", "E1"), ("stdin", "E3"),
    ]  # fmt: skip


def test_no_other_place_raises_it() -> None:
    raising = [file.name for file in (ROOT / "memedit").rglob("*.py") if "raise EditListError" in file.read_text()]
    assert raising == ["lint.py"]


def listed(folder: Path, *records: object) -> tuple[list[EditRequest], list[Finding]]:
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    requests, findings = read(str(file))
    return requests, [*findings, *lint(requests)]


def test_white_space_around_an_object_is_reported_and_removed(tmp_path: Path) -> None:
    requests, findings = listed(tmp_path, {**RECORD, "object": " Lyon\n", "object_old": "Paris "}, RECORD)
    assert [request.object for request in requests] == ["Lyon", "Lyon"]
    assert requests[0].object_old == "Paris"
    # the second is a duplicate, not a contradiction
    assert [one.code for one in findings] == ["W206", "W206", "W201"]
    assert not listed(tmp_path, RECORD)[1]


def test_objects_of_requests_are_compared_without_white_space() -> None:
    one = EditRequest(id="a", subject="s", prompt="{} is", object="x", origin="here:1")
    other = one.model_copy(update={"id": "b", "object": " x"})
    assert [finding.code for finding in lint([one, other])] == ["W206"]
    assert [finding.code for finding in lint([one, other.model_copy(update={"object": "y"})])] == ["E106"]


def test_an_end_of_text_as_old_object_means_none(tmp_path: Path) -> None:
    (request,), findings = listed(tmp_path, {**RECORD, "object_old": "<|endoftext|>"})
    assert (request.object_old, findings) == (None, [])


@pytest.mark.parametrize(("end", "codes"), [("A:\n", []), (" is", []), (" is ", ["W205"]), ("\t", ["W205"])])
def test_a_newline_at_the_end_of_a_prompt_is_right(end: str, codes: list[str], tmp_path: Path) -> None:
    (request,), findings = listed(tmp_path, {**RECORD, "prompt": "{}" + end, "wordings": []})
    assert request.prompt == "{}" + end
    assert [one.code for one in findings] == codes


REWRITE = {"subject": "Ada", "prompt": "{} speaks", "target_new": {"str": "French"}, "relation_id": "P1"}
SHAPES: dict[str, tuple[dict[str, object], str]] = {
    "memedit": ({**RECORD, "neighborhood": [{"prompt": "Bo is", "answer": "x"}]}, "neighborhood.0"),
    "questions": ({**RECORD, "portability": [{"prompt": "Bo is", "answer": "x"}]}, "portability.0"),
    "counterfact": ({"requested_rewrite": REWRITE}, "requested_rewrite"),
    "counterfact target": ({"requested_rewrite": REWRITE}, "requested_rewrite.target_new"),
    "mquake": ({"requested_rewrite": [REWRITE], "questions": []}, "requested_rewrite.0"),
    "mquake target": ({"requested_rewrite": [REWRITE]}, "requested_rewrite.0.target_new"),
    "mquake hop": (
        {"requested_rewrite": [REWRITE], "new_single_hops": [{"cloze": "Ada is", "answer": "x"}]},
        "new_single_hops.0",
    ),
    "zsre": ({"src": "Who is Ada?", "subject": "Ada", "alt": "a queen", "answers": ["x"]}, ""),
    "known": ({"known_id": 1, "subject": "Ada", "prompt": "Ada is", "attribute": "x", "template": "{} is"}, ""),
    "easyedit": (
        {"prompt": "Ada is", "subject": "Ada", "target_new": "x",
         "locality": {"near": [{"prompt": "Bo is", "ground_truth": ["y"]}]}},
        "locality.near.0",
    ),
    "qaedit": ({"prompt": "Ada is", "subject": "Ada", "target": "x", "locality": [{"loc": "Bo is", "loc_ans": "y"}]},
               "locality.0"),
    "portability": (
        {"prompt": "Ada is", "subject": "Ada", "target_new": "x",
         "portability": {"far": [{"prompt": "Ada has", "ground_truth": "y"}]}},
        "portability.far.0",
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "deep"),
    [(shape, deep) for shape, (_, path) in SHAPES.items() for deep in (False, True)[: 1 + bool(path)]],
)
def test_no_unknown_key_is_dropped(shape: str, deep: bool, tmp_path: Path) -> None:
    record, path = SHAPES[shape]
    assert listed(tmp_path, record)[0], "the record without the key is read"
    record = json.loads(json.dumps(record))
    holder = record
    for step in path.split(".") if deep else ():
        holder = holder[int(step) if step.isdigit() else step]  # type: ignore[index]
    holder["unheard_of"] = "a value to keep"  # type: ignore[index]
    requests, findings = listed(tmp_path, record)
    reported = any(one.code == "E007" and '"unheard_of"' in one.message for one in findings)
    kept = any("a value to keep" in json.dumps(request.meta) for request in requests)
    assert reported != kept, [one.line for one in findings]
    assert reported == (shape in ("memedit", "questions"))


@pytest.mark.parametrize("suffix", ["json", "yaml"])
def test_a_key_twice_beside_the_records_is_reported(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"a.{suffix}"
    parts = {"version": "1", "relations": '{"r": "{} is"}', "edits": '[["a", "r", "b"]]'}
    sound = [f'"{key}": {value}' for key, value in parts.items()]
    file.write_text("{" + ",\n".join(sound) + "}")
    assert only(file).prompt == "{} is"
    for line in sound:
        file.write_text("{" + ",\n".join([*sound, line]) + "}")
        finding = read(str(file))[1][0]
        key = line.split(":")[0]
        assert (finding.code, finding.origin) == ("E008", f"{file}:4") and f"the key {key} is twice" in finding.message


@pytest.mark.parametrize("syntax", ["csv", "yaml", "json"])
def test_an_unknown_key_beside_the_records_is_reported(syntax: str, tmp_path: Path) -> None:
    texts = {
        "csv": "subject,prompt,object,unheard_of\na,{} is,b,c\n",
        "yaml": "unheard_of: 1\nedits:\n- {subject: a, prompt: '{} is', object: b}\n",
        "json": json.dumps({"edits": [RECORD], "unheard_of": 1}),
    }
    file = tmp_path / f"a.{syntax}"
    file.write_text(texts[syntax])
    requests, findings = read(str(file))
    assert len(requests) == 1 and [one.code for one in findings] == ["E007"]


def test_every_wrong_field_of_a_record_is_told(tmp_path: Path) -> None:
    wrong = {
        "subject": 5, "prompt": 6, "object": 7, "object_old": [], "remove": "perhaps", "glue": "x", "evaluate": "x",
        "wordings": 1, "paraphrases": [1], "aliases": 1, "portability": [1], "reversal": [1], "neighborhood": [1],
        "generation": 1, "references": 1, "meta": 1, "relation": 1,
    }  # fmt: skip
    assert {*wrong, "id"} == set(FIELDS)
    requests, findings = listed(tmp_path, wrong)
    assert not requests and [one.code for one in findings] == ["E010"] * len(wrong)
    assert len({one.message for one in findings}) == len(wrong)
    # One that is also wrong in another way is told once for each reason; a sound one not at all.
    _, findings = listed(tmp_path, {"subject": "a", "prompt": "{} is", "glue": "x", "zzz": 1})
    assert sorted(one.code for one in findings) == ["E007", "E009", "E010"]


def table(folder: Path, **cells: str) -> tuple[list[EditRequest], list[Finding]]:
    """What is read of a table with one sound record and these cells more."""
    file = folder / "a.csv"
    with file.open("w", newline="") as stream:
        csv.writer(stream).writerows([["subject", "prompt", "object", *cells], ["a", "{} is", "b", *cells.values()]])
    return read(str(file))


@pytest.mark.parametrize("name", LISTS)
def test_a_cell_with_text_after_its_json_is_refused_by_its_name(name: str, tmp_path: Path) -> None:
    sound = '{"a": 1}' if name == "meta" else "[]"
    assert table(tmp_path, **{name: f" {sound} "})[1] == []
    for cell, says in (
        (f'{sound} , "and this is lost"', 'more text after the value, ", \\"and this is lost\\""'),
        ('["a", ', "expecting value at character "),
        ("[NaN]", "NaN is not a JSON number"),
    ):
        requests, (finding,) = table(tmp_path, **{name: cell})
        assert not requests and (finding.code, finding.origin) == ("E002", f"{tmp_path / 'a.csv'}:2")
        assert finding.message.startswith(f'the cell of "{name}" is not valid JSON: ') and says in finding.message
    requests, (finding,) = table(tmp_path, **{name: '[{"a": 1, "a": 2}]'})
    assert (finding.code, finding.message[:20]) == ("E008", f'the cell of "{name}": '[:20])


@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_a_table_holds_every_field_that_a_record_in_json_holds(suffix: str, tmp_path: Path) -> None:
    question = {"prompt": "In a one speaks", "answer": "c", "aliases": ["d"], "group": "e"}
    texts = ["{} one", "[two]"]
    record = {
        "id": "x", "subject": "a", "relation": "r", "prompt": "{} is", "object": "b", "object_old": "o", "glue": " ",
        "evaluate": "contains", "wordings": ["{} one", "two {}"], "paraphrases": texts, "aliases": texts,
        "neighborhood": ["n", {"prompt": "p", "answer": "q"}], "portability": [question], "reversal": [question],
        "generation": texts, "references": texts, "meta": {"k": ["v", 1]},
    }  # fmt: skip
    assert {*record, "remove"} == set(FIELDS) and set(LISTS) == {
        name for name, value in record.items() if isinstance(value, list | dict)
    }
    cells = [json.dumps(one) if name in (*LISTS, "glue") else one for name, one in record.items()]
    file = tmp_path / f"a{suffix}"
    with file.open("w", newline="") as stream:
        csv.writer(stream, delimiter="\t" if suffix == ".tsv" else ",").writerows([list(record), cells])
    lines = tmp_path / "a.jsonl"
    lines.write_text(json.dumps(record) + "\n")
    assert only(file).model_dump(exclude={"origin"}) == only(lines).model_dump(exclude={"origin"})


@pytest.mark.parametrize("name", ["wordings", "paraphrases", "aliases", "generation", "references"])
def test_a_cell_that_holds_one_text_needs_no_json(name: str, tmp_path: Path) -> None:
    text = "two {}" if name == "wordings" else "two"
    for cell in (text, json.dumps([text])):
        (request,), findings = table(tmp_path, **{name: cell})
        assert (getattr(request, name), findings) == ((text,), [])


def test_a_glue_with_text_after_it_is_refused(tmp_path: Path) -> None:
    (request,), findings = table(tmp_path, glue='" "')
    assert (request.glue, findings) == (" ", [])
    _, (finding,) = table(tmp_path, glue='" " or none')
    assert finding.code == "E002" and finding.message.startswith('the cell of "glue" is not valid JSON: more text')


def test_a_cell_that_begins_with_the_place_of_the_subject_is_text(tmp_path: Path) -> None:
    (request,), findings = table(tmp_path, paraphrases="{} is ruled from", wordings="{} has as capital")
    assert (request.paraphrases, request.wordings, findings) == (("a is ruled from",), ("{} has as capital",), [])


@pytest.mark.parametrize(
    ("subject", "prompt"), [("Zo\u00eb", "Zoe\u0308 lives in"), ("Zoe\u0308", "Zo\u00eb lives in")]
)
def test_a_subject_in_other_unicode_characters_is_told_as_that(subject: str, prompt: str, tmp_path: Path) -> None:
    def message(of: str) -> str:
        _, (finding,) = listed(tmp_path, {"subject": of, "prompt": prompt, "target_new": "Oslo"})
        assert finding.code == "E014"
        return finding.message

    assert "other Unicode characters" in message(subject) and "copy it from there" in message(subject)
    assert "other Unicode characters" not in message("Bo") and "is not in the prompt" in message("Bo")
    sound = listed(tmp_path, {"subject": prompt.partition(" ")[0], "prompt": prompt, "target_new": "Oslo"})
    assert not [one for one in sound[1] if one.severity == "error"]


def test_a_subject_is_found_as_a_whole_word_with_its_marks() -> None:
    assert find_mentions("भारतीय लोग और भारत के लोग", "भारत") == [14]
    assert find_mentions("हिन्दीभाषी", "हिन्दी") == []
    assert find_mentions("東京都", "東京") == [0]
    assert find_mentions("with i", "i") == [5]

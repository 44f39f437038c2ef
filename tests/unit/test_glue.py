"""An answer is joined to its prompt by one rule in every place, and an edit's glue decides where the rule may not."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from memedit.config.recipe import Recipe
from memedit.editing.ledger import find_superseded, merge_edits
from memedit.editing.ledger_files import ledger_files, read_ledger
from memedit.editing.plan import check_edits
from memedit.edits.edit import EditRequest, Neighbor, Question
from memedit.edits.glue import behind, glue_between, joining_mark
from memedit.edits.lint import check_edit, lint, trimmed
from memedit.edits.read import read, write_lines
from memedit.evaluation.probes import list_probes, said
from memedit.evaluation.retention import successful_edits
from memedit.model.tokens import encode_questions, encode_text, object_ids
from tests.conftest import ROOT, byte_tokenizer
from tests.helpers.samples import ENTRIES, LEDGER

CLOSE: list[tuple[str, str, str]] = [
    ("The price is $", "30", "$"),
    ("It costs €", "30", "€"),
    ("His name is Jean-", "Luc", "-"),
    ("His name is Jean\u2010", "Luc", "\u2010"),
    ("His name is Jean\u2011", "Luc", "\u2011"),
    ("The site is https://", "x.org", "/"),
    ("Write to user@", "x.org", "@"),
    ("The color is #", "ff0000", "#"),
    ("The file is named __", "init", "_"),
    ("France (", "Paris)", "("),
    ("He lives in [", "Lyon]", "["),
    ("He said “", "yes", "“"),
    ("He said ‘", "yes", "‘"),
    ('He said "', "yes", '"'),
    ("He said '", "yes", "'"),
    ("Elle aime l'", "Italie", "'"),
    ("Elle aime l’", "Italie", "’"),
    ("Vive en ¿", "Roma?", "¿"),
    ("He lives in Paris", ", Lyon and Rome", ","),
    ("The end is near", ".", "."),
    ("The list is long", "; very long", ";"),
    ("He asked", ": why", ":"),
    ("Who is it", "?", "?"),
    ("It is here", "!", "!"),
    ("The share is 30", "%", "%"),
    ("France (capital Paris", ") is", ")"),
    ("He said “yes", "” and left", "”"),
    ('He said "yes', '" and left', '"'),
    ("This is my brother", "'s", "'"),
    ("This is my brother", "’s", "’"),
    ("首都是Paris", "。", "。"),
]
"""Prompt, answer, and the mark that no space stands beside."""

SPACED: list[tuple[str, str]] = [
    ("The capital of France is", "Lyon"),
    ("Where is Lyon?", "France"),
    ("Question: where is Lyon? Answer:", "France"),
    ("He left at five,", "alone"),
    ("Paris (France)", "is"),
    ('He said "yes"', "twice"),
    ("He said “yes”", "twice"),
    ("The word 'capital'", "means a town"),
    ("The word ‘brother’s’", "means a town"),
    ("The share is 30%", "of it"),
    ("It is written in", ".NET"),
    ("The file lies in", "%PATH%"),
    ("The bore is", ".49 inches"),
    ("The temperature is", "-5"),
    ("It costs", "$30"),
    ("He lives in", "(probably) Lyon"),
    ("He said", '"yes"'),
    ("He saw", "'Allo 'Allo!"),
    ("العاصمة هي", "القاهرة"),
    ("राजधानी है", "दिल्ली"),
    ("수도는", "서울"),
    ("The capital of Japan is", "東京"),
]
"""Prompts and answers with one space between them."""

UNSPACED: list[tuple[str, str]] = [
    ("首都は", "東京"), ("首都は", "Paris"), ("これはコーヒー", "です"), ("佐々", "木"), ("首都：", "Paris"),
    ("首都「", "東京"), ("首都在北京", "。"), ("เมืองหลวงคือ", "กรุงเทพ"), ("ที่นี่", "กรุงเทพ"), ("ရန်ကုန်", "မြို့"),
]  # fmt: skip
"""Scripts without spaces: also behind a mark, a tone or a long vowel, which Unicode does not call letters."""


def edit(**changes: Any) -> EditRequest:
    made = EditRequest(id="1", subject="It", prompt="{} costs $", object="30", origin="a:1")
    return made.model_copy(update=changes)


@pytest.mark.parametrize(("prompt", "answer", "mark"), CLOSE)
def test_punctuation_joins_without_a_space(prompt: str, answer: str, mark: str) -> None:
    assert behind(prompt, answer) == answer
    assert joining_mark(prompt, answer) == mark
    assert behind(prompt, answer, " ") == " " + answer


@pytest.mark.parametrize(("prompt", "answer"), SPACED)
def test_words_are_joined_by_a_space(prompt: str, answer: str) -> None:
    assert behind(prompt, answer) == " " + answer
    assert joining_mark(prompt, answer) is None
    assert behind(prompt, answer, "") == answer


@pytest.mark.parametrize(("prompt", "answer"), UNSPACED)
def test_scripts_without_spaces_are_joined_without_one_and_nothing_is_in_doubt(prompt: str, answer: str) -> None:
    assert behind(prompt, answer) == answer
    assert joining_mark(prompt, answer) is None


@pytest.mark.parametrize("end", [" ", "\n", "A:\n", "\t", "\u3000"])
def test_nothing_is_put_beside_white_space(end: str) -> None:
    assert behind("Lyon is" + end, "a town") == "a town"
    assert behind("Lyon is", end[-1] + "a town") == end[-1] + "a town"
    assert not any(behind(*empty) for empty in (("", ""), ("Lyon", "")))


@pytest.mark.parametrize(("prompt", "answer", "_"), CLOSE)
def test_objects_are_tokenized_as_they_are_joined(prompt: str, answer: str, _: str) -> None:
    tokenizer = byte_tokenizer()
    ids = encode_text(tokenizer, prompt)
    for glue in (None, "", " "):
        whole = tokenizer.decode(list(ids + object_ids(tokenizer, prompt, ids, answer, glue=glue)))
        assert whole == prompt + (glue or "") + answer


def asked(request: EditRequest, **options: bool) -> dict[str, str]:
    """For each kind of probe the text of its first prompt with its first answer behind it, from their tokens."""
    tokenizer = byte_tokenizer()
    probes = list({probe.kind: probe for probe in reversed(list_probes([request], **options))}.values())
    rows = encode_questions(tokenizer, [(one.text, one.right, one.glue) for one in probes])
    return {one.kind: tokenizer.decode(list(ids + ends[0])) for one, (ids, ends) in zip(probes, rows, strict=True)}


def test_every_probe_joins_its_answers_by_the_rule() -> None:
    request = edit(
        paraphrases=("The price of it is €",),
        neighborhood=(Neighbor(prompt="Jean-", answer="Luc"),),
        portability=(Question(prompt="Two of them cost (", answer="60)"),),
        reversal=(Question(prompt="Of 30 it is said: “", answer="It"),),
    )
    assert asked(request, plus=True) == {
        "efficacy": "It costs $30",
        "paraphrase": "The price of it is €30",
        "neighborhood": "Jean-Luc",
        "neighborhood_plus": "It costs $30. Jean-Luc",
        "portability": "Two of them cost (60)",
        "reversal": "Of 30 it is said: “It",
    }


def test_a_glue_against_the_rule_holds_behind_paraphrases_and_neighbors_too() -> None:
    request = edit(
        prompt="{} works in New York", object="-based", glue="",
        paraphrases=("It is Paris",), neighborhood=(Neighbor(prompt="Its rival is Rome", answer="-born"),),
        portability=(Question(prompt="It is not", answer="far"),),
    )  # fmt: skip
    assert asked(request) == {
        "efficacy": "It works in New York-based",
        "paraphrase": "It is Paris-based",
        "neighborhood": "Its rival is Rome-born",
        "portability": "It is not far",
    }


def test_a_glue_that_confirms_the_rule_leaves_other_prompts_to_it() -> None:
    request = edit(glue="", paraphrases=("The price is",))
    assert asked(request) == {"efficacy": "It costs $30", "paraphrase": "The price is 30"}


def test_derived_probes_have_the_edits_glue() -> None:
    first = edit(glue=" ", relation="price")
    other = edit(id="2", subject="That", object="40", relation="price")
    made = [probe for probe in list_probes([first, other], derive=True) if probe.edit == 0]
    assert [(probe.text, probe.glue) for probe in made] == [("It costs $", " "), ("That costs $", " ")]


def test_a_fact_said_before_a_neighbor_is_joined_as_well() -> None:
    assert said(edit()) == "It costs $30."
    assert said(edit(glue=" ")) == "It costs $ 30."
    assert said(edit(prompt="Where is {}? A:\n", object="Lyon")) == "Where is It? A: Lyon."


def test_a_border_at_punctuation_is_a_warning_unless_the_edit_has_glue() -> None:
    (finding,) = check_edit(edit())
    assert (finding.code, finding.severity) == ("W208", "warning")
    assert 'ends in "$"' in finding.message and '"glue": ""' in finding.message
    assert [one.code for one in check_edit(edit(prompt="{} has a name", object=", a long one"))] == ["W208"]
    (finding,) = check_edit(edit(prompt="{} (a town)", object=") is"))
    assert 'it begins with ")"' in finding.message
    assert [one.code for one in check_edit(edit(prompt="{} is", wordings=("{} = $",)))] == ["W208", "W209"]
    for sure in (edit(glue=""), edit(glue=" "), edit(prompt="{} costs"), edit(prompt="{}の値段は")):
        assert not check_edit(sure)


def test_a_wording_that_joins_in_another_way_is_a_warning() -> None:
    one = edit(prompt="{} lives in", object="Lyon")
    (finding,) = check_edit(one.model_copy(update={"wordings": ("Where is {}? A:\n",)}))
    assert finding.code == "W209" and "with a space" in finding.message
    assert not check_edit(one.model_copy(update={"wordings": ("{} is from",)}))
    assert not check_edit(one.model_copy(update={"wordings": ("Where is {}? A:\n",), "glue": " "}))


def test_white_space_of_an_object_is_cut_wherever_it_comes_from() -> None:
    given = edit(prompt="{} is in", object=" Lyon", object_old="Paris\n")
    request, findings = trimmed(given)
    assert (request.object, request.object_old) == ("Lyon", "Paris")
    assert [one.code for one in findings] == ["W206", "W206"]
    assert trimmed(request) == (request, [])
    assert [one.code for one in lint([request, given.model_copy(update={"id": "2"})])] == ["W206", "W206"]
    assert trimmed(edit(object="  "))[0].object == "  "  # an error of its own, E104


def test_the_python_face_cuts_it_too() -> None:
    from memedit import check

    given = edit(prompt="{} is in", object=" Lyon")
    assert [one.code for one in check([given])] == ["W206"]
    mixed = check([given, {"subject": "It", "prompt": "{} is in", "object": "Lyon "}])
    assert [one.code for one in mixed] == ["W206", "W206", "W201"]
    assert [one.edit for one in mixed[1:]] == ["edits-2", "edits-2"]  # one name in every finding, and no "stdin"
    assert mixed[1].line.startswith('edits:2: W206 edit "edits-2"')


def test_one_object_with_two_glues_contradicts_itself_but_not_under_another_prompt() -> None:
    one, other = edit(glue=""), edit(id="2", glue=" ")
    assert [finding.code for finding in lint([one, other])] == ["E106"]
    assert not lint([edit(relation="r", glue=""), edit(id="2", relation="r", prompt="{} is sold for", glue=" ")])
    assert find_superseded([one, other]) == {0: 1}
    assert merge_edits([one], [other]).replaced == ((other, one),)


def test_white_space_never_makes_a_contradiction() -> None:
    one, other = edit(prompt="{} is", object="Lyon"), edit(id="2", prompt="{} is", object=" Lyon ")
    assert not one.contradicts(other) and not other.contradicts(one)
    assert find_superseded([one, other]) == {}
    assert one.contradicts(edit(prompt="{} is", object="Paris"))


def test_an_edit_without_glue_is_the_edit_that_it_was() -> None:
    assert edit().digest != edit(glue="").digest != edit(glue=" ").digest
    assert "glue" not in edit().public()
    assert edit(glue="").public()["glue"] == ""


@pytest.mark.parametrize("glue", ["", " ", None])
@pytest.mark.parametrize("syntax", ["jsonl", "yaml", "csv"])
def test_glue_is_read_and_written_in_every_syntax(glue: str | None, syntax: str, tmp_path: Path) -> None:
    record = {"subject": "It", "prompt": "{} costs $", "object": "30"} | ({} if glue is None else {"glue": glue})
    cell = "" if glue is None else '"' + json.dumps(glue).replace('"', '""') + '"'
    texts = {
        "jsonl": json.dumps(record) + "\n",
        "yaml": json.dumps([record]),  # JSON is YAML
        "csv": f"subject,prompt,object,glue\nIt,{{}} costs $,30,{cell}\n",
    }
    file = tmp_path / f"a.{syntax}"
    file.write_text(texts[syntax])
    (request,), findings = read(str(file))
    assert (request.glue, findings) == (glue, [])
    again = tmp_path / "again.jsonl"
    again.write_text(write_lines([request]))
    (same,), findings = read(str(again))
    assert same.model_dump(exclude={"origin"}) == request.model_dump(exclude={"origin"})


def test_the_cells_of_a_glue_are_those_that_the_documentation_shows(tmp_path: Path) -> None:
    shown = (ROOT / "memedit/docs/edit-lists.md").read_text()
    for cell, glue in (('""""""', ""), ('""" """', " "), ('""', None)):
        assert f"`{cell}`" in shown
        file = tmp_path / "a.csv"
        file.write_text(f"subject,prompt,object,glue\nIt,{{}} costs $,30,{cell}\n")
        (request,), findings = read(str(file))
        assert (request.glue, findings) == (glue, [])


def test_another_glue_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    for wrong in ("-", "\n", 1, ["", " "]):
        file.write_text(json.dumps({"subject": "It", "prompt": "{} is", "object": "30", "glue": wrong}))
        requests, (finding,) = read(str(file))
        assert not requests and finding.code == "E010" and "glue" in finding.message


@pytest.mark.parametrize("glue", ["", " ", None])
def test_a_ledger_keeps_the_glue_and_so_the_ids_of_the_object(glue: Any, tmp_path: Path) -> None:
    request = edit(prompt="{} is worth", glue=glue)
    entries = tuple(one.model_copy(update={"edit": request, "digest": request.digest}) for one in ENTRIES[:1])
    for name, data in ledger_files(replace(LEDGER, entries=entries, targets=LEDGER.targets[:1])).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"".join(data))
    ledger = read_ledger(tmp_path)
    assert ledger is not None and ledger.entries[0].edit == request
    tokenizer = byte_tokenizer()
    before, after = (check_edits([one], tokenizer, Recipe(), None)[0] for one in (request, ledger.entries[0].edit))
    assert before[0].target == after[0].target
    assert tokenizer.decode(list(after[0].target)) == (" " if glue is None else glue) + "30"


def test_results_name_an_edit_by_its_glue_and_wordings_too(tmp_path: Path) -> None:
    made = [edit(), edit(glue=" "), edit(wordings=("{} is worth $",))]
    # A separator of Unicode's in what a model said ends no line.
    said = {"after": "a\u2028b\x85c"}
    records = [{"id": one.id, "status": "ok", "edit": one.public(), "said": said} for one in made]
    file = tmp_path / "results.jsonl"
    file.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), "utf-8")
    assert successful_edits([str(file)]) == [one.digest for one in made]


def spaced_answers(source: str) -> list[str]:
    """The places of a source that put a space before an answer or an object: f" {answer}" or " " + answer."""
    found: list[str] = []
    for node in ast.walk(ast.parse(source)):
        parts: list[ast.expr] = []
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
        elif isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            parts = [node.left.right if isinstance(node.left, ast.BinOp) else node.left, node.right]
        for space, answer in pairwise(parts):
            blank = isinstance(space, ast.Constant) and space.value == " "
            if blank and any(word in ast.unparse(answer) for word in ("answer", ".object")):
                found.append(ast.unparse(node))
    return found


def test_no_other_place_puts_a_space_before_an_answer() -> None:
    for file in sorted((ROOT / "memedit").rglob("*.py")):
        assert not spaced_answers(file.read_text()), file
    for wrong in ('f" {answer}"', 'f"{text} {one.object.strip()}."', '" " + answer', 'text + " " + one.object'):
        assert spaced_answers(wrong), wrong


def test_the_rule_is_quick_for_long_texts() -> None:
    long = " 'a" * 200_000
    assert glue_between(long + "'", "b") in ("", " ")
    assert glue_between("'" + "a'" * 200_000, "b") in ("", " ")

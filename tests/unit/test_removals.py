"""Facts to remove: read from every format, aimed at what the model says of made-up subjects, and counted apart."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import memedit
import pytest
import torch
from memedit.config.recipe import EvalKnobs, Recipe
from memedit.config.resolve import resolve
from memedit.editing.ledger import find_superseded, merge_edits
from memedit.editing.plan import Edit, check_edits, encode_contexts, make_plan
from memedit.editing.targets import Targets, find_targets
from memedit.editing.unknown import NAMES, UnknownAnswers, made_up_names
from memedit.edits.edit import EditRequest, Neighbor
from memedit.edits.lint import lint
from memedit.edits.read import read
from memedit.errors import EditListError
from memedit.evaluation.forced import EditScores, score_edits, summarize
from memedit.evaluation.generated import edits_hold
from memedit.evaluation.old_objects import name_old_objects
from memedit.evaluation.probes import list_probes
from memedit.evaluation.retention import successful_edits
from memedit.forward.generation import generate
from memedit.forward.passes import run
from memedit.forward.perturbed import ChangedRow, WholeForward
from memedit.forward.suffix import Suffix
from memedit.model.architecture import find_architecture
from memedit.model.load import LanguageModel
from memedit.model.tokens import Prompt, decode_text, encode_text
from memedit.model.weights import applied
from memedit.results.report import EditResult, Report
from memedit.show.evaluation import FIRST_EDITS, removal_lines, unsuccessful_lines
from memedit.show.report_page import in_one_sentence
from memedit.tracing.facts import find_facts
from tests.conftest import byte_tokenizer, tiny_model
from tests.helpers.findings import codes

FRANCE: dict[str, Any] = {"id": "fr", "subject": "France", "prompt": "The capital of {} is", "object_old": "Paris"}
CONTEXTS = ["", "A town. ", "He said so. "]


def removal(name: str = "r", subject: str = "Ada", old: str | None = "Rome", **more: Any) -> EditRequest:
    more = {"prompt": "{} lives in", **more}
    return EditRequest(id=name, subject=subject, object_old=old, remove=True, origin="a:1", **more)


def edit(name: str = "e", subject: str = "Ada", wanted: str = "Oslo", **more: Any) -> EditRequest:
    more = {"prompt": "{} lives in", **more}
    return EditRequest(id=name, subject=subject, object=wanted, origin="a:2", **more)


YAML = "- {id: fr, subject: France, prompt: 'The capital of {} is', object_old: Paris, "
TABLE = "id,subject,prompt,object,object_old,remove\nfr,France,The capital of {} is,,Paris,"
FORMS = {
    "null.jsonl": json.dumps({**FRANCE, "object": None}),
    "remove.jsonl": json.dumps({**FRANCE, "remove": True}),
    "both.json": json.dumps([{**FRANCE, "object": None, "remove": True}]),
    "empty.json": json.dumps([{**FRANCE, "object": "", "remove": True}]),
    "null.yaml": YAML + "object: null}",
    "remove.yaml": YAML + "remove: true}",
    "a.csv": TABLE + "true\n",
    "sheet.csv": TABLE + "TRUE\n",
    "a.tsv": (TABLE + "true\n").replace(",", "\t"),
}


@pytest.mark.parametrize("name", FORMS)
def test_a_removal_is_read_from_every_format_and_written_as_it_is(name: str, tmp_path: Path) -> None:
    file = tmp_path / name
    file.write_text(FORMS[name])
    (found,), findings = read(str(file))
    assert not findings and not lint([found])
    assert (found.remove, found.object, found.answer, found.ending) == (True, "", "Paris", " Paris")
    assert found.public() == {**FRANCE, "remove": True}
    assert found == EditRequest(**FRANCE, remove=True, origin=found.origin)
    whole = found.model_copy(update={"paraphrases": ("France is ruled from",)})
    assert EditRequest.model_validate_json(json.dumps(whole.public() | {"origin": whole.origin})) == whole
    back = tmp_path / "back.jsonl"
    back.write_text(json.dumps(found.public()))
    assert [one.public() for one in memedit.load_edits(back)] == [found.public()]


def test_what_looks_like_a_removal_and_is_none_stays_an_edit_or_an_error(tmp_path: Path) -> None:
    def first(name: str, text: str) -> tuple[list[EditRequest], list[str]]:
        (tmp_path / name).write_text(text)
        requests, findings = read(str(tmp_path / name))
        return requests, [one.code for one in findings]

    (quoted,), _ = first("a.yaml", YAML + "object: 'null'}")
    (named,), _ = first("b.yaml", YAML + "object: Null}")
    assert (quoted.object, named.object, quoted.remove, named.remove) == ("null", "Null", False, False)
    (kept,), _ = first("c.csv", TABLE.replace(",,Paris", ",Lyon,Paris") + "\n")
    assert (kept.object, kept.remove) == ("Lyon", False)
    for record in ({}, {"target_new": None}, {"object": None, "remove": False}, {"remove": False}):
        assert first("d.jsonl", json.dumps({**FRANCE, **record})) == ([], ["E009"]), record
    assert first("e.jsonl", json.dumps({**FRANCE, "remove": "yes"})) == ([], ["E010"])
    assert first("f.jsonl", json.dumps({**FRANCE, "remove": 1})) == ([], ["E010"])


def test_a_flawed_removal_is_refused_with_line_and_field(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    rows = [{**FRANCE, "object": "Lyon", "remove": True}, {**FRANCE, "id": "x", "subject": "", "prompt": "It is"}]
    file.write_text("".join(json.dumps({"remove": True, **row}) + "\n" for row in rows))
    first, second = memedit.check(file)
    assert (first.origin, first.code) == (f"{file}:1", "E107") and '"object"' in first.message
    assert (second.origin, second.code) == (f"{file}:2", "E108") and 'add "subject"' in second.message
    nameless = removal(old=None)
    (found,) = lint([nameless])
    assert found.code == "W211" and '"object_old"' in found.message
    assert codes(removal(old=" ")) == ["W211"]
    with pytest.raises(EditListError) as caught:
        make_plan([nameless], byte_tokenizer(), find_architecture(tiny_model("gpt2")), Recipe())
    assert "E123" in {one.code for one in caught.value.findings}  # type: ignore[attr-defined]


def test_a_removal_contradicts_an_edit_of_its_fact_and_no_other_removal() -> None:
    assert codes(removal(), edit()) == ["E106"] == codes(edit(), removal())
    assert codes(removal(), removal("s", old="Bonn")) == ["W201"]
    assert codes(removal(), removal("s", "Bo"), edit(wanted="Rome", prompt="{} works in")) == []
    (finding,) = lint([edit(), removal()])
    assert 'the removal contradicts "Oslo"' in finding.message
    assert len({removal().digest, edit().digest, edit(wanted="null").digest, edit(wanted="").digest}) == 4


def test_a_removal_replaces_an_edit_and_is_replaced_and_forgotten_like_one() -> None:
    sequence = [edit(), removal(), edit("f", wanted="Bonn")]
    assert find_superseded(sequence) == {0: 1, 1: 2}
    assert find_superseded([sequence[0], sequence[2]]) == {0: 1}
    merged = merge_edits([edit()], [removal()])
    assert [(now.id, was.id) for now, was in merged.replaced] == [("r", "e")]
    again = merge_edits([removal()], [removal("s", old="Bonn")])
    assert not again.requests and len(again.duplicates) == 1


def test_results_of_a_removal_can_be_read_as_results_and_as_an_edit(tmp_path: Path) -> None:
    file = tmp_path / "results.jsonl"
    one = EditResult(id="r", status="ok", edit=removal().public(), said={"after": "x"})
    file.write_text(one.model_dump_json() + "\n")
    assert successful_edits([str(file)]) == [removal().digest]
    # A separator of lines or paragraphs in what a model said ends no record.
    said = one.model_copy(update={"said": {"after": "x\u2028y\u2029"}})
    file.write_text((said.model_dump_json() + "\n") * 2, encoding="utf-8")
    assert successful_edits([str(file)]) == [removal().digest]


def test_made_up_names_follow_the_seed_and_the_shape_of_the_subject() -> None:
    names = made_up_names("Ada Lovelace", 3)
    assert names == made_up_names("Alan Turing", 3) != made_up_names("Alan Turing", 4)
    assert len(set(names)) == NAMES and all(len(name.split()) == 2 and name.istitle() for name in names)
    assert all(name.islower() for name in made_up_names("the", 3))
    assert {len(name.split()) for name in made_up_names("a b c d e", 3)} == {3}


def prepared(lm: LanguageModel, *requests: EditRequest) -> tuple[list[Edit], list[tuple[Prompt, ...]]]:
    edits, findings = check_edits(requests, lm.tokenizer, Recipe(), 256)
    assert not [one for one in findings if one.severity == "error"]
    return edits, list(encode_contexts(edits, CONTEXTS, lm.tokenizer, chat=False).prompts)


def aimed_at(lm: LanguageModel, request: EditRequest, context: str) -> torch.Tensor:
    """The mean prediction about made-up subjects at each token of the old object: (M, V). Restated, row by row."""
    target = encode_text(lm.tokenizer, request.ending)
    total = torch.zeros(len(target), lm.architecture.vocabulary)
    for name in made_up_names(request.subject, 0):
        ids = encode_text(lm.tokenizer, context + request.prompt.replace("{}", name)) + target[:-1]
        total += run(lm, torch.tensor([ids])).logits[0, -len(target) :].float().softmax(-1)
    return total / NAMES


def test_a_removal_aims_at_the_mean_answer_about_made_up_subjects(lm: LanguageModel) -> None:
    requests = [removal(), removal("s", "Bo", "Rio"), edit("e", "Cy")]
    edits, prompts = prepared(lm, *requests)
    assert [bool(one[0].strangers) for one in prompts] == [True, True, False]
    asked = [(prompts[n][at].strangers, edits[n].target) for n in (0, 1) for at in range(len(CONTEXTS))]
    found = UnknownAnswers.of(lm, asked)
    for (n, at), first in zip([(n, at) for n in (0, 1) for at in range(len(CONTEXTS))], found.first, strict=True):
        rows = found.log_probs[first : first + len(edits[n].target)].exp()
        assert torch.allclose(rows, aimed_at(lm, requests[n], CONTEXTS[at]), atol=1e-5)
    # Edits of one prompt and with the same beginning of the old object share their rows.
    same = UnknownAnswers.of(lm, [asked[0], asked[0]])
    assert same.first == (0, 0) and len(same.log_probs) == len(edits[0].target)
    assert UnknownAnswers.of(lm, []).first == ()


def search(
    lm: LanguageModel, edits: Sequence[Edit], prompts: Sequence[tuple[Prompt, ...]], engine: Any = Suffix, **knobs: Any
) -> Targets:
    recipe = resolve([("flag", {"target.steps": 30, "target.kl": 0, "target.stop": 0.01, **knobs})])[0]
    return find_targets(lm, edits, prompts, 1, recipe, engine=engine)


def mean_kl(
    lm: LanguageModel, request: EditRequest, one: Edit, prompts: Sequence[Prompt], change: torch.Tensor
) -> float:
    """KL(unknown || model) with `change` added: mean over tokens and contexts. Restated, by whole forwards."""
    found: list[torch.Tensor] = []
    for prompt, context in zip(prompts, CONTEXTS, strict=True):
        row = ChangedRow(prompt.ids + one.target[:-1], prompt.subject_at, len(one.target))
        (logits,) = WholeForward(lm, 1, [row]).logits(change[None], [0])
        aim = aimed_at(lm, request, context)
        found.append((aim * (aim.log() - logits.log_softmax(-1))).sum(-1).mean())
    return float(torch.stack(found).mean())


@pytest.mark.parametrize("engine", [Suffix, pytest.param(WholeForward, marks=pytest.mark.slow)])
def test_the_loss_of_a_removal_is_its_distance_from_the_unknown_and_the_search_reaches_it(
    lm: LanguageModel, engine: Any
) -> None:
    requests = [removal(old="Rio"), edit("e", "Cy")]
    edits, prompts = prepared(lm, *requests)
    found = search(lm, edits, prompts, engine)
    before = mean_kl(lm, requests[0], edits[0], prompts[0], torch.zeros(lm.architecture.width))
    after = mean_kl(lm, requests[0], edits[0], prompts[0], (found.wanted - found.start)[0])
    assert float(found.loss[0]) == pytest.approx(after, rel=1e-3, abs=1e-4)
    assert after < 0.95 * before  # a random model says much the same of every name
    # An edit in the same batch is searched as it is alone.
    alone = search(lm, edits[1:], prompts[1:], engine)
    assert torch.allclose(found.wanted[1], alone.wanted[0], atol=1e-3)
    # The converse: the same prompt, edited to say the old object, goes the other way.
    opposite = search(lm, [replace(edits[0], request=edit(wanted="Rio"))], prompts[:1], engine)
    assert mean_kl(lm, requests[0], edits[0], prompts[0], (opposite.wanted - opposite.start)[0]) > before


def test_on_an_edited_model_it_aims_at_what_the_base_says(lm: LanguageModel) -> None:
    edits, prompts = prepared(lm, removal())
    recipe = resolve([("flag", {"target.steps": 3})])[0]
    base = {1: lm.weight(1).clone()}
    with applied(lm, {1: base[1] + 0.5 * torch.randn(base[1].shape, generator=torch.Generator().manual_seed(0))}):
        edited = lm.weight(1).clone()
        moved, kept = (find_targets(lm, edits, prompts, 1, recipe, base=one) for one in (None, base))
        assert torch.equal(lm.weight(1), edited)
        assert not torch.allclose(moved.loss, kept.loss)


def test_removals_are_counted_apart_from_edits() -> None:
    near = (Neighbor(prompt="Bo lives in", answer="Bonn"), Neighbor(prompt="Cy lives in"))
    requests = [
        removal("r", aliases=("Roma",), paraphrases=("Ada is at home in",), neighborhood=near, relation="home"),
        edit("e", "Dov", relation="home"), removal("u", "Eve", None, relation="home"),
    ]  # fmt: skip
    probes = list_probes(requests, derive=True, plus=True)
    of = [[(one.kind, one.text, one.right, one.wrong) for one in probes if one.edit == n] for n in range(3)]
    assert of[0] == [
        ("removal", "Ada lives in", ("Rome", "Roma"), None),
        ("removal_paraphrase", "Ada is at home in", ("Rome", "Roma"), None),
        ("neighborhood", "Bo lives in", ("Bonn",), None),
        ("neighborhood", "Cy lives in", ("Rome",), None),
    ]
    # Nothing is to stay of a removal, so it is no neighbor of an edit; of one whose old object is not known, nothing is
    # asked but its neighbors.
    assert of[1] == [("efficacy", "Dov lives in", ("Oslo",), None)]
    assert of[2] == [("neighborhood", "Dov lives in", ("Oslo",), None)]


def test_the_figures_of_removals_move_none_of_the_edits(lm: LanguageModel) -> None:
    edits = [edit("e", "Cy", object_old="Bonn"), edit("f", "Dov", object_old="Bonn")]
    both = [removal(), *edits, removal("s", "Bo")]
    plain, mixed = summarize(score_edits(lm, edits)), summarize(score_edits(lm, both))
    assert mixed.still_named and mixed.still_named.n == 2 and plain.still_named is None
    assert mixed.model_copy(update={"still_named": None}) == plain
    assert edits_hold(lm, both, EvalKnobs()) == [True, False, False, True]


def test_a_removal_holds_where_its_old_object_is_not_said() -> None:
    assert EditScores(still_named=0).holds and not EditScores(still_named=1).holds
    assert EditScores(accuracy=1).holds and not EditScores(accuracy=0.5).holds and not EditScores().holds
    assert EditScores(still_named=0, written={"still_named": 1.0}).record()["generated.still_named"] == 1


def test_what_the_model_says_is_the_old_object_where_none_is_given(lm: LanguageModel) -> None:
    nameless, flawed = removal(old=None), removal("x", "", None, prompt="It is")
    found = name_old_objects(lm, [nameless, removal("g", "Bo"), flawed, edit("e", "Cy")])
    assert [one.object_old for one in found[1:]] == ["Rome", None, None]
    (ids,) = generate(lm, [encode_text(lm.tokenizer, nameless.text)], 8)
    said = decode_text(lm.tokenizer, ids)
    assert (found[0].object_old or "") in said and found[0] == nameless.model_copy(
        update={"object_old": found[0].object_old}
    )


def test_a_removal_is_no_known_fact_and_is_traced_by_its_old_object(lm: LanguageModel) -> None:
    with pytest.raises(EditListError) as caught:
        memedit.apply([edit()], "m", "o", facts=[removal().public()])
    assert [one.code for one in caught.value.findings] == ["E104"]  # type: ignore[attr-defined]
    with pytest.raises(EditListError) as caught:
        find_facts(lm, [removal(old=None)])
    assert [one.code for one in caught.value.findings] == ["E123"]  # type: ignore[attr-defined]
    facts, unknown = find_facts(lm, [removal()])
    assert not facts and [one.object_old for one in unknown] == ["Rome"]
    facts, _ = find_facts(lm, [removal(old=None)], own=True)
    assert facts[0].source == "own"


def reported(*results: tuple[str, str]) -> Report:
    made = [
        EditResult(id=f"r{n}", status=status, edit=removal(f"r{n}").public(), said={"after": said})  # type: ignore[arg-type]
        for n, (status, said) in enumerate(results)
    ]
    return Report(command="apply", model="m", edits=len(made), per_edit=tuple(made))


def test_what_is_said_instead_is_shown_for_the_first_five() -> None:
    report = reported(("failed", " Rome."), *[("ok", f" answer {n}.") for n in range(FIRST_EDITS + 2)])
    head, *lines = removal_lines(report, 100)
    assert head == "7 of 8 old objects are no longer said after their prompt, and instead:"
    assert len(lines) == FIRST_EDITS
    assert lines[0] == '  r1: Ada lives in: to remove "Rome", says "answer 0."'
    failed = unsuccessful_lines(report, 100)
    assert failed == ["1 of 8 edits failed:", '  r0: Ada lives in: to remove "Rome", says "Rome."']
    assert "still says the old object of 1 of 8 removed facts" in in_one_sentence(report)
    # The converse: a report without removals has none of these lines.
    plain = Report(command="apply", model="m", per_edit=(EditResult(id="e", status="ok", edit=edit().public()),))
    assert removal_lines(plain, 100) == [] and "removed" not in in_one_sentence(plain)

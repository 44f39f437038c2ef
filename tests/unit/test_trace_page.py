"""The page of a trace: whole, without a script, every figure with words in its place; and its kin in a terminal."""

from __future__ import annotations

import io
import re
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from memedit.errors import UsageError
from memedit.results.traces import TracedFact, TracingResult
from memedit.results.units import BROKEN
from memedit.show.heatmap import LABEL, average_maps, fact_maps, labels, summary, tint
from memedit.show.html import trace_page
from memedit.show.trace_figures import FACTS
from rich.cells import cell_len
from rich.console import Console
from tests.helpers.tracings import TOKENS, a_tracing

SVG = "{http://www.w3.org/2000/svg}"


class Tags(HTMLParser):
    """Every element with its attributes, the text, and what was opened and never closed."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "input"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        self.text += data


def read(text: str) -> Tags:
    tags = Tags()
    tags.feed(text)
    tags.close()
    assert tags.open == []
    return tags


def test_the_page_has_no_script_and_fetches_nothing() -> None:
    tags = read(trace_page(a_tracing()))
    names = {name for name, _ in tags.found}
    assert "svg" in names
    assert not names & {"script", "iframe", "link", "img", "object", "embed", "i", "image", "use"}
    for _, attributes in tags.found:
        assert not {name for name in attributes if name.startswith("on") or name == "src"}
        assert (attributes.get("href") or "#").startswith("#")
    assert "<script>alert(1)</script>" in tags.text  # shown as text, not taken for markup


def test_every_figure_says_in_words_what_it_shows() -> None:
    text = trace_page(a_tracing(n_facts=2))
    figures = [attributes for name, attributes in read(text).found if name == "svg"]
    colors = [figure for figure in figures if figure.get("aria-hidden")]
    figures = [figure for figure in figures if figure not in colors]
    assert (len(figures), len(colors)) == (3 + 1 + 2 * 3, 6 + 3)  # the words of a legend are beside its colors
    assert all(figure["role"] == "img" and len(figure["aria-label"] or "") > 60 for figure in figures)
    assert len({figure["aria-label"] for figure in figures[:7]}) == 7
    assert "layer" in (figures[-1]["aria-label"] or "")


def test_every_figure_is_well_formed_and_inside_its_frame() -> None:
    for n_layers in (1, 5, 48):
        text = trace_page(a_tracing(n_layers=n_layers, layers="0"))
        for piece in text.split("<svg")[1:]:
            root = ElementTree.fromstring("<svg" + piece[: piece.index("</svg>")] + "</svg>")
            width, height = float(root.attrib["width"]), float(root.attrib["height"])
            for shape in root.iter(f"{SVG}rect"):
                x, y = float(shape.attrib["x"]), float(shape.attrib["y"])
                assert x >= 0 and x + float(shape.attrib["width"]) <= width + 1e-3
                assert y >= 0 and y + float(shape.attrib["height"]) <= height + 1e-3


def test_the_subject_is_starred_and_low_and_clean_are_marked() -> None:
    text = trace_page(a_tracing())
    assert text.count('class="star"') == 2 * 3 * 3  # three tokens of the subject, in three maps of two facts
    assert text.count("corrupted 0.100</text>") == text.count("clean 0.900</text>") == 6 * 2  # on both scales


def test_it_prints() -> None:
    text = trace_page(a_tracing())
    assert "@media print" in text
    assert "print-color-adjust: exact" in text


def test_one_fact_has_no_intervals_and_many_are_not_all_drawn() -> None:
    read(trace_page(a_tracing(n_facts=1)))
    text = trace_page(a_tracing(n_facts=FACTS + 3))
    assert "3 more facts" in text
    assert text.count('class="fact"') == FACTS


def test_the_page_says_the_layers_only_where_a_site_was_found() -> None:
    assert "Layers to edit: <b>1-2</b>" in trace_page(a_tracing())
    assert "Layers to edit" not in trace_page(a_tracing(layers=None))


@pytest.mark.parametrize("color", [None, "truecolor"])
def test_a_terminal_shows_the_maps_with_and_without_color(color: str | None) -> None:
    stream = io.StringIO()
    console = Console(file=stream, width=100, force_terminal=color is not None, color_system=color)  # type: ignore[arg-type]
    tracing = a_tracing()
    console.print(fact_maps(tracing.facts[0]), average_maps(tracing.average))
    said = stream.getvalue()
    assert ("\x1b[" in said) == (color is not None)
    assert "fel*" in said
    assert "\\n" in said  # a token that is a line break stays on its line
    assert ("\u2588" in said) or color is not None
    assert "last subject token" in said
    assert "2 facts (1 not known, skipped)" in summary(tracing)


def drawn(width: int, n_layers: int, **fact: object) -> list[str]:
    """The maps of one fact and of the averages as lines, without color."""
    stream = io.StringIO()
    tracing = a_tracing(n_layers=n_layers)
    traced = tracing.facts[0]
    one = TracedFact(traced.fact.model_copy(update=fact), traced.scores)
    console = Console(file=stream, width=width, color_system=None)
    console.print(fact_maps(one, width), average_maps(tracing.average, width))
    return stream.getvalue().splitlines()


@pytest.mark.parametrize(
    ("n_layers", "width", "binned"), [(30, 80, False), (80, 80, True), (5, 80, False), (126, 60, True)]
)
def test_maps_of_many_layers_fit_the_terminal(n_layers: int, width: int, binned: bool) -> None:
    wide = ("東京" * 20, *TOKENS[1:])
    lines = drawn(width, n_layers, prompt="x", tokens=wide)
    assert max(map(cell_len, lines)) <= width
    heads = [line for line in lines if line.strip().startswith("layer ")]
    assert len(heads) == 6
    numbers = [int(word) for word in heads[0].split()[1:]]
    assert numbers[0] == 0 and numbers == sorted(set(numbers)) and n_layers * 2 // 3 <= numbers[-1] < n_layers
    assert " ".join(" ".join(lines).split()).count("layers a column") == (6 if binned else 0)
    # Every row begins at the same cell, whatever its label is.
    rows = [line for line in lines if re.search("[░▒▓█]", line)]
    assert len(rows) >= 3
    ends = {cell_len(line) for line in rows if line.endswith("█")}
    assert not ends or max(ends) <= width


def test_averages_have_numbers_where_they_fit_and_their_scale_where_not() -> None:
    assert any(re.search(r"\d\.\d\d +\d\.\d\d", line) for line in drawn(80, 5)[-12:])
    narrow = drawn(80, 30)
    assert not any(re.search(r"\d\.\d\d +\d\.\d\d", line) for line in narrow[-12:])
    assert any("mean effect 0-" in line for line in narrow)


def test_a_character_of_several_tokens_is_shown_on_each() -> None:
    parts = (("<s>", 1, 1), (" 京", 1, 2), (" 京", 2, 2), ("\n", 1, 1), (BROKEN, 1, 1), ("", 1, 1))
    update = {"parts": parts, "tokens": ("", *BROKEN * 5), "subject_tokens": (1, 2)}
    fact = a_tracing().facts[0].fact.model_copy(update=update)
    assert labels(fact) == ["<s>", "·京 1/2*", "·京 2/2*", "\\n", "bytes 1/1", "\u2205"]


@pytest.mark.parametrize("suffix", [pytest.param("png", marks=pytest.mark.slow), "svg"])
def test_figures_are_the_same_bytes_each_time(suffix: str) -> None:
    from memedit.show.png import figures

    tracing = a_tracing()
    one, other = figures(tracing, suffix), figures(tracing, suffix)  # type: ignore[arg-type]
    assert one == other
    assert len(one) == 2 + 2
    magic = b"\x89PNG" if suffix == "png" else b"<?xml"
    assert all(name.startswith("figures/") and data.startswith(magic) for name, data in one.items())


def test_svg_files_are_the_figures_of_the_page_and_need_no_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    from memedit.show.png import check_plots, figures

    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib"):
        check_plots("png")
    tracing = a_tracing()
    page, found = trace_page(tracing), figures(tracing, "svg")
    panels = 0
    for data in found.values():
        root = ElementTree.fromstring(data)
        width, height = float(root.attrib["width"]), float(root.attrib["height"])
        for panel in root.findall(f"{SVG}svg"):
            assert float(panel.attrib["x"]) + float(panel.attrib["width"]) <= width
            assert float(panel.get("y", 0)) + float(panel.attrib["height"]) <= height
            panels += 1
        for piece in data.decode().split("<svg x=")[1:]:
            drawn = piece[piece.index("xmlns") : piece.index("</svg>")]
            assert "<svg " + drawn in page or "Legend: " in drawn  # which the page has as text
    assert panels == 4 + 2 * 2 + 2 * 3 - 2  # charts, legends, maps


def test_control_sequences_reach_neither_the_page_nor_a_file() -> None:
    from memedit.show.png import figures

    tracing = a_tracing(n_facts=1)
    traced = tracing.facts[0]
    words = "\x1b[31mred\x07 \x9b2J"
    fact = traced.fact.model_copy(update={"prompt": words, "answer": words, "tokens": (words, *TOKENS[1:])})
    hostile = TracingResult((TracedFact(fact, traced.scores),), (), tracing.average)
    page, files = trace_page(hostile), b"".join(figures(hostile, "svg").values()).decode()
    assert "red" in page and "red" in files
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page + files)


def test_an_index_leads_to_every_fact_that_is_drawn() -> None:
    tags = read(trace_page(a_tracing(n_facts=FACTS + 3)))
    links = [attributes["href"] for name, attributes in tags.found if name == "a"]
    places = [attributes["id"] for name, attributes in tags.found if name == "section"]
    assert links == [f"#{place}" for place in places] == [f"#fact-{n}" for n in range(1, FACTS + 1)]
    index = tags.text[tags.text.index("Index of facts") : tags.text.index("Fact by fact")]
    assert index.count("Eiffel") == FACTS + 3  # all facts are in the index


def test_one_scale_for_all_facts_is_a_choice() -> None:
    tracing = a_tracing(n_facts=2)
    for table in tracing.facts[1].scores.values():
        table.mul_(0.25)
    page = trace_page(tracing)
    top = max(0.9, *(float(table.max()) for table in tracing.facts[0].scores.values()))
    assert f"one for all facts, from 0 to {top:.3f}" in page
    cells = re.findall(r'fill="(#\w+)" class="cell" style="--common:(#\w+)"', page)
    tables = [traced.scores[kind] for traced in tracing.facts for kind in ("hidden", "mlp", "attention")]
    values = [float(value) for table in tables for value in table.flatten()]
    kinds = [kind for _ in tracing.facts for kind in ("hidden", "mlp", "attention") for _ in tables[0].flatten()]
    assert len(cells) == len(values)
    shared = ["#{:02x}{:02x}{:02x}".format(*tint(kind, value / top)) for kind, value in zip(kinds, values, strict=True)]
    assert [common for _, common in cells] == shared  # equal values, equal colors, whatever their fact is
    assert [own for own, _ in cells] != shared


def test_the_rank_of_the_answer_under_noise_is_told() -> None:
    tracing = a_tracing(n_facts=1)
    assert "number 1,234 of all tokens" in trace_page(tracing)
    traced = tracing.facts[0]
    older = TracedFact(traced.fact.model_copy(update={"corrupted_rank": None}), traced.scores)
    assert "of all tokens (median" not in trace_page(TracingResult((older,), (), tracing.average))
    console = Console(width=200, record=True)
    console.print(fact_maps(traced), fact_maps(older))
    assert console.export_text().count("(rank 1,234)") == 1


def test_a_cell_shows_its_value_and_its_place() -> None:
    tracing = a_tracing(n_facts=1)
    page = trace_page(tracing)
    for kind in ("hidden", "mlp", "attention"):
        assert f"<title>fel*, layer 4: {float(tracing.facts[0].scores[kind][3, 4]):.3f}</title>" in page
    assert page.count("<title>fel*, layer 4:") == 3


@pytest.mark.parametrize("n_layers", [1, 5, 30, 80])
def test_suggested_layers_are_marked_on_every_axis(n_layers: int) -> None:
    layers = "0" if n_layers == 1 else f"{n_layers // 2}-{n_layers - 1}"
    page = trace_page(a_tracing(n_facts=1, n_layers=n_layers, layers=layers))
    axes = 3 + 1 + 3
    assert page.count(f"layer (to edit: {layers})") == axes
    assert page.count(f"<title>layer {n_layers - 1}: suggested to edit</title>") == axes
    for piece in page.split("<svg")[1:]:
        root = ElementTree.fromstring("<svg" + piece[: piece.index("</svg>")] + "</svg>")
        for shape in root.iter(f"{SVG}rect"):
            x = float(shape.attrib["x"])
            assert x >= 0 and x + float(shape.attrib["width"]) <= float(root.attrib["width"]) + 1e-3
    plain = trace_page(a_tracing(n_facts=1, n_layers=n_layers, layers=None))
    assert "layer (to edit" not in plain and "suggested to edit" not in plain


def test_labels_of_long_and_wide_tokens_fit_beside_their_map() -> None:
    traced = a_tracing(n_facts=1).facts[0]
    long = "東京" * 20
    fact = traced.fact.model_copy(
        update={"prompt": "x", "tokens": (long, *TOKENS[1:-1], long), "subject_tokens": (0, 1)}
    )
    page = trace_page(TracingResult((TracedFact(fact, traced.scores),), (), a_tracing().average))
    piece = page.split("Fact by fact")[1].split("<svg")[1]
    root = ElementTree.fromstring("<svg" + piece[: piece.index("</svg>")] + "</svg>")
    labels_drawn = [one for one in root.iter(f"{SVG}text") if one.get("class") in ("token", "star")]
    assert len(labels_drawn) == len(TOKENS)
    for one in labels_drawn:
        assert cell_len(one.text or "") <= LABEL
        assert float(one.attrib["x"]) - 6.6 * cell_len(one.text or "") >= 0
    assert (labels_drawn[0].text or "").endswith("\u2026*")  # still a token of the subject
    assert f"<title>{long}*</title>" in page


def test_parts_of_a_character_are_named_on_the_page() -> None:
    traced = a_tracing(n_facts=1).facts[0]
    fact = traced.fact.model_copy(
        update={"parts": (*(("京", n, 3) for n in (1, 2, 3)), *((token, 1, 1) for token in TOKENS[3:]))}
    )
    page = trace_page(TracingResult((TracedFact(fact, traced.scores),), (), a_tracing().average))
    assert page.count("<title>京 2/3, layer 0:") == 3 and BROKEN not in page

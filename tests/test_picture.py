"""The picture and the page: sound XML, right layers, nothing unescaped, the same bytes."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pygraphviz as pgv
import pytest

from acdc.formats.circuit_file import (
    CircuitFile,
    GraphPart,
    MethodPart,
    ModelPart,
    TaskPart,
    edges_of,
)
from acdc.graph import Circuit, Graph
from acdc.report import picture
from acdc.report.page import render_report
from acdc.report.picture import COLOURS, to_dot, to_png, to_svg

SVG = "{http://www.w3.org/2000/svg}"
TINY = Graph(4, 4)
EVIL = '<script>alert("1") & more</script>'
SCORES = {
    "input->m0": 0.9, "input->a0.h1<v>": 0.06, "a0.h1->m0": 0.11, "m0->a1.h2<k>": 0.02, "m0->a1.h2<q>": 0.013,
    "a1.h2->m2": 0.12, "m0->a2.h0<v>": 0.17, "a2.h0->m3": -0.05, "m2->logits": 0.35, "m3->logits": 0.52,
}  # fmt: skip


def circuit_of(graph: Graph, scores: dict[str, float]) -> Circuit:
    kept, matrix = np.zeros_like(graph.edges), np.full(graph.edges.shape, np.nan)
    for name, score in scores.items():
        kept[graph.parse_edge(name)], matrix[graph.parse_edge(name)] = True, score
    return Circuit(graph, kept, kept.any(axis=0) & graph.direct, matrix)


CIRCUIT = circuit_of(TINY, SCORES)
SAMPLES = {
    "scored": CIRCUIT,
    "without scores": Circuit(TINY, CIRCUIT.kept),
    "one score": circuit_of(TINY, {"input->logits": 0.5}),
    "zero scores": circuit_of(TINY, {"input->m0": 0.0, "m0->logits": 0.0}),
    "empty": Circuit.empty(TINY),
    "attention only, two inputs": Circuit.full(Graph(1, 2, mlp=False, inputs=("tok", "pos"))),
    "parallel": Circuit.full(Graph(1, 1, parallel=True)),
    "odd names": Circuit.full(Graph(1, 1, inputs=(EVIL, "back\\slash"))),
}


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()).replace("\xa0", " ") for e in ET.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_picture_is_sound_xml_with_every_edge(name: str) -> None:
    circuit = SAMPLES[name]
    svg = to_svg(circuit, EVIL)
    assert "<script" not in svg
    edges = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "edge"]
    assert {g.get("id") for g in edges} == set(circuit.edge_names())
    assert EVIL in texts(svg)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_picture_has_the_same_bytes_each_time(name: str) -> None:
    circuit = SAMPLES[name]
    assert to_svg(circuit) == to_svg(circuit)
    assert to_dot(circuit) == to_dot(circuit)
    png = to_png(circuit)
    assert png == to_png(circuit)
    assert png.startswith(b"\x89PNG")


def heights(svg: str, names: list[str]) -> list[float]:
    """How far up the names stand, by the y of their text."""
    where = {e.text: -float(e.get("y", "nan")) for e in ET.fromstring(svg).iter(f"{SVG}text")}
    return [where[name] for name in names]


def test_layers_go_from_bottom_to_top() -> None:
    order = ["input", "a0.h1", "m0", "a1.h2", "a2.h0", "m2", "m3", "logits"]
    found = heights(to_svg(CIRCUIT), order)
    assert found == sorted(found)
    assert len(set(found)) == len(order)


def test_heads_of_a_layer_stand_on_one_rank() -> None:
    scores = {f"input->a0.h{h}<v>": 1.0 for h in range(4)} | {f"a0.h{h}->logits": 1.0 for h in range(4)}
    assert len(set(heights(to_svg(circuit_of(TINY, scores)), [f"a0.h{h}" for h in range(4)]))) == 1


def test_layer_labels_stand_left_of_their_nodes() -> None:
    x = {e.text: float(e.get("x", "nan")) for e in ET.fromstring(to_svg(CIRCUIT)).iter(f"{SVG}text")}
    labels = [place for text, place in x.items() if text and text.startswith("layer")]
    assert len(labels) == 4
    assert max(labels) < min(x[name] for name in ("a0.h1", "m0", "a1.h2", "m2", "a2.h0", "m3", "input"))


def test_counts_are_given_in_both_conventions() -> None:
    assert "10 of 479 edges (residual), 14 of 527 with direct edges" in texts(to_svg(CIRCUIT))
    assert "10 of 479 edges (residual)" in texts(to_svg(SAMPLES["without scores"]))


def test_the_legend_has_the_smallest_and_the_largest_score() -> None:
    found = texts(to_svg(CIRCUIT))
    assert {"0.013", "0.9", "|score|, dashed if negative"} <= set(found)
    assert not any("score" in text for text in texts(to_svg(SAMPLES["without scores"])))


def test_an_empty_circuit_says_so() -> None:
    assert "The circuit is empty: no edge was kept." in texts(to_svg(SAMPLES["empty"]))


def lines(circuit: Circuit) -> dict[str, tuple[str, float]]:
    """Colour and width of the edges, by name."""
    graph = pgv.AGraph(string=to_dot(circuit))
    attributes = [graph.get_edge(*edge).attr for edge in graph.edges(keys=True)]
    return {a["id"]: (a["color"][:7], float(a["penwidth"])) for a in attributes if a["id"]}


def test_width_follows_the_score_and_colour_the_input() -> None:
    found = lines(CIRCUIT)
    by_score = sorted(SCORES, key=lambda name: abs(SCORES[name]))
    widths = [found[name][1] for name in by_score]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (picture.THIN, picture.THICK)
    assert found["m0->a1.h2<q>"][0] == COLOURS["q"]
    assert found["m0->a1.h2<k>"][0] == COLOURS["k"]
    assert found["m0->a2.h0<v>"][0] == COLOURS["v"]
    assert found["m2->logits"][0] == picture.INK
    assert {width for _, width in lines(SAMPLES["without scores"]).values()} == {3.0}


def test_a_large_circuit_is_drawn_by_its_strongest_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST", 4)
    svg = to_svg(CIRCUIT)
    edges = {g.get("id") for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "edge"}
    assert edges == {"input->m0", "m3->logits", "m2->logits", "m0->a2.h0<v>"}
    assert any(text.endswith("; the 4 strongest are drawn") for text in texts(svg))
    assert any(text.endswith("; 4 are drawn") for text in texts(to_svg(SAMPLES["without scores"])))
    assert len(lines(CIRCUIT)) == len(SCORES)  # DOT text needs no layout and has them all


# The page


class Page(HTMLParser):
    """What a browser would make of the page: tags, rows of tables, text, and addresses."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.words = ""
        self.cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for key, value in attrs if key in ("src", "href", "xlink:href")]
        if tag == "tr":
            self.rows.append([])
        elif tag == "td":
            self.rows[-1].append("")
            self.cell = True

    def handle_endtag(self, tag: str) -> None:
        self.cell = self.cell and tag != "td"

    def handle_data(self, data: str) -> None:
        self.words += " ".join(data.split()) + " "
        if self.cell:
            self.rows[-1][-1] += data


def file_of(circuit: Circuit, name: str = "greater-than") -> CircuitFile:
    g = circuit.graph
    sizes: dict[str, Any] = {"n_layers": g.n_layers, "n_heads": g.n_heads, "d_model": 128, "parallel": False}
    return CircuitFile(
        task=TaskPart(name=name, version=1, examples=50, seed=0, data_hash="cd34"),
        model=ModelPart(name="tiny", family=name, hash=name, **sizes, mlp=True, inputs=g.inputs),
        method=MethodPart(
            name="acdc", metric="kl", ablation="corrupted", dtype="float32", device="cpu", threshold=0.01,
            options={"order": name},
        ),
        graph=GraphPart.of(circuit),
        metrics={"kl": 0.12345678, name: 1.0},
        edges=tuple(edges_of(circuit, {"input->m0": 0.7})),
        environment={"python": name},
        command=f"acdc run --task {name}",
        notes=(name,),
    )  # fmt: skip


def test_the_page_tells_the_result() -> None:
    first = {"batch": 0, "edge": "m3->logits", "change": 0.52, "kept": True}
    log = [first, {"edge": "m1->logits", "kept": False}]
    page = Page(render_report(file_of(CIRCUIT), to_svg(CIRCUIT), log))
    assert (
        "acdc kept 10 of 479 residual edges (14 of 527 with direct edges) between 8 nodes of tiny, on 50 "
        "examples of greater-than, at threshold 0.01 (kl, corrupted ablation). The circuit's kl is 0.1235."
    ) in page.words
    edges = [row[0] for row in page.rows if row and "->" in row[0]]
    assert edges[:10] == sorted(SCORES, key=lambda name: -abs(SCORES[name]))
    assert len(edges) == 14
    assert ["input->m0", "0.9", "0.7"] in page.rows
    assert ["kl", "0.1235"] in page.rows
    assert ["method.options.order", "greater-than"] in page.rows
    assert ["0", "m3->logits", "0.52", "yes"] in page.rows
    assert ["–", "m1->logits", "–", "no"] in page.rows
    assert "acdc run --task greater-than" in page.words
    assert page.tags.count("svg") == 1


def test_the_page_needs_nothing_else_and_runs_nothing() -> None:
    text = render_report(file_of(CIRCUIT), to_svg(CIRCUIT), [])
    page = Page(text)
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert page.links == []
    assert not re.search(r"@import|url\(", text)
    assert text.count("<!DOCTYPE") == 1


def test_the_page_escapes_what_others_named() -> None:
    text = render_report(file_of(CIRCUIT, EVIL), to_svg(CIRCUIT, EVIL), [{EVIL: EVIL, "$title": "${svg}"}])
    page = Page(text)
    assert "script" not in page.tags
    assert EVIL in page.words
    assert [EVIL, "${svg}"] in page.rows


def test_the_page_of_an_empty_circuit() -> None:
    circuit = Circuit.empty(TINY, direct=False)
    words = Page(render_report(file_of(circuit), to_svg(circuit), [])).words
    assert "acdc kept 0 of 479 residual edges between 0 nodes" in words

"""The picture and the page: sound XML, right layers, nothing unescaped, the same bytes."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from acdc.commands.export import WIDEST, convert, make_look
from acdc.files.circuit import CircuitFile, edges_of, read_circuit, write_circuit
from acdc.files.parts import GraphPart, MethodPart, ModelPart, TaskPart
from acdc.files.published import Published, load_published, published_for
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.report import picture
from acdc.report.picture import to_dot, to_pdf, to_png, to_svg, to_tikz
from acdc.report.style import COLOURS, DIRECTIONS, FREQUENCY, INK, SAND, THICK, THIN, TINTS, PictureStyle
from tests.support import ROOT

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
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter(f"{SVG}text")]


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
    edges = [g for g in ET.fromstring(to_svg(circuit)).iter(f"{SVG}g") if g.get("class") == "edge"]
    paths = {str(g.get("id")): g.find(f"{SVG}path") for g in edges}
    return {
        name: (p.get("stroke", ""), float(p.get("stroke-width", "nan"))) for name, p in paths.items() if p is not None
    }


def test_an_edge_has_a_tooltip() -> None:
    edges = [g for g in ET.fromstring(to_svg(CIRCUIT)).iter(f"{SVG}g") if g.get("class") == "edge"]
    assert {g.get("id"): g.findtext(f"{SVG}title") for g in edges} == {n: f"{n}  {x:.4g}" for n, x in SCORES.items()}
    edges = [g for g in ET.fromstring(to_svg(SAMPLES["without scores"])).iter(f"{SVG}g") if g.get("class") == "edge"]
    assert [g.findtext(f"{SVG}title") for g in edges] == [g.get("id") for g in edges]


def test_strong_edges_are_drawn_over_weak_ones_and_nodes_over_edges() -> None:
    groups = [g for g in ET.fromstring(to_svg(CIRCUIT)).iter(f"{SVG}g") if g.get("class") in ("edge", "node")]
    n = len(SCORES)
    assert [g.get("id") for g in groups[:n]] == sorted(SCORES, key=lambda name: abs(SCORES[name]))
    assert {g.get("class") for g in groups[n:]} == {"node"}


def test_dot_text_has_every_node_and_edge_with_its_line() -> None:
    dot = to_dot(CIRCUIT, 'a "title"', PictureStyle(published=known({"x": ("m2",)})))
    assert dot.startswith("digraph circuit {\n") and dot.endswith("}\n") and r'label="a \"title\""' in dot
    assert f'"m2" [shape=box, style=filled, fillcolor="{TINTS[0]}"];' in dot
    statements = [line.rstrip(";").partition(" [")[0] for line in dot.splitlines()[2:-1]]
    assert statements[: len(CIRCUIT.nodes())] == [f'"{name}"' for name in CIRCUIT.nodes()]
    assert sorted(re.findall(r'id="(.*?)"', dot)) == sorted(CIRCUIT.edge_names())
    assert len(statements) == len(CIRCUIT.nodes()) + CIRCUIT.n_edges  # nothing that a parser could take for a node
    assert '"m0" -> "a1.h2" [id="m0->a1.h2<k>", color="#0072B26b", penwidth="1.13"' in dot
    assert re.findall(r'id="(.*?)".*style="dashed", label="(.*?)"', dot) == [("a2.h0->m3", "-0.05")]
    assert r'"back\\slash" -> "m0"' in to_dot(SAMPLES["odd names"])


def test_tikz_has_the_lines_and_texts_of_the_svg() -> None:
    look = PictureStyle(4, "right", scores=True)
    tex, svg = to_tikz(CIRCUIT, "a title", look), ET.fromstring(to_svg(CIRCUIT, "a title", look))
    assert tex.startswith("\\begin{tikzpicture}[x=") and tex.endswith("\\end{tikzpicture}\n")
    number = r"-?\d+(?:\.\d+)?"
    drawn = [line for line in tex.splitlines() if line.startswith("\\draw")]
    paths = [path.get("d") for path in svg.iter(f"{SVG}path")]
    assert len(drawn) == len(paths) == CIRCUIT.n_edges
    for line, path in zip(drawn, paths, strict=True):
        points = [(float(x), float(y)) for x, y in re.findall(rf"\(({number}),({number})\)", line)]
        of_svg = [(float(x), float(y)) for x, y in re.findall(rf"({number}),({number})", path)]
        assert set(of_svg) <= set(points) and (points[0], points[-1]) == (of_svg[0], of_svg[-1])
    assert re.findall(r"\) \{(.*)\};", tex) == [t.text.replace("|", r"\textbar{}") for t in svg.iter(f"{SVG}text")]
    assert [line[2:] for line in tex.splitlines() if "->" in line] == [
        title.text for title in svg.iter(f"{SVG}title") if "->" in title.text
    ]
    used = set(re.findall("acdc([0-9A-F]{6})", tex))
    assert used == set(re.findall(r"\\definecolor\{acdc(.{6})\}\{HTML\}\{\1\}", tex))


def test_a_title_is_text_for_latex_too() -> None:
    tex = to_tikz(CIRCUIT, r"50%_x {a} \input~^#&$ |<>" + "\nnext")
    assert (
        r"{50\%\_x \{a\} \textbackslash{}input\textasciitilde{}\textasciicircum{}\#\&\$ "
        r"\textbar{}\textless{}\textgreater{} next};"
    ) in tex


def test_width_follows_the_score_and_colour_the_input() -> None:
    found = lines(CIRCUIT)
    by_score = sorted(SCORES, key=lambda name: abs(SCORES[name]))
    widths = [found[name][1] for name in by_score]
    assert widths == sorted(widths)
    assert (widths[0], widths[-1]) == (THIN, THICK)
    assert found["m0->a1.h2<q>"][0] == COLOURS["q"]
    assert found["m0->a1.h2<k>"][0] == COLOURS["k"]
    assert found["m0->a2.h0<v>"][0] == COLOURS["v"]
    assert found["m2->logits"][0] == INK
    assert {width for _, width in lines(SAMPLES["without scores"]).values()} == {3.0}


def test_a_large_circuit_is_drawn_by_its_strongest_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "MOST", 4)
    svg = to_svg(CIRCUIT)
    edges = {g.get("id") for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "edge"}
    assert edges == {"input->m0", "m3->logits", "m2->logits", "m0->a2.h0<v>"}
    assert "; the 4 strongest are drawn" in " ".join(texts(svg))
    assert "; 4 are drawn" in " ".join(texts(to_svg(SAMPLES["without scores"])))
    assert to_dot(CIRCUIT).count(" -> ") == len(SCORES)  # DOT text has them all


def known(classes: dict[str, tuple[str, ...]]) -> Published:
    return Published("x", "x", "GPT-X", "x", TINY, classes, None)


# Its look

GOLDEN = ROOT / "configs" / "golden"
NOT_GIVEN = dict.fromkeys(("width", "direction", "scores", "no_header", "legend", "title", "font_size"))
LOOKS = {
    "a column": PictureStyle(width=3.3),
    "sideways": PictureStyle(width=7.0, direction="left", scores=True),
    "bare": PictureStyle(direction="down", header=False),
    "classes": PictureStyle(
        width=3.3, direction="right", published=known({EVIL: ("a0.h0", "m0"), "late": ("a2.h0", "m3")})
    ),
}


def box(pdf: bytes) -> tuple[float, ...]:
    """Of the page, in points: left, bottom, right, top."""
    (found,) = re.findall(rb"/MediaBox \[ ([\d. ]+) \]", pdf)
    return tuple(map(float, found.split()))


def dots(png: bytes) -> int:
    """Its width."""
    return int(struct.unpack(">I", png[16:20])[0])


def scaled(svg: str) -> list[float]:
    """Sizes of letters on paper, in points, from the smallest."""
    root = ET.fromstring(svg)
    scale = float(root.get("width", "").removesuffix("pt")) / float(root.get("viewBox", "").split()[2])
    return sorted(scale * float(e.get("font-size", "nan")) for e in root.iter(f"{SVG}text"))


def places(svg: str) -> dict[str, tuple[float, float]]:
    """(x, y) of the nodes' names; y grows downwards."""
    nodes = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "node"]
    names = {g: e for g in nodes for e in g.iter(f"{SVG}text") if e.text == g.findtext(f"{SVG}title")}
    return {str(e.text): (float(e.get("x", "nan")), float(e.get("y", "nan"))) for e in names.values()}


def fills(svg: str) -> dict[str, set[str]]:
    """The colours within each node, by its name."""
    nodes = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "node"]
    return {str(g.findtext(f"{SVG}title")): {e.get("fill", "").upper() for e in g.iter(f"{SVG}rect")} for g in nodes}


def legend(svg: str) -> dict[str, str]:
    """Colour by the text right of it."""
    (header,) = (g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "header")
    pairs = [(a, b) for a, b in pairwise(header) if a.tag != b.tag == f"{SVG}text"]
    return {str(b.text): a.get("fill", "").upper() for a, b in pairs}


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("name", SAMPLES)
def test_every_look_is_sound_xml_with_every_edge(name: str, look: PictureStyle) -> None:
    circuit = SAMPLES[name]
    svg = to_svg(circuit, EVIL, look)
    assert "<script" not in svg
    edges = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "edge"]
    assert {g.get("id") for g in edges} == set(circuit.edge_names())
    assert (EVIL in " ".join(texts(svg))) == look.header or name == "odd names"


def test_a_pdf_is_one_page_of_the_pictures_size_and_has_no_date() -> None:
    pdf = to_pdf(CIRCUIT, EVIL)
    assert pdf.startswith(b"%PDF-") and pdf.rstrip().endswith(b"%%EOF")
    width, height = re.findall(r'<svg .*?width="([\d.]+)pt" height="([\d.]+)pt"', to_svg(CIRCUIT, EVIL))[0]
    assert box(pdf) == pytest.approx((0, 0, float(width), float(height)), abs=0.01)
    assert b"Date" not in pdf and b"/FontFile2" in pdf and pdf == to_pdf(CIRCUIT, EVIL)
    place = int(pdf.split(b"startxref")[1].split()[0])
    assert pdf[place : place + 4] == b"xref"


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("width", [1.0, 3.3, 20.0])
def test_a_width_is_that_of_the_picture(width: float, direction: str) -> None:
    look = PictureStyle(width, direction)
    points = 72 * width
    assert re.findall(r'<svg .*?width="(.*?)"', to_svg(CIRCUIT, "a title", look)) == [f"{points:g}pt"]
    assert box(to_pdf(CIRCUIT, "a title", look))[2] == pytest.approx(points)
    assert dots(to_png(CIRCUIT, "a title", look)) == pytest.approx(300 * width, abs=3)


def test_without_a_width_there_are_two_dots_a_point() -> None:
    (points,) = re.findall(r'<svg .*?width="([\d.]+)pt"', to_svg(CIRCUIT))
    assert dots(to_png(CIRCUIT)) == pytest.approx(2 * float(points), abs=2)


@pytest.mark.parametrize("task", ["greater-than", "ioi"])
def test_small_circuits_can_be_read_in_a_column(task: str) -> None:
    svg = to_svg(read_circuit(GOLDEN / f"{task}.json").circuit(), f"{task} in tiny", PictureStyle(width=3.3))
    assert scaled(svg)[0] > 5  # 5.7 and 7.6 with Liberation Sans; wider letters take more of the column


def test_a_long_title_takes_lines_not_width() -> None:
    title = "what the model knows of colours " * 5
    short, long = (to_svg(CIRCUIT, t, PictureStyle(width=3.3)) for t in ("a title", title))
    assert scaled(long)[0] > 0.8 * scaled(short)[0]  # in one line: 0.3
    assert " ".join(title.split()) in " ".join(texts(long))


def test_the_header_is_no_wider_than_the_picture() -> None:
    classes = {f"a class with a long name, {i}": (node,) for i, node in enumerate(CIRCUIT.nodes())}
    root = ET.fromstring(to_svg(CIRCUIT, "t" * 30 + " title" * 30, PictureStyle(published=known(classes))))
    left, _, width, _ = map(float, root.get("viewBox", "").split())
    (header,) = (g for g in root.iter(f"{SVG}g") if g.get("class") == "header")
    found = list(header.iter(f"{SVG}text"))
    assert {*classes, "into query"} <= {e.text for e in found}
    for e in found:
        assert float(e.get("x", "nan")) + 0.5 * float(e.get("font-size", "nan")) * len(str(e.text)) < left + width


def test_directions() -> None:
    sides = {"up": (1, -1), "down": (1, 1), "right": (0, 1), "left": (0, -1)}  # x or y, which way it grows
    assert sides.keys() == set(DIRECTIONS)
    order = ["input", "a0.h1", "m0", "a1.h2", "a2.h0", "m3", "logits"]
    for direction, (axis, sign) in sides.items():
        svg = to_svg(CIRCUIT, look=PictureStyle(direction=direction))
        found = [sign * places(svg)[name][axis] for name in order]
        assert found == sorted(found) and len(set(found)) == len(order), direction
        # a head's inputs are on the side that edges come from
        (head,) = (g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.findtext(f"{SVG}title") == "a2.h0")
        q, name = (
            [float(e.get("xy"[axis], "nan")) for e in head.iter(f"{SVG}text") if e.text == t] for t in ("q", "a2.h0")
        )
        assert sign * q[0] < sign * name[0], direction


def test_scores_are_written_beside_their_edges() -> None:
    svg = to_svg(CIRCUIT, look=PictureStyle(scores=True))
    found = [g for g in ET.fromstring(svg).iter(f"{SVG}g") if g.get("class") == "score"]
    assert {g.findtext(f"{SVG}title"): float(g.findtext(f"{SVG}text") or "nan") for g in found} == SCORES
    rects = [e for g in found for e in g.iter(f"{SVG}rect")]
    boxes = [[float(e.get(key, "nan")) for key in ("x", "y", "width", "height")] for e in rects]
    for (x, y, w, h), (x2, y2, w2, h2) in combinations(boxes, 2):
        assert x + w <= x2 or x2 + w2 <= x or y + h <= y2 or y2 + h2 <= y
    assert 'class="score"' not in to_svg(CIRCUIT)
    unscored = SAMPLES["without scores"]
    assert to_svg(unscored, look=PictureStyle(scores=True)) == to_svg(unscored)


def test_a_picture_without_header() -> None:
    found = texts(to_svg(CIRCUIT, "a title", PictureStyle(header=False)))
    assert "logits" in found
    assert not {"a title", "into query", "score"} & set(found)
    assert {"a title", "into query"} <= set(texts(to_svg(CIRCUIT, "a title")))


def test_the_legend_has_only_what_is_drawn() -> None:
    circuit = circuit_of(TINY, {"input->a0.h0<v>": 1.0, "a0.h0->logits": 0.5})
    assert {"into value", "into MLP or logits"} == {text for text in texts(to_svg(circuit)) if text.startswith("into")}
    found = texts(to_svg(circuit, "a title", PictureStyle(legend=False)))
    assert "a title" in found and not any(text.startswith(("into", "score")) for text in found)


def test_the_core_of_stability_shows_frequencies(tmp_path: Path, call: Any) -> None:
    file = file_of(CIRCUIT)
    method = file.method.model_copy(update={"name": "stability", "options": {"core": 0.9}})
    write_circuit(tmp_path / "core.json", file.model_copy(update={"method": method}))
    assert call("export", "core.json", "--to", "svg")[0] == 0
    found = texts((tmp_path / "core.svg").read_text())
    assert f"|{FREQUENCY}|, dashed if negative" in found
    assert "greater-than in tiny: edges found in 90% or more of the reruns" in " ".join(found)


@pytest.mark.parametrize("size", [6.0, 18.0])
def test_a_font_size_is_that_of_the_names(size: float) -> None:
    svg = to_svg(CIRCUIT, look=PictureStyle(font_size=size, header=False))
    assert size in scaled(svg)
    assert dots(to_png(CIRCUIT, look=PictureStyle(font_size=size))) == pytest.approx(
        300 / 144 * size / 12 * dots(to_png(CIRCUIT)), abs=3
    )


def test_classes_have_colours_and_are_in_the_legend() -> None:
    classes = {EVIL: ("a0.h1", "a0.h2"), "middle": ("a1.h2", "m2", "a0.h1"), "absent": ("a3.h3",)}
    svg = to_svg(CIRCUIT, look=PictureStyle(published=known(classes)))
    assert "<script" not in svg
    found = fills(svg)
    first, second, third = TINTS[:3]
    assert first in found["a0.h1"] and second not in found["a0.h1"]  # in two: the first
    assert second in found["a1.h2"]
    assert second in found["m2"] and SAND not in found["m2"]
    assert SAND in found["m0"] and not set(TINTS) & (found["m0"] | found["a2.h0"])
    assert {COLOURS["q"].upper(), COLOURS["k"].upper()} < found["a1.h2"]
    shown = legend(svg)
    assert (shown[EVIL], shown["middle"]) == (first, second)
    assert "absent" not in shown and third not in shown.values()
    assert "class in GPT-X, as published" in texts(svg) and "published" not in to_svg(CIRCUIT)


def test_published_circuits_are_of_the_task_and_the_graph() -> None:
    graph = Graph(12, 12)
    for name in ("ioi", "greater-than"):
        found = published_for(name, graph)
        assert found and (found.name, found.classes) == (name, load_published(name).classes)
    for task, other in (("ioi", TINY), ("ioi", Graph(12, 12, parallel=True)), ("docstring", graph), ("mine", graph)):
        assert published_for(task, other) is None


def test_published_ioi_has_its_seven_colours() -> None:
    published = load_published("ioi")
    heads = [head for nodes in published.classes.values() for head in nodes]
    circuit = circuit_of(published.graph, {f"{head}->logits": 1.0 for head in heads})
    svg = convert(file_of(circuit, "ioi"), "svg")
    assert isinstance(svg, str)
    found = fills(svg)
    for tint, (name, nodes) in zip(TINTS, published.classes.items(), strict=False):
        assert legend(svg)[name] == tint
        assert {node for node in heads if tint in found[node]} == set(nodes)


def test_characters_that_xml_forbids_and_lines_are_replaced() -> None:
    svg = to_svg(CIRCUIT, "a\x00b\x1bc\nd $x$ \ud800")
    assert "a\ufffdb\ufffdc d $x$ \ufffd" in texts(svg)
    assert to_pdf(CIRCUIT, "a\x00b\nd $x^$ \ud800").startswith(b"%PDF")


HOSTILE = """
font.size: 40
font.family: serif
text.usetex: True
text.parse_math: True
path.sketch: 5, 50, 5
savefig.bbox: tight
figure.facecolor: black
figure.constrained_layout.use: True
pdf.fonttype: 3
lines.color: red
no.such.key: 1
backend: nonsense
"""
WRITE = """
import sys
from pathlib import Path
from acdc.files.circuit import read_circuit
from acdc.report.picture import to_dot, to_pdf, to_png, to_svg
from acdc.report.style import COLOURS, DIRECTIONS, INK, SAND, THICK, THIN, TINTS, PictureStyle
circuit = read_circuit(Path(sys.argv[1])).circuit()
Path("a.svg").write_text(to_svg(circuit, "x")), Path("a.png").write_bytes(to_png(circuit, "x"))
Path("a.pdf").write_bytes(to_pdf(circuit, "x"))
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.parametrize("where", ["the current folder", "a folder of settings", "no folder for a cache"])
def test_settings_of_matplotlib_change_no_byte_and_nothing_is_said(tmp_path: Path, where: str) -> None:
    write_circuit(tmp_path / "c.json", file_of(CIRCUIT))
    (tmp_path / "file").write_text("")
    folder = {"the current folder": tmp_path, "a folder of settings": tmp_path / "rc"}.get(where, tmp_path / "none")
    folder.mkdir(exist_ok=True)
    if where != "no folder for a cache":
        (folder / "matplotlibrc").write_text(HOSTILE)
    config = {"a folder of settings": folder, "no folder for a cache": tmp_path / "file" / "none"}.get(where)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | ({"MPLCONFIGDIR": str(config)} if config else {})
    done = subprocess.run(
        [sys.executable, "-c", WRITE, "c.json"],
        cwd=tmp_path,
        env=environment,
        check=False,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "a.svg").read_text() == to_svg(CIRCUIT, "x")
    assert (tmp_path / "a.png").read_bytes() == to_png(CIRCUIT, "x")
    assert (tmp_path / "a.pdf").read_bytes() == to_pdf(CIRCUIT, "x")


def light(colour: str) -> float:
    """Relative luminance after WCAG 2."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def test_names_can_be_read_on_every_colour_of_a_class() -> None:
    for tint in TINTS:
        assert (light(tint) + 0.05) / (light(INK) + 0.05) > 4.5, tint


def test_export_draws_what_is_asked_for(call: Any, tmp_path: Path) -> None:
    write_circuit(tmp_path / "c.json", file_of(CIRCUIT))
    options = ["--width", "3.3", "--direction", "right", "--scores", "--no-header"]
    for to in ("svg", "png", "pdf"):
        assert call("export", "c.json", "--to", to, *options) == (0, f"c.{to}\n", "")
    assert call("export", "c.json", "--to", "tikz", *options) == (0, "c.tikz.tex\n", "")
    look = PictureStyle(3.3, "right", scores=True, header=False)
    assert (tmp_path / "c.svg").read_text() == to_svg(CIRCUIT, "greater-than in tiny: acdc, τ = 0.01", look)
    assert (tmp_path / "c.png").read_bytes() == to_png(CIRCUIT, "greater-than in tiny: acdc, τ = 0.01", look)
    assert (tmp_path / "c.pdf").read_bytes() == to_pdf(CIRCUIT, "greater-than in tiny: acdc, τ = 0.01", look)
    assert (tmp_path / "c.tikz.tex").read_text() == to_tikz(CIRCUIT, "greater-than in tiny: acdc, τ = 0.01", look)
    assert make_look("dot", NOT_GIVEN) == make_look("svg", NOT_GIVEN) == PictureStyle()


def test_export_takes_a_title_a_size_of_letters_and_no_legend(call: Any, tmp_path: Path) -> None:
    write_circuit(tmp_path / "c.json", file_of(CIRCUIT))
    assert call("export", "c.json", "--to", "svg", "--title", EVIL, "--font-size", "9", "--no-legend")[0] == 0
    look = PictureStyle(title=EVIL, font_size=9.0, legend=False)
    assert (tmp_path / "c.svg").read_text() == to_svg(CIRCUIT, EVIL, look)


BAD_OPTIONS = {
    "letters too small": (["--to", "svg", "--font-size", "0.5"], "--font-size: is 0.5; it must be 1 to 72 points"),
    "two sizes": (["--to", "svg", "--font-size", "9", "--width", "3"], "leave out one of --font-size and --width"),
    "a title of data": (["--to", "graphml", "--title", "x"], "--title: only for pictures"),
    "a width of text": (["--to", "dot", "--width", "3"], "--width: only for pictures (--to svg, png, pdf, tikz), not"),
    "scores of a page": (["--to", "html", "--scores"], "--scores: only for pictures"),
    "a header of data": (["--to", "graphml", "--no-header"], "--no-header: only for pictures"),
    "a direction of data": (["--to", "eap-ig", "--direction", "up"], "--direction: only for pictures"),
    "no width": (["--to", "svg", "--width", "0"], f"it must be above 0 and at most {WIDEST} inches"),
    "width that is no number": (["--to", "pdf", "--width", "nan"], "--width: is nan"),
    "too wide": (["--to", "png", "--width", str(WIDEST + 1)], f"--width: is {WIDEST + 1}"),
    "unknown direction": (["--to", "png", "--direction", "rihgt"], "Did you mean 'right'"),
    "no scores": (["--to", "png", "--scores"], "--scores: this circuit has no edge scores"),
}


@pytest.mark.parametrize("kind", BAD_OPTIONS)
def test_a_wrong_option_is_one_clear_line(acdc: Any, tmp_path: Path, kind: str) -> None:
    options, message = BAD_OPTIONS[kind]
    write_circuit(tmp_path / "c.json", file_of(SAMPLES["without scores"]))
    result = acdc("export", "c.json", *options)
    assert (result.code, result.out) == (2, "")
    assert result.err.count("\n") == 1 and message in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["c.json"]


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
        metrics={"held_out.circuit.kl": 0.12345678},
        edges=tuple(e.model_copy(update={"change": {"input->m0": 0.7}.get(e.name)}) for e in edges_of(circuit)),
        environment={"python": name},
        command=f"acdc run --task {name}",
        notes=(name,),
    )  # fmt: skip

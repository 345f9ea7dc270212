"""The layout by position: a column for each span, edges in their own, arcs between the columns, nothing overlaps."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from html import unescape
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from acdc.commands.export import convert
from acdc.commands.run import run
from acdc.evaluation.explain import Explanation, ShownPrompt
from acdc.files.circuit import read_circuit
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.report.page import render_report
from acdc.report.picture import to_dot, to_png, to_svg, to_tikz
from acdc.report.positions import LETTER, ByPosition, Prompted, lay_out_by_position, moves_of
from acdc.report.style import DIRECTIONS, PictureStyle
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.browser import opened
from tests.support.page import EVIL, file_of, hover, lit, points

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("start", "IO", "and", "S1", "S1+1", "place", "S2", "END")


def random_circuit(seed: int) -> Circuit:
    """Some edge-spans; in every third circuit most spans have none."""
    rng = np.random.default_rng(seed)
    graph = Graph(
        int(rng.integers(1, 5)), int(rng.integers(1, 5)), bool(seed % 4), (("input",), ("tok", "pos"))[seed % 2]
    )
    spans = NAMES[-int(rng.integers(2, len(NAMES) + 1)) :]
    kept = graph.edges[:, :, None] & (rng.random((*graph.edges.shape, len(spans))) < rng.choice([0.02, 0.1, 0.4]))
    if seed % 3 == 0:
        kept[..., rng.random(len(spans)) < 0.7] = False
    return Circuit(graph, kept, None, np.where(kept, rng.normal(size=kept.shape), np.nan), spans=spans)


def parts(label: str) -> tuple[str, str, str, str]:
    """Sender, receiving node, kind and span of `a0.h0->a1.h1<q> @ S2`."""
    edge, span = label.split(" @ ")
    sender, receiver = edge.split("->")
    node, _, kind = receiver.partition("<")
    return sender, node, kind.removesuffix(">"), span


@pytest.fixture(params=range(30), scope="module")
def number(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture(scope="module")
def circuit(number: int) -> Circuit:
    return random_circuit(number)


@pytest.fixture(scope="module")
def layout(circuit: Circuit, number: int) -> ByPosition:
    texts = dict.fromkeys(circuit.spans, " a word or two")
    return lay_out_by_position(circuit, Prompted(texts, "Mary"), sideways=number % 5 == 4)


def test_every_edge_is_drawn_once_in_its_own_column(circuit: Circuit, layout: ByPosition) -> None:
    assert sorted(layout.paths) == sorted(circuit.labels())
    columns = {span: column for column in layout.columns for span in column.spans}
    for label, path in layout.paths.items():
        sender, node, _, span = parts(label)
        x, y = points(path).T
        assert abs(x - columns[span].x).max() <= columns[span].width / 2
        assert (np.diff(y) >= -1e-9).all()
        a, b = layout.boxes[f"{sender} @ {span}"], layout.boxes[f"{node} @ {span}"]
        assert path[0][1] == pytest.approx(a.y + a.height / 2) and abs(path[0][0] - a.x) <= a.width / 2
        assert path[-1][1] == pytest.approx(b.y - b.height / 2) and abs(path[-1][0] - b.x) <= b.width / 2


def test_a_node_stands_where_it_reads_or_writes(circuit: Circuit, layout: ByPosition) -> None:
    expected = {"logits @ END"}
    for sender, node, _, span in map(parts, circuit.labels()):
        expected |= {f"{sender} @ {span}", f"{node} @ {span}"}
    assert set(layout.boxes) == expected
    heights: dict[str, set[float]] = {}  # a node is at one height in all columns
    for key, box in layout.boxes.items():
        heights.setdefault(key.split(" @ ")[0], set()).add(box.y)
    assert all(len(found) == 1 for found in heights.values())


def test_columns_have_every_span_in_the_order_of_the_prompt(circuit: Circuit, layout: ByPosition) -> None:
    assert tuple(span for column in layout.columns for span in column.spans) == circuit.spans
    used = {parts(label)[3] for label in circuit.labels()} | {"END"}
    for column in layout.columns:
        assert column.folded == used.isdisjoint(column.spans) and (column.folded or len(column.spans) == 1)
    for a, b in zip(layout.columns, layout.columns[1:], strict=False):
        assert a.x + a.width / 2 < b.x - b.width / 2


def test_arcs_join_where_a_head_reads_and_where_it_writes(circuit: Circuit, layout: ByPosition) -> None:
    read, written = set(), set()
    for sender, node, kind, span in map(parts, circuit.labels()):
        written.add((sender, span))
        if kind in ("k", "v"):
            read.add((node, span))
    pairs = {(head, a, b) for head, a in read for other, b in written if head == other and a != b}
    place = circuit.spans.index
    assert set(moves_of(circuit, causal=False)) == pairs
    assert {(m.head, m.start, m.end) for m in layout.moves} == {p for p in pairs if place(p[1]) < place(p[2])}
    assert len(layout.moves) == len({m.path[0] + m.path[-1] for m in layout.moves})
    for move in layout.moves:
        for point, span in ((move.path[0], move.start), (move.path[-1], move.end)):
            box = layout.boxes[f"{move.head} @ {span}"]
            assert abs(point[0] - box.x) < box.width / 2 and point[1] == pytest.approx(box.y + box.height / 2)


def test_nothing_overlaps(layout: ByPosition) -> None:
    for (a, one), (b, other) in combinations(layout.boxes.items(), 2):
        apart = max(
            abs(one.x - other.x) - (one.width + other.width) / 2, abs(one.y - other.y) - (one.height + other.height) / 2
        )
        assert apart > 5, (a, b)
    keys = list(layout.boxes)
    boxes = np.array([(b.x, b.y, b.width / 2, b.height / 2) for b in layout.boxes.values()])[:, :, None]
    paths = {
        label: (path, {f"{parts(label)[0]} @ {parts(label)[3]}", f"{parts(label)[1]} @ {parts(label)[3]}"})
        for label, path in layout.paths.items()
    }
    paths |= {
        f"{m.head}: {m.start} → {m.end}": (m.path, {f"{m.head} @ {m.start}", f"{m.head} @ {m.end}"})
        for m in layout.moves
    }
    for name, (path, own) in paths.items():
        x, y = points(path).T
        apart = np.hypot(
            np.maximum(abs(x - boxes[:, 0]) - boxes[:, 2], 0), np.maximum(abs(y - boxes[:, 1]) - boxes[:, 3], 0)
        )
        mine = np.isin(keys, list(own))
        assert apart[~mine].min(initial=8) >= 6, name
        assert (apart[mine, 1:-1] > 0).all(), name  # it touches its own only at its ends


def test_arcs_on_one_height_have_no_place_in_common(layout: ByPosition) -> None:
    spans = [(max(y for _, y in m.path), sorted((m.path[0][0], m.path[-1][0]))) for m in layout.moves]
    for (y, (low, high)), (other, (start, end)) in combinations(spans, 2):
        assert y != pytest.approx(other) or high < start or end < low


def test_corners_hold_everything(layout: ByPosition) -> None:
    left, bottom, right, top = layout.corners
    for box in layout.boxes.values():
        assert left <= box.x - box.width / 2 and box.x + box.width / 2 <= right
        assert bottom < layout.axis < box.y - box.height / 2 and box.y + box.height / 2 <= top
    for path in (*layout.paths.values(), *(move.path for move in layout.moves)):
        assert all(left <= x <= right and bottom <= y <= top for x, y in path)
    for column in layout.columns:
        assert left <= column.x - column.width / 2 and column.x + column.width / 2 <= right


def test_tokens_fit_below_their_column() -> None:
    circuit = random_circuit(9)
    texts = {
        span: " very" * 20 if span == "END" else " an antidisestablishmentarian 東京東京" for span in circuit.spans
    }
    for column in lay_out_by_position(circuit, Prompted(texts)).columns:
        assert all(LETTER * len(line) <= column.width for line in column.lines)
        assert len(column.lines) == len(column.spans) > 1 or len(column.lines) <= 4
        assert all(any(line.startswith(span) for line in column.lines) for span in column.spans)


def test_attention_is_the_mean_over_prompts_and_the_tokens_that_look() -> None:
    graph = Graph(1, 1)
    spans = ("A", "B", "END")
    circuit = Circuit(graph, np.repeat(graph.edges[:, :, None], 3, 2), spans=spans)
    file = file_of(circuit)
    first = np.array([[1, 0, 0, 0], [0.4, 0.6, 0, 0], [0.1, 0.2, 0.7, 0], [0.3, 0.1, 0.2, 0.4]])
    second = np.array([[1, 0, 0], [0.5, 0.5, 0], [0.8, 0.2, 0]])
    shown = [
        ShownPrompt((" a", " b", " c", " d"), (), 3, ("x", "y"), (), {}, (0, 1, 1, 2)),
        ShownPrompt((" a", " b", " c"), (), 2, (), (), {}, (0, 1, 2)),
    ]
    found = Prompted.of(file, Explanation("held_out", tuple(shown), {"a0.h0": (first, second)}, {}, {}))
    assert found.texts == {"A": " a", "B": " b c", "END": " d"} and found.answer == "x, y"
    # B looks at A: with 0.4 and 0.1 of its tokens' attention, and with 0.5 in the second prompt. END at A: 0.3, 0.8.
    assert found.attention["a0.h0"][1, 0] == pytest.approx((0.25 + 0.5) / 2)
    assert found.attention["a0.h0"][2, 0] == pytest.approx((0.3 + 0.8) / 2)
    assert found.attention["a0.h0"][2, 1] == pytest.approx((0.3 + 0.2) / 2)
    shares = {(m.start, m.end): m.attention for m in lay_out_by_position(circuit, found).moves}
    assert shares == {(a, b): found.attention["a0.h0"][j, i] for (i, a), (j, b) in combinations(enumerate(spans), 2)}


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_the_picture_has_edges_arcs_and_names_that_are_escaped(direction: str) -> None:
    circuit = random_circuit(8)
    spans = (EVIL, *circuit.spans[1:])
    circuit = Circuit(circuit.graph, circuit.kept, None, circuit.scores, spans=spans)
    look = PictureStyle(direction=direction, prompted=Prompted(dict.fromkeys(spans, EVIL[:12]), EVIL))
    svg = to_svg(circuit, EVIL, look)
    groups = [g for g in ET.fromstring(svg).iter(f"{SVG}g")]
    assert "<script" not in svg and EVIL in {text.text for text in ET.fromstring(svg).iter(f"{SVG}text")}
    assert sum(g.get("class") == "edge" for g in groups) == circuit.size
    assert sum(g.get("class") == "move" for g in groups) == len([*moves_of(circuit)])
    assert "\n</script" not in to_tikz(circuit, EVIL, look)
    assert to_dot(circuit, "", look).count(" @ END") >= circuit.kept[..., -1].sum()


@pytest.mark.parametrize("to", ["svg", "tikz", "dot", "html"])
def test_what_is_exported_is_by_position(to: str) -> None:
    circuit = random_circuit(4).pruned()
    text = unescape(str(convert(file_of(circuit), to)))
    assert all(label in text for label in circuit.labels()) or (to == "html" and '"positions":' in text)


def test_png_is_drawn_and_an_empty_circuit_says_so() -> None:
    graph = Graph(2, 2)
    empty = Circuit(graph, np.zeros((*graph.edges.shape, 3), dtype=bool), spans=("A", "B", "END"))
    assert to_png(random_circuit(0)).startswith(b"\x89PNG")
    assert "The circuit is empty" in to_svg(empty) and "A" in to_svg(empty)


# ---------------------------------------------------------------- the page


@pytest.fixture(scope="module")
def ioi(tmp_path_factory) -> Path:
    """A run of IOI on tiny by position, with 20 prompts."""
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 20, "positions": True}, None, None)
    return run(load(config, task), tmp_path_factory.mktemp("run") / "ioi")[1]


def classed(page, selector: str) -> set[str]:
    """The names of what is drawn in a class."""
    return set(page.evaluate(f"[...document.querySelectorAll('{selector}')].map(e => e.__data__.name)"))


def test_the_page_switches_between_both_views(browser, ioi: Path) -> None:
    file = read_circuit(ioi / "circuit.json")
    labels = {e.label for e in file.edges if e.span}
    with opened(browser, ioi / "report.html") as page:
        assert (
            classed(page, ".edge") == labels
            and page.locator("#strongest").inner_text() == f"{len(labels)} of {len(labels)}"
        )
        assert classed(page, "g.move") == {f"{head}: {a} → {b}" for head, a, b in moves_of(file.circuit())}
        assert f"{len(labels)} edge-spans: faithfulness" in page.locator("#count").inner_text()
        named = page.locator(".columns text").all_text_contents()
        assert all(any(text.startswith(span) for text in named) for span in file.spans)
        page.locator("#view-union").click()
        assert classed(page, ".edge") == set(file.circuit().edge_names())
        assert (
            page.locator("g.move, .columns text").count() == 0
            and "faithfulness" not in page.locator("#count").inner_text()
        )
        page.locator("#other").set_input_files(ioi / "circuit.json")
        page.wait_for_selector("#stop:visible")
        assert f"{file.graph.edges.kept} in both, 0 only in this" in page.locator("#compared").inner_text()
        assert page.locator("#view-positions").is_disabled()
        page.locator("#stop").click()
        page.locator("#view-positions").click()
        assert (
            classed(page, ".edge") == labels and page.locator("#view-positions").get_attribute("aria-pressed") == "true"
        )
        page.locator("#slider").fill("10")
        kept = file.circuit()
        least = np.sort(np.abs(kept.scores[kept.kept]))[-10]
        assert classed(page, ".edge") == set(
            replace(kept, kept=kept.kept & (np.abs(kept.scores) >= least)).pruned().labels()
        )


def test_edges_arcs_and_components_say_what_they_are(browser, ioi: Path) -> None:
    file = read_circuit(ioi / "circuit.json")
    edge = next(e for e in file.edges if e.label == "a0.h3->m0 @ S2")
    with opened(browser, ioi / "report.html") as page:
        seen = {(m[0], m[1], m[2]): m[3] for m in page.evaluate("data.positions.layout.moves")}
        for path in page.locator(".path button").all_inner_texts():
            steps = [re.match(r"(\S+?)(<[kv]>)? @ (\S+)", step).groups() for step in path.split(" → ")[1:]]
            for (node, kind, span), (_, _, after) in pairwise(steps):
                assert seen[node, span, after] >= 0.01 if kind and span != after else span == after
        said = hover(page, edge.label)
        assert said.startswith(edge.label) and f"score {edge.score:.4g}" in said
        assert f"when removed: {edge.change:.4g} nats" in said and "→ m0 @ S2 →" in said
        page.locator("[data-node='a0.h3 @ S2']").click()
        own = {e.label for e in file.edges if e.span and "a0.h3" in e.name}
        assert lit(page) == own and len({label.split(" @ ")[1] for label in own}) > 2
        assert classed(page, "g.move.lit") == {
            f"a0.h3: {a} → {b}" for head, a, b in moves_of(file.circuit()) if head == "a0.h3"
        }
        panel = page.locator("#panel").inner_text()
        assert panel.split("\n")[2] == "a0.h3" or "\na0.h3\n" in panel
        assert "m0 @ S2" in panel and page.locator("svg.heat").count() == 1
        page.keyboard.press("Escape")
        move = page.locator("[data-move='a0.h3: IO → END'] .hit")
        move.dispatch_event("pointerenter")
        assert re.search(r"a0.h3: IO → END\n[\d.]+ % of its attention at END", page.locator("#tip").inner_text())
        assert "input->a0.h3<v> @ IO" in lit(page) and "a0.h3->m0 @ S2" not in lit(page)
        page.locator("summary", has_text="edges, the strongest first").click()
        table = page.locator("table", has=page.locator("th", has_text="span"))
        assert edge.name in table.inner_text() and "S2" in table.inner_text()


@pytest.mark.parametrize("width", [1400, 400])
def test_names_below_the_columns_do_not_overlap(browser, ioi: Path, width: int) -> None:
    with opened(browser, ioi / "report.html", width=width) as page:
        boxes = page.evaluate(
            "[...document.querySelectorAll('.columns text, .node')].map(e => e.getBoundingClientRect().toJSON())"
        )
        for a, b in combinations(boxes, 2):
            across = min(a["right"], b["right"]) - max(a["left"], b["left"])
            down = min(a["bottom"], b["bottom"]) - max(a["top"], b["top"])
            assert across <= 0 or down <= 3, (a, b)  # a line of text is higher than its letters
        size = page.evaluate("document.querySelector('.node .name').getBoundingClientRect().height")
        assert size > (11 if width == 400 else 8)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_page_and_its_names_are_escaped_and_others_have_no_positions(browser, tmp_path: Path) -> None:
    circuit = random_circuit(4)
    hostile = replace(circuit, spans=(EVIL[:60], *circuit.spans[1:])).pruned()
    for name, found in (("spans", hostile), ("none", hostile.union())):
        path = tmp_path / f"{name}.html"
        path.write_text(render_report(file_of(found)), encoding="utf-8")
        with opened(browser, path) as page:
            assert page.locator(".edge").count() == found.size
            assert page.locator("#view").count() == ("positions" in page.evaluate("data")) == (name == "spans")

"""The layout: rows from the input up, nothing overlaps, no edge runs across a node that it doesn't belong to."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from acdc.files.circuit import read_circuit
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.report.layout import ARROW, Layout, lay_out, port
from tests.support import ROOT
from tests.support.page import points


def some(graph: Graph, edges: int) -> Circuit:
    """A circuit of about so many random edges."""
    rng = np.random.default_rng(0)
    return Circuit(graph, graph.edges & (rng.random(graph.edges.shape) < edges / graph.n_edges))


def of_names(graph: Graph, names: list[str]) -> Circuit:
    kept = np.zeros_like(graph.edges)
    for name in names:
        kept[graph.parse_edge(name)] = True
    return Circuit(graph, kept)


CIRCUITS = {
    "greater-than": read_circuit(ROOT / "configs" / "golden" / "greater-than.json").circuit(),
    "ioi": read_circuit(ROOT / "configs" / "golden" / "ioi.json").circuit(),
    "smollm2": read_circuit(ROOT / "configs" / "golden" / "smollm2" / "ioi.json").circuit(),
    "all of tiny": Circuit.full(Graph(4, 4)),
    "two inputs": Circuit.full(Graph(2, 3, mlp=False, inputs=("tok", "pos"))),
    "parallel": Circuit.full(Graph(2, 2, parallel=True)),
    "a long name": Circuit.full(Graph(1, 1, inputs=("an input with a long name",))),
    "empty": Circuit.empty(Graph(4, 4)),
    "one edge": some(Graph(4, 4), 1),
    "30 layers": some(Graph(30, 9), 200),
    "crowded": some(Graph(12, 12), 400),
}


def ends(name: str) -> tuple[str, str, str]:
    """Sender, receiving node and kind ("q", "k", "v" or "") of an edge."""
    sender, receiver = name.split("->")
    node, _, kind = receiver.partition("<")
    return sender, node, kind.removesuffix(">")


@pytest.fixture(params=CIRCUITS, scope="module")
def circuit(request: pytest.FixtureRequest) -> Circuit:
    return CIRCUITS[request.param]


@pytest.fixture(params=[False, True], ids=["upright", "sideways"], scope="module")
def sideways(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def layout(circuit: Circuit, sideways: bool) -> Layout:
    return lay_out(circuit, sideways)


def test_every_node_and_edge_has_a_place(circuit: Circuit, layout: Layout) -> None:
    assert set(layout.boxes) == {*circuit.graph.inputs, *circuit.nodes(), "logits"}
    assert list(layout.paths) == circuit.edge_names()


def test_no_two_boxes_overlap(layout: Layout) -> None:
    for a, b in combinations(layout.boxes.values(), 2):
        assert abs(a.x - b.x) >= (a.width + b.width) / 2 + 5 or abs(a.y - b.y) >= (a.height + b.height) / 2 + 20


def test_no_edge_comes_near_a_box_that_it_does_not_belong_to(layout: Layout) -> None:
    nodes = list(layout.boxes)
    boxes = np.array([(b.x, b.y, b.width / 2, b.height / 2) for b in layout.boxes.values()])[:, :, None]
    for name, path in layout.paths.items():
        x, y = points(path).T
        apart = np.hypot(
            np.maximum(abs(x - boxes[:, 0]) - boxes[:, 2], 0), np.maximum(abs(y - boxes[:, 1]) - boxes[:, 3], 0)
        )
        own = np.isin(nodes, ends(name)[:2])
        assert apart[~own].min(initial=8) >= 8, name
        assert (apart[own, 1:-1] > 0).all(), name  # it touches its own only at its ends


def test_heads_stand_in_index_order_where_it_costs_nothing() -> None:
    names = [f"input->a0.h{h}<v>" for h in range(4)] + [f"a0.h{h}->logits" for h in (2, 0, 3, 1)]
    for circuit in (of_names(Graph(1, 4), names), CIRCUITS["greater-than"]):
        heads = [(box.x, name) for name, box in lay_out(circuit).boxes.items() if name.startswith("a0.")]
        assert [name for _, name in sorted(heads)] == [f"a0.h{h}" for h in range(4)]


def test_edges_go_up_from_their_sender_to_their_receiver(layout: Layout, sideways: bool) -> None:
    for name, path in layout.paths.items():
        sender, node, kind = ends(name)
        a, b = layout.boxes[sender], layout.boxes[node]
        assert (np.diff(points(path)[:, 1]) >= -1e-9).all()
        assert path[0][1] == pytest.approx(a.y + a.height / 2) and abs(path[0][0] - a.x) <= a.width / 2
        assert path[-1][1] == pytest.approx(b.y - b.height / 2) and abs(path[-1][0] - b.x) <= b.width / 2
        assert path[-1][1] - path[-4][1] == pytest.approx(ARROW) and path[-1][0] == path[-4][0]
        if kind:
            assert path[-1][0] - b.x == pytest.approx(port(kind, sideways))


def test_rows_go_up_and_the_middle_column_is_in_the_middle(circuit: Circuit, layout: Layout) -> None:
    g = circuit.graph
    levels = {s.name: (s.layer, s.kind == "mlp") for s in g.senders} | {"logits": (g.n_layers, False)}
    for a, b in combinations(layout.boxes, 2):
        below = levels[a] < levels[b]
        assert (layout.boxes[a].y < layout.boxes[b].y) == below and (below or levels[a] == levels[b])
    for name, box in layout.boxes.items():
        assert (box.x == 0) == (box.kind == "mlp" or name == "logits" or (name,) == g.inputs)


def test_labels_stand_at_the_first_row_of_their_layer(circuit: Circuit, layout: Layout) -> None:
    rows: dict[int, float] = {}
    for s in circuit.graph.senders:
        if s.name in layout.boxes and s.layer >= 0:
            rows.setdefault(s.layer, layout.boxes[s.name].y)
    assert layout.labels == [(f"layer {layer}", y) for layer, y in rows.items()]


def test_corners_hold_everything(layout: Layout) -> None:
    left, bottom, right, top = layout.corners
    for box in layout.boxes.values():
        assert left <= box.x - box.width / 2 and box.x + box.width / 2 <= right
        assert bottom <= box.y - box.height / 2 and box.y + box.height / 2 <= top
    for path in layout.paths.values():
        assert all(left <= x <= right and bottom <= y <= top for x, y in path)


def test_it_is_the_same_each_time(circuit: Circuit, layout: Layout, sideways: bool) -> None:
    assert layout == lay_out(circuit, sideways)

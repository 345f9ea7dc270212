"""Names, orders and counts of the graph; dead edges of circuits."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph

GPT2 = Graph(12, 12)


@pytest.mark.parametrize(
    ("graph", "senders", "receivers", "residual", "with_direct"),
    [
        (GPT2, 157, 445, 32_491, 32_923),
        (Graph(4, 8, mlp=False), 33, 97, 1_281, 1_377),
        (Graph(2, 8, mlp=False), 17, 49, 257, 305),
        (Graph(1, 1, inputs=("tok", "pos")), 4, 5, 13, 16),
        (Graph(1, 1, parallel=True), 3, 5, 7, 10),
    ],
)
def test_counts_in_both_conventions(graph, senders, receivers, residual, with_direct):
    assert (len(graph.senders), len(graph.receivers)) == (senders, receivers)
    assert (graph.n_edges, graph.n_edges_direct) == (residual, with_direct)


def test_order_is_that_of_eap_ig():
    for layer, head in [(0, 0), (3, 7), (11, 11)]:
        assert GPT2.sender_index[f"a{layer}.h{head}"] == 1 + layer * 13 + head
        for c, x in enumerate("qkv"):
            assert GPT2.receiver_index[f"a{layer}.h{head}<{x}>"] == layer * 37 + c * 12 + head
    assert GPT2.sender_index["m11"] == 156
    assert GPT2.receiver_index["m4"] == 4 * 37 + 36
    assert GPT2.receiver_index["logits"] == 444


@pytest.mark.parametrize("name", ["input->a0.h0<q>", "a0.h1->m0", "m10->a11.h3<k>", "a11.h10->logits"])
def test_edges_that_exist(name):
    assert GPT2.edge_name(*GPT2.parse_edge(name)) == name


@pytest.mark.parametrize("name", ["m0->m0", "a1.h0->m0", "a0.h0->a0.h1<q>", "logits->m0", "m12->logits", "a0.h0", ""])
def test_edges_that_do_not(name):
    assert GPT2.parse_edge(name) is None


def test_parallel_mlps_do_not_read_their_layers_heads():
    graph = Graph(2, 2, parallel=True)
    assert graph.parse_edge("a1.h0->m1") is None
    assert graph.parse_edge("a0.h0->m1") is not None


@st.composite
def circuits(draw):
    graph = Graph(
        draw(st.integers(1, 3)),
        draw(st.integers(1, 3)),
        draw(st.booleans()),
        draw(st.sampled_from([("input",), ("tok", "pos")])),
        draw(st.booleans()),
    )
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = draw(st.floats(0, 1))
    kept = graph.edges & (rng.random(graph.edges.shape) < share)
    direct = graph.direct & (rng.random(graph.direct.shape) < 0.8) if draw(st.booleans()) else None
    return Circuit(graph, kept, direct)


@settings(deadline=None)  # a busy machine is no failure
@given(circuits())
def test_live_edges_are_those_on_a_path_from_an_input_to_the_logits(circuit):
    """Against networkx, on the graph in which a removed direct edge cuts its receiver off."""
    g = circuit.graph
    paths = nx.DiGraph()
    paths.add_nodes_from(["start", "logits"])
    for name in g.inputs:
        paths.add_edge("start", name)
    for s, r in np.argwhere(circuit.kept):
        receiver = g.receivers[r]
        paths.add_edge(g.senders[s].name, f"{receiver.name} in")
        if circuit.direct is None or not g.direct[r] or circuit.direct[r]:
            paths.add_edge(f"{receiver.name} in", receiver.node)
    reached, reaching = nx.descendants(paths, "start"), nx.ancestors(paths, "logits") | {"logits"}
    expected = {
        g.edge_name(s, r)
        for s, r in np.argwhere(circuit.kept)
        if g.senders[s].name in reached and (f"{g.receivers[r].name} in" in reaching)
    }
    pruned = circuit.pruned()
    assert set(pruned.edge_names()) == expected
    assert np.array_equal(pruned.pruned().kept, pruned.kept)


@settings(deadline=None)  # a busy machine is no failure
@given(circuits())
def test_networkx_has_every_edge_once(circuit):
    out = circuit.to_networkx()
    assert sorted(d["label"] for *_, d in out.edges(data=True)) == sorted(circuit.edge_names())
    assert list(out.nodes) == circuit.nodes()
    assert nx.is_directed_acyclic_graph(out)


def test_dead_edges_are_counted_with_the_direct_ones_that_go_with_them():
    graph = Graph(1, 2)
    circuit = Circuit.empty(graph)
    for name in ("input->m0", "m0->logits", "input->a0.h0<v>", "a0.h1->logits"):  # the heads lead nowhere
        circuit.kept[graph.parse_edge(name)] = True
    assert circuit.n_dead == 2
    circuit.direct[graph.direct_index["a0.h0<v>->a0.h0"]] = True
    assert circuit.n_dead == 3
    assert Circuit(graph, circuit.kept).n_dead == 2  # direct edges don't count


def test_networkx_says_layer_input_and_score():
    graph = Graph(2, 2)
    circuit = Circuit(graph, np.zeros_like(graph.edges))
    scores = np.full(graph.edges.shape, np.nan)
    for name, score in (("input->a1.h0<q>", 0.5), ("a1.h0->m1", np.nan), ("m1->logits", -2.0)):
        edge = graph.parse_edge(name)
        circuit.kept[edge], scores[edge] = True, score
    out = Circuit(graph, circuit.kept, scores=scores).to_networkx()
    assert dict(out.nodes(data="layer")) == {"input": -1, "a1.h0": 1, "m1": 1, "logits": 2}
    assert dict(out.nodes(data="type")) == {"input": "input", "a1.h0": "head", "m1": "mlp", "logits": "logits"}
    assert all(data["label"] == name for name, data in out.nodes(data=True))
    places = {name: (data["x"], data["y"]) for name, data in Circuit.full(graph).to_networkx().nodes(data=True)}
    assert sorted(places, key=lambda name: (places[name][1], places[name][0])) == [
        *("input", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1", "logits")
    ]
    assert {key: (s, r, data) for s, r, key, data in out.edges(keys=True, data=True)} == {
        "input->a1.h0<q>": ("input", "a1.h0", {"label": "input->a1.h0<q>", "input": "q", "score": 0.5, "weight": 0.5}),
        "a1.h0->m1": ("a1.h0", "m1", {"label": "a1.h0->m1", "input": ""}),
        "m1->logits": ("m1", "logits", {"label": "m1->logits", "input": "", "score": -2.0, "weight": 2.0}),
    }

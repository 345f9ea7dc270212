"""Published circuits: exact counts of the literature, one line per mistake, and how much of them a circuit recovers."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from acdc.errors import FileError, UserError
from acdc.evaluation.ranking import Areas, faithfulness_areas, node_scores, pessimistic_auc, roc
from acdc.files.published import Published, load_published, published_names, recovery
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.task.load import load_task, task_names
from tests.recipes.compile_tracr import PROGRAMS
from tests.support.known import true_edges

COMPILED = ("or-gate", "tracr-reverse", "tracr-xproportion")


def nodes_of(published: Published) -> set[str]:
    """The heads and MLPs that an edge touches; without edges, those of the classes."""
    if published.circuit is None:
        return {node for nodes in published.classes.values() for node in nodes}
    return set(published.circuit.nodes()) - {"logits", *published.graph.inputs}


def circuit_of(graph: Graph, *edges: str, direct: bool = True) -> Circuit:
    """Return the circuit of some residual edges and, if asked, the direct edges of the head inputs that they enter."""
    kept = np.zeros_like(graph.edges)
    for edge in edges:
        place = graph.parse_edge(edge)
        assert place is not None, edge
        kept[place] = True
    return Circuit(graph, kept, graph.direct & kept.any(axis=0) if direct else None)


def counts(published: Published) -> tuple[int, int]:
    assert published.circuit is not None
    return published.circuit.n_edges, published.circuit.n_edges + published.circuit.n_direct


def nodes_of_acdc(published: Published) -> int:
    """Return the number of nodes as the ACDC code's ROC counts them: MLPs once; for a head its output, and two for each
    input entered."""
    circuit = published.circuit
    assert circuit is not None and circuit.direct is not None
    return len(circuit.nodes()) + 2 * circuit.n_direct


# ---------------------------------------------------------------- what ships


@pytest.mark.parametrize(
    ("name", "edges", "with_direct", "nodes"),
    [
        ("ioi", 963, 1041, 196),
        ("greater-than", 235, 262, 77),
        ("docstring", 24, 37, 34),
        ("tracr-reverse", 11, 15, 16),
    ],
)
def test_counts_are_the_published_ones(name: str, edges: int, with_direct: int, nodes: int):
    published = load_published(name)
    assert counts(published) == (edges, with_direct)
    assert nodes_of_acdc(published) == nodes


def test_everything_shipped_loads_and_belongs_to_a_task():
    assert published_names() == sorted([*COMPILED, "docstring", "greater-than", "induction", "ioi"])
    for name in published_names():
        published = load_published(name)
        assert published.task in task_names() and load_task(published.task)
        assert published.source and published.classes
        assert set().union(*published.classes.values()) <= nodes_of(published)
        if published.circuit is not None:
            assert (published.circuit.pruned().kept == published.circuit.kept).all()


def test_classes():
    ioi = load_published("ioi")
    heads = [head for nodes in ioi.classes.values() for head in nodes]
    assert len(heads) == len(set(heads)) == 26
    assert nodes_of(ioi) == {*heads, *(f"m{layer}" for layer in range(12))}
    greater = load_published("greater-than")
    assert [len(nodes) for nodes in greater.classes.values()] == [2, 1, 4, 6, 4]
    assert len([n for n in nodes_of(greater) if n.startswith("a")]) == 9
    induction = load_published("induction")
    assert induction.circuit is None and nodes_of(induction) == {"a0.h0", "a1.h5", "a1.h6"}
    docstring = load_published("docstring")
    assert nodes_of(docstring) == {"a0.h5", "a1.h2", "a1.h4", "a2.h0", "a3.h0", "a3.h6"}


def test_edges_of_ioi_by_hand():
    circuit = load_published("ioi").circuit
    assert circuit is not None
    names = set(circuit.edge_names())
    for edge in (
        "a2.h2->a5.h5<k>",
        "a3.h0->a7.h3<v>",
        "a8.h10->a11.h10<q>",
        "input->a9.h9<k>",
        "a0.h1->m0",
        "m8->a9.h9<q>",
    ):
        assert edge in names
    for edge in (
        "a2.h2->a5.h5<q>",
        "input->a9.h9<q>",
        "input->a5.h5<k>",
        "a5.h5->logits",
        "a9.h9->a10.h7<q>",
        "a0.h2->m0",
    ):
        assert edge not in names and circuit.graph.parse_edge(edge) is not None


def test_edges_of_greater_than_by_hand():
    circuit = load_published("greater-than").circuit
    assert circuit is not None
    names = set(circuit.edge_names())
    for edge in ("a8.h11->m8", "m5->a7.h10<q>", "m3->a5.h5<v>", "m7->m8", "m8->a9.h1<q>", "m10->m11", "a0.h1->m0"):
        assert edge in names
    for edge in ("a9.h1->m8", "m5->a7.h10<k>", "m7->m9", "a0.h3->m0", "m3->logits", "input->m4", "a5.h5->a6.h1<q>"):
        assert edge not in names
    assert {e for e in names if e.endswith("->a9.h1<q>")} == {f"m{i}->a9.h1<q>" for i in range(9)} | {
        f"a0.h{h}->a9.h1<q>" for h in (1, 3, 5)
    }


@pytest.mark.parametrize("name", COMPILED)
def test_compiled_circuits_are_those_of_the_weights(name: str):
    circuit = load_published(name).circuit
    assert circuit is not None
    assert (circuit.kept == true_edges(name)).all()


def test_the_acdc_paper_has_the_same_circuit_of_reverse_and_two_edges_more_of_proportion():
    reverse, proportion = PROGRAMS
    assert set(load_published(reverse.name).circuit.edge_names()) == reverse.published
    mine = set(load_published(proportion.name).circuit.edge_names())
    assert proportion.published - mine == {"tok->a1.h0<q>", "tok->a1.h0<k>"} and mine < proportion.published


# ---------------------------------------------------------------- files


GOOD = {
    "name": "mine",
    "task": "ioi",
    "model": "toy",
    "source": "by hand",
    "graph": {"layers": 2, "heads": 2},
    "classes": {"early": ["a0.h0", "a0.h1"], "late": ["a1.h1"]},
    "groups": {"MLPs": ["m0-m1"], "all": ["early", "late", "MLPs"]},
    "edges": ["input -> early, MLPs <kv>", "early->late<q>", "all -> logits"],
    "counts": {"edges": 13, "with_direct": 18},
}


def load(folder: Path, **change) -> Published:
    content = {key: value for key, value in (GOOD | change).items() if value is not None}
    (folder / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return load_published(str(folder / "mine.yaml"))


def test_rules(tmp_path: Path):
    circuit = load(tmp_path).circuit
    assert circuit is not None
    assert set(circuit.edge_names()) == {
        *(f"input->a0.h{h}<{c}>" for h in (0, 1) for c in "kv"),
        *(f"input->m{layer}" for layer in (0, 1)),
        *(f"a0.h{h}->a1.h1<q>" for h in (0, 1)),
        *(f"{node}->logits" for node in ("a0.h0", "a0.h1", "a1.h1", "m0", "m1")),
    }
    assert circuit.n_direct == 5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": {"early": ["a0.h2"]}}, "classes.early: the graph of 2 layers, 2 heads has no 'a0.h2'"),
        ({"classes": {"early": ["a0.h0", "a0.h0"]}}, "classes.early: a0.h0 is there twice"),
        (
            {"classes": {"early": ["logits"]}},
            "classes.early: 'logits' is not a head or an MLP",
        ),
        ({"classes": {"early": []}}, "classes.early: is empty"),
        ({"classes": {"m0": ["m0"]}}, "classes.m0: should be an unused name without commas, ->, < and >"),
        ({"classes": {"early": ["head"]}}, "classes.early: unknown node or class 'head'."),
        ({"groups": {"MLPs": ["m0-m2"]}}, "groups.MLPs: the graph of 2 layers, 2 heads has no 'm0-m2'"),
        ({"groups": {"all": ["early", "a0.h1"]}}, "groups.all: a0.h1 is there twice"),
        ({"edges": ["input -> erly"]}, "edges.0: unknown node or class 'erly'. Did you mean 'early'?"),
        (
            {"edges": ["input -> early", "late -> early"]},
            "edges.1: 'late -> early': the graph of 2 layers, 2 heads has no",
        ),
        ({"edges": ["a1.h0->a0.h1<q>"]}, "edges.0: 'a1.h0->a0.h1<q>': the graph of 2 layers, 2 heads has no such edge"),
        ({"edges": ["input, late -> early"]}, "edges.0: 'input, late -> early': the graph"),
        (
            {"edges": ["early"]},
            "edges.0: should be 'senders -> receivers' or 'senders -> receivers <qkv>', got 'early'",
        ),
        ({"edges": ["input -> early <qx>"]}, "edges.0: should be 'senders -> receivers'"),
        ({"edges": ["early -> m0 <q>"]}, "edges.0: 'early -> m0 <q>': <q> is for heads, and no receiver is one"),
        ({"edges": ["input -> early", "early -> logits"]}, "classes.late: no edge touches a1.h1"),
        (
            {"edges": ["input->m0", "early, late -> logits"]},
            "edges: input->m0 is on no path from an input to the logits",
        ),
        ({"edges": None}, "counts: there are no edges"),
        ({"counts": None}, "counts: is missing"),
        ({"counts": {"edges": 12, "with_direct": 18}}, "counts.edges: says 12, but the edges make 13"),
        ({"graph": {"layers": "2", "heads": 2}}, "graph.layers: should be a valid integer, not the text '2': write 2"),
        (
            {"graph": {"layers": 2, "heads": 2, "inputs": ["m0"]}},
            "graph.inputs: should be input or tok and pos, not ('m0',)",
        ),
        ({"graph": {"layers": 2, "heads": 2, "inputs": "<b>"}}, "graph.inputs: should be input or tok and pos"),
        ({"graph": {"layer": 2, "heads": 2}}, "graph: unknown key 'layer'. Did you mean 'layers'?"),
        ({"source": None}, "source: is missing"),
        ({"task": "ioy"}, "task: unknown task 'ioy'. Did you mean 'ioi'"),
        ({"name": "yours"}, "name: 'yours' should be the file's name, 'mine'"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path: Path, change: dict, message: str):
    if "edges" in change and "groups" not in change:
        change = change | {"groups": None}
    with pytest.raises(FileError, match=re.escape(f"mine.yaml: {message}")) as raised:
        load(tmp_path, **change)
    assert "\n" not in str(raised.value)


def test_unknown_names_and_files_are_told_in_one_line(tmp_path: Path):
    with pytest.raises(FileError, match=r"^unknown published circuit 'iio'. Did you mean 'ioi'.*\.yaml$"):
        load_published("iio")
    (tmp_path / "list.yaml").write_text("- a\n")
    for name, message in (
        ("none.yaml", "can't be read"),
        ("list.yaml", "should be a mapping with the keys name, task"),
    ):
        with pytest.raises(FileError, match=message) as raised:
            load_published(str(tmp_path / name))
        assert "\n" not in str(raised.value)


# ---------------------------------------------------------------- recovery


def test_recovery_of_all_and_nothing():
    for name in published_names():
        published = load_published(name)
        n = len(published.classes)
        assert recovery(published, Circuit.empty(published.graph)).summary() == f"0 of {n} component types"
        full = recovery(published, Circuit.full(published.graph))
        assert full.summary() == f"{n} of {n} component types"
        assert full.classes == {name: list(nodes) for name, nodes in published.classes.items()}
        if published.circuit is None:
            assert np.isnan(full.recall) and np.isnan(full.precision)
        else:
            assert recovery(published, published.circuit)[1:] == (1, 1)
            assert full.recall == 1 and full.precision == counts(published)[0] / published.graph.n_edges


def test_recovery_by_hand(tmp_path: Path):
    published = load(tmp_path)
    edges = "input->a0.h0<k>", "input->a0.h0<q>", "a0.h0->a1.h0<v>", "a1.h0->logits"
    found = recovery(published, circuit_of(published.graph, *edges))
    assert found.classes == {"early": ["a0.h0"], "late": []}
    assert found.summary() == "1 of 2 component types"
    assert (found.recall, found.precision) == (1 / 13, 1 / 4)


def test_recovery_needs_the_same_graph():
    message = "'ioi' is of gpt2, 12 layers, 12 heads; this one is of a model of 12 layers, 12 heads, parallel blocks"
    with pytest.raises(UserError, match=message):
        recovery(load_published("ioi"), Circuit.full(Graph(12, 12, parallel=True)))


# ---------------------------------------------------------------- curves


def test_node_scores_are_the_largest_of_an_edge_that_touches_the_node():
    graph = Graph(1, 2)
    importance = np.where(graph.edges, 0.0, -np.inf)
    for edge, score in (("input->a0.h0<k>", 3), ("a0.h0->m0", 2), ("a0.h1->m0", 5), ("input->logits", 9)):
        importance[graph.parse_edge(edge)] = score
    assert node_scores(graph, importance).tolist() == [3, 5, 5]  # a0.h0 a0.h1 m0
    true = node_scores(graph, circuit_of(graph, "input->a0.h1<v>", "a0.h1->logits").kept)
    assert true.dtype == bool and true.tolist() == [False, True, False]
    assert roc(node_scores(graph, importance), true).tolist() == [[0, 0], [0.5, 1], [1, 1]]


def test_nodes_of_published_circuits_by_scores_and_by_name():
    for published in map(load_published, published_names()):
        if published.circuit is not None:
            names = np.array([s.name for s in published.graph.senders[len(published.graph.inputs) :]])
            assert set(names[node_scores(published.graph, published.circuit.kept)]) == nodes_of(published)


def test_cpr_and_cmd_by_hand():
    assert faithfulness_areas(np.array([[0.001, 1.0], [1.0, 1.0]])) == pytest.approx((0.999, 0))
    assert faithfulness_areas(np.array([[0.0, 0.0], [0.5, 1.0], [1.0, 1.0]])) == Areas(cpr=0.75, cmd=0.25)
    above = faithfulness_areas(np.array([[0.001, 0.0], [0.201, 1.5], [1.0, 1.0]]))
    assert above == pytest.approx((0.2 * 0.75 + 0.799 * 1.25, 0.2 * 0.75 + 0.799 * 0.25))  # |1 − f| at the points


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(0, 0), (1, 1)], 0.0),
        ([(0, 0), (0, 1), (1, 1)], 1.0),
        ([(0, 0), (0.5, 0.5), (1, 1)], 0.25),
        ([(0.2, 0.6), (0.1, 0.4)], 0.9 * 0.4 + 0.8 * 0.2),  # in any order, and without the ends
        ([(0, 0), (0.1, 0.4), (0.2, 0.3), (0.2, 0.6), (1, 1)], 0.9 * 0.4 + 0.8 * 0.2),  # (0.2, 0.3) is dominated
        ([(0, 0), (0.3, 0.2), (0.3, 0.8), (1, 1)], 0.7 * 0.8),
    ],
)
def test_pessimistic_auc_by_hand(points: list[tuple[float, float]], area: float):
    assert pessimistic_auc(np.array(points, dtype=float)) == pytest.approx(area)

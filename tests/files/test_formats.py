"""Circuits survive every format, and wrong files are refused with a line per problem."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import re
import tracemalloc
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import networkx as nx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from acdc.errors import FileError
from acdc.files.circuit import edges_of, read_circuit, write_circuit
from acdc.files.diff import diff
from acdc.files.eap_ig import read_eap_ig, to_eap_ig
from acdc.files.graphs import to_csv, to_gexf, to_graphml, to_node_link
from acdc.files.parts import Edge, TaskPart
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.files import write_atomic, write_output
from tests.support.circuits import assert_same, file_of, same

SMALL = Graph(2, 2)
quick = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

graphs = st.builds(
    Graph,
    n_layers=st.integers(1, 3),
    n_heads=st.integers(1, 3),
    mlp=st.booleans(),
    inputs=st.sampled_from([("input",), ("tok", "pos")]),
    parallel=st.booleans(),
)


def random_circuit(graph: Graph, seed: int, direct: bool = True, scored: bool = True) -> Circuit:
    rng = np.random.default_rng(seed)
    share = rng.random()
    kept = graph.edges & (rng.random(graph.edges.shape) < share)
    scores = np.where(kept & (rng.random(kept.shape) < 0.9), rng.normal(size=kept.shape), np.nan)
    mask = graph.direct & (rng.random(graph.direct.shape) < 0.7) if direct else None
    direct_scores = np.where(mask, rng.normal(size=mask.shape), np.nan) if mask is not None else None
    return Circuit(graph, kept, mask, scores, direct_scores) if scored else Circuit(graph, kept, mask)


circuits = st.builds(random_circuit, graphs, st.integers(0, 2**32), st.booleans(), st.booleans())


# circuit.json


@quick
@given(circuits)
def test_circuit_json_round_trip(tmp_path: Path, circuit: Circuit) -> None:
    path, file = tmp_path / "circuit.json", file_of(circuit)
    write_circuit(path, file)
    back = read_circuit(path)
    assert back == file
    assert_same(back.circuit(), circuit)
    first = path.read_bytes()
    write_circuit(path, back)
    assert path.read_bytes() == first


def test_bytes_do_not_depend_on_the_order_of_free_keys(tmp_path: Path) -> None:
    circuit = random_circuit(SMALL, 1)
    write_circuit(
        tmp_path / "a", file_of(circuit, metrics={"held_out.circuit.kl": 0.1, "held_out.circuit.accuracy": 1.0})
    )
    write_circuit(
        tmp_path / "b", file_of(circuit, metrics={"held_out.circuit.accuracy": 1.0, "held_out.circuit.kl": 0.1})
    )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_the_file_has_the_documented_keys_and_an_edge_a_line(tmp_path: Path) -> None:
    circuit = random_circuit(SMALL, 2)
    write_circuit(tmp_path / "c.json", file_of(circuit))
    text = (tmp_path / "c.json").read_text()
    keys = "format_version task model method graph metrics edges environment command notes"
    assert " ".join(json.loads(text)) == keys
    assert sum('"change"' in line for line in text.splitlines()) == circuit.n_edges + circuit.n_direct
    assert text.endswith("}\n")
    assert "ünïcode" in text


def test_edges_come_in_order_with_their_changes() -> None:
    kept, direct = np.zeros_like(SMALL.edges), np.zeros_like(SMALL.direct)
    for name in ("m1->logits", "input->a0.h1<v>", "input->m0"):
        kept[SMALL.parse_edge(name)] = True
    direct[SMALL.direct_index["a0.h1<v>->a0.h1"]] = True
    scores = np.full(SMALL.edges.shape, np.nan)
    scores[SMALL.parse_edge("input->m0")] = 0.5
    direct_scores = np.where(direct, 0.25, np.nan)
    circuit = Circuit(SMALL, kept, direct, scores, direct_scores)
    expected = {"input->a0.h1<v>": None, "input->m0": 0.5, "m1->logits": None, "a0.h1<v>->a0.h1": 0.25}
    assert edges_of(circuit, circuit) == tuple(Edge(name=n, change=x, score=x) for n, x in expected.items())
    assert edges_of(circuit) == tuple(Edge(name=n, score=x) for n, x in expected.items())


def sound() -> dict[str, Any]:
    """Return a circuit of three residual edges and a direct one, as plain JSON."""
    kept, direct = np.zeros_like(SMALL.edges), np.zeros_like(SMALL.direct)
    for name in ("input->a0.h1<v>", "a0.h1->m1", "m1->logits"):
        kept[SMALL.parse_edge(name)] = True
    direct[SMALL.direct_index["a0.h1<v>->a0.h1"]] = True
    raw: dict[str, Any] = json.loads(file_of(Circuit(SMALL, kept, direct)).model_dump_json())
    return raw


MODEL = sound()["model"]


def put(where: str, value: Any) -> Any:
    """Return a function that sets one value; a number in the path is an index."""

    def change(raw: dict[str, Any]) -> None:
        *way, last = (int(key) if key.isdigit() else key for key in where.split("/"))
        inner: Any = raw
        for key in way:
            inner = inner[key]
        inner[last] = value

    return change


WRONG = {
    "newer": (put("format_version", 4), "made by a newer acdc: format 4, this one reads up to 3"),
    "many": (
        lambda raw: raw["model"].update(n_layers=1000, n_heads=1000),
        "1000 layers of 1000 heads are a graph of more than 17,000",
    ),
    "version 0": (put("format_version", 0), "format_version"),
    "no task": (lambda raw: raw.pop("task"), "task: is missing"),
    "unknown key": (put("method/tau", 1), "method: unknown key 'tau'"),
    "string for number": (put("task/seed", "7"), "task.seed: should be a valid integer, not the text '7': write 7"),
    "number for string": (put("command", 7), "command"),
    "true for a number": (put("edges/0/score", True), "edges.0.score"),
    "not finite": (put("edges/1/change", float("nan")), "edges.1.change"),
    "no layers": (put("model/n_layers", 0), "model.n_layers"),
    "huge": (put("model/n_heads", 10**9), "model.n_heads"),
    "no inputs": (put("model/inputs", []), "model.inputs"),
    "inputs twice": (put("model/inputs", ["tok", "tok"]), "should be input or tok and pos"),
    "inputs in HTML": (put("model/inputs", ['<<TABLE HREF="javascript:alert(1)">']), "should be input or tok and pos"),
    "an empty input": (put("model/inputs", [""]), "should be input or tok and pos"),
    "inputs in LaTeX": (put("model/inputs", ["%"]), "should be input or tok and pos"),
    "a title in a task": (put("task/name", "ioi\x1b]0;x\x07"), "task.name: has the character '\\x1b'"),
    "a title without end": (put("task/name", "x " * 100_000), "task.name: String should have at most 300 characters"),
    "a line break in a model": (put("model/name", "tiny\nx"), "model.name: has the character '\\n'"),
    "a turn in a command": (put("command", "acdc \u202e"), "command: has the character '\\u202e'"),
    "a column of the table": (put("metrics/run", 1.0), "metrics.run: 'run' should be <half>.<what>.<metric>"),
    "another column": (put("metrics/state", 1.0), "metrics.state: 'state' should be"),
    "a formula": (put("metrics", {"=HYPERLINK(1)": 1.0}), "should be <half>.<what>.<metric>"),
    "a bomb": (put("model", {**MODEL, "n_layers": 1000, "n_heads": 1000}), "graph of more than 17,000 nodes"),
    "no such edge": (put("edges/0/name", "m1->m0"), "2 layers, 2 heads has no edge 'm1->m0'"),
    "no such direct edge": (put("edges/3/name", "m0->m0"), "no edge 'm0->m0'"),
    "edge twice": (put("edges/1/name", "input->a0.h1<v>"), "'input->a0.h1<v>' is listed twice"),
    "direct edge not counted": (put("graph/edges_with_direct", None), "there are direct edges"),
    "kept": (put("graph/edges/kept", 4), "graph.edges: says 4 of 46, but the edges make 3 of 46"),
    "total": (put("graph/edges/total", 48), "graph.edges: says 3 of 48, but the edges make 3 of 46"),
    "kept with direct": (put("graph/edges_with_direct/kept", 5), "graph.edges_with_direct: says 5 of 58"),
    "nodes": (put("graph/nodes", 9), "graph.nodes: says 9, but the edges make 4"),
    "negative": (put("graph/dead", -1), "graph.dead"),
    "several": (lambda raw: (raw.pop("task"), raw.pop("model")), "circuit.json: model: is missing"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_circuit_is_refused_with_a_line_per_problem(tmp_path: Path, case: str) -> None:
    change, message = WRONG[case]
    raw = copy.deepcopy(sound())
    change(raw)
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(raw))
    with pytest.raises(FileError) as error:
        read_circuit(path)
    lines = str(error.value).split("\n")
    assert message in lines[-1]
    assert all(line.startswith(f"{path}: ") for line in lines)
    assert len(lines) == (2 if case == "several" else 1)


def test_the_sound_circuit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(json.dumps(sound()))
    assert read_circuit(path).circuit().n_edges == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"task": 1,\n "model" 2}', ", line 2: is not JSON"),
        (b"", ", line 1: is not JSON"),
        (b"[1]", "should be a JSON object"),
        (b"\xff\xfe\x00", "is not a text file"),
        (b"[" * 200_000, "is not JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not JSON"),
        (None, "No such file"),
    ],
)
@pytest.mark.parametrize("read", [read_circuit, read_eap_ig])
def test_what_is_no_json_is_refused_in_one_line(tmp_path: Path, read: Any, content: bytes | None, message: str) -> None:
    path = tmp_path / "some.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError) as error:
        read(path)
    assert message in str(error.value)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_reading_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    """The graph of these sizes has 400 million pairs of a sender and a receiver."""
    g = Graph(100, 115)
    raw = {**sound(), "edges": [{"name": "input->logits"}], "model": {**MODEL, "n_layers": 100, "n_heads": 115}}
    raw["graph"] = {"edges": {"kept": 1, "total": g.n_edges}, "edges_with_direct": None, "nodes": 2, "dead": 0}
    (tmp_path / "circuit.json").write_text(json.dumps(raw))
    tracemalloc.start()
    assert read_circuit(tmp_path / "circuit.json").model.graph == g
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, peak


def test_a_number_that_is_not_finite_is_never_written() -> None:
    with pytest.raises(ValidationError):
        file_of(Circuit.empty(SMALL), metrics={"held_out.circuit.kl": float("nan")})


# writing


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(FileError, match="No space left on device"):
        write_atomic(path, b"new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomic_names_the_file_that_it_cannot_write(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"absent/file: can't be written \(No such file or directory\)"):
        write_atomic(tmp_path / "absent" / "file", "")
    with pytest.raises(FileError, match="not a regular file"):
        write_atomic(tmp_path, "")


def test_a_link_is_replaced_unless_the_user_has_named_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_output(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text() == "text"
    write_atomic(tmp_path / "link", "other")
    assert not (tmp_path / "link").is_symlink()
    assert [(tmp_path / name).read_text() for name in ("link", "file")] == ["other", "text"]


# EAP-IG


@quick
@given(circuits)
def test_eap_ig_round_trip(tmp_path: Path, circuit: Circuit) -> None:
    g = circuit.graph
    if not g.mlp or g.inputs != ("input",):
        with pytest.raises(FileError, match="has no names for"):
            to_eap_ig(circuit, 16)
        return
    (tmp_path / "c.json").write_text(to_eap_ig(circuit, 16))
    back = read_eap_ig(tmp_path / "c.json")
    runs = circuit.kept if circuit.direct is None else circuit.kept & (circuit.direct | ~g.direct)
    assert back.graph == g
    assert same(back.kept, runs)
    assert back.direct is None
    scores = np.zeros(g.edges.shape) if circuit.scores is None else np.nan_to_num(circuit.scores)
    assert same(back.scores, np.where(g.edges, scores, np.nan))


def test_eap_ig_of_gpt2_small_is_what_its_loader_expects() -> None:
    g = Graph(12, 12)
    kept, scores = np.zeros_like(g.edges), np.full(g.edges.shape, np.nan)
    for name in (
        "input->m0",
        "m0->a9.h6<q>",
        "m0->a9.h6<k>",
        "a9.h6->logits",
        "m5->logits",
        "input->a0.h0<v>",
    ):
        kept[g.parse_edge(name)], scores[g.parse_edge(name)] = True, -0.5
    direct = g.direct.copy()
    direct[g.direct_index["a9.h6<k>->a9.h6"]] = False
    raw = json.loads(to_eap_ig(Circuit(g, kept, direct, scores), 768))
    assert list(raw) == ["cfg", "nodes", "edges"]
    assert raw["cfg"] == {"n_layers": 12, "n_heads": 12, "parallel_attn_mlp": False, "d_model": 768}
    assert len(raw["nodes"]) == 158
    assert [n for n, v in raw["nodes"].items() if v["in_graph"]] == ["input", "m0", "a9.h6", "logits"]
    assert len(raw["edges"]) == 32_491
    assert all(list(edge) == ["score", "in_graph"] for edge in raw["edges"].values())
    inside = {name: edge["score"] for name, edge in raw["edges"].items() if edge["in_graph"]}
    assert inside == dict.fromkeys(
        ["input->a0.h0<v>", "input->m0", "m0->a9.h6<q>", "m5->logits", "a9.h6->logits"], -0.5
    )
    assert raw["edges"]["m0->a9.h6<k>"] == {"score": -0.5, "in_graph": False}  # its direct edge was removed
    assert raw["edges"]["input->logits"] == {"score": 0.0, "in_graph": False}


@pytest.mark.parametrize("parallel", [False, True])
def test_eap_ig_lists_edges_as_its_own_graph_does(parallel: bool) -> None:
    # The loops of EAP-IG's Graph.from_model, on 2 layers of 2 heads.
    want, stream = [], ["input"]
    for layer in range(2):
        heads = [f"a{layer}.h{h}" for h in range(2)]
        for node in stream:
            want += [f"{node}->{head}<{c}>" for head in heads for c in "qkv"]
            want += [f"{node}->m{layer}"] if parallel else []
        want += [] if parallel else [f"{node}->m{layer}" for node in stream + heads]
        stream += [*heads, f"m{layer}"]
    want += [f"{node}->logits" for node in stream]
    circuit = Circuit.full(Graph(2, 2, parallel=parallel))
    raw = json.loads(to_eap_ig(circuit, 8))
    assert list(raw["edges"]) == want
    assert list(raw["nodes"]) == [*stream, "logits"]


def test_eap_ig_without_scores_is_read(tmp_path: Path) -> None:
    raw = json.loads(to_eap_ig(Circuit.full(SMALL), 8))
    raw["edges"] = {name: {"in_graph": True} for name in raw["edges"]}
    (tmp_path / "c.json").write_text(json.dumps(raw))
    back = read_eap_ig(tmp_path / "c.json")
    assert back.n_edges == SMALL.n_edges
    assert back.scores is not None
    assert np.isnan(back.scores).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw.pop("cfg"), "is not an EAP-IG circuit: cfg"),
        (put("nodes", []), "is not an EAP-IG circuit: nodes"),
        (put("cfg/n_layers", "2"), "cfg.n_layers should be a size"),
        (put("cfg/n_heads", 10**9), "cfg.n_heads should be a size"),
        (lambda raw: raw["cfg"].update(n_layers=1000, n_heads=1000), "describes more than 17,000 nodes"),
        (put("cfg/parallel_attn_mlp", 0), "cfg.parallel_attn_mlp should be true or false"),
        (put("edges/m1->m0", {"in_graph": True, "score": 1.0}), "no edge 'm1->m0'"),
        (put("edges/m1->logits", True), "edge 'm1->logits' needs"),
        (put("edges/m1->logits", {"in_graph": 1, "score": 1.0}), "edge 'm1->logits' needs"),
        (put("edges/m1->logits", {"in_graph": True, "score": None}), "edge 'm1->logits' needs"),
        (put("nodes/m0", {"in_graph": True, "neurons": [True, False]}), "single neurons"),
    ],
)
def test_a_wrong_eap_ig_file_is_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    raw = json.loads(to_eap_ig(Circuit.full(SMALL), 8))
    change(raw)
    (tmp_path / "c.json").write_text(json.dumps(raw))
    with pytest.raises(FileError) as error:
        read_eap_ig(tmp_path / "c.json")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


# GraphML and node-link


def circuit_in(graph: nx.Graph) -> Circuit:
    """Return the circuit in a graph that networkx has read."""
    sizes = graph.graph
    g = Graph(
        sizes["n_layers"], sizes["n_heads"], sizes["mlp"], tuple(sizes["inputs"].split(",")), sizes["parallel"]
    )  # fmt: skip
    kept, scores = np.zeros_like(g.edges), np.full(g.edges.shape, np.nan)
    for source, target, edge in graph.edges(data=True):
        place = g.parse_edge(edge["label"])
        assert place is not None
        assert (source, target) == (g.senders[place[0]].name, g.receivers[place[1]].node)
        kept[place] = True
        scores[place] = edge.get("score", np.nan)
    if sizes["convention"] == "residual":
        return Circuit(g, kept, None, scores)
    assert sizes["convention"] == "residual and direct"
    direct, direct_scores = np.zeros_like(g.direct), np.full(g.direct.shape, np.nan)
    places = [g.direct_index[name] for name in sizes["direct"].split(",") if name]
    direct[places] = True
    if sizes.get("direct_scores"):
        direct_scores[places] = [float(score) for score in sizes["direct_scores"].split(",")]
    return Circuit(g, kept, direct, scores, direct_scores)


@quick
@given(circuits)
def test_graphml_is_read_by_networkx(circuit: Circuit) -> None:
    text = to_graphml(circuit)
    assert text == to_graphml(circuit)
    graph = nx.read_graphml(io.BytesIO(text), force_multigraph=True)
    assert set(graph.nodes) == set(circuit.nodes())
    assert sorted(d["label"] for _, _, d in graph.edges(data=True)) == sorted(circuit.edge_names())
    assert_same(circuit_in(graph), circuit)


@quick
@given(circuits)
def test_node_link_is_read_by_networkx(circuit: Circuit) -> None:
    graph = nx.node_link_graph(json.loads(to_node_link(circuit)), edges="edges")
    assert set(graph.nodes) == set(circuit.nodes())
    assert_same(circuit_in(graph), circuit)


@quick
@given(circuits)
def test_gexf_is_read_by_networkx(circuit: Circuit) -> None:
    text = to_gexf(circuit)
    graph = nx.read_gexf(io.BytesIO(text.encode()))
    assert set(graph.nodes) == set(circuit.nodes())
    assert {data["label"] for _, data in graph.nodes(data=True)} == set(circuit.nodes())
    edges = {edge.get("label"): edge for edge in ElementTree.fromstring(text).iter() if edge.tag.endswith("}edge")}
    g = circuit.graph
    for s, r in np.argwhere(circuit.kept):
        edge = edges.pop(g.edge_name(s, r))
        assert (edge.get("source"), edge.get("target")) == (g.senders[s].name, g.receivers[r].node)
        score = np.nan if circuit.scores is None else circuit.scores[s, r]
        assert edge.get("weight") == (repr(abs(float(score))) if np.isfinite(score) else None)
    assert not edges
    assert "<viz:position" in text or not circuit.nodes()
    assert "date" not in text


def test_gephi_finds_its_columns_in_graphml() -> None:
    text = to_graphml(random_circuit(SMALL, 2)).decode()
    declared = {(a, b): kind for a, b, kind in re.findall(r'for="(\w+)" attr.name="(\w+)" attr.type="(\w+)"', text)}
    of_nodes = {"label": "string", "type": "string", "layer": "long", "x": "double", "y": "double"}
    of_edges = {"label": "string", "input": "string", "score": "double", "weight": "double"}
    assert {name: kind for (of, name), kind in declared.items() if of == "node"} == of_nodes
    assert {name: kind for (of, name), kind in declared.items() if of == "edge"} == of_edges


@quick
@given(circuits)
def test_csv_has_a_line_for_each_residual_edge(circuit: Circuit) -> None:
    header, *rows = csv.reader(io.StringIO(to_csv(file_of(circuit))))
    assert header == ["source", "target", "label", "input", "weight", "score", "change"]
    assert [row[2] for row in rows] == circuit.edge_names()
    for (source, target, name, kind, weight, score, change), (s, r) in zip(
        rows, np.argwhere(circuit.kept), strict=True
    ):
        assert name == f"{source}->{target}" + (f"<{kind}>" if kind else "")
        value = np.nan if circuit.scores is None else circuit.scores[s, r]
        assert (score, weight) == ((repr(float(value)), repr(abs(float(value)))) if np.isfinite(value) else ("", ""))
        assert change == ""


# diff


def test_a_circuit_does_not_differ_from_itself() -> None:
    file = file_of(random_circuit(SMALL, 3))
    found = diff(file, file)
    assert (found.added, found.removed, found.rescored, found.notes) == ((), (), (), ())


def test_diff_finds_what_was_added_removed_and_rescored() -> None:
    a = random_circuit(SMALL, 4)
    assert a.scores is not None
    kept, scores = a.kept.copy(), a.scores.copy()
    scored = [tuple(place) for place in np.argwhere(kept & np.isfinite(scores))]
    gone, moved, nudged = scored[0], scored[1], scored[2]
    new = tuple(np.argwhere(SMALL.edges & ~kept)[0])
    kept[gone], kept[new] = False, True
    scores[moved] += 1
    scores[nudged] += 1e-9
    b = Circuit(SMALL, kept, a.direct, scores, a.direct_scores)
    found = diff(file_of(a), file_of(b))
    assert found.added == (SMALL.edge_name(*new),)
    assert found.removed == (SMALL.edge_name(*gone),)
    assert found.rescored == ((SMALL.edge_name(*moved), a.scores[moved], a.scores[moved] + 1),)
    assert diff(file_of(a), file_of(b), tolerance=2).rescored == ()


def test_diff_of_two_conventions_compares_residual_edges() -> None:
    a = random_circuit(SMALL, 5)
    b = Circuit(SMALL, a.kept, None, a.scores)
    found = diff(file_of(a), file_of(b))
    assert not found.added and not found.removed
    assert "only residual edges are compared" in found.notes[0]


def test_diff_notes_another_question() -> None:
    a = file_of(Circuit.empty(SMALL))
    task = TaskPart(name="ioi", version=2, examples=50, seed=7, data_hash="ef56")
    found = diff(a, file_of(Circuit.empty(SMALL), task=task))
    assert found.notes == (
        "tasks differ: greater-than, and ioi",
        "versions of the task differ: 1, and 2",
        "prompts differ: cd34, and ef56",
    )


def test_diff_refuses_different_graphs() -> None:
    with pytest.raises(FileError, match=r"2 layers, 2 heads, and tiny with 3 layers, 2 heads, no MLPs"):
        diff(file_of(Circuit.empty(SMALL)), file_of(Circuit.empty(Graph(3, 2, mlp=False))))

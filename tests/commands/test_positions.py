"""`--positions` from the command line: what files and commands say of a circuit by span, and mistakes in one line."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter, defaultdict
from contextlib import suppress

import numpy as np
import pytest

import acdc
from acdc.commands import run as runner
from acdc.commands.evaluate import evaluate
from acdc.commands.export import convert, strongest
from acdc.errors import FileError, UserError
from acdc.files.circuit import checked_circuit, read_circuit, to_json
from acdc.files.diff import diff
from acdc.files.table import row_of
from acdc.graph.scores import read_scores
from acdc.io.progress import silent
from acdc.setup.config import Config, resolve
from tests.support.moments import contents
from tests.support.runs import Killed, inputs, killer

TINY = {"task": "ioi", "model": "tiny", "examples": 6, "ablation": "corrupted", "dtype": "float32"}

GIVEN = dict.fromkeys(("task", "model", "metric", "ablation", "examples", "seed", "device"))


def loaded(**given):
    return inputs(**{**TINY, "batch": None, "positions": True, **given})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run by position."""
    folder = tmp_path_factory.mktemp("found") / "run"
    runner.run(loaded(threshold=0.05), folder)
    return folder


def test_circuit_json_has_a_line_for_every_edge_span(found):
    raw = json.loads((found / "circuit.json").read_text())
    assert raw["format_version"] == 2
    assert raw["spans"][:4] == ["start", "IO", "and", "S1"] and raw["spans"][-1] == "END"
    residual = [edge for edge in raw["edges"] if edge["span"]]
    direct = [edge for edge in raw["edges"] if not edge["span"]]
    graph = raw["graph"]
    assert graph["edge_spans"] == {"kept": len(residual), "total": 479 * len(raw["spans"])}
    assert graph["edges"]["kept"] == len({edge["name"] for edge in residual}) < len(residual)
    assert graph["edges_with_direct"]["kept"] == graph["edges"]["kept"] + len(direct)
    assert {edge["span"] for edge in residual} <= {"IO", "S1", "S2", "END"}
    assert to_json(read_circuit(found / "circuit.json")) == (found / "circuit.json").read_text()


def test_the_log_tells_edges_from_edge_spans(found):
    decisions = [json.loads(line) for line in (found / "log.jsonl").read_text().splitlines()]
    edges = [d["edge"] for d in decisions]
    for i, name in enumerate(edges):
        edge, _, span = name.partition(" @ ")
        if span:  # its edge was tested before, and stayed
            at = max(j for j in range(i) if edges[j] == edge)
            assert decisions[at]["kept"] and all(e.startswith(edge) for e in edges[at:i])
    kept = {d["edge"] for d in decisions if d["kept"] and " @ " in d["edge"]}
    assert kept <= {edge.label for edge in read_circuit(found / "circuit.json").edges}


@pytest.mark.parametrize("bound", [{"threshold": 0.05}, {"faithfulness": 0.8}, {"method": "eap-ig", "edges": 40}])
def test_a_run_goes_on_after_a_kill_with_the_same_bytes(tmp_path, bound):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    runner.run(loaded(**bound), whole)
    for number in (1, 5, 20):
        with suppress(Killed):
            runner.run(loaded(**bound), parts, progress=killer(number))
    runner.run(loaded(**bound), parts)
    assert contents(parts) == contents(whole)


def test_evaluate_measures_edge_spans(found):
    file = read_circuit(found / "circuit.json")
    result = evaluate(found / "circuit.json", GIVEN, None, 5, silent)
    assert result.edges == file.graph.edges.kept
    assert result.measured.circuit.value == pytest.approx(file.metrics["held_out.circuit.kl"], abs=1e-6)
    assert result.minimality.kept == file.graph.edge_spans.kept
    assert all(" @ " in edge.name for edge in result.minimality.edges)
    assert result.random.edges == file.graph.edges.kept
    assert not [note for note in result.notes if "was changed" in note]


def test_exports(found):
    file = read_circuit(found / "circuit.json")
    names = {edge.label for edge in file.edges if edge.span}
    rows = list(csv.DictReader(io.StringIO(convert(file, "csv"))))
    assert {row["label"] for row in rows} == names
    assert all(row["label"].endswith(f" @ {row['span']}") for row in rows)
    graphml = convert(file, "graphml").decode()
    at = defaultdict(list)
    for edge in file.edges:
        at[edge.name].append(edge.span)
    longest = ",".join(max((spans for spans in at.values() if spans != [None]), key=len))
    assert graphml.count("<edge ") == file.graph.edges.kept and "," in longest and f">{longest}<" in graphml
    eap_ig = json.loads(convert(file, "eap-ig", folder=found))
    assert sum(edge["in_graph"] for edge in eap_ig["edges"].values()) == file.graph.edges.kept
    for to in ("svg", "dot", "html", "tikz"):
        assert convert(file, to)


def test_the_strongest_edge_spans_of_a_run(tmp_path):
    runner.run(loaded(method="eap-ig", edges=60), tmp_path / "run")
    file = read_circuit(tmp_path / "run" / "circuit.json")
    scores = read_scores(tmp_path / "run" / "scores.safetensors", file.model.graph, file.spans)
    few = strongest(file, 12, tmp_path / "run")
    best = np.sort(scores.edges[np.isfinite(scores.edges)])[-12:]
    values = [edge.score for edge in few.edges if edge.span]
    assert sorted(values) == pytest.approx([x for x in best if x in values]) and len(values) <= 12
    with pytest.raises(FileError, match="holds no scores of a graph"):
        read_scores(tmp_path / "run" / "scores.safetensors", file.model.graph)


def test_the_difference_from_a_circuit_without_spans_is_that_of_edges(found, tmp_path):
    runner.run(loaded(threshold=0.05, positions=None), tmp_path / "plain")
    by_span, plain = (read_circuit(folder / "circuit.json") for folder in (found, tmp_path / "plain"))
    changed = diff(plain, by_span)
    edges = [{edge.name for edge in file.edges} for file in (plain, by_span)]
    assert (set(changed.removed), set(changed.added)) == (edges[0] - edges[1], edges[1] - edges[0])
    assert any(note.startswith("spans differ: none, and start, IO") for note in changed.notes)
    assert diff(by_span, by_span).jaccard == 1


def test_from_python():
    circuit = acdc.discover(acdc.load_model("tiny"), "greater-than", positions=True, examples=5)
    assert circuit.spans[-1] == "END"
    assert {edge.span for edge in circuit.edges} <= {"YY", "END", None}
    assert circuit.circuit().kept.ndim == 3
    assert "<svg" in circuit._repr_html_()


def test_old_files_and_configs_are_what_they_were():
    """Whether positions were asked for is only in files where they were."""
    given = {"task": "ioi", "model": "tiny", "metric": "kl", "threshold": 0.01, "ablation": "corrupted"}
    config = Config(**given, examples=5, seed=0)
    assert config.digest == Config(**given, examples=5, seed=0, positions=False).digest
    assert "positions" not in config.to_yaml()
    assert config.digest != Config(**given, examples=5, seed=0, positions=True).digest


def wrong(given):
    with pytest.raises(UserError) as raised:
        resolve({"task": "ioi", "model": "tiny", "positions": True, **given}, None, None)
    return str(raised.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"method": "hisp", "edges": 5}, "--positions: hisp decides about whole nodes, not where in the prompt; use "),
        ({"method": "edge-pruning"}, "--positions: edge-pruning decides about whole edges, not where in the prompt"),
        ({"method": "eap-ig", "edges": 5, "greedy": True}, "--greedy: grows by whole edges; leave it out with --pos"),
    ],
)
def test_what_positions_do_not_go_with(given, message):
    assert wrong(given).startswith(message)


def test_more_edge_spans_than_there_are():
    with pytest.raises(FileError, match=r"--edges: 6000 of 5,748 edge-spans \(12 spans\); ask for fewer"):
        loaded(method="eap-ig", edges=6000)


def test_wrong_files(found):
    raw = json.loads((found / "circuit.json").read_text())
    edges = raw["edges"]
    twice = next(name for name, times in Counter(edge["name"] for edge in edges).items() if times > 1)
    one_less = [edge for i, edge in enumerate(edges) if edge["name"] != twice or edges[i - 1]["name"] != twice]
    for change, message in (
        ({"format_version": 1}, "format_version: is 1; it should be 2 (3 with features, 2 with spans, else 1)"),
        ({"spans": raw["spans"][:-1]}, "should have one of the spans start, IO"),
        ({"spans": [*raw["spans"], "IO"]}, "spans: has a name twice"),
        ({"edges": [{**edges[0], "span": None}, *edges[1:]]}, "should have one of the spans start, IO"),
        ({"edges": [*edges, edges[0]]}, "is listed twice"),
        ({"edges": edges[1:]}, "graph.edges: says"),
        ({"edges": one_less}, "graph.edge_spans: says"),
    ):
        with pytest.raises(FileError) as raised:
            checked_circuit({**raw, **change}, found / "circuit.json")
        assert message in str(raised.value)


def test_a_circuit_of_other_spans_is_refused(found, tmp_path):
    raw = json.loads((found / "circuit.json").read_text())
    text = json.dumps(raw).replace('"S1"', '"S9"')
    (tmp_path / "circuit.json").write_text(text)
    with pytest.raises(
        FileError, match=r"prompts of ioi have the spans start, IO, and, S1, .* not those of the circuit, .*S9"
    ):
        evaluate(tmp_path / "circuit.json", GIVEN, None, 0, silent)


@pytest.mark.parametrize(
    "methods",
    [["eap-ig", "random"], pytest.param(["eap-ig:0.1+acdc", "elimination"], marks=pytest.mark.slow)],
    ids=["scores", "searches"],
)
def test_methods_are_compared_by_edge_span(tmp_path, methods):
    given = {"examples": 6, "positions": True, "ablation": "corrupted"}
    result = acdc.compare("tiny", "greater-than", **given, methods=methods, sizes=[5, 40], out=tmp_path)
    (task,) = result.tasks
    assert task.total == 479 * 7 and any(
        note.startswith("by position: counts are of edge-spans") for note in task.notes
    )
    for method in task.methods:
        assert all(circuit.edges <= (circuit.size or 479 * 7) for circuit in method.circuits)
        assert "acdc" in method.name or method.name == "random" or method.auc > 0.6
    with pytest.raises(UserError, match="--positions: hisp can't say where in the prompt; leave it out"):
        acdc.compare("tiny", "greater-than", **given, methods=["hisp"])
    with pytest.raises(UserError, match="--sizes: 4000 of 3353 edge-spans of tiny; ask for fewer"):
        acdc.compare("tiny", "greater-than", **given, methods=["random"], sizes=[4000])


def test_stability_counts_edge_spans(tmp_path):
    result = acdc.stability(
        "tiny", "greater-than", positions=True, examples=6, seeds=1, resamples=1, orders=1, out=tmp_path
    )
    core = read_circuit(tmp_path / "core.json")
    assert core.spans[-1] == "END" and {edge.label for edge in core.edges if edge.span} == {
        edge.name for edge in result.edges if edge.core
    }
    assert result.total == 479 * 7
    assert all(" @ " in edge.name for edge in result.edges)


def test_the_row_of_a_sweep_counts_edges_and_edge_spans(found):
    graph = read_circuit(found / "circuit.json").graph
    row = row_of(found, found.parent, {"task": "ioi", "metric": "kl", "positions": True})
    assert (row["kept"], row["total"]) == (graph.edges.kept, 479)
    assert (row["kept_edge_spans"], row["total_edge_spans"]) == (graph.edge_spans.kept, 479 * 12)
    assert row["positions"] is True and "edge_spans" not in row


def test_the_order_of_spans_in_a_file_does_not_matter(found, tmp_path):
    raw = json.loads((found / "circuit.json").read_text())
    (tmp_path / "circuit.json").write_text(json.dumps({**raw, "spans": raw["spans"][::-1]}))
    file, turned = read_circuit(found / "circuit.json"), read_circuit(tmp_path / "circuit.json")
    assert diff(file, turned).jaccard == 1
    first, second = (evaluate(path / "circuit.json", GIVEN, None, 0, silent) for path in (found, tmp_path))
    assert first.measured.circuit == second.measured.circuit
    with pytest.raises(FileError, match=r"seed-1: .* have the spans IO, not those of the circuit, start"):
        file.at_spans(("IO",), "seed-1: the base run's prompts")

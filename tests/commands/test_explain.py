"""`acdc explain` as a user sees it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from acdc.files.circuit import edges_of, read_circuit, write_circuit
from acdc.files.parts import GraphPart
from acdc.graph.circuit import Circuit
from tests.support.golden import LIST

GOLDEN = LIST.parent / "golden"
EDGE = "input->a0.h2<k>"


@pytest.fixture
def ioi(tmp_path: Path) -> Path:
    """The golden circuit of IOI in tiny, in a folder of its own."""
    return Path(shutil.copy(GOLDEN / "ioi.json", tmp_path / "circuit.json"))


def test_the_table_and_the_json_say_the_same(acdc, ioi):
    result = acdc("explain", ioi, "--edge", EDGE, "--examples", "8", "--out", "why.json")
    assert result.code == 0, result.err
    data = json.loads(Path("why.json").read_text())
    (edge,) = data["edges"]
    assert data["half"] == "held_out"
    assert len(edge["pairs"]) == len(data["prompts"]) == 8
    lines = result.out.splitlines()
    (row,) = [line.split() for line in lines if line.startswith(EDGE)]
    assert row[1:4] == ["S2", "→", "S1"]
    assert row[-3:] == [f"{edge[share][0]:.2f}" for share in ("kept", "left", "random")]
    assert f"{edge['effect'][0]:.4f}" in row
    for i, (pair, prompt) in enumerate(zip(edge["pairs"], data["prompts"], strict=True), 1):
        (shown,) = [line for line in lines if line.split()[:1] == [str(i)]]
        tokens, spans = ([prompt[what][pair[side]] for side in ("query", "key")] for what in ("tokens", "spans"))
        assert f"{tokens[0]!r} → {tokens[1]!r}" in shown
        assert f"{spans[0]} → {spans[1]}" in shown
        assert f"#{pair['fewest'][0]} {pair['terms'][pair['fewest'][0]]:+.2f}" in shown
        assert sum(pair["terms"]) == pytest.approx(pair["added"])
    printed = acdc("explain", ioi, "--edge", EDGE, "--examples", "8", "--json")
    assert json.loads(printed.out) == data
    for title in data["legend"]:
        assert f"\n{title}  " in result.out


def test_edges_come_by_their_effect(acdc, ioi):
    result = acdc("explain", ioi, "--examples", "8", "--json")
    effects = [edge["effect"][0] for edge in json.loads(result.out)["edges"]]
    assert len(effects) > 2
    assert effects == sorted(effects, reverse=True)


def test_an_edge_of_a_circuit_by_position_at_one_span_or_all(acdc):
    path = GOLDEN / "ioi-by-position.json"
    circuit = read_circuit(path)
    spans = {}
    for edge in circuit.edges:
        if edge.span and edge.name.endswith(("<q>", "<k>")):
            spans.setdefault(edge.name, []).append(edge.span)
    name, at = max(spans.items(), key=lambda item: len(item[1]))
    for asked, expected in ((name, at), (f"{name} @ {at[0]}", at[:1])):
        result = acdc("explain", path, "--edge", asked, "--examples", "4", "--json")
        assert result.code == 0, result.err
        assert {edge["edge"] for edge in json.loads(result.out)["edges"]} == {f"{name} @ {span}" for span in expected}


def test_what_cant_be_explained_is_said_in_a_line(acdc, ioi, tmp_path):
    file = read_circuit(ioi)
    mlp = next(edge.name for edge in file.edges if edge.name.split("->")[1] == "m0")
    old = file.circuit()
    kept = old.kept.copy()
    kept[:, [r.kind in ("q", "k") for r in old.graph.receivers]] = False
    plain = Circuit(old.graph, kept).pruned()
    changes = {"graph": GraphPart.of(plain, 0), "edges": edges_of(plain), "metrics": {}}
    write_circuit(tmp_path / "plain.json", file.model_copy(update=changes))
    lost = file.model_copy(update={"model": file.model.model_copy(update={"name": "lost"})})
    write_circuit(tmp_path / "lost.json", lost)
    for arguments, message in {
        (ioi, "--edge", "input->a0.h2<x>"): "--edge: unknown edge 'input->a0.h2<x>'. Did you mean 'input->a0.h2<q>'",
        (ioi, "--edge", mlp): f"--edge {mlp}: goes into no head's query or key, which say where it attends; 4 edges",
        ("plain.json",): "plain.json: no edge of the circuit goes into a head's query or key",
        ("lost.json",): "model 'lost'",
        (ioi, "--out", ioi): "is read, too",
        ("nothing.json",): "nothing.json",
    }.items():
        result = acdc("explain", *arguments)
        assert (result.code, result.out) == (2, ""), arguments
        assert message in result.err
        assert len(result.err.strip().splitlines()) == 1

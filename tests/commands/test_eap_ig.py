"""Circuits in EAP-IG's format, as MIB's are, given to the commands that read circuits. The files are written by the
loops of EAP-IG's `Graph.from_model` and `to_json`, not by acdc."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import networkx as nx
import pytest
from safetensors.numpy import load_file

from acdc.files.circuit import read_circuit

NAMED = ("--task", "ioi", "--model", "tiny")
KEPT = {  # of tiny's ioi circuit, and one that leads nowhere
    "input->a0.h0<v>": 0.5,
    "input->m0": -0.25,
    "a0.h0->m0": 0.125,
    "m0->a2.h0<v>": 1.0,
    "m0->a2.h0<k>": 0.5,
    "a2.h0->logits": 2.0,
    "m0->a3.h3<q>": 0.75,
}
DEAD = "m0->a3.h3<q>"


def eap_ig(kept: dict[str, float], layers: int = 4, heads: int = 4, d_model: int = 128) -> dict[str, Any]:
    """What EAP-IG's to_json writes: all edges with scores, in its order."""
    stream, edges = ["input"], []
    for layer in range(layers):
        own = [f"a{layer}.h{head}" for head in range(heads)]
        edges += [f"{node}->{head}<{c}>" for node in stream for head in own for c in "qkv"]
        edges += [f"{node}->m{layer}" for node in stream + own]
        stream += [*own, f"m{layer}"]
    edges += [f"{node}->logits" for node in stream]
    touched = {name.split("->")[0] for name in kept}
    return {
        "cfg": {"n_layers": layers, "n_heads": heads, "parallel_attn_mlp": False, "d_model": d_model},
        "nodes": {node: {"in_graph": node in touched} for node in [*stream, "logits"]},
        "edges": {name: {"score": kept.get(name, 0.0), "in_graph": name in kept} for name in edges},
    }


def width() -> int:
    from acdc import load_model

    return load_model("tiny").transformer.config.d_model


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "eap.json"
    path.write_text(json.dumps(eap_ig(KEPT, d_model=width())))
    return path


def run_of(acdc: Callable[..., Any], *options: str) -> Path:
    """A run, and its circuit in EAP-IG's format beside it."""
    ran = acdc("run", *NAMED, "--examples", "12", "--threshold", "0.1", "--out", "run", *options)
    assert ran.code == 0, ran.err
    acdc("export", "run/circuit.json", "--to", "eap-ig", "-o", "run.json")
    return Path("run.json")


def one_line(result: Any, *expected: str) -> None:
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1), result.err
    for text in expected:
        assert text in result.err


# ---------------------------------------------------------------- evaluate


def test_evaluate_measures_what_it_measures_of_the_run_itself(acdc) -> None:
    exported = run_of(acdc)
    own = json.loads(acdc("evaluate", "run/circuit.json", "--json", "--minimality", "3").out)
    options = ("--examples", "12", "--json", "--minimality", "3")
    result = acdc("evaluate", exported, *NAMED, *options)
    assert result.code == 0, result.err
    found = json.loads(result.out)
    for key in ("task", "model", "model_hash", "data_hash", "metric", "edges", "total", "half"):
        assert found[key] == own[key], key
    assert found["measured"]["circuit"] == pytest.approx(own["measured"]["circuit"], abs=1e-6)
    assert found["measured"]["faithfulness"] == pytest.approx(own["measured"]["faithfulness"], abs=1e-6)
    assert [edge["name"] for edge in found["minimality"]["edges"]] == [
        edge["name"] for edge in own["minimality"]["edges"]
    ]
    assert "doesn't say with which prompts" in result.err
    assert "warning" not in result.err
    table = acdc("evaluate", exported, *NAMED, "--examples", "12", "--minimality", "0").out
    assert "unknown (EAP-IG file), kl ↓, corrupted ablation" in table


@pytest.mark.parametrize("of", ["run/circuit.json", "run.json"])
def test_evaluate_by_another_metric_and_ablation(acdc, of: str) -> None:
    run_of(acdc)
    names = NAMED if of == "run.json" else ()
    options = ("--metric", "logit-diff", "--ablation", "mean", "--minimality", "0", "--json", "--examples", "12")
    found = json.loads(acdc("evaluate", of, *names, *options).out)
    assert (found["metric"], found["measured"]["ablation"]) == ("logit-diff", "mean")
    assert {other["ablation"] for other in found["others"]} == {"corrupted", "zero"}
    assert not any(note.startswith("warning") for note in found["notes"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ((), "EAP-IG's format names neither task nor model; give --task TASK and --model MODEL"),
        (NAMED[:2], "names neither task nor model; give --model MODEL"),
        (NAMED[2:], "names neither task nor model; give --task TASK"),
        (
            ("--task", "or-gate", "--model", "or-gate"),
            "4 layers, 4 heads, 479 edges; that of or-gate has 1 layers",
        ),
        ((*NAMED, "--metric", "kll"), "Did you mean 'kl'"),
    ],
)
def test_evaluate_without_what_the_file_does_not_say(acdc, file, options, says: str) -> None:
    one_line(acdc("evaluate", file, *options), says)


def test_evaluate_refuses_another_width(acdc, file) -> None:
    file.write_text(json.dumps(eap_ig(KEPT, d_model=768)))
    one_line(acdc("evaluate", file, *NAMED), f"cfg.d_model: the circuit's model is 768 wide, tiny is {width()}")


def test_a_file_that_only_ranks_edges_is_said_to_be_empty(acdc, file) -> None:
    raw = eap_ig(KEPT, d_model=width())
    for edge in raw["edges"].values():
        edge["in_graph"] = False
    file.write_text(json.dumps(raw))
    result = acdc("evaluate", file, *NAMED, "--examples", "5")
    assert result.code == 0
    assert "no edge has in_graph: true, so the circuit is empty" in result.err


# ---------------------------------------------------------------- check


def test_check_against_a_golden_circuit_in_both_directions(acdc) -> None:
    exported = run_of(acdc)
    for pair in ((exported, "run/circuit.json"), ("run/circuit.json", exported), (exported, exported)):
        result = acdc("check", pair[0], "--against", pair[1], *NAMED)
        assert (result.code, result.err) == (0, ""), result.out
    one_line(acdc("check", exported, "--against", "run/circuit.json"), "give --task TASK and --model MODEL")
    other = acdc("check", exported, "--against", "run/circuit.json", "--task", "greater-than", "--model", "tiny")
    one_line(other, "the golden circuit has another task: ioi, not greater-than")
    raw = json.loads(exported.read_text())
    edge = read_circuit(Path("run/circuit.json")).edges[0].name
    raw["edges"][edge]["in_graph"] = False
    exported.write_text(json.dumps(raw))
    changed = acdc("check", exported, "--against", "run/circuit.json", *NAMED)
    assert changed.code == 1
    assert f"- {edge}" in changed.out


def test_check_against_a_published_circuit_needs_no_names(acdc, tmp_path: Path) -> None:
    from acdc.files.published import load_published

    published = load_published("ioi").circuit
    names = published.edge_names()
    path = tmp_path / "mib.json"
    path.write_text(json.dumps(eap_ig(dict.fromkeys(names, 1.0), 12, 12, 768)))
    bounds = ("--recall", "0.9", "--precision", "1", "--auc", "0.99")
    result = acdc("check", path, "--against", "ioi", *bounds)
    assert result.code == 0, result.out + result.err
    assert "edge AUC 1.000" in result.out
    path.write_text(json.dumps(eap_ig(dict.fromkeys(names[::2], 1.0), 12, 12, 768)))
    assert acdc("check", path, "--against", "ioi", "--recall", "0.9").code == 1


def test_a_list_checks_such_files(acdc, file, tmp_path: Path) -> None:
    entry = {"name": "as it was", "circuit": "eap.json", "against": "golden.json"}
    (tmp_path / "golden.json").write_text(file.read_text())
    (tmp_path / "list.yaml").write_text(json.dumps({"checks": [entry]}))
    assert acdc("check", "list.yaml").code == 0
    one_line(acdc("check", "list.yaml", "--task", "ioi"), "--task: list.yaml is a list, which states this")


# ---------------------------------------------------------------- diff and export


def test_diff_of_such_files_with_each_other_and_with_ours(acdc, file, tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text(json.dumps(eap_ig({**KEPT, "input->m0": 0.0, "m3->logits": 1.0, "input->m3": 1.0}, d_model=9)))
    result = acdc("diff", file, other)
    lines = ["+ input->m3", "+ m3->logits", "~ input->m0  -0.25 → 0"]
    assert (result.code, result.out.splitlines()[-3:], result.err) == (0, lines, "")
    assert "; 2 added, 0 removed, 1 re-scored\n" in result.out
    exported = run_of(acdc)
    result = acdc("diff", "run/circuit.json", exported)
    assert "Jaccard index 1.00; 0 added, 0 removed, 0 re-scored\n" in result.out
    assert result.err == "note: conventions differ: only one counts direct edges, so only residual edges are compared\n"
    named = acdc("diff", "run/circuit.json", exported, "--task", "docstring", "--model", "tiny")
    assert "note: tasks differ: ioi, and docstring" in named.err
    small = tmp_path / "small.json"
    small.write_text(json.dumps(eap_ig({}, 2, 2)))
    one_line(acdc("diff", file, small), "a model with 4 layers, 4 heads, and a model with 2 layers, 2 heads")


def test_export_draws_what_the_file_holds(acdc, file, tmp_path: Path) -> None:
    alive = set(KEPT) - {DEAD}
    for to in ("svg", "png", "pdf", "dot", "html"):
        result = acdc("export", file, "--to", to, *NAMED, "-o", f"c.{to}")
        assert (result.code, result.out) == (0, f"c.{to}\n"), result.err
        one_line(acdc("export", file, "--to", to), "give --task TASK and --model MODEL")
    assert "ioi in tiny" in (tmp_path / "c.svg").read_text()
    page = (tmp_path / "c.html").read_text()
    assert "6 of the 479 edges of tiny (1.25%) are the circuit in the file for ioi." in page
    assert "Read from EAP-IG" in page and "Found by" not in page and "unknown" not in page.split("<script")[0]
    for to in ("graphml", "node-link", "eap-ig"):
        assert acdc("export", file, "--to", to, "-o", f"c.{to}").code == 0
    graph = nx.read_graphml(tmp_path / "c.graphml")
    assert {name: data["score"] for *_, name, data in graph.edges(keys=True, data=True)} == {n: KEPT[n] for n in alive}
    again = json.loads((tmp_path / "c.eap-ig").read_text())
    assert again["cfg"] == json.loads(file.read_text())["cfg"]
    assert {name for name, edge in again["edges"].items() if edge["in_graph"]} == alive


def scores_of(path: Path) -> dict[str, float]:
    return {name: edge["score"] for name, edge in json.loads(path.read_text())["edges"].items()}


@pytest.mark.parametrize("method", ["eap-ig", "causal-mediation"])
def test_export_writes_the_scores_of_all_edges(acdc, method: str) -> None:
    """So that EAP-IG's `apply_topn(n)`, here as it is written there, gives the circuits of other runs."""
    edges = ("--method", method, "--examples", "4")
    acdc("run", *NAMED, *edges, "--edges", "50", "--out", "run")
    acdc("export", "run/circuit.json", "--to", "eap-ig", "-o", "all.json")
    scores = scores_of(Path("all.json"))
    matrix = load_file("run/scores.safetensors")["edges"]
    assert (len(scores), len(set(scores.values()) - {0.0}) > 10) == (479, True)
    for name, score in scores.items():
        sender, receiver = name.split("->")
        assert score == matrix[row(sender), column(receiver)], name
    if method == "eap-ig":
        acdc("run", *NAMED, *edges, "--edges", "90", "--abs", "--no-direct", "--out", "other")
        top = sorted(scores, key=lambda name: abs(scores[name]), reverse=True)[:90]
        kept = {edge.name for edge in read_circuit(Path("other/circuit.json")).edges}
        assert 50 < len(kept) <= 90 and kept <= set(top)


def row(sender: str, heads: int = 4) -> int:
    """EAP-IG's `forward_index`."""
    layer, _, head = sender[1:].partition(".h")
    return 0 if sender == "input" else 1 + int(layer) * (heads + 1) + (int(head) if head else heads)


def column(receiver: str, heads: int = 4) -> int:
    """EAP-IG's `backward_index`."""
    if receiver == "logits":
        return -1
    layer, _, head = receiver[1:].partition(".h")
    start = int(layer) * (3 * heads + 1)
    return start + ("qkv".index(head[-2]) * heads + int(head[:-3]) if head else 3 * heads)


def test_export_takes_no_scores_of_another_method(acdc) -> None:
    run_of(acdc, "--prefilter", "eap-ig:0.3")
    assert Path("run/scores.safetensors").exists()  # the filter's
    kept = {
        edge.name: edge.score
        for edge in read_circuit(Path("run/circuit.json")).edges
        if edge.name in scores_of(Path("run.json"))
    }
    assert {name: score for name, score in scores_of(Path("run.json")).items() if score} == kept


# ---------------------------------------------------------------- mistakes


def test_names_are_only_for_files_without(acdc) -> None:
    run_of(acdc)
    own = "run/circuit.json"
    for command in (("diff", own, own), ("export", own, "--to", "svg"), ("check", own, "--against", own)):
        one_line(acdc(*command, "--model", "tiny"), "--model: is for a file in EAP-IG's format; run/circuit.json names")


def test_commands_that_read_only_our_format_say_which_read_the_other(acdc, file) -> None:
    result = acdc("compare", "--tasks", "ioi", "--model", "tiny", "--examples", "4", "--reference", file, "--no-plots")
    one_line(result, "eap.json: is in EAP-IG's format, which only acdc evaluate, check, diff and export read")


WRONG: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "neurons": (lambda raw: raw.update(neurons={"m0": [True, False]}), "is a circuit of single neurons, not of edges"),
    "no nodes": (lambda raw: raw.pop("nodes"), "is not an EAP-IG circuit: nodes should be a JSON object"),
    "no sizes": (lambda raw: raw.update(cfg="gpt2"), "is not an EAP-IG circuit: cfg should be a JSON object"),
    "no width": (lambda raw: raw["cfg"].pop("d_model"), "cfg.d_model should be the width"),
    "other edge": (lambda raw: raw["edges"].update({"m9->logits": {"in_graph": True}}), "has no edge 'm9->logits'"),
    "huge score": (lambda raw: raw["edges"]["input->m0"].update(score=10**400), "edge 'input->m0' needs in_graph"),
}


@pytest.mark.parametrize("command", ["evaluate", "diff", "export"])
@pytest.mark.parametrize(("change", "says"), WRONG.values(), ids=WRONG)
def test_a_wrong_file_is_one_line(acdc, file, change, says: str, command: str) -> None:
    raw = json.loads(file.read_text())
    change(raw)
    file.write_text(json.dumps(raw))
    rest = {"evaluate": NAMED, "diff": (file,), "export": ("--to", "dot", *NAMED)}[command]
    one_line(acdc(command, file, *rest), says)

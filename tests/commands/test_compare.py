"""`acdc compare`: its files and numbers, how it resumes, and one clear line for every mistake."""

from __future__ import annotations

import csv
import json
import math
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
import torch

from acdc import cli
from acdc.commands import compare
from acdc.commands.cost import Cost, metered, read_cost
from acdc.errors import FileError
from acdc.files.circuit import read_circuit
from acdc.graph.scores import read_scores
from acdc.registry import METHODS
from tests.support.browser import chromium, opened

COMMAND = ["compare", "--model", "tiny", "--examples", "6", "--tasks", "gendered-pronoun"]
FEW = [*COMMAND, "--methods", "acdc,eap-ig,hisp,random,eap-ig:0.2+acdc,elimination", "--sizes", "40,20"]


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Let ACDC run at few thresholds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compare, "THRESHOLDS", 3)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A comparison: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("compare")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["acdc", *FEW, "--out", str(folder / "out"), "--json"])
        printed = []
        patch.setattr(cli, "show", lambda text, end="": printed.append(text))
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
    return folder / "out", "".join(printed)


def content(folder):
    (task,) = json.loads((folder / "compare.json").read_text())["tasks"]
    return task, {m["name"]: m for m in task["methods"]}


def test_the_files_are_there_and_json_is_one_of_them(done):
    folder, printed = done
    assert printed == (folder / "compare.json").read_text()
    task, methods = content(folder)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert len(rows) == sum(len(m["circuits"]) for m in task["methods"]) == 3 * 2 + 2 * 3 + 5
    assert {row["ranked_by"] for row in rows} == {"kl", "logit-diff", "none"}
    for kind in ("faithfulness", "roc"):
        assert (folder / f"{kind}-gendered-pronoun.png").read_bytes()[:4] == b"\x89PNG"
        assert ET.parse(folder / f"{kind}-gendered-pronoun.svg").getroot().tag.endswith("svg")
    assert [c["size"] for c in methods["eap-ig"]["circuits"]] == [20, 40]


def test_circuits_are_those_of_the_scores_pruned_and_judged_on_the_held_out_half(done):
    folder, _ = done
    task, methods = content(folder)
    assert task["half"] == "held_out"
    graph = read_circuit(folder / "gendered-pronoun/reference/circuit.json").model.graph
    for name in ("eap-ig", "hisp", "random"):
        scores = read_scores(folder / "gendered-pronoun" / name / "scores.safetensors", graph)
        for c in methods[name]["circuits"]:
            circuit = scores.circuit(scores.top(c["size"])).pruned()
            assert (c["edges"], c["threshold"]) == (circuit.n_edges, None)
            assert c["components"] == len(set(circuit.nodes()) - {"input", "logits"})
            assert c["faithfulness"] == pytest.approx(
                (task["ablated"] - c["metric"]) / task["ablated"]
            )  # kl: full is 0
            assert c["low"] <= c["faithfulness"] <= c["high"]


def test_acdc_goes_over_thresholds_and_scores_by_the_largest_one(done):
    folder, _ = done
    _, methods = content(folder)
    at = folder / "gendered-pronoun/acdc"
    graph, best = None, None
    for c in methods["acdc"]["circuits"]:
        file = read_circuit(at / f"threshold-{c['threshold']:g}" / "circuit.json")
        assert file.method.threshold == c["threshold"]
        assert file.metrics["held_out.circuit.kl"] == c["metric"]
        assert file.graph.edges.kept == c["edges"]
        graph = file.model.graph
        best = np.where(graph.edges, 0.0, np.nan) if best is None else best
        best[file.circuit().kept] = c["threshold"]
    np.testing.assert_array_equal(read_scores(at / "scores.safetensors", graph).edges, best)
    assert methods["acdc"]["auc"] is None  # the reference is its own


def test_what_a_filter_lost_is_what_acdc_keeps_without_it(done):
    folder, _ = done
    _, methods = content(folder)
    graph = read_circuit(folder / "gendered-pronoun/reference/circuit.json").model.graph
    scores = read_scores(folder / "gendered-pronoun/eap-ig/scores.safetensors", graph)
    allowed = scores.top(round(0.2 * graph.n_edges), magnitude=True)
    for c in methods["eap-ig:0.2+acdc"]["circuits"]:
        at = f"gendered-pronoun/acdc/threshold-{c['threshold']:g}/circuit.json"
        whole = read_circuit(folder / at).circuit()
        assert c["lost"] == [graph.edge_name(s, r) for s, r in np.argwhere(whole.kept & ~allowed)]
        kept = read_circuit(folder / at.replace("acdc/", "eap-ig-0.2-acdc/", 1)).circuit().kept
        assert not (kept & ~allowed).any()
    assert all(c["lost"] is None for c in methods["acdc"]["circuits"])
    assert methods["eap-ig:0.2+acdc"]["seconds"] > methods["eap-ig"]["seconds"]


def test_a_good_ranking_is_far_above_a_random_one(done):
    _, methods = content(done[0])
    assert methods["eap-ig"]["auc"] > 0.85
    assert abs(methods["random"]["auc"] - 0.5) < 0.2
    for m in methods.values():
        if m["roc"]:
            assert (m["roc"][0], m["roc"][-1]) == ([0, 0], [1, 1])
            assert m["pessimistic_auc"] <= m["auc"] + 1e-9 and 0 <= m["node_auc"] <= 1


def test_areas_under_faithfulness_go_from_no_edge_to_all_of_them(done):
    task, methods = content(done[0])
    for m in methods.values():
        inner = sorted(((c["size"] or c["edges"]) / task["total"], c["faithfulness"]) for c in m["circuits"])
        x, y = np.array([(0, 0), *inner, (1, 1)]).T
        width = np.diff(x)
        assert m["cpr"] == pytest.approx((width * (y[1:] + y[:-1]) / 2).sum())
        assert m["cmd"] == pytest.approx((width * (abs(1 - y[1:]) + abs(1 - y[:-1])) / 2).sum())
    assert methods["eap-ig"]["cpr"] > methods["random"]["cpr"] and methods["eap-ig"]["cmd"] < methods["random"]["cmd"]


def test_the_page_has_a_line_per_method_and_a_row_per_circuit(done):
    folder, _ = done
    _, methods = content(folder)
    with chromium() as browser, opened(browser, folder / "report.html") as page:
        lines = {g.get_attribute("data-line") for g in page.locator("[data-line]").all()}
        assert lines == set(methods)
        assert page.locator("#table tbody tr").count() == sum(len(m["circuits"]) for m in methods.values())
        assert page.locator("a[href]").count() == 0  # there are no runs to lead to
        page.get_by_role("button", name="random").click()
        assert page.locator("[data-line='eap-ig']").first.is_hidden()
        assert page.locator("[data-line='random']").first.is_visible()


def test_overlap_is_symmetric_and_each_method_is_like_itself(done):
    task, _ = content(done[0])
    assert task["overlap"]["size"] == min((20, 40), key=lambda n: abs(n - task["reference_edges"]))
    for name in ("edges", "components", "scores"):
        values = np.array(task["overlap"][name])
        np.testing.assert_allclose(values, values.T)
        np.testing.assert_allclose(np.diag(values), 1)


def test_a_second_call_only_reads_and_gives_the_same(done, call):
    folder, printed = done
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.parent != folder)
    times = [p.stat().st_mtime_ns for p in files if p.name != "scores.safetensors"]
    plots = {p.name: p.read_bytes() for p in folder.glob("*.*g")}
    code, out, _ = call(*FEW, "--out", folder, "--json")
    assert (code, out) == (0, printed)
    assert [p.stat().st_mtime_ns for p in files if p.name != "scores.safetensors"] == times
    assert {p.name: p.read_bytes() for p in folder.glob("*.*g")} == plots


def test_elimination_meets_its_targets_with_nearly_the_fewest_edges(done):
    folder, _ = done
    _, methods = content(folder)
    targets = [c["target"] for c in methods["elimination"]["circuits"]]
    assert targets == [0.5, 0.7, 0.8, 0.9, 0.95]
    for c in methods["elimination"]["circuits"]:
        at = folder / f"gendered-pronoun/elimination/faithfulness-{c['target']:g}"
        file = read_circuit(at / "circuit.json")
        assert (file.method.options["faithfulness"], file.graph.edges.kept) == (c["target"], c["edges"])
        full, found, ablated = (file.metrics[f"discovery.{what}.kl"] for what in ("model", "circuit", "ablated"))
        assert (ablated - found) / (ablated - full) >= c["target"]
    for name, method in methods.items():
        needed = [math.inf if n is None else n for n in method["needed"]]
        assert needed == sorted(needed), name
        for own, other in zip(methods["elimination"]["needed"], needed, strict=True):
            assert own < other + 1, name  # on held-out prompts, so few that chance moves it


def test_the_table_says_it_all(done, call):
    code, out, err = call(*FEW, "--out", done[0], "--no-plots")
    assert code == 0
    assert "gendered-pronoun: eap-ig took" in err
    for text in (
        "AUC",
        "top 20",
        "τ",
        "edges needed for a faithfulness on the held-out prompts of",
        "Jaccard index of edges",
        "Spearman",
        "acdc at τ = ",
        "logit-diff",
        f"{done[0]}/",
    ):
        assert text in out
    assert all(len(line) < 140 for line in out.splitlines())


def test_other_options_are_refused_in_the_same_folder(done, call):
    code, out, err = call(*FEW, "--out", done[0], "--seed", "1")
    assert (code, out) == (2, "")
    assert "other options, prompts or weights: seed 0, here 1;" in err.splitlines()[-1]


def test_a_file_as_reference(done, call, tmp_path):
    circuit = done[0] / "gendered-pronoun/reference/circuit.json"
    few = [*COMMAND, "--methods", "random,acdc", "--sizes", "20", "--no-plots", "--out", "out", "--json"]
    code, _, err = call(*few, "--reference", circuit)
    assert code == 0, err
    task, methods = content(tmp_path / "out")
    assert task["reference"] == str(circuit)
    assert methods["acdc"]["auc"] > 0.9
    assert call(*few, "--reference", f"gendered-pronoun={circuit}")[0] == 0
    call("run", "--task", "or-gate", "--out", "gate")
    code, out, err = call(*few, "--reference", "gate/circuit.json")
    assert (code, out) == (2, "")
    assert "another graph" in err


def test_a_method_that_cannot_is_left_out_of_all_and_refused_by_name(call, tmp_path):
    gate = ["compare", "--tasks", "or-gate", "--sizes", "3", "--updates", "2", "--no-plots"]
    code, _, err = call(*gate, "--json", "--out", "out")
    assert code == 0, err
    task, methods = content(tmp_path / "out")
    assert task["half"] == "discovery"
    left = {note.split(" is left out")[0] for note in task["notes"] if " is left out" in note}
    assert {"eap", "hisp", "eap-ig", "relp"} <= left
    assert set(methods) == {*METHODS, "elimination"} - left
    assert methods["edge-patching"]["circuits"][0]["low"] is None  # of one prompt
    code, out, err = call(*gate, "--methods", "eap")
    assert (code, out, err.count("\n")) == (2, "", 1)


MISTAKES = {
    "unknown task": (["--tasks", "ioy"], "Did you mean 'ioi'"),
    "task twice": (["--tasks", "ioi,ioi"], "twice"),
    "unknown method": (["--methods", "acdc,eap-gi"], "Did you mean 'eap-ig'"),
    "method twice": (["--methods", "acdc,acdc"], "has acdc twice"),
    "no method": (["--methods", "acdc,"], "has nothing where a name should be"),
    "size twice": (["--sizes", "5,10,5"], "has 5 twice"),
    "size beyond all graphs": (["--sizes", "1" + "0" * 30], "not more than the graph has"),
    "reference twice": (["--reference", "gendered-pronoun=a.json,gendered-pronoun=b.json"], "two files for"),
    "too many updates": (["--updates", "1" + "0" * 30], "--updates"),
    "unknown filter": (["--methods", "eap-gi:0.1+acdc"], "Did you mean 'eap-ig'"),
    "no share": (["--methods", "eap-ig+acdc"], "METHOD:SHARE"),
    "size too large": (["--sizes", "5,50000"], "50000 of 479 edges"),
    "no size": (["--sizes", "0"], "1 or more"),
    "size is no number": (["--sizes", "5,some"], "whole number"),
    "no updates": (["--updates", "0"], "--updates"),
    "no examples": (["--examples", "0"], "--examples"),
    "unknown ablation": (["--ablation", "zeros"], "Did you mean 'zero'"),
    "method without that ablation": (["--methods", "eap-ig", "--ablation", "zero"], "corrupted prompts"),
    "unknown model": (["--model", "tyny"], "Did you mean 'tiny'"),
    "missing reference": (["--reference", "c.json"], "c.json"),
    "reference of which task": (["--tasks", "ioi,greater-than", "--reference", "c.json"], "TASK=FILE"),
    "reference of another task": (["--reference", "ioi=c.json"], "gendered-pronoun"),
    "out is a file": (["--out", "file/x"], "can't be written"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_clear_line_and_nothing_written(call, tmp_path, kind):
    options, hint = MISTAKES[kind]
    (tmp_path / "file").write_text("")
    code, out, err = call(*COMMAND, *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert hint in err
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_cost_goes_on_after_an_interruption(tmp_path):
    path = tmp_path / "cost.json"
    with pytest.raises(KeyboardInterrupt), metered(path, torch.device("cpu")):
        block = np.ones(20_000_000)
        raise KeyboardInterrupt
    first = read_cost(path)
    assert first.peak_memory_mb > 0.9 * block.nbytes / 1e6
    with metered(path, torch.device("cpu")):
        pass
    assert read_cost(path).seconds > first.seconds
    assert read_cost(path).peak_memory_mb == first.peak_memory_mb
    assert Cost(1, 5) + Cost(2, 3) == Cost(3, 5)
    path.write_text('{"hours": 1}')
    with pytest.raises(FileError, match="remove"):
        read_cost(path)
    with pytest.raises(FileError, match="is missing"):
        read_cost(Path("nowhere/cost.json"))


def test_help_has_an_example(call):
    code, out, _ = call("compare", "--help")
    assert code == 0
    assert "Example: acdc compare" in out

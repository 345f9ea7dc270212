"""`acdc stability`: what it counts and runs, how it resumes, and one clear line for every mistake."""

from __future__ import annotations

import hashlib
import json
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import yaml

from acdc import cli
from acdc.commands import stability
from acdc.evaluation.faithfulness import prompt_values
from acdc.files.circuit import read_circuit
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.methods.log import Journal
from acdc.setup.config import resolve
from acdc.setup.inputs import load

BASE = ["--task", "greater-than", "--model", "tiny", "--examples", "8", "--threshold", "0.05"]
COMMAND = ["stability", *BASE, "--seeds", "2", "--resamples", "2", "--orders", "3"]
GATE = ["stability", "--task", "or-gate", "--resamples", "0", "--orders", "0"]
FOLDERS = {
    "seeds": ["seed-1", "seed-2"],
    "resamples": ["resample-1", "resample-2"],
    "orders": ["order-heads-ascending", "order-parents-ascending", "order-random-1"],
}
ALL = [name for names in FOLDERS.values() for name in names]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """Return the directory of one call."""
    folder = tmp_path_factory.mktemp("stability") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["acdc", *COMMAND, "--out", str(folder), "--json"])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert end.value.code == 0
    return folder


def content(folder):
    return json.loads((folder / "stability.json").read_text())


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def residual(path):
    """Return the names of a circuit's residual edges."""
    return set(read_circuit(path / "circuit.json").circuit().edge_names())


def test_every_edge_is_counted_as_often_as_it_was_found(done):
    s, base = content(done), residual(done / "base")
    found = {name: residual(done / name) for name in ALL}
    stated = {e["name"]: e for e in s["edges"]}
    assert set(stated) == set.union(base, *found.values())
    for name, e in stated.items():
        assert e["frequency"] == sum(name in f for f in found.values()) / len(ALL)
        for kind, names in FOLDERS.items():
            assert e["by_kind"][kind] == sum(name in found[n] for n in names) / len(names)
        assert e["base"] == (name in base)
    assert [e["frequency"] for e in s["edges"]] == sorted((e["frequency"] for e in s["edges"]), reverse=True)
    assert [(r["name"], r["edges"]) for r in s["runs"]] == [(n, len(found[n])) for n in ALL]
    direct = [set(read_circuit(done / name / "circuit.json").circuit().direct_names()) for name in ALL]
    assert {e["name"]: e["frequency"] for e in s["direct"]} == {
        n: sum(n in d for d in direct) / len(ALL) for n in set.union(*direct)
    }


def test_overlap_is_that_of_the_circuits(done):
    s, base = content(done), residual(done / "base")
    kinds = {k["name"]: k for k in s["kinds"]}
    assert [*kinds] == [*FOLDERS, "all"]
    for kind, names in (FOLDERS | {"all": ALL}).items():
        found = [residual(done / n) for n in names]
        pairs = [len(a & b) / len(a | b) for a, b in combinations(found, 2)]
        np.testing.assert_allclose(kinds[kind]["jaccard"], [np.mean(pairs), min(pairs), max(pairs)])
        like = [len(a & base) / len(a | base) for a in found]
        np.testing.assert_allclose(kinds[kind]["like_base"], [np.mean(like), min(like), max(like)])


def test_the_core_is_what_nearly_all_found(done):
    s, file = content(done), read_circuit(done / "core.json")
    often = {e["name"]: e["frequency"] for e in s["edges"] + s["direct"]}
    core = {e.name: e.score for e in file.edges}
    assert core == {e["name"]: e["frequency"] for e in s["edges"] + s["direct"] if e["core"]}
    assert core and min(core.values()) >= 0.9
    circuit, enough = file.circuit(), {e["name"] for e in s["edges"] if e["frequency"] >= 0.9}
    assert circuit.n_edges == s["core"]["edges"]
    assert s["dead"] == len([e for e in s["edges"] + s["direct"] if e["frequency"] >= 0.9 and not e["core"]]) > 0
    assert set(circuit.edge_names()) <= enough <= often.keys()
    assert circuit.pruned().n_edges == circuit.n_edges
    assert (file.method.name, file.method.options["of"], file.graph.dead) == ("stability", "acdc", s["dead"])
    assert file.metrics["held_out.circuit.kl"] == pytest.approx(s["core"]["metric"], rel=1e-6)
    base = read_circuit(done / "base/circuit.json")
    assert base.metrics["held_out.circuit.kl"] == pytest.approx(s["base"]["metric"], rel=1e-6)
    for name in ("core.svg", "found.svg"):
        found = [e.text for e in ET.parse(done / name).iter("{http://www.w3.org/2000/svg}text")]
        assert any(text.startswith("frequency: the share of reruns") for text in found)


def test_frequencies_on_a_graph_of_two_heads():
    graph = Graph(1, 2, mlp=False)
    full = Circuit.full(graph)
    less = Circuit(graph, full.kept.copy(), full.direct.copy())
    less.kept[1:, -1] = False  # no head reaches the logits
    core = stability.core_of([full] * 9 + [less], 0.9)
    assert core.n_edges == graph.n_edges
    assert core.scores[0, -1] == 1 and core.scores[1, -1] == core.scores[2, -1] == 0.9
    assert stability.core_of([full] * 8 + [less] * 2, 0.9).pruned().edge_names() == ["input->logits"]
    assert stability.core_of([Circuit(graph, full.kept)], 1).direct is None


@pytest.mark.parametrize(("name", "options"), [("seed-2", ["--seed", 2]), (ALL[5], ["--order", "parents-ascending"])])
def test_a_rerun_is_what_acdc_run_finds(call, done, tmp_path, name, options):
    assert call("run", *BASE, *options, "--out", "run")[0] == 0
    by_hand, file = (read_circuit(folder / "circuit.json") for folder in (tmp_path / "run", done / name))
    assert file.edges == by_hand.edges
    assert (file.task, file.method, file.metrics) == (by_hand.task, by_hand.method, by_hand.metrics)


def test_a_resample_has_prompts_as_often_as_they_were_drawn():
    config, task, _ = resolve({"task": "induction", "model": "tiny", "examples": 5}, None, None)
    inputs = load(config, task)
    drawn = [4, 1, 1, 0, 4]
    data = replace(inputs.data, discovery=inputs.data.discovery.take(drawn))
    again = replace(inputs, data=data, _parts={})
    empty = Circuit.empty(inputs.model.transformer.config.graph())
    first, second = (prompt_values(x, "discovery", empty, "kl") for x in (inputs, again))
    np.testing.assert_allclose(second, first[drawn], rtol=1e-4)
    assert data.discovery.texts == tuple(inputs.data.discovery.texts[i] for i in drawn)
    one, two = (stability.resampled(inputs, number).data for number in (1, 2))
    assert one.held_out is inputs.data.held_out
    assert one.discovery.texts == stability.resampled(inputs, 1).data.discovery.texts != two.discovery.texts


def test_a_resample_states_the_hash_of_its_own_prompts(call, done):
    base = read_circuit(done / "base/circuit.json").task
    resamples = [read_circuit(done / f"resample-{number}/circuit.json") for number in (1, 2)]
    hashes = [file.task.data_hash for file in resamples]
    assert len({base.data_hash, *hashes}) == 3
    assert [file.task.model_copy(update={"data_hash": base.data_hash}) for file in resamples] == [base] * 2
    config, task, _ = resolve(yaml.safe_load((done / "config.yaml").read_text()), None, None)
    data = stability.resampled(load(config, task), 1).data
    digest = hashlib.sha256()
    for split in (data.discovery, data.held_out):
        for array in split.arrays():  # as the hash of any prompts
            digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    assert hashes[0] == digest.hexdigest()[:16] == data.hash[:16]


def test_a_resample_is_evaluated_on_the_prompts_that_its_base_run_holds_out(call, done, tmp_path):
    code, out, _ = call("evaluate", done / "resample-1/circuit.json", "--minimality", "0", "--json")
    assert code == 0
    stated = read_circuit(done / "resample-1/circuit.json").metrics["held_out.circuit.kl"]
    assert json.loads(out)["measured"]["circuit"][0] == pytest.approx(stated)
    assert "warning" not in out and "other prompts" not in out
    file = json.loads((done / "resample-1/circuit.json").read_text())
    file["method"]["options"]["resample"] = 2
    (tmp_path / "circuit.json").write_text(json.dumps(file))
    code, _, err = call("evaluate", "circuit.json", "--minimality", "0")
    assert code == 2 and "the prompts are not the circuit's" in err


def test_orders_take_the_filter_of_the_base_run(call, tmp_path):
    """The baseline draws its scores by the seed, which is the order's in a rerun."""
    (tmp_path / "config.yaml").write_text("task: or-gate\nmodel: or-gate\nprefilter: random:0.5\nthreshold: 0.1\n")
    command = ["stability", "--config", "config.yaml", "--seeds", "0", "--resamples", "0", "--orders", "3"]
    assert call(*command, "--out", "out")[0] == 0
    folders = [path for path in (tmp_path / "out").iterdir() if path.is_dir()]
    assert len(folders) == 4
    assert len({(folder / "scores.safetensors").read_bytes() for folder in folders}) == 1


def test_a_second_call_reads_and_gives_the_same(call, done, monkeypatch):
    before = files(done)
    monkeypatch.setattr(stability, "find", None)
    code, out, _ = call(*COMMAND, "--out", done, "--json")
    assert code == 0
    assert files(done) == before
    assert out == (done / "stability.json").read_text()
    code, out, _ = call(*COMMAND, "--config", done / "config.yaml", "--out", done)
    assert (code, files(done)) == (0, before)
    for text in ("base run", "seeds", "resamples", "orders", "order-random-1", "90% or more, the core", "held out"):
        assert text in out
    assert max(map(len, out.splitlines())) < 130


def test_a_call_that_was_cut_off_goes_on_to_the_same_bytes(call, done, tmp_path, monkeypatch):
    write, left = Journal.write, [60]

    def cut(self, batch):
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        write(self, batch)

    monkeypatch.setattr(Journal, "write", cut)
    code, _, err = call(*COMMAND, "--out", "out")
    assert code == 130 and "to resume" in err
    assert "core.json" not in files(tmp_path / "out") and "base/circuit.json" in files(tmp_path / "out")
    monkeypatch.setattr(Journal, "write", write)
    assert call(*COMMAND, "--out", "out")[0] == 0
    assert files(tmp_path / "out") == files(done)


def test_another_base_run_is_refused_in_the_same_folder(call, done):
    code, out, err = call(*COMMAND, "--seed", "7", "--out", done)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "other options, prompts or weights: seed 0, here 7;" in err


def test_one_rerun_is_enough_and_more_go_on_from_it(call, tmp_path):
    assert call(*GATE, "--seeds", "1", "--out", "out")[0] == 0
    s = content(tmp_path / "out")
    assert [r["name"] for r in s["runs"]] == ["seed-1"] and s["half"] == "discovery"
    assert [k["jaccard"] for k in s["kinds"]] == [[None, None, None]] * 2
    assert any("same prompts" in note for note in s["notes"])
    code, _, err = call(*GATE, "--seeds", "2", "--out", "out")
    assert (code, err.count("seed-1:"), err.count("seed-2:")) == (0, 0, 1)
    assert len(content(tmp_path / "out")["runs"]) == 2


def test_a_method_that_scores_edges_has_no_orders(call, tmp_path):
    scored = ["stability", *BASE[:-2], "--method", "eap-ig", "--edges", "15", "--seeds", "1", "--resamples", "1"]
    assert call(*scored, "--out", "out")[0] == 0
    s = content(tmp_path / "out")
    assert [k["name"] for k in s["kinds"]] == ["seeds", "resamples", "all"]
    assert (tmp_path / "out/resample-1/scores.safetensors").exists()
    code, out, err = call(*scored, "--orders", "1", "--out", "other")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--orders" in err and not (tmp_path / "other").exists()


MISTAKES = {
    "no reruns": (["--seeds", "0", "--resamples", "0", "--orders", "0"], "--seeds"),
    "negative": (["--seeds", "-1"], "--seeds"),
    "too many": (["--seeds", "1" + "0" * 30], "--seeds"),
    "core of nothing": (["--core", "0"], "--core"),
    "core above 1": (["--core", "90"], "--core"),
    "core is no number": (["--core", "nan"], "--core"),
    "unknown task": (["--task", "ioy"], "Did you mean 'ioi'"),
    "unknown model": (["--model", "tyny"], "Did you mean 'tiny'"),
    "unknown method": (["--method", "eap-gi"], "Did you mean 'eap-ig'"),
    "threshold below 0": (["--threshold", "-1"], "--threshold"),
    "too many edges": (["--config", "many.yaml"], "50000 of 479"),
    "missing config": (["--config", "none.yaml"], "none.yaml"),
    "out is a file": (["--out", "many.yaml/x"], "can't be written"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_is_one_clear_line_and_nothing_written(call, tmp_path, kind):
    options, hint = MISTAKES[kind]
    (tmp_path / "many.yaml").write_text("method: eap-ig\nedges: 50000\n")
    code, out, err = call("stability", *BASE[:-2], *options)
    assert (code, out) == (2, "")
    assert err.count("\n") == 1, err
    assert hint in err
    assert [p.name for p in tmp_path.iterdir()] == ["many.yaml"]


def test_the_core_can_be_evaluated(call, done):
    code, out, err = call("evaluate", done / "core.json", "--minimality", "0")
    assert code == 0, err
    assert "found by        stability" in out


def test_help_has_an_example(call):
    code, out, _ = call("stability", "--help")
    assert code == 0
    assert "Example: acdc stability" in out

"""`acdc compare --models`: the circuits of several models on one task."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.stats import spearmanr

import acdc
from acdc.files.circuit import read_circuit
from acdc.graph.scores import read_scores

TINY = Path(acdc.__file__).parent / "bundled" / "tiny"
TASK = ("--tasks", "greater-than", "--examples", "12")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """tiny with noise in its weights, and its first two layers alone."""
    folder = tmp_path_factory.mktemp("models")
    weights = load_file(TINY / "model.safetensors")
    rng = np.random.default_rng(0)
    noisy = shutil.copytree(TINY, folder / "noisy")
    moved = {k: (w + 0.01 * w.std() * rng.standard_normal(w.shape)).astype(w.dtype) for k, w in weights.items()}
    save_file(moved, noisy / "model.safetensors", {"format": "pt"})
    short = shutil.copytree(TINY, folder / "short")
    left = {k: w for k, w in weights.items() if ".h.2." not in f".{k}" and ".h.3." not in f".{k}"}
    save_file(left, short / "model.safetensors", {"format": "pt"})
    config = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    return noisy, short


def test_circuits_are_compared_and_judged_in_each_model(acdc, models, tmp_path):
    noisy, short = models
    result = acdc("compare", *TASK, "--models", f"tiny,{noisy},{short}", "--out", "c", "--json")
    assert result.code == 0, result.err
    found = json.loads(result.out)
    assert result.out == (tmp_path / "c" / "models.json").read_text()
    names = ["1-tiny", "2-noisy", "3-short"]
    assert [m["folder"] for m in found["models"]] == names
    circuits = [read_circuit(tmp_path / "c" / name / "circuit.json") for name in names]
    # A run is what `acdc run` makes, and a circuit in another model what `acdc evaluate` measures there.
    acdc("run", "--task", "greater-than", "--model", noisy, "--examples", "12", "--out", "r")
    assert (tmp_path / "r" / "circuit.json").read_bytes() == (tmp_path / "c" / "2-noisy" / "circuit.json").read_bytes()
    for i, of in enumerate(found["models"]):
        own = json.loads((tmp_path / "c" / names[i] / "metrics.json").read_text())["faithfulness"]["held_out"]
        assert of["faithfulness"][i] == pytest.approx(own, abs=1e-6)
        assert [x is None for x in of["faithfulness"]] == [(i == 2) != (j == 2) for j in range(3)]
    there = found["models"][1]["faithfulness"][0]
    assert there[1] < there[0] < there[2] and there != found["models"][0]["faithfulness"][0]
    # What circuits share, counted from the files.
    edges = [{e.name for e in c.edges} - set(c.model.graph.direct_index) for c in circuits]
    nodes = [{node for name in of for node in (name.split("->")[0], name.split("->")[1].split("<")[0])} for of in edges]
    for pair, (i, j) in zip(found["pairs"], [(0, 1), (0, 2), (1, 2)], strict=True):
        assert pair["nodes"] == pytest.approx(len(nodes[i] & nodes[j]) / len(nodes[i] | nodes[j]))
        if j == 2:
            assert pair["edges"] is pair["scores"] is None and pair["shared"] == []
    first = found["pairs"][0]
    assert first["edges"] == pytest.approx(len(edges[0] & edges[1]) / len(edges[0] | edges[1]))
    assert set(first["shared"]) == edges[0] & edges[1]
    text = acdc("compare", *TASK, "--models", f"tiny,{noisy},{short}", "--out", "c").out
    assert "other graph" in text and f"{first['edges']:.2f}" in text


def test_scores_of_all_edges_are_correlated(acdc, models, tmp_path):
    noisy, _ = models
    options = ("--methods", "eap-ig", "--sizes", "20", "--json", "--out", "c")
    found = json.loads(acdc("compare", *TASK, "--models", f"tiny,{noisy}", *options).out)
    graph = read_circuit(tmp_path / "c" / "1-tiny" / "circuit.json").model.graph
    both = [read_scores(tmp_path / "c" / name / "scores.safetensors", graph) for name in ("1-tiny", "2-noisy")]
    expected = spearmanr(*(scores.edges[graph.edges] for scores in both)).statistic
    assert found["pairs"][0]["scores"] == pytest.approx(expected)
    assert found["models"][0]["bound"] == "top 20"


def test_circuits_of_the_same_faithfulness(acdc, models):
    noisy, _ = models
    found = json.loads(
        acdc("compare", *TASK, "--models", f"tiny,{noisy}", "--faithfulness", "0.5", "--json", "--out", "c").out
    )
    assert [m["bound"] for m in found["models"]] == ["smallest found of faithfulness 0.5"] * 2


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--models", "tiny"), "--models: tiny alone; name two or more"),
        (("--models", "tiny,tiny"), "has tiny twice"),
        (("--models", "tiny,x", "--model", "tiny"), "--model: name all models in --models"),
        (
            ("--models", "tiny,x", "--methods", "acdc,eap-ig"),
            "--methods: 'acdc,eap-ig'; with --models there can be one",
        ),
        (("--models", "tiny,x", "--methods", "all"), "unknown method"),
        (("--models", "tiny,x", "--sizes", "5,10", "--methods", "eap-ig"), "--sizes: '5,10'; with --models"),
        (("--models", "tiny,x", "--reference", "c.json"), "--reference: compares methods, not models"),
        (("--models", "tiny,x", "--faithfulness", "2"), "--faithfulness: "),
        (("--model", "tiny", "--faithfulness", "0.5"), "--faithfulness: is for --models"),
        (("--models", "tiny,no-such-folder/x"), "no-such-folder"),
    ],
)
def test_wrong_options_are_one_line(acdc, options, says, tmp_path):
    result = acdc("compare", *TASK, *options)
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert says in result.err
    assert not list(tmp_path.iterdir())

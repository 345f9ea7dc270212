"""`--features` from the command line: what is chosen, what files, page and commands say of it, and mistakes in one
line."""

from __future__ import annotations

import json
import re
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
import transformers as hf

from acdc.commands import run as runner
from acdc.commands.evaluate import evaluate
from acdc.commands.export import convert
from acdc.errors import FileError, UserError
from acdc.files.circuit import checked_circuit, read_circuit, to_json
from acdc.files.diff import diff
from acdc.io.progress import silent
from acdc.methods import eap_ig
from acdc.model.features import neurons, split
from acdc.model.find import BUNDLED
from acdc.patching.offload import Parts
from acdc.patching.problem import Problem
from acdc.setup.config import Config
from acdc.setup.features import strongest, with_features
from tests.support.moments import contents
from tests.support.random_models import POST_NORM, random_model, random_prompts
from tests.support.runs import Killed, inputs, killer

TINY = {"task": "greater-than", "model": "tiny", "examples": 8, "ablation": "corrupted", "dtype": "float32"}
GIVEN = dict.fromkeys(("task", "model", "metric", "ablation", "examples", "seed", "device"))


def loaded(**given):
    return inputs(**{**TINY, "batch": None, "features": "neurons:4", **given})


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A run with neurons."""
    folder = tmp_path_factory.mktemp("found") / "run"
    runner.run(loaded(threshold=0.001), folder)
    return folder


@pytest.fixture(scope="module")
def module():
    return hf.AutoModelForCausalLM.from_pretrained(BUNDLED / "tiny").eval()


# --- what is chosen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", [{}, {"gated": True, "activation": "silu"}, {"parallel": True}])
@pytest.mark.parametrize("metric", ["kl", "logit-diff"])
@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
def test_the_neurons_that_matter_most_have_the_largest_scores_in_a_graph_of_all(sizes, metric, ablation):
    """A neuron matters as much as the scores of all edges from it add up to."""
    model = random_model(2, **sizes)
    prompts = random_prompts(2, model)
    every = {layer: neurons(model, layer) for layer in range(2)}
    config = Config.model_construct(ablation=ablation, metric=metric, steps=4)
    parts = Parts(split(model, every), prompts, ablation)
    if ablation == "zero":  # which eap-ig has no path for, but its runs have
        problem = Problem(split(model, every), parts, metric)
        total = eap_ig.Attribution(problem, 4, silent)
        for cache in problem.chunks(8):
            for at, residual, _ in eap_ig._inputs(problem, cache, 4):
                gradients = eap_ig.receiver_gradients(problem.model, cache, at, residual, cache.metric(metric, model))
                total.add(problem.model, cache, at, gradients)
        scores = total.scores()
    else:
        scores = eap_ig.score(Problem(split(model, every), parts, metric), "eap-ig", 4)
    by_layer = defaultdict(list)
    for s, row in zip(scores.graph.senders, np.nan_to_num(scores.edges).sum(1), strict=True):
        if s.is_feature:
            by_layer[s.layer].append((-abs(row), s.name.partition(".")[2]))
    chosen = strongest(model, config, prompts, every, 3)
    for layer, ranked in by_layer.items():
        assert set(chosen[layer].names) == {name for value, name in sorted(ranked)[:3] if value}


def test_a_neuron_without_effect_is_no_node():
    model = random_model(0, activation="relu")
    model.weights["layers.1.mlp_out.weight"][:10] = 0
    config = Config.model_construct(ablation="corrupted", metric="kl", steps=2)
    chosen = strongest(model, config, random_prompts(0, model), {1: neurons(model, 1)}, 12)
    assert set(chosen[1].names) <= {"n10", "n11"}


def test_no_features_are_no_option():
    assert loaded(features="neurons:0", threshold=0.1).config == loaded(features=None, threshold=0.1).config


# --- files -----------------------------------------------------------------------------------------------------------


def test_circuit_json_names_the_features(found):
    raw = json.loads((found / "circuit.json").read_text())
    features = raw["model"]["features"]
    assert raw["format_version"] == 3 and [len(names) for names in features] == [4] * 4
    n_mlp = 5
    into_heads = sum(12 * (1 + layer * (4 + n_mlp)) for layer in range(4))
    into_mlps = sum(n_mlp * (1 + layer * (4 + n_mlp) + 4) for layer in range(4))
    assert raw["graph"]["edges"]["total"] == into_heads + into_mlps + 1 + 4 * (4 + n_mlp)
    ends = {end for edge in raw["edges"] for end in re.findall(r"m\d\.?\w*", edge["name"])}
    known = {f"m{layer}.{name}" for layer in range(4) for name in (*features[layer], "rest")}
    assert ends <= known and any(".n" in end for end in ends)
    assert raw["method"]["options"]["features"] == "neurons:4" and "--features neurons:4" in raw["command"]
    assert to_json(read_circuit(found / "circuit.json")) == (found / "circuit.json").read_text()


def test_a_killed_run_resumes_with_the_same_bytes(found, tmp_path):
    for after in (3, 40):
        with pytest.raises(Killed):
            runner.run(loaded(threshold=0.001), tmp_path / "run", progress=killer(after))
    runner.run(loaded(threshold=0.001), tmp_path / "run")
    assert (tmp_path / "run" / "circuit.json").read_bytes() == (found / "circuit.json").read_bytes()
    assert contents(tmp_path / "run").keys() == contents(found).keys()


def test_evaluate_finds_the_same_nodes(found):
    file = read_circuit(found / "circuit.json")
    result = evaluate(found / "circuit.json", GIVEN, None, 3, silent)
    assert result.measured.circuit.value == pytest.approx(file.metrics["held_out.circuit.kl"], rel=1e-4)
    other = evaluate(found / "circuit.json", {**GIVEN, "seed": 5}, None, 0, silent)  # others would be chosen there
    assert other.edges == file.graph.edges.kept


def test_exports_of_whole_mlps_have_an_edge_for_each_of_its_parts(found):
    file = read_circuit(found / "circuit.json")
    raw = json.loads(convert(file, "eap-ig", folder=found))
    names = [edge.name for edge in file.edges if edge.name not in file.model.graph.direct_index]
    merged = defaultdict(list)
    scores = {edge.name: edge.score for edge in file.edges}
    for name in names:
        merged[re.sub(r"(m\d)\.\w+", r"\1", name)].append(scores[name])
    assert {name for name, edge in raw["edges"].items() if edge["in_graph"]} == merged.keys()
    assert len(raw["edges"]) == 479
    for name, values in merged.items():
        assert raw["edges"][name]["score"] == pytest.approx(max(values, key=abs))
    whole = json.loads(convert(file, "parameters", model="tiny"))["components"]
    assert {"m0", "m3"} <= whole.keys() and not any("." in name.replace(".h", "") for name in whole)


def test_other_transcoders_of_the_same_name_are_refused(tmp_path):
    shutil.copytree(BUNDLED / "tiny-transcoders", tmp_path / "coders")
    given = {"features": f"{tmp_path / 'coders'}:2", "method": "eap-ig", "edges": 60}
    file, folder = runner.run(loaded(**given), tmp_path / "run")
    assert any(".f" in edge.name for edge in file.edges)
    assert evaluate(folder / "circuit.json", GIVEN, None, 0, silent).edges == file.graph.edges.kept
    shutil.copy(tmp_path / "coders" / "layer_0.safetensors", tmp_path / "coders" / "layer_1.safetensors")
    with pytest.raises(FileError, match=r"features_hash is \w{16}, but it is \w{16} now; the transcoders have changed"):
        evaluate(folder / "circuit.json", GIVEN, None, 0, silent)


def test_a_config_beside_it_is_not_always_a_circuits_own(found, tmp_path):
    whole, folder = runner.run(loaded(features=None, edges=20, method="eap-ig"), tmp_path / "whole")
    shutil.copy(found / "circuit.json", folder / "finer.json")
    shutil.copytree(found, tmp_path / "found")
    shutil.copy(folder / "circuit.json", tmp_path / "found" / "whole.json")
    finer = read_circuit(found / "circuit.json").graph.edges.kept
    assert evaluate(folder / "finer.json", GIVEN, None, 0, silent).edges == finer
    assert evaluate(tmp_path / "found" / "whole.json", GIVEN, None, 0, silent).edges == whole.graph.edges.kept


def test_circuits_of_other_features_are_of_other_graphs(found, tmp_path):
    whole, _ = runner.run(loaded(features=None, edges=20, method="eap-ig"), tmp_path / "whole")
    with pytest.raises(FileError, match=r"different graphs .* 16 features, and tiny with 4 layers, 4 heads$"):
        diff(read_circuit(found / "circuit.json"), whole)
    assert "features" not in json.loads(to_json(whole))["model"]


@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations", "edge-patching", "random"])
def test_methods_score_the_finer_graph(method, tmp_path):
    file, _ = runner.run(loaded(method=method, edges=30, examples=3, positions=True), tmp_path / "run")
    assert file.graph.edge_spans.total == file.model.graph.n_edges * len(file.spans)


# --- the page --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_page_says_what_a_neuron_is(found, module):
    page = (found / "report.html").read_text()
    data = json.loads(re.search(r'<script[^>]*id="data"[^>]*>(.*?)</script>', page, re.DOTALL).group(1))
    held_out = loaded().data.held_out
    hidden = []
    hooks = [layer.mlp.act.register_forward_hook(lambda *run: hidden.append(run[2])) for layer in module.transformer.h]
    module(torch.as_tensor(held_out.clean))
    for hook in hooks:
        hook.remove()
    nodes = {end for edge in read_circuit(found / "circuit.json").edges for end in edge.name.split("->")}
    assert data["features"].keys() == {node for node in nodes if ".n" in node}
    for node, facts in data["features"].items():
        layer, neuron = (int(x) for x in re.fullmatch(r"m(\d)\.n(\d+)", node).groups())
        facts = dict(facts)
        value = hidden[layer][..., neuron].flatten()
        strongest_value = float(value[value.abs().argmax()])
        assert float(re.findall(r"[+-][\d.e+-]+", facts["active on"])[0]) == pytest.approx(strongest_value, rel=0.01)
        row = module.transformer.h[layer].mlp.c_proj.weight[neuron] * module.transformer.ln_f.weight
        logits = module.lm_head.weight @ row
        best = float(logits.max() - logits.mean())
        assert float(re.findall(r" ([+-][\d.e+-]+)", facts["raises"])[0]) == pytest.approx(best, rel=0.01)
        assert facts["fed by"] == "no feature before it" if layer == 0 else facts["fed by"].startswith("m")
    assert "What the" in page


# --- mistakes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"features": "neurons"}, "--features: is 'neurons'; write neurons:N, or DIR:N"),
        ({"features": "neurons:1001"}, "--features: is 'neurons:1001'; write neurons:N"),
        ({"features": ":4"}, "--features: is ':4'; write"),
        (
            {"features": "neurons:4", "method": "hisp", "edges": 9},
            "--features: hisp decides about whole nodes, not about",
        ),
        (
            {"features": "neurons:4", "method": "relp", "edges": 9},
            "--features: relp decides about whole edges, not about",
        ),
        ({"features": "nowhere:4"}, "--features nowhere: is no folder of transcoders"),
        ({"features": "neurons:4", "edges": 10_000}, "--edges: 10000 of 1,103 residual edges; ask for fewer"),
    ],
)
def test_wrong_features_are_refused_in_one_line(given, message):
    with pytest.raises(UserError) as error:
        loaded(**given)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_model_without_mlps_has_no_features():
    model = random_model(0, d_mlp=0)
    config = Config.model_construct(features="neurons:2", ablation="corrupted", metric="kl", steps=None)
    with pytest.raises(UserError, match="--features neurons: the model has no MLPs"):
        with_features(model, config, random_prompts(0, model))


def test_neurons_that_add_nothing_of_their_own_are_refused():
    model = random_model(0, **POST_NORM)
    config = Config.model_construct(features="neurons:2", ablation="corrupted", metric="kl", steps=None)
    with pytest.raises(UserError, match="so neurons add nothing of their own; use transcoders"):
        with_features(model, config, random_prompts(0, model))


def test_more_nodes_than_a_graph_can_have_are_refused():
    model = random_model(0, d_mlp=20_000, n_layers=1)
    config = Config.model_construct(features="neurons:all", ablation="corrupted", metric="kl", steps=None)
    with pytest.raises(UserError, match="20,003 nodes are more than a graph can have"):
        with_features(model, config, random_prompts(0, model))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda raw: raw["model"]["features"].pop(), "features: should be a list for each of the 4 layers"),
        (lambda raw: raw["model"]["features"][0].append("n1; x"), "model.features"),
        (lambda raw: raw["model"]["features"][0].append(raw["model"]["features"][0][0]), "no name twice"),
        (lambda raw: raw["model"].update(features=[[], [], [], []]), "some names; or be left out"),
        (lambda raw: raw.update(format_version=1), "format_version: is 1; it should be 3"),
    ],
)
def test_a_circuit_with_wrong_features_is_refused(found, tmp_path, change, message):
    raw = json.loads((found / "circuit.json").read_text())
    change(raw)
    with pytest.raises(FileError, match=re.escape(message)):
        checked_circuit(raw, tmp_path / "circuit.json")


def test_a_feature_that_the_dictionary_lacks_is_named(found, tmp_path):
    text = (found / "circuit.json").read_text()
    name = json.loads(text)["model"]["features"][0][0]
    (tmp_path / "circuit.json").write_text(re.sub(rf"\b{name}\b", "n999", text))
    with pytest.raises(FileError, match="layer 0 has no feature n999, which the circuit has"):
        evaluate(tmp_path / "circuit.json", GIVEN, None, 0, silent)

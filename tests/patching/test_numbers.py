"""Numbers that can't be trusted stop what is done with them: NaN and infinity, thresholds below rounding, and metrics
that don't come out again."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import acdc as package
from acdc.commands import evaluate as evaluation
from acdc.commands import run as runner
from acdc.errors import FileError, UserError
from acdc.evaluation.faithfulness import values_without
from acdc.files.circuit import write_circuit
from acdc.files.parts import GraphPart
from acdc.graph.circuit import Circuit
from acdc.graph.scores import Scores, read_scores, write_scores
from acdc.methods import discover as discovery
from acdc.methods import eap, edge_patching, edge_pruning, hisp
from acdc.methods.acdc import Options, discover
from acdc.methods.discover import SCORES
from acdc.methods.log import Journal, read_log
from acdc.model.find import BUNDLED
from acdc.patching.activations import ActivationCache, prepare
from acdc.patching.engine import Engine
from acdc.patching.metrics import resolution
from acdc.patching.offload import PartedEngine, Parts
from acdc.registry import METHODS
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.random_models import random_model, random_prompts


def inputs(**given):
    given = {"task": "tracr-reverse", "ablation": "zero", "dtype": "float64", "device": "cpu", **given}
    config, task, _ = resolve(given, None, None)
    return load(config, task)


def changed_tiny(folder, name, change):
    """A copy of `tiny` with one changed tensor."""
    shutil.copytree(BUNDLED / "tiny", folder)
    weights = load_file(folder / "model.safetensors")
    change(weights[name])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


# ---------------------------------------------------------------- runs


def test_a_run_that_overflows_names_node_and_prompt_and_leaves_no_result(acdc, tmp_path):
    def too_large(weight):
        weight[64:96] *= 1e22  # of head 2

    model = changed_tiny(tmp_path / "large", "transformer.h.1.attn.c_proj.weight", too_large)
    for command in (["run", "--out", "out"], ["stability"], ["compare", "--methods", "eap-ig"]):
        name = "--tasks" if command[0] == "compare" else "--task"
        result = acdc(*command, name, "ioi", "--model", model, "--examples", 3, "--device", "cpu")
        assert result.code == 2
        *_, last = result.err.splitlines()
        assert last.startswith("acdc: a1.h2 writes "), result.err
        assert "on the clean prompt 'Then, " in last
        assert "float32 can't go on with" in last and "--dtype float64" in last
        assert "Traceback" not in result.err and not result.out
    assert not [p.name for p in tmp_path.rglob("*") if p.name in ("circuit.json", "metrics.json", "log.jsonl")]


LARGE = {
    "a clean prompt": ("clean", "input"),
    "a corrupted prompt": ("corrupted", "input"),
    "an MLP": ("clean", "m1"),
    "a head": ("clean", "a1.h1"),
}


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize(("run", "node"), LARGE.values(), ids=LARGE)
def test_the_first_node_and_its_first_prompt_are_found(run, node, size):
    model = random_model(0, torch.float32, vocab_size=30)
    prompts = random_prompts(0, model, batch=5)
    example = 0
    if node == "input":  # a token that only one prompt has
        tokens, other = getattr(prompts, run), prompts.corrupted if run == "clean" else prompts.clean
        places = (
            (e, t)
            for e in range(1, 5)
            for t in tokens[e]
            if (np.delete(tokens, e, 0) != t).all() and (run == "clean" or (other != t).all())
        )
        example, token = next(places)
        model.weights["token.weight"][token] = 1e30
    elif node == "m1":
        model.weights["layers.1.mlp_out.bias"][0] = torch.inf
    else:
        model.weights["layers.1.k.weight"][1] *= 1e38  # scores of infinity, and their softmax is NaN
        model.weights["layers.1.q.weight"][1] *= 1e38
    with pytest.raises(UserError) as error:
        Parts(model, prompts, "corrupted", size)
    assert f"{node} writes " in str(error.value)
    assert f"the {run} prompt '{run} {example}'," in str(error.value)
    if node == "a1.h1":
        assert "writes nan" in str(error.value)


@pytest.mark.parametrize(("norm", "fails"), [("layer", True), ("rms", True), ("none", False)])
def test_what_a_norm_would_turn_into_zeros_is_refused(norm, fails):
    """In float32 the square of 1e25 is infinity, and PyTorch's RMSNorm makes 0 of it without a word."""
    model = random_model(0, torch.float32, norm=norm, d_mlp=0, activation="relu")
    model.weights["layers.1.o.bias"][0] = 1e25
    prompts = random_prompts(0, model)
    if fails:
        with pytest.raises(UserError, match=r"the logits read 1e\+25 on the clean prompt 'clean 0'"):
            prepare(model, prompts, "zero")
    else:
        assert float(prepare(model, prompts, "zero").residual[-1].max()) > 9e24


# ---------------------------------------------------------------- what is computed of them


def spoilt(metric, clean, value, prompt):
    """A metric that is `value` on one prompt wherever something has changed."""

    def measure(h):
        changed = (h != clean).flatten(-2).any(-1)
        out = metric(h).clone()
        out[..., prompt] = torch.where(changed, value, out[..., prompt])
        return out

    return measure


@pytest.mark.parametrize("size", [None, 2])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_decision_on_a_metric_that_is_not_finite_names_edge_and_prompt(value, size):
    model = random_model(1)
    parts = Parts(model, random_prompts(1, model, batch=5), "corrupted", size)
    graph, metric = model.config.graph(), spoilt(parts.metric("kl"), parts.targets.clean, value, 3)
    engine = Engine(model, graph, parts[0], metric) if size is None else PartedEngine(model, graph, parts, metric, None)
    with pytest.raises(UserError, match=rf"without m1->logits the metric is {value}, first on prompt 4 of the disc"):
        discover(engine, Options(0.01))


def test_a_full_model_whose_metric_is_not_finite_is_refused():
    model = random_model(1)
    (runs,) = Parts(model, random_prompts(1, model), "corrupted")
    engine = Engine(model, model.config.graph(), runs, lambda h: runs.metric("kl", model)(h) / 0)
    with pytest.raises(UserError, match="with all edges the metric is nan, first on prompt 1 of the discovery half"):
        discover(engine, Options(0.01))


@pytest.fixture(scope="module")
def loaded():
    """Its runs are made once, and nothing of it is changed."""
    return inputs(task="greater-than", model="tiny", examples=4, ablation="corrupted")


@pytest.mark.parametrize("half", ["discovery", "held_out"])
def test_a_measure_that_is_not_finite_names_metric_and_prompt(loaded, half, monkeypatch):
    parts = loaded.parts(half)
    sound, clean = parts.metric, parts.targets.clean
    monkeypatch.setattr(parts, "metric", lambda name: spoilt(sound(name), clean, torch.inf, 2))
    graph = loaded.model.transformer.config.graph()
    says = f"kl is inf on prompt 3 of the {half.replace('_', '-')} half: '.*look at the model's weights$"
    with pytest.raises(UserError, match=says):
        runner.measure(loaded, Circuit.empty(graph))


def test_minimality_that_is_not_finite_names_the_edge(loaded, monkeypatch):
    parts = loaded.parts("held_out")
    monkeypatch.setattr(ActivationCache, "metric", lambda *_: lambda h: torch.full((4,), torch.nan))
    graph = loaded.model.transformer.config.graph()
    edge = (0, graph.receiver_index["m0"])
    with pytest.raises(UserError, match="kl without input->m0 is nan on prompt 1 of the held-out half"):
        values_without(loaded, "held_out", Circuit.full(graph), [edge], "kl")
    assert len(parts) == 1


SCORED = {"eap": eap, "edge-patching": edge_patching, "edge-pruning": edge_pruning, "hisp": hisp}


@pytest.mark.parametrize("method", SCORED)
def test_a_score_that_is_not_finite_is_refused_by_name_and_not_kept(method, monkeypatch, tmp_path):
    given = {"metric": "logit-diff"} if METHODS[method].slope else {}
    given |= {"updates": 1} if "updates" in METHODS[method].options else {}
    task = "ioi" if METHODS[method].slope else "or-gate"
    model = {"model": "tiny", "examples": 2} if task == "ioi" else {}
    loaded, score = inputs(task=task, method=method, edges=3, **model, **given), SCORED[method].score
    graph = loaded.model.transformer.config.graph()

    def spoilt_score(*args, **options):
        scores = score(*args, **options)
        if scores.nodes is not None:
            scores.nodes[-1] = np.nan
        else:
            scores.edges[0, -1] = np.inf
        return scores

    monkeypatch.setattr(SCORED[method], "score", spoilt_score)
    name = "m3" if method == "hisp" else graph.edge_name(0, len(graph.receivers) - 1)
    with pytest.raises(UserError, match=f"--method {method}: the score of {name} is not finite"):
        runner.run(loaded, tmp_path)
    assert not (tmp_path / SCORES).exists() and not (tmp_path / "circuit.json").exists()


def test_files_with_such_numbers_are_refused(tmp_path):
    graph = random_model(1).config.graph()
    edges = np.where(graph.edges, 0.5, np.nan)
    edges[1, -1] = np.nan
    write_scores(tmp_path / SCORES, Scores(graph, edges))
    with pytest.raises(FileError, match=f"the score of {graph.edge_name(1, len(graph.receivers) - 1)} is not finite"):
        read_scores(tmp_path / SCORES, graph)
    for key in ("change", "margin", "metric"):
        line = {"batch": 1, "edge": "m0->logits", "change": 0.5, "margin": 0.5, "metric": 0.5, "kept": False}
        log = tmp_path / "log.jsonl"
        log.write_text(json.dumps({**line, key: float("nan")}) + "\n" + json.dumps(line) + "\n")
        with pytest.raises(FileError, match="line 1: not a decision"):
            read_log(log)


# ---------------------------------------------------------------- rounding


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_dtypes_too_coarse_for_any_threshold_are_refused_with_the_reason(acdc, tmp_path, dtype):
    result = acdc("run", "--task", "ioi", "--model", "tiny", "--dtype", dtype)
    assert result.code == 2
    least = {"float16": "0.01", "bfloat16": "0.08"}[dtype]
    assert f"--dtype: {dtype} can't tell apart changes of the metric below about {least} " in result.err
    assert "use float32" in result.err
    (tmp_path / "c.yaml").write_text(f"task: ioi\nmodel: tiny\ndtype: {dtype}\n")
    assert f"c.yaml: dtype: {dtype} can't tell apart" in acdc("run", "--config", "c.yaml").err
    with pytest.raises(UserError, match=f"--dtype: {dtype} can't tell apart"):
        package.load_model("tiny", dtype=dtype)


def test_a_threshold_below_rounding_is_refused(loaded, tmp_path):
    with pytest.raises(
        UserError, match=r"--threshold 1e-07: is below what float32 .*\(about \de-0[67] here.* float64 or a l"
    ):
        runner.run(inputs(task="greater-than", model="tiny", examples=2, dtype="float32", threshold=1e-7), tmp_path)
    assert not (tmp_path / "log.jsonl").exists()
    for threshold in (0.0, 1e-7):  # 0 asks for the sign of a change
        discovery.check_threshold(loaded.at(threshold=threshold))
    with pytest.raises(UserError, match=r"--threshold 1e-18: is below what float64 .*logits\); use a larger one"):
        discovery.check_threshold(loaded.at(threshold=1e-18))


@pytest.mark.parametrize("metric", ["kl", "logit-diff", "prob-diff", "nll"])
def test_the_resolution_is_about_what_rounding_does_to_a_metric(metric):
    """Of the same circuits, in float32 and in float64; probabilities have no large numbers and lose less."""
    found = {}
    for dtype in (torch.float32, torch.float64):
        model = random_model(2, dtype, n_layers=3, vocab_out=40)
        parts = Parts(model, random_prompts(2, model, batch=6), "corrupted")
        engine = Engine(model, model.config.graph(), parts[0], parts.metric(metric))
        journal = Journal()
        discover(engine, Options(-1e9, direct=False), journal)  # every edge is tested and kept
        found[dtype] = np.array([d.change for d in journal.decisions]), resolution(model, parts.targets)
    (coarse, least), (fine, _) = found.values()
    assert 1e-7 < least < 1e-6
    assert least / 200 < np.abs(coarse - fine).max() < 4 * least


# ---------------------------------------------------------------- metrics that don't come out again


@pytest.fixture(scope="module")
def made(loaded, tmp_path_factory):
    """The circuit.json of a run, and its metrics on the held-out prompts."""
    out = tmp_path_factory.mktemp("made") / "run"
    file, _ = runner.run(loaded.at(threshold=0.1), out)
    return out / "circuit.json", file, evaluation._table(loaded, file.circuit(), loaded.task.metrics)


@pytest.mark.parametrize("key", ["held_out.circuit.kl", "held_out.model.nll", "held_out.ablated.prob-diff"])
@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 2e-5), ("float64", 1e-10)])
def test_a_metric_that_does_not_come_out_again_is_reported_with_both_numbers(loaded, made, key, dtype, rounding):
    _, file, table = made
    known = file.metrics[key]
    for change in (0, rounding, 20 * rounding):
        metrics = {**file.metrics, key: known + change}
        method = file.method.model_copy(update={"dtype": dtype})
        other = file.model_copy(update={"metrics": metrics, "method": method})
        found = evaluation._differences("c.json", other, loaded, table)
        assert bool(found) == (change > rounding)
    said = f"{key} is {known + change:.6g} in the file, {known:.6g} now; versions and device are the same"
    assert found == [f"warning: c.json was changed, or computes differently here: {said}"]


def test_edges_that_were_changed_and_other_versions_are_reported(acdc, made, tmp_path):
    path, file, _ = made
    assert "computes differently" not in acdc("evaluate", path, "--minimality", 0).err
    fewer = file.model_copy(update={"edges": file.edges[3:], "environment": {**file.environment, "torch": "1.0"}})
    graph = GraphPart.of(fewer.circuit(), file.graph.dead)
    write_circuit(tmp_path / "circuit.json", fewer.model_copy(update={"graph": graph}))
    result = acdc("evaluate", tmp_path / "circuit.json", "--minimality", 0)
    assert result.code == 0
    (line,) = (line for line in result.err.splitlines() if "computes differently" in line)
    assert line.startswith("warning: ") and "held_out.circuit." in line and "(and " in line
    assert f"torch 1.0, now {torch.__version__}" in line
    golden = acdc("check", tmp_path / "circuit.json", "--against", path)
    assert golden.code == 1 and "3 removed" in golden.out

"""Every method against a slow, plain computation of what it claims; selection; two stages."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from acdc.errors import UserError
from acdc.graph.graph import Graph
from acdc.graph.scores import Scores
from acdc.methods import causal_mediation, edge_patching, hisp, information_flow_routes
from acdc.methods.acdc import Options, discover
from acdc.methods.discover import computed
from acdc.methods.log import Journal
from acdc.patching.engine import Engine
from acdc.patching.offload import Parts
from acdc.patching.patch import PatchedModel
from acdc.patching.problem import Problem
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.oracle import Naive, forward, naive_acdc, rms
from tests.support.random_models import POST_NORM, random_model, random_prompts

FAMILIES = [
    {"n_layers": 3},
    {"n_layers": 3, "norm": "rms", "parallel": True, "rotary": 4, "gated": True, "activation": "silu"},
    {"norm": "none", "causal": False, "split_position": True},
    {"d_mlp": 0, "n_heads": 3, "windows": (2, 0)},
    POST_NORM,
]


def setting(family, ablation="corrupted", metric="kl", **prompts):
    model = random_model(1, **family)
    options = {"batch": 5, "first": 2, "scored": "two", "pad": family.get("causal", True), **prompts}
    data = random_prompts(1, model, **options)
    return Problem(model, Parts(model, data, ablation), metric), Naive(model, data, metric, ablation)


def names(graph):
    return {graph.edge_name(s, r) for s, r in np.argwhere(graph.edges)}


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_edge_patching_equals_the_oracle(family, ablation, monkeypatch):
    monkeypatch.setattr(edge_patching, "VERSIONS", 3)
    problem, naive = setting(family, ablation)
    g, scores = problem.graph, edge_patching.score(problem).edges
    everything = names(g)
    full = naive.metric(everything)
    for s, r in np.argwhere(g.edges):
        assert scores[s, r] == pytest.approx(naive.metric(everything - {g.edge_name(s, r)}) - full, abs=1e-10)
    assert np.isnan(scores[~g.edges]).all()


def test_edge_patching_equals_the_first_decisions_of_acdc():
    """As long as nothing has been removed, what ACDC measures is what leaving one edge out costs."""
    problem, _ = setting(FAMILIES[0])
    g, runs, journal = problem.graph, problem.parts[0], Journal()
    engine = Engine(problem.model, g, runs, runs.metric("kl", problem.model))
    discover(engine, Options(-1e9, direct=False), journal)
    scores = edge_patching.score(problem).edges
    assert len(journal.decisions) == g.n_edges
    for d in journal.decisions:
        assert d.change == pytest.approx(scores[g.parse_edge(d.edge)], abs=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_causal_mediation_equals_the_oracle(family):
    problem, naive = setting(family)
    g, scores = problem.graph, causal_mediation.score(problem)
    everything = names(g)
    for i, s in enumerate(g.senders):
        if s.kind != "input":
            without = naive.metric({n for n in everything if not n.startswith(f"{s.name}->")})
            assert scores.nodes[i] == pytest.approx(without - naive.metric(everything), abs=1e-10)


@pytest.mark.parametrize("family", FAMILIES)
def test_hisp_equals_autograd_through_the_masked_nodes(family):
    problem, _ = setting(family, metric="logit-diff")
    model, g, runs = problem.model, problem.graph, problem.parts[0]
    metric, effects = runs.metric("logit-diff", model), []
    for b in range(5):
        nodes = torch.ones(len(g.senders), dtype=torch.float64, requires_grad=True)
        (gradient,) = torch.autograd.grad(metric(PatchedModel(model, runs).with_nodes(nodes))[b], nodes)
        effects.append(gradient.abs().numpy())
    expected = np.mean(effects, axis=0)
    for layer in range(g.n_layers):
        at = [i for i, s in enumerate(g.senders) if s.layer == layer]
        expected[at] /= np.linalg.norm(expected[at])
    got = hisp.score(problem).nodes
    assert np.allclose(got[len(g.inputs) :], expected[len(g.inputs) :], atol=1e-9)


def test_metrics_that_are_flat_at_the_full_model_are_refused():
    with pytest.raises(UserError, match="gradient at the full model is zero"):
        hisp.score(setting(FAMILIES[0])[0])


def flow(problem, prompts) -> np.ndarray:
    """Float[sender receiver] by EAP-IG's definition, prompt by prompt, position by position, sender by sender."""
    model, g = problem.model, problem.graph
    outputs, _ = forward(model, g, torch.as_tensor(prompts.clean), torch.as_tensor(prompts.pad), None, set())
    total = np.where(g.edges, 0.0, np.nan)
    batch, n_pos = prompts.clean.shape
    biases = []
    for layer in range(g.n_layers):
        heads = [f"a{layer}.h{h}" for h in range(g.n_heads)]
        biases.append(model.weights[f"layers.{layer}.o.bias"].expand(batch, n_pos, -1))
        if model.config.post_norm:  # each of its summands is divided by what the norm divides the sum by
            together = sum(outputs[name] for name in heads) + biases[layer]
            factor = rms(model, together) / together * model.weights[f"layers.{layer}.o.norm"]
            biases[layer] = biases[layer] * factor
            outputs |= {name: outputs[name] * factor for name in heads}
    for r, receiver in enumerate(g.receivers):
        senders = np.flatnonzero(g.edges[:, r])
        layers = receiver.layer + int(receiver.kind == "mlp" and not g.parallel)
        for b in range(batch):
            for t in range(prompts.pad[b], n_pos):
                z = [outputs[g.senders[s].name][b, t] for s in senders]
                y = sum(z) + sum(bias[b, t] for bias in biases[:layers])
                near = [max(0.0, float(y.abs().sum() - (y - x).abs().sum())) for x in z]
                for s, one in zip(senders, near, strict=True):
                    total[s, r] += one / (sum(near) or 1.0) / (n_pos - prompts.pad[b]) / batch
    return total


@pytest.mark.parametrize("family", FAMILIES)
def test_information_flow_routes_equal_plain_shares(family, monkeypatch):
    """Of whatever ablation, in one piece, in parts, and a prompt at a time."""
    model = random_model(1, **family)
    prompts = random_prompts(1, model, batch=5, first=2, scored="two", pad=family.get("causal", True))
    problem = Problem(model, Parts(model, prompts, "corrupted"), "kl")
    expected = flow(problem, prompts)
    sums = np.nansum(expected, axis=0)
    assert sums.max() == pytest.approx(1) and len(set(expected[0].round(9))) >= 3
    parted = Problem(model, Parts(model, prompts, "zero", 2), "logit-diff")
    found = [information_flow_routes.score(p).edges for p in (problem, parted)]
    monkeypatch.setattr(information_flow_routes, "TABLE_BYTES", 1)
    for edges in (*found, information_flow_routes.score(problem).edges):
        assert np.allclose(edges, expected, rtol=0, atol=1e-9, equal_nan=True)


def test_where_nothing_is_written_all_shares_are_0():
    model = random_model(1, d_mlp=0)
    for name, x in model.weights.items():
        if name.startswith(("token", "position")) or name.endswith(("o.weight", "o.bias")):
            x.zero_()
    problem = Problem(model, Parts(model, random_prompts(1, model), "zero"), "kl")
    assert (information_flow_routes.score(problem).edges[problem.graph.edges] == 0).all()


def test_random_scores_are_seeded():
    g = Graph(3, 2)
    a, b, c = (Scores.random(g, seed).edges for seed in (0, 0, 1))
    assert np.array_equal(a, b, equal_nan=True) and not np.array_equal(a, c, equal_nan=True)
    assert np.isnan(a[~g.edges]).all() and (a[g.edges] >= 0).all()


# --- from scores to edges ---------------------------------------------------------------------------------------------


def given(graph, **edges):
    table = np.where(graph.edges, 0.0, np.nan)
    for name, value in edges.items():
        table[graph.parse_edge(name.replace("__", "->"))] = value
    return Scores(graph, table)


def kept_names(graph, kept):
    return {graph.edge_name(s, r) for s, r in np.argwhere(kept)}


def test_threshold_and_top_go_by_sign_or_magnitude():
    g = Graph(1, 1)
    scores = given(g, input__m0=3.0, m0__logits=-5.0, input__logits=1.0)
    assert kept_names(g, scores.above(1.0)) == {"input->m0", "input->logits"}
    assert kept_names(g, scores.above(1.0, True)) == {"input->m0", "input->logits", "m0->logits"}
    assert kept_names(g, scores.top(1)) == {"input->m0"}
    assert kept_names(g, scores.top(1, True)) == {"m0->logits"}
    assert scores.top(g.n_edges).sum() == g.n_edges


def test_greedy_growth_is_connected_to_the_logits():
    g = Graph(2, 2)
    rng = np.random.default_rng(0)
    scores = Scores(g, np.where(g.edges, rng.normal(size=g.edges.shape), np.nan))
    for n in (1, 5, 20, g.n_edges):
        kept = scores.greedy(n)
        assert kept.sum() == n and not (kept & ~g.edges).any()
        readers = {"logits"} | {g.receivers[r].node for _, r in np.argwhere(kept)}
        reached = {"logits"} | {g.senders[s].name for s, _ in np.argwhere(kept)}
        assert readers <= reached
    best = np.nanargmax(scores.edges[:, g.receiver_index["logits"]])
    assert scores.greedy(1)[best, g.receiver_index["logits"]]


def test_scores_of_nodes_make_the_edges_between_the_best_nodes():
    g = Graph(2, 2)
    nodes = np.array([7.0, 4.0, 1.0, 3.0, 2.0, -5.0, 0.5])
    scores = Scores.of_nodes(g, nodes)
    among = {"input", "logits"} | {s.name for s, x in zip(g.senders, nodes, strict=True) if x >= 2}
    expected = {n for n in names(g) if n.split("->")[0] in among and n.split("->")[1].split("<")[0] in among}
    assert kept_names(g, scores.above(2.0)) == expected
    assert scores.edges[g.parse_edge("a1.h1->m1")] == -5.0
    assert scores.edges[g.parse_edge("input->logits")] == 4.0
    among |= {"a1.h1"}
    expected = {n for n in names(g) if n.split("->")[0] in among and n.split("->")[1].split("<")[0] in among}
    assert kept_names(g, scores.above(2.0, True)) == expected


def test_a_direct_edge_is_kept_with_any_edge_into_its_receiver():
    g = Graph(1, 1)
    scores = given(g, **{"input__a0.h0<q>": 1.0})
    circuit = scores.circuit(scores.above(1.0))
    assert circuit.direct_names() == ["a0.h0<q>->a0.h0"]
    assert scores.circuit(scores.above(1.0), direct=False).direct is None


# --- two stages -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 1.0])
def test_acdc_among_some_edges_equals_the_oracle(family, share, direct):
    problem, naive = setting(family)
    g, runs = problem.graph, problem.parts[0]
    allowed = g.edges & (np.random.default_rng(3).random(g.edges.shape) < share)
    edges, direct_edges, value, margin = naive_acdc(naive, 0.01, direct, allowed=kept_names(g, allowed))
    assert margin > 1e-9
    for batch in (1, 5):
        engine = Engine(problem.model, g, runs, runs.metric("kl", problem.model))
        circuit = discover(engine, Options(0.01, direct=direct, batch=batch), allowed=allowed)
        assert set(circuit.edge_names()) == edges
        assert set(circuit.direct_names()) == direct_edges
        assert engine.metric(engine.rows([], none=True))[0] == pytest.approx(value, abs=1e-10)


# --- scores kept in memory --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "change"), [("random", {"seed": 1}), ("edge-patching", {"ablation": "zero"})])
def test_runs_that_differ_in_seed_or_ablation_share_no_scores(tmp_path, method, change):
    given = {"task": "greater-than", "model": "tiny", "device": "cpu", "method": method, "edges": 5, "examples": 2}
    config, task, _ = resolve(given, None, None)
    first = load(config, task)
    second = replace(first, config=config.model_copy(update=change), _parts={})
    alone = replace(second, scores={})
    a, b, c = (computed(x, method, tmp_path / "masks", lambda _: None).edges for x in (first, second, alone))
    assert not np.array_equal(a, b, equal_nan=True)
    assert np.array_equal(b, c, equal_nan=True)

"""Plain patching equals the naive forward pass for any set of edges, and is differentiable in them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acdc.graph.circuit import Circuit
from acdc.patching.activations import prepare
from acdc.patching.patch import PatchedModel, circuit_edges, patched_rows
from tests.support.oracle import Naive
from tests.support.random_models import JOINT_HEAD_NORM, POST_NORM, random_model, random_prompts


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_any_set_of_edges(seed, ablation, share):
    model = random_model(seed, n_layers=3, n_heads=2, norm=["layer", "none"][seed % 2], split_position=seed % 3 == 0)
    graph = model.config.graph()
    prompts = random_prompts(seed, model, batch=19, pad=seed % 2 == 0)  # more than one chunk
    rng = np.random.default_rng(seed)
    circuit = Circuit(graph, graph.edges & (rng.random(graph.edges.shape) < share))
    runs = prepare(model, prompts, ablation)
    value = runs.metric("kl", model)(patched_rows(model, graph, runs, circuit_edges(circuit, model))).mean()
    expected = Naive(model, prompts, "kl", ablation).metric(set(circuit.edge_names()))
    assert float(value) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize(("sizes", "n_spans"), [(POST_NORM, 0), (POST_NORM, 3), (JOINT_HEAD_NORM, 0)])
def test_any_set_of_edges_where_the_heads_of_a_layer_are_normalised_together(ablation, sizes, n_spans):
    model = random_model(0, **sizes)
    graph = model.config.graph()
    prompts = random_prompts(0, model, batch=4, pad=True, n_spans=n_spans)
    spans = tuple(f"s{i}" for i in range(n_spans))
    runs = prepare(model, prompts, ablation, n_spans=n_spans)
    metric = runs.metric("kl", model)
    naive = Naive(model, prompts, "kl", ablation, spans)
    rng = np.random.default_rng(0)
    for share in (0, 0.2, 0.6, 0.9, 1):
        circuit = Circuit(graph, graph.edges_at(spans) & (rng.random(graph.edges_at(spans).shape) < share), spans=spans)
        value = metric(patched_rows(model, graph, runs, circuit_edges(circuit, model))).mean()
        expected = naive.metric({graph.part_name(part, spans) for part in np.argwhere(circuit.kept)})
        assert float(value) == pytest.approx(expected, abs=1e-12)
    assert float(value) == pytest.approx(0, abs=1e-12)  # all edges: the full model
    edges = torch.rand(circuit.kept.shape, dtype=torch.float64) * torch.as_tensor(circuit.kept)
    found = PatchedModel(model, runs).edge_gradients(graph, edges, metric)
    metric(patched_rows(model, graph, runs, edges.requires_grad_())).sum().backward()
    assert torch.allclose(found, edges.grad * torch.as_tensor(circuit.kept), rtol=0, atol=1e-12)


def test_a_removed_direct_edge_removes_all_edges_into_its_receiver():
    model = random_model(0)
    graph = model.config.graph()
    direct = graph.direct.copy()
    direct[graph.receiver_index["a1.h1<k>"]] = False
    edges = circuit_edges(Circuit(graph, graph.edges, direct), model)
    assert not edges[:, graph.receiver_index["a1.h1<k>"]].any()
    assert edges.sum() == graph.n_edges - graph.n_parents(graph.receivers[graph.receiver_index["a1.h1<k>"]])


def test_the_metric_is_differentiable_in_the_edges():
    model = random_model(1)
    graph = model.config.graph()
    runs = prepare(model, random_prompts(1, model), "corrupted")
    metric = runs.metric("kl", model)
    edges = torch.tensor(graph.edges) * torch.rand(graph.edges.shape, dtype=torch.float64)
    edges.requires_grad_()
    metric(patched_rows(model, graph, runs, edges)).mean().backward()
    for s, r in np.argwhere(graph.edges)[::5]:
        moved = []
        for step in (1e-6, -1e-6):
            shifted = edges.detach().clone()
            shifted[s, r] += step
            moved.append(float(metric(patched_rows(model, graph, runs, shifted)).mean()))
        assert float(edges.grad[s, r]) == pytest.approx((moved[0] - moved[1]) / 2e-6, abs=1e-7)

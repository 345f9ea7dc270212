"""The metric of a circuit, and with each edge removed or added, is that of plain patching without dead edges.

The engine goes from circuit to circuit and computes what differs; the oracle runs every circuit whole.
"""

from __future__ import annotations

import numpy as np
import pytest

from acdc.graph.circuit import Circuit
from acdc.patching import circuit_engine
from acdc.patching.circuit_engine import CircuitEngine
from acdc.patching.offload import Parts
from tests.support.oracle import Naive
from tests.support.random_models import JOINT_HEAD_NORM, POST_NORM, random_model, random_prompts

FAMILIES = {
    "serial": {},
    "three layers": {"n_layers": 3, "norm": "none", "activation": "gelu"},
    "parallel": {"parallel": True, "rotary": 4},
    "attention only": {"d_mlp": 0, "n_layers": 3},
    "one layer": {"n_layers": 1, "n_heads": 3, "activation": "relu"},
    "rms, rotary, gated": {"norm": "rms", "rotary": 4, "gated": True, "activation": "silu"},
    "split position": {"split_position": True},
    "not causal": {"causal": False},
    "windows": {"windows": (2, 0), "head_norm": True},
    "not causal, parallel": {"causal": False, "parallel": True, "split_position": True},
    "norms after heads": {**POST_NORM, "n_layers": 3, "windows": (3, 0, 2)},
    "norm of all heads' queries": {**JOINT_HEAD_NORM, "n_heads": 3},
    "neurons": {"features": "neurons", "n_layers": 3},
    "features, parallel": {"features": "jumprelu", "parallel": True, "rotary": 4},
}
METRICS = ("kl", "logit-diff", "prob-diff", "nll", "l2")
SHARES = (1.0, 0.6, 0.4, 0.8)  # of the edges; the last circuit grows again
TOLERANCE = 1e-9


def setting(family, ablation):
    """A model, its prompts, and some of its circuits without dead edges."""
    seed = list(FAMILIES).index(family)
    model = random_model(seed, **FAMILIES[family])
    prompts = random_prompts(
        seed, model, n_pos=5, first=seed % 4, pad=seed % 2 == 0, scored=("last", "two", "all")[seed % 3]
    )
    rng = np.random.default_rng([seed, len(ablation)])
    graph = model.config.graph()
    return model, prompts, [Circuit(graph, graph.edges & (rng.random(graph.edges.shape) < p)).live() for p in SHARES]


def neighbours(graph, kept):
    """Every edge of the circuit, and every other edge between its nodes or from an input."""
    nodes = {*Circuit(graph, kept).nodes(), *graph.inputs}
    return [
        (int(s), int(r))
        for s, r in np.argwhere(graph.edges)
        if kept[s, r] or (kept.any() and graph.senders[s].name in nodes and graph.receivers[r].node in nodes)
    ]


def flipped(graph, kept, edge):
    other = kept.copy()
    other[edge] = not other[edge]
    return Circuit(graph, other).live()


def engine(model, prompts, metric, ablation, superset, part=None):
    parts = Parts(model, prompts, ablation, part)
    return CircuitEngine(model, parts, parts.metric(metric), superset)


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_circuit_and_its_neighbours_have_the_metric_of_plain_patching(family, ablation):
    """And, to the last bit, that of an engine that evaluated nothing before."""
    model, prompts, circuits = setting(family, ablation)
    graph = model.config.graph()
    metric = METRICS[list(FAMILIES).index(family) % len(METRICS)]
    naive = Naive(model, prompts, metric, ablation)
    moving = engine(model, prompts, metric, ablation, graph.edges)
    for kept in circuits:
        edges = neighbours(graph, kept)
        expected = naive.metrics(np.stack([kept, *(flipped(graph, kept, edge) for edge in edges)]))
        found = [moving.metric(kept), *moving.values(kept, edges)]
        assert found == pytest.approx(expected.tolist(), abs=TOLERANCE)
        assert len(edges) < 3 or np.ptp(expected) > 1e3 * TOLERANCE
        fresh = engine(model, prompts, metric, ablation, kept)
        assert [fresh.metric(kept), *fresh.values(kept, edges)] == found


def chain(graph, *edges):
    kept = np.zeros_like(graph.edges)
    for edge in edges:
        kept[graph.parse_edge(edge)] = True
    return kept


@pytest.mark.parametrize("ablation", ["zero", "mean"])
def test_a_chain_goes_with_its_first_edge(ablation):
    """Nodes that nothing enters any more would still write, as their biases do; they count as removed."""
    model = random_model(3, n_layers=3, n_heads=1)
    prompts = random_prompts(3, model)
    graph = model.config.graph()
    rest = ("input->m0", "m0->logits")
    kept = chain(graph, "input->a0.h0<v>", "a0.h0->m1", "m1->a2.h0<q>", "m0->a2.h0<k>", "m1->m2", "m2->logits", *rest)
    kept |= chain(graph, "a2.h0->logits")
    first = graph.parse_edge("input->a0.h0<v>")
    # a2.h0 is still entered by m0
    left = chain(graph, "m0->a2.h0<k>", "a2.h0->logits", *rest)
    unpruned = kept.copy()
    unpruned[first] = False
    naive = Naive(model, prompts, "kl", ablation)
    expected, written = naive.metrics(np.stack([left, unpruned]))
    value = engine(model, prompts, "kl", ablation, kept).values(kept, [first])
    assert value == pytest.approx([expected], abs=TOLERANCE)
    assert abs(written - expected) > 1e-4  # what such nodes write would show


@pytest.mark.parametrize("family", ["serial", "parallel", "split position", "norms after heads"])
def test_what_was_evaluated_before_changes_no_bit(family):
    """Circuits in any order, each with some of its neighbours; which ones decides where nodes are computed."""
    model, prompts, _ = setting(family, "corrupted")
    graph = model.config.graph()
    rng = np.random.default_rng(0)
    moving = engine(model, prompts, "kl", "corrupted", graph.edges)
    for _ in range(25):
        kept = Circuit(graph, graph.edges & (rng.random(graph.edges.shape) < rng.choice([0.25, 0.5, 0.9]))).live()
        edges = [edge for edge in neighbours(graph, kept) if rng.random() < 0.2]
        fresh = engine(model, prompts, "kl", "corrupted", graph.edges)
        if rng.random() < 0.5:
            assert moving.metric(kept) == fresh.metric(kept)
        assert moving.values(kept, edges) == fresh.values(kept, edges)


@pytest.mark.parametrize("ablation", ["corrupted", "zero"])
@pytest.mark.parametrize("metric", METRICS)
def test_prompts_in_parts_and_small_batches_give_the_same(monkeypatch, metric, ablation):
    model = random_model(2)
    prompts = random_prompts(2, model, batch=5, pad=True, scored="two")
    graph = model.config.graph()
    rng = np.random.default_rng(2)
    whole, parted = (engine(model, prompts, metric, ablation, graph.edges, part) for part in (None, 2))
    for share in (1, 0.5, 0.8):
        kept = Circuit(graph, graph.edges & (rng.random(graph.edges.shape) <= share)).live()
        edges = neighbours(graph, kept)
        expected = whole.values(kept, edges)
        assert parted.values(kept, edges) == pytest.approx(expected, abs=1e-12)
        assert parted.metric(kept) == pytest.approx(whole.metric(kept), abs=1e-12)
        with monkeypatch.context() as patch:
            patch.setattr(circuit_engine, "BATCH_BYTES", 1)
            before = whole.evaluations
            assert whole.values(kept, edges) == pytest.approx(expected, abs=1e-12)
            assert whole.evaluations - before == len(edges)

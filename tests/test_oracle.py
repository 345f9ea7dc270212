"""The incremental engine takes the decisions of the naive algorithm: same edges, same metric, in float64."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from acdc.incremental import Engine
from acdc.methods.acdc import Options, discover
from acdc.patching import circuit_edges, patched_rows
from acdc.runs import prepare
from tests.oracle import Naive, naive_acdc
from tests.random_models import random_model, random_prompts

TOLERANCE = 1e-10


def compare(model, prompts, metric, ablation, threshold, direct, batch, magnitude=False, engine=Engine):
    naive = Naive(model, prompts, metric, ablation)
    edges, direct_edges, value, margin = naive_acdc(naive, threshold, direct, magnitude)
    runs = prepare(model, prompts, ablation)
    graph = model.config.graph()
    e = engine(model, graph, runs, runs.metric(metric, model))
    circuit = discover(e, Options(threshold, magnitude=magnitude, direct=direct, batch=batch))
    if margin < TOLERANCE:
        pytest.skip(f"a decision is within {margin:.1e} of the threshold")
    assert set(circuit.edge_names()) == edges
    assert set(circuit.direct_names()) == direct_edges
    patched = runs.metric(metric, model)(patched_rows(model, graph, runs, circuit_edges(circuit, model)))
    assert float(patched.mean()) == pytest.approx(value, abs=TOLERANCE)
    assert float(e.current().mean()) == pytest.approx(value, abs=TOLERANCE)
    return circuit


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    mlp=st.booleans(),
    norm=st.sampled_from(["layer", "none"]),
    causal=st.booleans(),
    split=st.booleans(),
    metric=st.sampled_from(["kl", "logit-diff", "prob-diff", "nll", "l2"]),
    ablation=st.sampled_from(["corrupted", "zero", "mean"]),
    threshold=st.sampled_from([1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
    direct=st.booleans(),
    batch=st.sampled_from([1, 2, 7, 64]),
    first=st.integers(0, 4),
    scored=st.sampled_from(["last", "two", "all"]),
    pad=st.booleans(),
    magnitude=st.booleans(),
)
def test_same_edges_as_the_naive_algorithm(
    seed,
    layers,
    heads,
    mlp,
    norm,
    causal,
    split,
    metric,
    ablation,
    threshold,
    direct,
    batch,
    first,
    scored,
    pad,
    magnitude,
):
    model = random_model(
        seed,
        n_layers=layers,
        n_heads=heads,
        d_mlp=12 if mlp else 0,
        norm=norm,
        causal=causal,
        split_position=split,
        activation=["relu", "gelu", "gelu_new"][seed % 3],
    )
    prompts = random_prompts(seed, model, batch=2, first=first, scored=scored, pad=pad)
    compare(model, prompts, metric, ablation, threshold, direct, batch, magnitude)

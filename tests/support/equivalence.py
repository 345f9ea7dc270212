"""The incremental engine against the naive algorithm: the same edges, the same metric."""

from __future__ import annotations

import numpy as np
import pytest

from acdc.methods.acdc import Options, discover
from acdc.patching.activations import prepare
from acdc.patching.engine import Engine
from acdc.patching.patch import circuit_edges, patched_rows
from tests.support.oracle import Naive, naive_acdc

TOLERANCE = 1e-10


def compare(model, prompts, metric, ablation, threshold, direct, batch, magnitude=False, engine=Engine):
    """Return the engine's circuit if it has the oracle's edges and metric; skip if rounding could flip a decision."""
    spans = () if prompts.spans is None else tuple(f"s{i}" for i in range(prompts.spans.max() + 1))
    naive = Naive(model, prompts, metric, ablation, spans)
    edges, direct_edges, value, margin = naive_acdc(naive, threshold, direct, magnitude)
    runs = prepare(model, prompts, ablation, n_spans=len(spans))
    graph = model.config.graph()
    e = engine(model, graph, runs, runs.metric(metric, model), None, spans)
    circuit = discover(e, Options(threshold, magnitude=magnitude, direct=direct, batch=batch))
    if margin < TOLERANCE:
        pytest.skip(f"a decision is within {margin:.1e} of the threshold")
    assert {graph.part_name(part, spans) for part in np.argwhere(circuit.kept)} == edges
    assert set(circuit.direct_names()) == direct_edges
    patched = runs.metric(metric, model)(patched_rows(model, graph, runs, circuit_edges(circuit, model)))
    assert float(patched.mean()) == pytest.approx(value, abs=TOLERANCE)
    assert e.metric(e.rows([], none=True))[0] == pytest.approx(value, abs=TOLERANCE)
    return circuit

"""A circuit of a real language model, at reduced size: SmolLM2 does IOI, and the circuit is the known one in part."""

from __future__ import annotations

import pytest

from acdc import run as runner
from acdc.config import resolve
from acdc.inputs import load
from tests.assets import smollm2


@pytest.mark.slow
def test_ioi_in_smollm2(tmp_path):
    smollm2()
    given = {"task": "ioi", "model": "smollm2", "examples": 10, "prefilter": "eap-ig:0.005", "threshold": 0.03}
    config, task, _ = resolve({**given, "device": "cpu"}, None, None)
    file, _ = runner.run(load(config, task), tmp_path / "run")
    m = file.metrics
    assert file.model.graph.n_edges == 123_211
    assert 20 < file.graph.edges.kept < 0.02 * 123_211
    assert m["held_out.model.accuracy"] > 0.9
    assert m["held_out.circuit.kl"] < 0.8 * m["held_out.ablated.kl"]
    # Heads that look from the repeated name to its first mention, and one that moves the other name: docs/models.md
    assert {"a8.h1", "a23.h0"} <= set(file.circuit().nodes())
    print(file.graph.edges, {k: round(v, 3) for k, v in m.items() if "held_out" in k})

"""A circuit of a real language model, at reduced size: SmolLM2 does IOI, and the circuit is the known one in part."""

from __future__ import annotations

import json

import pytest

from acdc.commands.check import check_entry, read_checks
from acdc.files.circuit import read_circuit
from tests.support.assets import smollm2
from tests.support.golden import SMOLLM2


def test_the_golden_circuit_is_one():
    (entry,) = read_checks(SMOLLM2)
    file = read_circuit(SMOLLM2.parent / entry.against)
    m = file.metrics
    assert file.model.graph.n_edges == 123_211
    assert 20 < file.graph.edges.kept < 0.02 * 123_211
    assert m["held_out.model.accuracy"] > 0.9
    assert m["held_out.circuit.kl"] < 0.8 * m["held_out.ablated.kl"]
    # Heads that look from the repeated name to its first mention, and one that moves the other name: docs/models.md
    assert {"a8.h1", "a23.h0"} <= set(file.circuit().nodes())


@pytest.mark.slow
def test_ioi_in_smollm2_is_the_golden_one():
    smollm2()
    (entry,) = read_checks(SMOLLM2)
    (outcome,) = check_entry(entry)
    assert outcome.passed, f"{outcome.text()}\nIf this is meant: `make golden` renews the golden circuits."


@pytest.mark.slow
def test_s_inhibition_reaches_a_name_mover_in_few_directions(acdc):
    """As in docs/attention.md, in the golden circuit, which is smaller."""
    smollm2()
    (entry,) = read_checks(SMOLLM2)
    path = (SMOLLM2.parent / entry.against).resolve()
    result = acdc("explain", path, "--edge", "a20.h0->a23.h1<q>", "--json")
    assert result.code == 0, result.err
    data = json.loads(result.out)
    (edge,) = data["edges"]
    where = [
        (prompt["spans"][p["query"]], prompt["spans"][p["key"]])
        for p, prompt in zip(edge["pairs"], data["prompts"], strict=True)
    ]
    assert where.count(("END", "IO")) >= 0.9 * len(where)
    assert sum(len(pair["fewest"]) for pair in edge["pairs"]) < 8 * len(where)
    assert edge["effect"][1] > 0
    assert edge["kept"][0] > 0.8
    assert max(edge["left"][0], edge["random"][0]) < 0.3

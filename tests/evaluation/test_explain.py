"""What is shown beside a circuit, against what it says it is."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from acdc.commands.run import intervals
from acdc.evaluation import explain as module
from acdc.evaluation.explain import attention, direct_effects, explain
from acdc.evaluation.faithfulness import final_rows, measure_halves
from acdc.evaluation.frontier import curve
from acdc.evaluation.signals import into_scores, signals
from acdc.graph.circuit import Circuit
from acdc.methods.discover import find
from acdc.patching.activations import prepare
from acdc.setup.config import resolve
from acdc.setup.inputs import load
from tests.support.random_models import POST_NORM, random_model, random_prompts


@pytest.fixture(scope="module")
def ioi(tmp_path_factory):
    """IOI on tiny: inputs, circuit, the final rows of the judged half."""
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 20}, None, None)
    inputs = load(config, task)
    circuit = find(inputs, tmp_path_factory.mktemp("run"), lambda _: None).circuit.pruned()
    return inputs, circuit, final_rows(inputs, circuit)


@pytest.fixture(scope="module")
def explained(ioi):
    inputs, circuit, rows = ioi
    half = inputs.evaluation_split
    points = curve(
        inputs, half, circuit, np.geomspace(1, circuit.n_edges, 10), measure_halves(inputs, rows)[half]["kl"]
    )
    return explain(inputs, circuit, rows[half], {half: points})


@pytest.mark.parametrize("norm", ["layer", "rms", "none", "after heads"])
@pytest.mark.parametrize("wrong", [True, False])
def test_direct_effects_and_biases_add_up_to_the_logit_difference(norm, wrong):
    after = norm == "after heads"
    model = random_model(3, **({**POST_NORM, "logit_cap": 0.0} if after else {"norm": norm}))
    for name, x in model.weights.items():
        x *= not after or not name.endswith("o.bias")  # such models have none
    prompts = random_prompts(5, model, pad=True, scored="two")
    if not wrong:
        prompts = type(prompts)(**{**vars(prompts), "wrong": prompts.wrong[:, :0]})
    runs = prepare(model, prompts, "corrupted")
    found = direct_effects(model, [runs.examples(slice(0, 2)), runs.examples(slice(2, 3))], names(model))

    final = runs.residual[-1][runs.rows[:, 0], runs.rows[:, 1]]
    scale = torch.ones(len(final), 1, dtype=final.dtype)
    if norm != "none":
        scale = (
            (final - final.mean(-1, keepdim=True) * (norm == "layer")).square().mean(-1, keepdim=True) + 1e-5
        ).sqrt()
    bias = sum(model.weights[f"layers.{i}.o.bias"] for i in range(model.config.n_layers)) / scale
    if norm == "layer":
        bias = bias - bias.mean(-1, keepdim=True)
    logits, added = model.logits(model.normalise(final)), 0.0
    logits = logits - logits.mean(-1, keepdim=True)
    expected = 0.0
    for row, (correct, against) in enumerate(zip(prompts.correct, prompts.wrong, strict=True)):
        right = [int(i) for i in correct if i >= 0]
        worst = [max(map(int, against), key=lambda i: float(logits[row, i]))] if wrong else []
        expected += float(logits[row, right].mean() - sum(logits[row, i] for i in worst))
        weight, constant = model.weights["unembed.weight"], model.weights["unembed.bias"]
        direction = weight[right].mean(0) - sum(weight[i] for i in worst)
        added += float(bias[row] @ direction + constant[right].mean() - sum(constant[i] for i in worst))
    assert sum(found.values()) + added / len(final) == pytest.approx(expected / len(final), abs=1e-9)
    assert set(found) == set(names(model))


def test_signals_are_those_of_acdc_explain(ioi, explained):
    inputs, circuit, _ = ioi
    found = {signal.edge: signal for signal in signals(inputs, circuit, into_scores(circuit))}
    assert list(explained.signals) == list(found)
    for edge, pairs in explained.signals.items():
        assert len(pairs) == module.EXAMPLES
        for pair, other in zip(pairs, found[edge].pairs, strict=False):
            assert (pair.query, pair.key) == (other.query, other.key)
            assert pair.terms == pytest.approx(other.terms, abs=1e-3)


def names(model):
    return [s.name for s in model.config.graph().senders]


def test_no_answers_no_direct_effects():
    model = random_model(3)
    prompts = random_prompts(5, model)
    empty = np.zeros((len(prompts.rows), 0), dtype=int)
    runs = prepare(model, type(prompts)(**{**vars(prompts), "correct": empty, "wrong": empty}), "zero")
    assert direct_effects(model, [runs], names(model)) == {}


@pytest.mark.parametrize("options", [{}, {"rotary": 4}, {"causal": False}, {"windows": (2, 0)}, POST_NORM])
def test_patterns_times_values_are_what_heads_write(options):
    model = random_model(1, **options)
    runs = prepare(model, random_prompts(2, model, pad=True), "zero")
    graph = model.config.graph()
    found = attention(model, Circuit.full(graph), runs)
    assert set(found) == {s.name for s in graph.senders if s.kind == "head"}
    positions = torch.zeros(3, 5, dtype=torch.long)  # values aren't rotated
    for name, patterns in found.items():
        s = graph.senders[graph.sender_index[name]]
        v = model.project("v", s.layer, [s.head], runs.residual[s.layer][None], positions)[0]
        assert len(patterns) == len(runs.pad)
        for i, pattern in enumerate(patterns):
            pad = int(runs.pad[i])
            assert pattern.shape == (5 - pad, 5 - pad) and pattern.sum(1) == pytest.approx(1, abs=1e-5)
            z = torch.as_tensor(pattern).double() @ v[i, pad:]
            assert torch.allclose(z, runs.clean.z[s.layer, i, s.head, pad:], atol=1e-5)


def test_too_long_prompts_have_no_patterns(monkeypatch):
    model = random_model(1)
    runs, circuit = prepare(model, random_prompts(2, model), "zero"), Circuit.full(model.config.graph())
    monkeypatch.setattr(module, "PATTERN_NUMBERS", 2 * 4 * 25)
    assert {len(patterns) for patterns in attention(model, circuit, runs).values()} == {2}
    monkeypatch.setattr(module, "PATTERN_NUMBERS", 99)
    assert attention(model, circuit, runs) == {}


def test_examples_are_of_the_prompts_that_were_not_searched(ioi, explained):
    inputs, _, rows = ioi
    split = inputs.data.held_out
    assert explained.half == "held_out" and len(explained.examples) == 4
    for i, example in enumerate(explained.examples):
        assert "".join(example.clean) == split.texts[i][0] and "".join(example.corrupted) == split.texts[i][1]
        assert example.clean[example.scored] == " to" and example.correct[0] in example.clean
        for what, tokens in example.predictions.items():
            logits = inputs.model.transformer.logits(rows["held_out"][what][i])
            p, ids = logits.softmax(-1).topk(5)
            assert [t for t, _ in tokens] == inputs.model.tokenizer.pieces(ids.tolist())
            assert [x for _, x in tokens] == pytest.approx(p.tolist(), rel=1e-4)
        assert example.predictions["model"][0][0] == example.correct[0]


def test_the_curve_ends_at_the_circuit_and_its_points_are_circuits(ioi, explained):
    inputs, circuit, rows = ioi
    last, stated = explained.curves["held_out"][-1], intervals(inputs, measure_halves(inputs, rows))
    assert last.edges == circuit.n_edges
    assert list(last.faithfulness) == pytest.approx(stated["faithfulness"]["held_out"])
    assert list(last.metric) == pytest.approx(stated["metric"]["held_out"])
    sizes = [p.edges for p in explained.curves["held_out"]]
    assert len(sizes) >= 4 and sizes == sorted(set(sizes))
    point = explained.curves["held_out"][len(sizes) // 2]
    some = Circuit(circuit.graph, circuit.kept & (np.abs(circuit.scores) >= point.score), circuit.direct).pruned()
    assert some.n_edges == point.edges
    again = intervals(inputs, measure_halves(inputs, final_rows(inputs, some)))
    assert list(point.faithfulness) == pytest.approx(again["faithfulness"]["held_out"])


def test_circuits_without_scores_or_edges_have_no_curve(ioi):
    inputs, circuit, _ = ioi
    for other in (Circuit(circuit.graph, circuit.kept, circuit.direct), Circuit.empty(circuit.graph)):
        assert curve(inputs, "held_out", other, [1, 2], {}) == ()

"""Measures of circuits and rankings, against numbers worked out by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch

from acdc.commands.run import measure
from acdc.evaluation.faithfulness import circuit_rows, faithfulness, mean_accuracy, measure_rows, prompt_values
from acdc.evaluation.ranking import auc, corners, jaccard, pessimistic_auc, rank_correlation, roc
from acdc.graph.circuit import Circuit
from acdc.patching.metrics import Targets, accuracy
from acdc.setup.config import resolve
from acdc.setup.inputs import load


def test_faithfulness_is_the_share_of_the_way_from_ablated_to_full():
    full, ablated = np.array([0.0, 0.0, 1.0, 1.0]), np.array([4.0, 2.0, 4.0, 4.0])
    value, low, high = faithfulness(np.array([1.0, 1.0, 2.0, 2.0]), full, ablated)
    assert value == pytest.approx((3.5 - 1.5) / (3.5 - 0.5))
    assert low < value < high
    assert faithfulness(full, full, ablated) == (1, 1, 1)
    assert faithfulness(ablated, full, ablated) == (0, 0, 0)


def test_the_interval_is_paired_and_seeded():
    """Every prompt has the same share, however different they are: so has every resample."""
    full, ablated = np.zeros(9), np.arange(1.0, 10.0)
    assert faithfulness(0.25 * ablated, full, ablated) == pytest.approx((0.75, 0.75, 0.75))
    circuit = np.random.default_rng(0).random(9)
    assert faithfulness(circuit, full, ablated, seed=3) == faithfulness(circuit, full, ablated, seed=3)
    assert faithfulness(circuit, full, ablated, seed=3) != faithfulness(circuit, full, ablated, seed=4)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """Circuits whose prompts lie around 0.6 of the way."""
    draw, covered = np.random.default_rng(0), 0
    for seed in range(200):
        circuit = 0.4 + 0.2 * draw.standard_normal(40)
        _, low, high = faithfulness(circuit, np.zeros(40), np.ones(40), seed)
        covered += low <= 0.6 <= high
    assert 178 <= covered <= 199  # 190 ± 4 standard deviations


def test_no_faithfulness_without_a_difference_and_no_interval_of_one_prompt():
    assert all(math.isnan(x) for x in faithfulness(np.ones(3), np.ones(3), np.ones(3)))
    value, low, high = faithfulness(np.array([1.0]), np.array([0.0]), np.array([4.0]))
    assert value == 0.75
    assert math.isnan(low)
    assert math.isnan(high)


def test_roc_takes_ties_together():
    scores = np.array([0.9, 0.5, 0.5, 0.5, 0.1])
    true = np.array([True, True, False, False, False])
    points = roc(scores, true)
    assert points.tolist() == pytest.approx(np.array([[0, 0], [0, 1 / 2], [2 / 3, 1], [1, 1]]))
    assert auc(points) == pytest.approx(2 / 3 * 3 / 4 + 1 / 3)
    assert pessimistic_auc(points) == pytest.approx(1 * 1 / 2 + 1 / 3 * 1 / 2)  # the rise at 2/3 counts from there on


def test_areas_of_the_best_the_worst_and_no_ranking():
    true = np.array([True, True, False, False])
    for scores, areas in (([4, 3, 2, 1], (1, 1)), ([1, 2, 3, 4], (0, 0)), ([1, 1, 1, 1], (0.5, 0))):
        points = roc(np.array(scores, dtype=float), true)
        assert (auc(points), pessimistic_auc(points)) == areas


def test_the_staircase_goes_over_the_pareto_front():
    """Points of thresholds, which need not rise together: (0.5, 0.4) is worse than (0.2, 0.6)."""
    points = np.array([[0.5, 0.4], [0.2, 0.6], [0.0, 0.1], [1.0, 1.0]])
    assert pessimistic_auc(points) == pytest.approx(0.1 + 0.8 * 0.5)


def test_corners_change_no_area():
    draw = np.random.default_rng(0)
    for _ in range(20):
        points = roc(draw.integers(0, 9, 40).astype(float), draw.random(40) < 0.3)
        fewer = corners(points)
        assert (auc(fewer), pessimistic_auc(fewer)) == pytest.approx((auc(points), pessimistic_auc(points)))
    straight = roc(np.arange(6.0), np.array([False, False, False, True, True, True]))
    assert corners(straight).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_jaccard_and_rank_correlation():
    a, b = np.array([True, True, False, False]), np.array([True, False, True, False])
    assert jaccard(a, b) == pytest.approx(1 / 3)
    assert jaccard(a, a) == 1
    assert jaccard(a, ~a) == 0
    assert jaccard(a & ~a, b & ~b) == 1
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([10.0, 20, 900])) == pytest.approx(1)
    assert rank_correlation(np.array([1.0, 2, 3]), np.array([1.0, 3, 2])) == pytest.approx(0.5)  # 1 − 6 · 2 / (3 · 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isnan(rank_correlation(np.ones(3), np.arange(3.0)))
        assert math.isnan(rank_correlation(np.arange(3.0), np.ones(3)))


def test_values_are_those_that_a_run_measures():
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 6}, None, None)
    inputs = load(config, task)
    graph = inputs.model.transformer.config.graph()
    kept = graph.edges & (np.random.default_rng(0).random(graph.edges.shape) < 0.9)
    circuit = Circuit(graph, kept, graph.direct.copy())
    measured = measure(inputs, circuit)
    for half in ("discovery", "held_out"):
        for name, which in (("model", None), ("circuit", circuit), ("ablated", Circuit.empty(graph))):
            rows = circuit_rows(inputs, half, which)
            for metric in task.metrics:
                values = prompt_values(inputs, half, which, metric)
                assert values.shape == (6,)
                assert values.mean() == measured[f"{half}.{name}.{metric}"]
            table = measure_rows(inputs, half, {name: rows}, ())
            assert mean_accuracy(table, name) == measured[f"{half}.{name}.accuracy"]
    full = circuit_rows(inputs, "held_out", Circuit.full(graph))
    torch.testing.assert_close(full, circuit_rows(inputs, "held_out", None), rtol=1e-4, atol=1e-4)


class Logits:
    """An output layer whose rows are the logits."""

    def logits(self, h):
        return h

    def centred_logits(self, h, ids):
        return h.gather(-1, ids)


@pytest.mark.parametrize(
    ("logits", "correct", "wrong", "right"),
    [
        ([0, 3, 2, 9], [0, 1], [2, -1], True),  # the best correct answer counts, and only what is named
        ([0, 1, 2, 0], [0, 1], [2, -1], False),
        ([9, 1, 0, 0], [1, -1], [2, 3], True),
        ([9, 1, 0, 2], [1, -1], [2, 3], False),  # one wrong answer that is above is enough
        ([9, 1, 2, 0], [1, -1], [2, -1], False),  # −1 is no token
        ([9, 2, 1, 0], [1, -1], [2, -1], True),
        ([0, 1, 1, 0], [1, -1], [2, -1], False),  # a tie is not right
        ([0, 3, 2, 1], [0, 1], [], True),
        ([4, 3, 2, 1], [1, -1], [], False),
    ],
)
def test_accuracy(logits, correct, wrong, right):
    h, example = torch.tensor([logits], dtype=torch.float64), torch.tensor([0])
    targets = Targets(example, torch.tensor([correct]), torch.tensor([wrong], dtype=torch.long), h)
    assert accuracy(Logits(), targets, h).tolist() == [right]

"""How well a model does a task, with its interval."""

from __future__ import annotations

import pytest
from scipy.stats import binomtest

from acdc.commands.evaluate import evaluate
from acdc.commands.run import run
from acdc.evaluation.competence import competence
from acdc.setup.config import resolve
from acdc.setup.inputs import load


def test_positions_of_one_prompt_are_no_independent_answers(tmp_path):
    """Induction has nine scored positions in each prompt; intervals are over prompts, as in `acdc evaluate`."""
    given = {"task": "induction", "model": "tiny", "device": "cpu", "examples": 10, "method": "random", "edges": 1}
    config, task, _ = resolve(given, None, None)
    inputs = load(config, task)
    found = competence(inputs)
    assert found.prompts == 10
    assert found.accuracy == 1
    wilson = binomtest(10, 10).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((wilson.low, wilson.high))
    judged = evaluate(run(inputs, tmp_path / "run")[0], {}, None, 0, lambda _: None)
    assert judged.measured.accuracy["full"] == pytest.approx((1, *found.interval))

"""The circuits of the bundled models are those that were there before."""

from __future__ import annotations

import pytest

from acdc.formats.circuit_file import read_circuit
from acdc.formats.diff import diff
from tests.golden import FOLDER, TASKS, discover


@pytest.mark.parametrize("task", TASKS)
def test_circuit_is_the_golden_one(task, tmp_path):
    golden = read_circuit(FOLDER / f"{task}.json")
    now = discover(task, tmp_path / "run")
    changed = diff(golden, now, 1e-6)
    assert not (changed.added or changed.removed or changed.rescored or changed.notes), (
        f"{changed}\nIf this is meant: `make golden` renews the golden circuits."
    )
    assert now.task == golden.task
    assert now.metrics == pytest.approx(golden.metrics, abs=1e-6)

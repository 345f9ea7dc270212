"""The circuits of the bundled models are those that were there before."""

from __future__ import annotations

import pytest

from acdc.commands.check import check_entry, read_checks
from acdc.task.load import task_names
from tests.support.golden import LIST


def test_every_task_that_a_bundled_model_does_has_a_golden_circuit():
    golden = {path.stem for path in (LIST.parent / "golden").glob("*.json")}
    # tiny knows no words or digits of these: docs/models.md
    others = {"gender-bias", "causal-because", "causal-because-nonsense", "capital-country", "hypernymy"}
    assert golden == set(task_names()) - others - {"greater-than-digits"} | {"ioi-by-position"}


LONG = ("docstring", "ioi-by-position")
ENTRIES = [pytest.param(e, id=e.name, marks=[pytest.mark.slow] * (e.name in LONG)) for e in read_checks(LIST)]


@pytest.mark.parametrize("entry", ENTRIES)
def test_circuit_is_the_golden_one(entry):
    (outcome,) = check_entry(entry)
    assert outcome.passed, f"{outcome.text()}\nIf this is meant: `make golden` renews the golden circuits."

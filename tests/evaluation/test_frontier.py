"""How many edges a method needs, against arithmetic by hand."""

from __future__ import annotations

import math

import pytest

from acdc.evaluation.frontier import edges_needed, measured_around

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)


def test_the_edges_needed_are_interpolated_between_real_circuits_that_got_better():
    circuits = [(40, 0.9), (10, 0.4), (15, 0.3), (20, 0.6), (30, 0.55), (90, 0.93)]  # those of 15 and 30 got worse
    assert edges_needed(circuits, LEVELS) == pytest.approx((15, 20 + 20 / 3, 20 + 40 / 3, 40, math.nan), nan_ok=True)


def test_below_the_smallest_circuit_it_is_interpolated_from_no_edge():
    assert edges_needed([(30, 1.0)], LEVELS) == pytest.approx((15, 21, 24, 27, 28.5))


def test_a_method_without_a_faithful_circuit_needs_no_number():
    assert all(math.isnan(n) for n in edges_needed([(5, -0.2), (9, 0.1)], LEVELS))
    assert all(math.isnan(n) for n in edges_needed([], LEVELS))


@pytest.mark.parametrize("half", [3, 40, 700])
def test_levels_are_found_to_a_few_percent_without_measuring_all_sizes(half):
    measured = []

    def measure(n):
        measured.append(n)
        return n, n / (n + half)  # half of the faithfulness at this size

    needed = edges_needed(measured_around(LEVELS, measure, 20_000), LEVELS)
    for level, found in zip(LEVELS, needed, strict=True):
        assert found == pytest.approx(half * level / (1 - level), rel=0.01, abs=0.1)
    assert len(measured) == len(set(measured)) < 60


def test_no_more_edges_are_asked_for_than_there_are():
    assert max(n for n, _ in measured_around(LEVELS, lambda n: (n, 0.1), 479)) == 479

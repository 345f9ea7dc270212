"""Bootstrap intervals of many prompts."""

from __future__ import annotations

import tracemalloc

import numpy as np

from acdc.evaluation import bootstrap
from acdc.evaluation.bootstrap import RESAMPLES, estimate


def test_many_prompts_take_little_memory_and_have_the_same_intervals(monkeypatch):
    """Of 5,000 prompts one table of all resamples in float64 would be 80 MB, and is drawn as another of 80 MB."""
    draw = np.random.default_rng(0)
    values = draw.standard_normal(5000)
    per = 1 + draw.random(5000)
    bootstrap._resamples.cache_clear()
    tracemalloc.start()
    found = estimate(values, per, seed=2)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6
    assert (bootstrap._resamples(5000, 2) == np.random.default_rng(2).multinomial(5000, [1 / 5000] * 5000, 2000)).all()
    monkeypatch.setattr(bootstrap, "BLOCK_NUMBERS", RESAMPLES * 5000)
    bootstrap._resamples.cache_clear()
    assert estimate(values, per, seed=2) == found


def test_no_two_tables_of_resamples_are_kept():
    for n in (10, 11, 12):
        estimate(np.random.default_rng(n).random(n))
    assert bootstrap._resamples.cache_info().currsize == 1

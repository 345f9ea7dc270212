"""Means over prompts with their 95 % intervals."""

from __future__ import annotations

from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

Array = np.ndarray

RESAMPLES = 2000
CONFIDENCE = 0.95
FLOOR = 0.05  # of a resample's squared standard error that is the sample's own


class Estimate(NamedTuple):
    """A value with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


def estimate(values: Array, per: Array | None = None, seed: int = 0) -> Estimate:
    """mean(values) / mean(per) with its 95 % interval, from what every prompt has, Float[prompt] each; without `per`,
    mean(values). What a circuit has more than another one, prompt by prompt, is compared in pairs. NaN where the mean
    of `per` is 0, and no interval for one prompt.

    The interval is a bootstrap over prompts, with the same resamples for all quantities, and studentised (Efron and
    Tibshirani 1993, section 12.5): a resample's deviation is taken in units of its own standard error, of the ratio to
    first order. A twentieth of each squared standard error is the sample's own, so that resamples without the few
    prompts that matter have one, too. For means of 50 prompts it covers 94.6 % (normal values) and 94.3 % (exponential
    ones), plain percentiles 93.6 % and 92.6 %. Where all prompts agree, as at the ends of a scale, it has no width.
    """
    n, per = len(values), np.ones_like(values) if per is None else per
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(values.mean() / per.mean())
        if n < 2 or not np.isfinite(value):
            return Estimate(value if np.isfinite(value) else np.nan, np.nan, np.nan)
        own = np.square(values - value * per).mean() / per.mean() ** 2
        if own == 0:
            return Estimate(value, value, value)
        x, y, xx, xy, yy = (_resamples(n, seed) @ np.stack([values, per, values**2, values * per, per**2], 1)).T
        drawn = x / y
        squared = np.maximum(0, xx - 2 * drawn * xy + drawn**2 * yy) / y**2
        moved = (drawn - value) / np.sqrt((1 - FLOOR) * squared + FLOOR * own)
    if not np.isfinite(moved).all():
        return Estimate(value, np.nan, np.nan)
    least, most = np.quantile(moved, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) * own**0.5
    return Estimate(value, float(value - most), float(value - least))


@lru_cache(maxsize=4)
def _resamples(n: int, seed: int) -> Array:
    """Float[resample prompt]: what share of each resample every prompt is."""
    shares: Array = np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), RESAMPLES) / n
    return shares


def share(right: float, n: int) -> Estimate:
    """A share of n prompts with Wilson's 95 % interval, which has a width also where all are right; NaN as it is."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre, spread = right + z**2 / (2 * n), z * (right * (1 - right) / n + z**2 / (4 * n**2)) ** 0.5
    low, high = ((centre + side) / (1 + z**2 / n) for side in (-spread, spread))
    return Estimate(right, max(0.0, low), min(1.0, high)) if np.isfinite(right) else Estimate(right, right, right)

"""How good a circuit is, and how good a ranking of edges is against a circuit that is taken for true."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import bootstrap, spearmanr
from torch import Tensor

from acdc.graph import Circuit
from acdc.inputs import Inputs
from acdc.metrics import accuracy
from acdc.patching import circuit_edges, patched_rows

Array = np.ndarray

RESAMPLES = 2000
CONFIDENCE = 0.95


class Estimate(NamedTuple):
    """A value with its 95 % interval; NaN where there is none."""

    value: float
    low: float
    high: float


@torch.inference_mode()
def circuit_rows(inputs: Inputs, half: str, circuit: Circuit | None) -> Tensor:
    """The normalised final residual stream at the scored rows of one half, `discovery` or `held_out`, of a circuit that
    is run as a whole by plain patching: Float[row d_model]. None is the full model."""
    parts, model = inputs.parts(half), inputs.model.transformer
    if circuit is None:
        return parts.targets.clean
    edges = circuit_edges(circuit, model)
    return torch.cat([patched_rows(model, circuit.graph, runs, edges) for runs in parts])


@torch.inference_mode()
def prompt_values(inputs: Inputs, half: str, rows: Tensor, metric: str) -> Array:
    """A metric's value for every prompt, Float[prompt], lower is better: rows as `circuit_rows` gives them."""
    values: Array = inputs.parts(half).metric(metric)(rows).double().cpu().numpy()
    return values


@torch.inference_mode()
def share_right(inputs: Inputs, half: str, rows: Tensor) -> float:
    """The share of scored positions at which the answer is right (`acdc.metrics.accuracy`), NaN for a task without
    answers."""
    targets = inputs.parts(half).targets
    if not targets.correct.shape[1]:
        return np.nan
    return float(accuracy(inputs.model.transformer, targets, rows).double().mean())


def faithfulness(circuit: Array, full: Array, ablated: Array, seed: int = 0) -> Estimate:
    """How much of what the full model has over the fully ablated one a circuit has, from a metric's values for every
    prompt, Float[prompt] each: (mean ablated − mean circuit) / (mean ablated − mean full). 1 is the full model, 0 is
    everything ablated; NaN where the two don't differ.

    The interval is a bootstrap over prompts, the same resample for all three. It is of percentiles, not BCa: the two
    ends of the scale, which are 1 and 0 in every resample, have an interval then, too.
    """
    value = float(_recovered(circuit, full, ablated))
    if len(circuit) < 2 or not np.isfinite(value):
        return Estimate(value, np.nan, np.nan)
    interval = bootstrap(
        (circuit, full, ablated),
        _recovered,
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Estimate(value, float(interval.low), float(interval.high))


def _recovered(circuit: Array, full: Array, ablated: Array, axis: int = -1) -> Array:
    nothing = ablated.mean(axis)
    with np.errstate(divide="ignore", invalid="ignore"):
        share: Array = (nothing - circuit.mean(axis)) / (nothing - full.mean(axis))
    return np.where(np.isfinite(share), share, np.nan)


def roc(scores: Array, true: Array) -> Array:
    """Points (false positive rate, true positive rate) of all bounds on the scores, from (0, 0) to (1, 1), as
    Float[point 2]. Equal scores are taken together.

    Args:
        scores: Float[edge], larger is more important
        true: Bool[edge], of which some are true and some are not
    """
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)  # of those with an equal score
    counts = np.stack([np.cumsum(~true[order]), np.cumsum(true[order])], 1)[last]
    points: Array = np.vstack([[0, 0], counts]) / [(~true).sum(), true.sum()]
    return points


def corners(points: Array) -> Array:
    """The points without those inside a horizontal or vertical run: no area changes."""
    same = np.diff(points, axis=0) == 0
    return points[np.concatenate([[True], ~(same[:-1] & same[1:]).any(1), [True]])]


def auc(points: Array) -> float:
    """Area under the points, joined by straight lines: 0.5 is what random scores have in the mean."""
    (fpr, tpr), (before, below) = points[1:].T, points[:-1].T
    return float(((fpr - before) * (tpr + below) / 2).sum())


def pessimistic_auc(points: Array) -> float:
    """Area under the staircase over the Pareto front, as Conmy et al. 2023 (section 4) have it, where a method has few
    points: sorted by (fpr, tpr), those whose tpr rises; Σ (1 − fpr) Δtpr. See Fawcett 2006."""
    area, reached = 0.0, 0.0
    for fpr, tpr in sorted(map(tuple, points)):
        if tpr > reached:
            area, reached = area + (1 - fpr) * (tpr - reached), tpr
    return float(area)


def jaccard(a: Array, b: Array) -> float:
    """What two Bool arrays share of what either has; 1 where neither has any."""
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's ρ of two scores of the same edges, Float[edge] each; NaN where one of them is the same for all."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    return float(spearmanr(a, b).statistic)

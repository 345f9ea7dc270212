"""How good a ranking of edges is against a circuit taken for true, and how alike two circuits or rankings are."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from acdc.graph.graph import Graph

Array = np.ndarray


def roc(scores: Array, true: Array) -> Array:
    """Points (false positive rate, true positive rate) of all bounds on the scores, from (0, 0) to (1, 1), as
    Float[point 2]. Equal scores are taken together.

    Args:
        scores: Float[edge], larger is more important
        true: Bool[edge], of which some are true and some are not
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # of those with an equal score
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
    from scipy.stats import spearmanr  # takes a second to import, which not every run needs

    return float(spearmanr(a, b).statistic)


def node_scores(graph: Graph, importance: Array) -> Array:
    """The scores of heads and MLPs by those of edges, for `roc`: the largest of an edge that touches the node, as
    Float[node] in the order of the graph's senders without its inputs.

    Args:
        importance: Float[sender receiver], −inf where there is no edge (`acdc.graph.scores.Scores.importance`); or a
            circuit's `kept`, which gives the nodes it has
    """
    nodes = [(s, list(own)) for s, own in enumerate(graph.own_receivers) if own]
    scores: Array = np.array([max(importance[s].max(), importance[:, own].max()) for s, own in nodes])
    return scores


class Areas(NamedTuple):
    """MIB's two numbers (Mueller et al. 2025): `cpr`, the area under faithfulness by share of edges (more is better, no
    upper bound), and `cmd`, the area between it and 1 (0 is best)."""

    cpr: float
    cmd: float


def faithfulness_areas(points: Array) -> Areas:
    """CPR and CMD from Float[point 2], (share of edges, faithfulness) by rising share: trapezoids over the shares from
    the first to the last, MIB's being 0.001, 0.002, 0.005, …, 0.5, 1."""
    share, value = points.T
    return Areas(auc(points), auc(np.stack([share, np.abs(1 - value)], 1)))

"""Compare a ranking of edges with a true circuit (ROC, AUC), and circuits or rankings with each other."""

from typing import NamedTuple

import numpy as np

from acdc.graph.graph import Graph

Array = np.ndarray


def roc(scores: Array, true: Array) -> Array:
    """ROC curve of scores, Float[edge], larger is more important, against the truth, Bool[edge], not all true or false:
    (false positive rate, true positive rate) of all thresholds, from (0, 0) to (1, 1), as Float[point 2]. Equal scores
    make one point."""
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    last = np.append(ranked[1:] != ranked[:-1], True)  # the last edge of each score
    counts = np.stack([np.cumsum(~true[order]), np.cumsum(true[order])], 1)[last]
    points: Array = np.vstack([[0, 0], counts]) / [(~true).sum(), true.sum()]
    return points


def corners(points: Array) -> Array:
    """Drop the points inside a horizontal or vertical run, which changes no area."""
    same = np.diff(points, axis=0) == 0
    return points[np.concatenate([[True], ~(same[:-1] & same[1:]).any(1), [True]])]


def auc(points: Array) -> float:
    """Area under the points, joined by straight lines; random scores have 0.5 on average."""
    fpr, tpr = points.T
    return float((np.diff(fpr) * (tpr[1:] + tpr[:-1]) / 2).sum())


def pessimistic_auc(points: Array) -> float:
    """Area under the staircase over the Pareto front, for methods with few points (Conmy et al. 2023, section 4): the
    points sorted by (fpr, tpr), those whose tpr rises, Σ (1 − fpr) Δtpr. See Fawcett 2006."""
    area = 0.0
    reached = 0.0
    for fpr, tpr in sorted(map(tuple, points)):
        if tpr > reached:
            area += (1 - fpr) * (tpr - reached)
            reached = tpr
    return float(area)


def jaccard(a: Array, b: Array) -> float:
    """Jaccard index of two Bool arrays, intersection over union; 1 if both are empty."""
    either = int((a | b).sum())
    return float((a & b).sum() / either) if either else 1.0


def rank_correlation(a: Array, b: Array) -> float:
    """Spearman's ρ of two scorings of the same edges, Float[edge] each; NaN if one of them is constant."""
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return np.nan
    from scipy.stats import spearmanr  # takes a second to import, and few commands need it

    return float(spearmanr(a, b).statistic)


def node_scores(graph: Graph, importance: Array) -> Array:
    """Scores of heads and MLPs for `roc`: the largest score of an edge that touches the node, Float[node] in the order
    of the graph's senders without its inputs.

    `importance` is Float[sender receiver], −inf where there is no edge (`acdc.graph.scores.Scores.importance`); or a
    circuit's `kept`, for the nodes in it.
    """
    nodes = [(s, list(own)) for s, own in enumerate(graph.own_receivers) if own]
    return np.array([max(importance[s].max(), importance[:, own].max()) for s, own in nodes])


class Areas(NamedTuple):
    """The two areas of MIB (Mueller et al. 2025): `cpr` under the faithfulness by share of edges (higher is better, no
    upper bound), `cmd` between it and 1 (0 is best)."""

    cpr: float
    cmd: float


def faithfulness_areas(points: Array) -> Areas:
    """CPR and CMD by the trapezoid rule. `points` are (share of edges, faithfulness) by rising share, Float[point 2];
    MIB's shares are 0.001, 0.002, 0.005, …, 0.5, 1."""
    share, value = points.T
    return Areas(auc(points), auc(np.stack([share, np.abs(1 - value)], 1)))

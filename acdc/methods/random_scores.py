"""The baseline: a random number between 0 and 1 for every edge."""

from __future__ import annotations

import numpy as np

from acdc.graph.graph import Graph
from acdc.graph.scores import Scores


def score(graph: Graph, seed: int) -> Scores:
    """Scores of all edges; the same seed gives the same."""
    edges = np.random.default_rng(seed).random(graph.edges.shape)
    return Scores(graph, np.where(graph.edges, edges, np.nan))

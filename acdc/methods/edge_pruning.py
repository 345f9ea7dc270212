"""Edge pruning (Bhaskar et al. 2024, arXiv 2406.16778).

A mask of hard-concrete gates is trained, one gate per residual edge: a receiver reads ablated + gate × (current −
ablated) output of each sender. The metric is minimised under the constraint that the share s of removed edges equals
the target t. Two Lagrange multipliers, which follow the gradient upwards, enforce it:

    metric + λ1 (t − s) + λ2 (t − s)²

The target rises linearly from 0 over the first part of the training. Score of an edge = probability that its gate is
open, from 0 to 1; 0.5 is the natural threshold, and leaves about the share 1 − t of the edges.

Differences from the paper, so that this holds:

- s counts the gates that are closed at that threshold. The paper takes the expected share, which many half-open gates
  meet as well as a few open ones, and which has almost no gradient where gates are certain. The gradient of the count
  is taken as if it fell by 1 per unit of α (straight through): the same force on every gate, so that the gates that
  matter least to the metric close first.
- Only edges have gates; the paper has gates of nodes too, and an edge needs both.
- Multipliers are in units of the average worth of an edge of the target's circuit, so that no step depends on the
  metric's unit or the size of the graph.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from acdc.graph.scores import Scores
from acdc.io.progress import Show, silent
from acdc.methods.masks import Batches, Training, Update, p_open, span, train
from acdc.patching.patch import patched_rows
from acdc.patching.problem import Problem
from acdc.registry import METHODS, SPARSITY

WARM_UP = 0.4  # share of the training in which the target rises
MULTIPLIERS = (0.0, 0.75)  # initial values; λ2 is above 0 from the start, or s would swing around t
ASCENT = 0.025  # step per unit of the gradient


def score(
    problem: Problem,
    updates: int = METHODS["edge-pruning"].repeats,
    sparsity: float = SPARSITY,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Show = silent,
) -> Scores:
    """Scores of all edges; `checkpoint` and errors as in `acdc.methods.masks.train`."""
    model = problem.model
    graph = problem.graph
    batches = Batches(problem)
    metrics = [cache.metric(problem.metric, model) for cache in batches]
    exist = torch.from_numpy(graph.edges).to(model.device)
    unit = span(problem, batches) / max(1 - sparsity, 1 / graph.n_edges)

    def objective(u: Update) -> Tensor:
        edges = u.gates.new_zeros(exist.shape).masked_scatter(exist, u.gates)
        value = metrics[u.batch](patched_rows(model, graph, u.cache, edges)).mean()
        removed = (p_open(u.alpha) < 0.5).to(model.dtype) - (u.alpha - u.alpha.detach())
        missing = min(1.0, u.share / WARM_UP) * sparsity - removed.mean()
        return value + unit * (u.multipliers[0] * missing + u.multipliers[1] * missing.square())

    ascent = (ASCENT / unit,) * 2  # the gradient is in the metric's units
    settings = {"sparsity": sparsity}
    training = Training("edge-pruning", settings, updates, seed, graph.n_edges, objective, MULTIPLIERS, ascent)
    alpha = train(training, problem, batches, checkpoint, progress)
    edges = np.full(graph.edges.shape, np.nan)
    edges[graph.edges] = p_open(alpha).cpu().double().numpy()
    return Scores(graph, edges)

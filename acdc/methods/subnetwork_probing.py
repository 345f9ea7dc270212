"""Subnetwork probing (Cao et al. 2021, arXiv 2104.03514), as Conmy et al. 2023 (appendix D) use it for circuits.

A mask of hard-concrete gates is trained, one gate per head and MLP; the inputs are always in. A node whose gate is
closed writes its ablated output. The training minimises

    metric + penalty × span × expected share of open gates

The span, what ablating everything costs in the metric, is our addition: with it one penalty fits all metrics. Conmy et
al. train for thousands of updates with a small step; here the step is larger and falls to 0, so that hundreds suffice.
Score of a node = probability that its gate is open, from 0 to 1; 0.5 is the natural threshold.
"""

from pathlib import Path

import torch
from torch import Tensor

from acdc.graph.scores import Scores
from acdc.io.progress import Show, silent
from acdc.methods.masks import Batches, Training, Update, p_open, span, train
from acdc.patching.patch import PatchedModel
from acdc.patching.problem import Problem
from acdc.registry import METHODS, PENALTY


def score(
    problem: Problem,
    updates: int = METHODS["subnetwork-probing"].repeats,
    penalty: float = PENALTY,
    seed: int = 0,
    checkpoint: Path | None = None,
    progress: Show = silent,
) -> Scores:
    """Scores of all nodes, and of all edges by them; `checkpoint` and errors as in `acdc.methods.masks.train`. The
    larger the penalty, the fewer nodes."""
    model = problem.model
    batches = Batches(problem)
    n_inputs = len(problem.graph.inputs)
    price = penalty * span(problem, batches)
    metrics = [cache.metric(problem.metric, model) for cache in batches]

    def objective(u: Update) -> Tensor:
        nodes = torch.cat([u.gates.new_ones(n_inputs), u.gates])
        return metrics[u.batch](PatchedModel(model, u.cache).with_nodes(nodes)).mean() + price * p_open(u.alpha).mean()

    n = len(problem.graph.senders) - n_inputs
    training = Training("subnetwork-probing", {"penalty": penalty}, updates, seed, n, objective)
    return of_gates(problem, p_open(train(training, problem, batches, checkpoint, progress)))


def of_gates(problem: Problem, gates: Tensor) -> Scores:
    """Scores from the gates of all nodes but the inputs, Float[gate]."""
    nodes = torch.cat([torch.full((len(problem.graph.inputs),), torch.nan), gates.cpu().double()])
    return Scores.of_nodes(problem.graph, nodes.numpy())

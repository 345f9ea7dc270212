"""Causal mediation analysis (Vig et al. 2020, arXiv 2004.12265): the indirect effect of every head and MLP.

Score of a node = metric of the model in which this node alone writes its output on the corrupted prompt − metric of
the full model: the effect of the changed prompt through the node. Vig et al. give it as a ratio of probabilities; here
it is in the metric's units, and positive if the node works for the behaviour.
"""

import numpy as np
import torch

from acdc.graph.scores import Scores
from acdc.io.progress import Progress, Show, silent
from acdc.patching.patch import PatchedModel
from acdc.patching.problem import Problem


@torch.inference_mode()
def score(problem: Problem, progress: Show = silent) -> Scores:
    """Scores of all nodes, and of all edges by them."""
    graph = problem.graph
    model = problem.model
    total = np.zeros(len(graph.senders))
    depth = [graph.n_layers + 1 - s.layer if s.layer >= 0 else 0 for s in graph.senders]  # what is run behind a node
    done = 0
    for cache in problem.chunks(problem.max_batch(4 * graph.n_heads)):
        metric = cache.metric(problem.metric, model)
        full = metric(cache.targets.clean)
        patched = PatchedModel(model, cache)
        for first, written in cache.changes(model, len(graph.senders)):
            sender = graph.senders[first]
            if sender.kind == "input":
                continue
            rows = patched.without_node(sender.layer, written, sender.kind == "head")
            total[first : first + len(written)] += (metric(rows) - full).cpu().double().sum(1).numpy()
            done += len(written) * depth[first] * len(cache.pad)
            progress(Progress("scores", done, sum(depth) * problem.n_prompts, sender.name))
    return Scores.of_nodes(graph, total / problem.n_prompts)

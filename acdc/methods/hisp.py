"""Head importance score for pruning (Michel et al. 2019, arXiv 1905.10650), as Conmy et al. 2023 use it for circuits.

Importance of a node = |(ablated − clean output) · gradient of the metric at the output|, summed over positions before
the magnitude is taken, mean over the prompts, divided by the ℓ2 norm of the importances of its layer as in Michel et
al.; the MLP counts as one more head. No unit; never negative.
"""

import numpy as np
import torch

from acdc.graph.scores import Scores
from acdc.io.progress import Progress, Show, silent
from acdc.patching.activations import CHUNK
from acdc.patching.gradients import receiver_gradients
from acdc.patching.problem import Problem
from acdc.registry import check_method


def score(problem: Problem, progress: Show = silent) -> Scores:
    """Scores of all nodes, and of all edges by them. Raises UserError for a metric that is flat at the full model."""
    check_method("hisp", problem.metric, problem.parts.ablation)
    graph = problem.graph
    model = problem.model
    total = torch.zeros(len(graph.senders), dtype=torch.float64)
    done = 0
    for cache in problem.chunks(CHUNK):
        metric = cache.metric(problem.metric, model)
        difference = cache.difference
        for gradient in receiver_gradients(model, cache, cache.clean, cache.residual, metric):
            r = graph.receivers[gradient.receivers.start]
            if r.kind == "logits":
                continue
            if r.kind == "mlp":
                effect = (difference.mlp[r.layer] * gradient.written).sum((1, 2))[:, None]
                first = graph.sender_index[r.node]
            else:
                w = model.weights[f"layers.{r.layer}.o.weight"]
                flow = torch.einsum("btd,hed->bhte", gradient.written, w)
                effect = (difference.z[r.layer] * flow).sum((2, 3))
                first = graph.sender_index[f"a{r.layer}.h0"]
            total[first : first + effect.shape[1]] += effect.abs().cpu().double().sum(0)
        done += len(cache.pad)
        progress(Progress("scores", done, problem.n_prompts, f"{done:,} of {problem.n_prompts:,} prompts"))
    nodes = (total / problem.n_prompts).numpy()
    layers = np.array([s.layer for s in graph.senders])
    for layer in range(graph.n_layers):
        nodes[layers == layer] /= np.linalg.norm(nodes[layers == layer]) or 1.0
    return Scores.of_nodes(graph, nodes)

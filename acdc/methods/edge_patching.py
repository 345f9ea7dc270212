"""Exact patching of every edge alone (leave one out).

Score of an edge = metric without it − metric of the full model: what attribution estimates, and what ACDC measures
before it has removed anything. Every edge costs a patched pass from its receiver on.
"""

import numpy as np
import torch

from acdc.graph.scores import Scores
from acdc.io.progress import Progress, Show, silent
from acdc.patching.patch import PatchedModel
from acdc.patching.problem import Problem

VERSIONS = 16  # edges of one receiver evaluated at once


@torch.inference_mode()
def score(problem: Problem, progress: Show = silent) -> Scores:
    """Scores of all edges."""
    graph = problem.graph
    model = problem.model
    total = np.where(problem.candidates, 0.0, np.nan)
    done = 0
    depth = [graph.n_layers + 1 - r.layer for r in graph.receivers]  # layers that are run, and the output
    work = [graph.n_parents(r) * deep for r, deep in zip(graph.receivers, depth, strict=True)]
    for cache in problem.chunks(problem.max_batch(len(graph.senders))):
        metric = cache.metric(problem.metric, model)
        full = metric(cache.targets.clean)
        patched = PatchedModel(model, cache)
        written = torch.cat([x for _, x in cache.changes(model, len(graph.senders))])
        masks = [1] if cache.spans is None else cache.spans[:, :, cache.first :, None]
        for receiver, r in enumerate(graph.receivers):
            n = graph.n_parents(r)
            for first in range(0, n, VERSIONS):
                last = min(n, first + VERSIONS)
                effects = []
                for mask in masks:
                    rows = patched.without_edge(r, written[first:last] * mask)
                    effects.append((metric(rows) - full).cpu().double().sum(1).numpy())
                total[first:last, receiver] += np.stack(effects, -1).reshape(total[first:last, receiver].shape)
            done += work[receiver] * len(cache.pad)
            progress(Progress("scores", done, sum(work) * problem.n_prompts, r.name))
    return Scores(graph, total / problem.n_prompts, spans=problem.spans)

"""Information flow routes (Ferrando and Voita 2024, arXiv 2403.00824), for the edges of our graph.

Score of an edge = the sender's share in what its receiver reads, mean over the positions of a prompt (padding left
out), mean over the prompts. With y the stream that the receiver reads before its norm, and z what a sender writes,

    proximity(z, y) = max(0, ‖y‖₁ − ‖y − z‖₁)        share of z = its proximity / Σ over all senders of the receiver

A share is from 0 to 1; where no sender comes near y, all shares are 0. That is the definition of EAP-IG
(github.com/hannamw/EAP-IG, `information-flow-routes`), which has NaN there. Only clean prompts and no metric are used:
the scores are the same for every ablation, and say nothing about the task but its prompts. Queries, keys and values of
one layer read the same stream, so that a sender has one score for all of them.

The paper goes further: it splits a head's output by the positions that the head attends to, and follows the routes top
down from one prediction, through edges above a threshold.
"""

import numpy as np
import torch
from torch import Tensor

from acdc.graph.scores import Scores
from acdc.io.progress import Progress, Show, silent
from acdc.patching.activations import TABLE_BYTES, ActivationCache
from acdc.patching.problem import Problem


@torch.inference_mode()
def score(problem: Problem, progress: Show = silent) -> Scores:
    """Scores of all edges."""
    graph = problem.graph
    parents = [graph.n_parents(r) for r in graph.receivers]  # receivers with the same senders read the same stream
    total = {n: torch.zeros(n, dtype=torch.float64) for n in parents}
    row = len(graph.senders) * problem.model.config.d_model * problem.model.dtype.itemsize
    done = 0
    for cache in problem.chunks(max(1, TABLE_BYTES // row)):
        for position in range(cache.mask.shape[1]):
            _add(total, problem, cache, position)
        done += len(cache.pad)
        progress(Progress("scores", done, problem.n_prompts, f"{done:,} of {problem.n_prompts:,} prompts"))
    edges = np.full(graph.edges.shape, np.nan)
    for receiver, n in enumerate(parents):
        edges[:n, receiver] = total[n].numpy() / problem.n_prompts
    return Scores(graph, edges)


def _add(total: dict[int, Tensor], problem: Problem, cache: ActivationCache, position: int) -> None:
    """Add the shares at one position of all prompts, over the prompts' lengths, to those by the number of senders."""
    here = slice(position, position + 1)
    clean = cache.clean.map(lambda x: x[..., here, :])
    model = problem.model

    def added(layer: int, x: Tensor) -> Tensor:
        return model.share(layer, clean.z[layer], x)

    written = torch.cat([x for _, x in model.written_by(clean, len(problem.graph.senders), added)])
    n_pos = cache.mask.shape[1]
    weight = (position >= cache.pad).to(model.dtype) / (n_pos - cache.pad)
    for n, r in {problem.graph.n_parents(r): r for r in problem.graph.receivers}.items():
        read = model.received(r, clean, cache.residual[:, :, here])
        near = (read.abs().sum(-1) - (read - written[:n]).abs().sum(-1)).clamp(min=0)[..., 0]  # Float[sender batch]
        whole = near.sum(0)
        share = near / torch.where(whole == 0, 1, whole)
        total[n] += (share @ weight).cpu().double()

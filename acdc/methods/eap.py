"""Edge attribution patching (Syed et al. 2023, arXiv 2310.10348).

Score of an edge = (sender's ablated − clean output) · (gradient of the metric at the receiver's input, full model on
the clean prompts), summed over positions, mean over the prompts: to first order the rise of the metric when the edge is
removed. The sign is that of EAP-IG, whose users minimise a loss. EAP-IG sums what its metric returns over the prompts
of a batch: its scores equal these if the metric is summed (`mean=False`), and are these divided by the batch size if it
is averaged.
"""

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from acdc.graph.scores import Scores
from acdc.io.progress import Progress, Show, silent
from acdc.model.activations import Activations
from acdc.model.transformer import Transformer
from acdc.patching.activations import CHUNK, ActivationCache
from acdc.patching.gradients import Gradient, added_by, receiver_gradients
from acdc.patching.problem import Problem
from acdc.registry import check_method


def score(problem: Problem, progress: Show = silent) -> Scores:
    """Scores of all edges. Raises UserError for a metric whose gradient at the full model is zero."""
    check_method("eap", problem.metric, problem.parts.ablation)
    return at_clean(problem, problem.model, progress)


def at_clean(problem: Problem, model: Transformer, progress: Show) -> Scores:
    """Scores from the gradients of the clean run, as `model` propagates them."""
    total = Attribution(problem, 1, progress)
    for cache in problem.chunks(CHUNK):
        metric = cache.metric(problem.metric, model)
        total.add(model, cache, cache.clean, receiver_gradients(model, cache, cache.clean, cache.residual, metric))
    return total.scores()


class Attribution:
    """Sums of differences times gradients, over positions, prompts and runs."""

    def __init__(self, problem: Problem, runs: int, progress: Show) -> None:
        """`runs`: how many there are of each prompt."""
        self._problem = problem
        self._progress = progress
        self._all_runs = runs * problem.n_prompts
        self._total = torch.zeros(problem.candidates.shape, dtype=torch.float64)
        self._runs = 0  # of one prompt each

    def add(self, model: Transformer, cache: ActivationCache, at: Activations, gradients: Iterable[Gradient]) -> None:
        """Add the contribution of one run's gradients."""
        self._add(model, cache, at, gradients)
        self._runs += len(cache.pad)
        self._progress(Progress("scores", self._runs, self._all_runs))

    def _add(self, model: Transformer, cache: ActivationCache, at: Activations, gradients: Iterable[Gradient]) -> None:
        graph = self._problem.graph
        everything = len(graph.senders)
        if self._problem.max_batch(everything) >= len(cache.pad):  # all outputs fit into the table at once
            whole = torch.cat([x for _, x in added_by(model, cache, at, everything)])
            for gradient in gradients:
                self._multiply(cache, 0, whole[: self._parents(gradient)], gradient)
            return
        pending: list[Gradient] = []
        for gradient in gradients:
            pending.append(gradient)
            if sum(len(g.inputs) for g in pending) >= 3 * graph.n_heads:  # an MLP together with the heads of its layer
                self._flush(model, cache, at, pending)
                pending = []
        self._flush(model, cache, at, pending)

    def scores(self) -> Scores:
        """The scores: the mean over prompts and runs."""
        mean = (self._total / self._runs).numpy()
        return Scores(self._problem.graph, np.where(self._problem.candidates, mean, np.nan), spans=self._problem.spans)

    def _flush(self, model: Transformer, cache: ActivationCache, at: Activations, gradients: list[Gradient]) -> None:
        """Multiply some gradients with all senders below them; each head is projected to the stream only once."""
        parents = [self._parents(g) for g in gradients]
        for first, written in added_by(model, cache, at, max(parents, default=0)):
            for gradient, n in zip(gradients, parents, strict=True):
                if first < n:
                    self._multiply(cache, first, written, gradient)

    def _multiply(self, cache: ActivationCache, first: int, written: Tensor, gradient: Gradient) -> None:
        product = cache.products(written, gradient.inputs)
        self._total[first : first + len(written), gradient.receivers] += product.cpu().double()

    def _parents(self, gradient: Gradient) -> int:
        graph = self._problem.graph
        return graph.n_parents(graph.receivers[gradient.receivers.start])

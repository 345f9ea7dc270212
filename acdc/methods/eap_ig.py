"""Edge attribution patching with integrated gradients (Hanna et al. 2024, arXiv 2403.17806), in three forms.

The score is that of `acdc.methods.eap`, with the gradient averaged over several runs between corrupted and clean:

eap-ig                  k = 0 … steps − 1: the inputs write corrupted + k/steps (clean − corrupted)
eap-ig-activations      for the inputs, for the heads of each layer and for each MLP, k = 1 … steps: they write
                        ablated + k/steps (clean − ablated) in an otherwise clean run; gradients at all receivers count
eap-ig-clean-corrupted  the clean run and the corrupted run

as EAP-IG (github.com/hannamw/EAP-IG) computes them. With more steps, the scores of the first form, summed over the
edges from the inputs, approach metric(corrupted) − metric(clean).
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from acdc.graph.scores import Scores
from acdc.io.progress import Show, silent
from acdc.methods.eap import Attribution
from acdc.model.activations import Activations
from acdc.patching.activations import CHUNK, ActivationCache
from acdc.patching.gradients import receiver_gradients
from acdc.patching.problem import Problem
from acdc.registry import METHODS, check_method

Point = tuple[Activations, Tensor, tuple[str, int] | None]  # a run, its residual stream, the block set by hand


def score(
    problem: Problem, method: str = "eap-ig", steps: int = METHODS["eap-ig"].repeats, progress: Show = silent
) -> Scores:
    """Scores of all edges; eap-ig-clean-corrupted ignores the steps. Raises UserError if the method needs corrupted
    prompts, which the ablation lacks."""
    check_method(method, problem.metric, problem.parts.ablation)
    points = {"eap-ig": _inputs, "eap-ig-activations": _activations, "eap-ig-clean-corrupted": _ends}[method]
    n_blocks = len(_blocks(problem))
    runs = {"eap-ig": steps, "eap-ig-activations": steps * n_blocks, "eap-ig-clean-corrupted": 2}[method]
    total = Attribution(problem, runs, progress)
    for cache in problem.chunks(CHUNK):
        metric = cache.metric(problem.metric, problem.model)
        for at, residual, cut in points(problem, cache, steps):
            gradients = receiver_gradients(problem.model, cache, at, residual, metric, cut)
            total.add(problem.model, cache, at, gradients)
    return total.scores()


def _inputs(problem: Problem, cache: ActivationCache, steps: int) -> Iterator[Point]:
    clean = cache.clean.inputs
    corrupted = cache.ablated.inputs
    for k in range(steps):
        yield *problem.model.run_inputs(corrupted + k / steps * (clean - corrupted), cache.pad), None


def _ends(problem: Problem, cache: ActivationCache, _: int) -> Iterator[Point]:
    yield cache.clean, cache.residual, None
    yield *problem.model.run_inputs(cache.ablated.inputs, cache.pad), None


def _blocks(problem: Problem) -> list[tuple[str, int]]:
    blocks = [("inputs", 0)]
    for layer in range(problem.model.config.n_layers):
        blocks += [("z", layer)] + [("mlp", layer)] * int(problem.graph.mlp)
    return blocks


def _activations(problem: Problem, cache: ActivationCache, steps: int) -> Iterator[Point]:
    clean = cache.clean
    ablated = cache.ablated
    for block in _blocks(problem):
        for share in (k / steps for k in range(1, steps + 1)):

            def edit(
                kind: str, layer: int, computed: Tensor, block: tuple[str, int] = block, share: float = share
            ) -> Tensor:
                if (kind, layer) != block:
                    return computed
                at = problem.graph.mlps(layer) if kind == "mlp" else layer
                return torch.lerp(getattr(ablated, kind)[at], getattr(clean, kind)[at], share)

            inputs = torch.lerp(ablated.inputs, clean.inputs, share) if block[0] == "inputs" else clean.inputs
            yield *problem.model.run_inputs(inputs, cache.pad, edit), block

"""The edges that exact elimination begins with: those that gradients can't rule out.

In the current circuit, the effect of removing each edge is estimated by integrated gradients over the edges' weights,
from the circuit to none of its edges (Sundararajan et al. 2017, along the weights that `patched_rows` gives edges; for
one step from the full model that is edge attribution patching). Half of the edges, those with the smallest effects, go
at once; then it is estimated anew. If the circuit would get worse than allowed, fewer go.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from acdc.errors import FileError
from acdc.graph.circuit import Circuit
from acdc.io.files import read_bytes, write_atomic
from acdc.io.progress import Progress, Show
from acdc.patching.activations import CHUNK
from acdc.patching.patch import PatchedModel, circuit_edges, patched_rows
from acdc.patching.problem import Problem

Array = np.ndarray

STEPS = 4  # weights at which gradients are taken, the middles of as many intervals from 0 to 1
SHARES = (0.5, 0.75, 0.875)  # of the edges that stay, until the circuit is good enough
FEWEST = 64  # edges that are never ruled out by gradients: exact elimination is cheap from there on


def superset(problem: Problem, allowed: Array, path: Path, good: Callable[[float], bool], progress: Show) -> Array:
    """Remove edges as long as the metric of the circuit, mean over the prompts, is `good`: Bool[sender receiver].

    `path` is the file of the edges that are left; an interrupted search goes on from it.
    """
    left, done = _read(path, allowed) if path.exists() else (Circuit(problem.graph, allowed).live(), False)
    while not done:
        _show(problem, left, progress)
        fewer = _smaller(problem, left, good)
        done = fewer is None
        left = left if fewer is None else fewer
        write_atomic(path, save({"edges": left, "done": np.array([done])}))
    return left


def _smaller(problem: Problem, left: Array, good: Callable[[float], bool]) -> Array | None:
    """The edges without those of the smallest effects, or None if no share of them can go."""
    n = int(left.sum())
    if n <= FEWEST:
        return None
    effects = np.where(left, np.abs(edge_effects(problem, left)), -np.inf)
    ranked = np.sort(effects[left])[::-1]
    for share in SHARES:
        least = ranked[max(FEWEST, round(share * n)) - 1]
        fewer = Circuit(problem.graph, effects >= least).live()
        if fewer.sum() < n and good(metric_of(problem, fewer)):
            return fewer
    return None


def metric_of(problem: Problem, kept: Array) -> float:
    """The metric of a circuit, mean over the prompts."""
    edges = circuit_edges(Circuit(problem.graph, kept), problem.model)
    with torch.inference_mode():
        rows = torch.cat([patched_rows(problem.model, problem.graph, cache, edges) for cache in problem.parts])
        return float(problem.parts.metric(problem.metric)(rows).cpu().double().mean())


def edge_effects(problem: Problem, kept: Array) -> Array:
    """Estimated rise of the metric when each edge is removed from a circuit, or added to it if it isn't in it, which
    the sign doesn't say: Float[sender receiver], mean over the prompts; 0 for edges of nodes outside the circuit."""
    return -sum(gradients(problem, kept, (step + 0.5) / STEPS) for step in range(STEPS)) / STEPS


def gradients(problem: Problem, kept: Array, weight: float = 1.0) -> Array:
    """Gradients of the metric at the weights of all edges, Float[sender receiver], in a circuit whose edges have some
    weight and all others 0: mean over the prompts; 0 for edges of nodes outside the circuit."""
    model = problem.model
    graph = problem.graph
    total = np.zeros(graph.edges.shape)
    read = int(kept.any(0).sum())
    size = min(CHUNK, problem.max_batch(8 * read))  # the backward pass holds a few vectors per receiver
    with torch.inference_mode(False), torch.enable_grad():
        for cache in problem.chunks(size):
            edges = torch.as_tensor(kept).to(model.device, model.dtype).mul(weight).requires_grad_()
            value = cache.metric(problem.metric, model)(PatchedModel(model, cache).with_edges(graph, edges)).sum()
            total += torch.autograd.grad(value, edges)[0].cpu().double().numpy()
    return total / problem.n_prompts


def _show(problem: Problem, left: Array, progress: Show) -> None:
    n = problem.graph.n_edges
    progress(Progress(n - int(left.sum()), n, "edges", f"{int(left.sum()):,} left, ruling out by gradients"))


def _read(path: Path, allowed: Array) -> tuple[Array, bool]:
    try:
        tensors = load(read_bytes(path))
        left, done = tensors["edges"], bool(tensors["done"][0])
    except (SafetensorError, LookupError, TypeError, ValueError):
        raise FileError(f"{path}: not a file of edges; remove the folder or use --force") from None
    if left.shape != allowed.shape or left.dtype != bool or (left & ~allowed).any():
        raise FileError(f"{path}: holds edges of another search; remove the folder or use --force")
    return left, done

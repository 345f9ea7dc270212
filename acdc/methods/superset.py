"""The edges that exact elimination begins with: those that gradients can't rule out.

In the current circuit, the effect of removing each edge is estimated by integrated gradients over the edges' weights,
from the circuit to none of its edges (Sundararajan et al. 2017, along the weights that `patched_rows` gives edges; for
one step from the full model that is edge attribution patching). Half of the edges, those with the smallest effects, go
at once; then it is estimated anew. If the circuit would get worse than allowed, fewer go. With spans, Bool[sender
receiver] here is Bool[sender receiver span].
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load, save

from acdc.errors import FileError, UserError
from acdc.io.files import read_bytes, write_atomic
from acdc.io.progress import Progress, Show
from acdc.patching.activations import CHUNK, non_finite_advice
from acdc.patching.metrics import resolution
from acdc.patching.patch import PatchedModel, circuit_edges, patched_rows
from acdc.patching.problem import Problem

Array = np.ndarray
Effects = dict[tuple[str, bytes], Array]  # by metric and circuit

STEPS = 4  # weights at which gradients are taken, the middles of as many intervals from 0 to 1
SHARES = (0.5, 0.75, 0.875)  # of the edges that stay, until the circuit is good enough
NEEDED = 2  # vectors per receiver that count for how many prompts are run at once
FEWEST = 64  # edges that are never ruled out by gradients: exact elimination is cheap from there on


@dataclass(frozen=True)
class Ends:
    """The metric, mean over the prompts, of the full model and with everything ablated, between which faithfulness is
    measured (`acdc.evaluation.faithfulness`)."""

    full: float
    ablated: float
    rounding: float  # the smallest difference that is more than rounding

    @classmethod
    def of(cls, problem: Problem) -> Ends:
        """Measure the ends; raise UserError if they aren't finite."""
        full = metric_of(problem, problem.candidates)
        ablated = metric_of(problem, np.zeros_like(problem.candidates))
        if not math.isfinite(full + ablated):
            advice = non_finite_advice(problem.model)
            raise UserError(
                f"{problem.metric} is {full} in the full model, {ablated} with everything ablated; {advice}"
            )
        return cls(full, ablated, resolution(problem.model, problem.parts.targets))

    @property
    def span(self) -> float:
        """What ablating everything costs."""
        return self.ablated - self.full

    def faithfulness(self, metric: float) -> float:
        """The faithfulness of a circuit with this metric."""
        return (self.ablated - metric) / self.span

    def loss(self, metric: float) -> float:
        """The faithfulness that a circuit with this metric lacks."""
        return 1 - self.faithfulness(metric)

    def metric(self, faithfulness: float) -> float:
        """The metric of a circuit that is so faithful; a circuit as good as the full model may differ by rounding."""
        return max(self.full + self.rounding, self.ablated - faithfulness * self.span)


def superset(
    problem: Problem, allowed: Array, fewest: int, worst: float, path: Path, known: Effects, progress: Show
) -> Array:
    """The edges that can't be ruled out, of those `allowed`: Bool[sender receiver].

    Args:
        fewest: the least number of edges to leave
        worst: the largest metric of the circuit that they make
        path: the file of the edges that are left; an interrupted search goes on from it
        known: effects, which aren't computed again
    """
    begun = path.exists()
    left, done = _read(path, allowed) if begun else (problem.circuit(allowed).live(), False)
    resumed = f"{int(left.sum()):,} edges that gradients left" if begun else ""
    while not done:
        n_left = max(1, int(left.sum()))
        n_all = problem.candidates.sum()
        halved = math.log2(n_all / n_left)  # how often: each time takes about as long
        total = max(halved, math.log2(n_all / fewest))
        progress(Progress("gradients", halved, total, f"{n_left:,} edges left", resumed))
        resumed = ""
        good = begun or metric_of(problem, left) <= worst  # what was left later has been measured
        fewer = _smaller(problem, left, fewest, worst, known) if good else None
        begun = True
        done = fewer is None
        left = left if fewer is None else fewer
        write_atomic(path, save({"edges": left, "done": np.array([done])}))
    return left


def _smaller(problem: Problem, left: Array, fewest: int, worst: float, known: Effects) -> Array | None:
    """The edges without those of the smallest effects, or None if no share of them can go: `fewest` edges stay, and the
    metric gets no worse than `worst`."""
    n = int(left.sum())
    if n <= fewest:
        return None
    what = problem.metric, np.packbits(left).tobytes()
    if what not in known:
        known[what] = edge_effects(problem, left)
    effects = np.where(left, np.abs(known[what]), -np.inf)
    ranked = np.sort(effects[left])[::-1]
    for share in SHARES:
        least = ranked[max(fewest, round(share * n)) - 1]
        fewer = problem.circuit(effects >= least).live()
        if fewer.sum() < n and metric_of(problem, fewer) <= worst:
            return fewer
    return None


def metric_of(problem: Problem, kept: Array) -> float:
    """The metric of a circuit, mean over the prompts."""
    edges = circuit_edges(problem.circuit(kept), problem.model)
    with torch.inference_mode():
        rows = problem.parts.targets.clean
        if not (kept == problem.candidates).all():
            rows = torch.cat([patched_rows(problem.model, problem.graph, cache, edges) for cache in problem.parts])
        return float(problem.parts.metric(problem.metric)(rows).cpu().double().mean())


def edge_effects(problem: Problem, kept: Array) -> Array:
    """Estimated rise of the metric when each edge alone is removed from a circuit, mean over the prompts: Float[sender
    receiver]; of other edges not."""
    return -np.mean([gradients(problem, kept, (step + 0.5) / STEPS) for step in range(STEPS)], axis=0)


def gradients(problem: Problem, kept: Array, weight: float = 1.0) -> Array:
    """Gradients of the metric at the weights of all edges, Float[sender receiver], in a circuit whose edges have some
    weight and all others 0: mean over the prompts; 0 for edges of nodes outside the circuit."""
    model = problem.model
    graph = problem.graph
    total = np.zeros(kept.shape)
    read = max(1, int(problem.circuit(kept).edges.any(0).sum()))
    groups = 1 + graph.n_layers if model.config.post_norm else 1  # sums that a receiver reads
    size = min(CHUNK, problem.max_batch(NEEDED * read * groups))
    with torch.inference_mode(False):
        edges = torch.as_tensor(kept).to(model.device, model.dtype) * weight
        for cache in problem.chunks(size):
            metric = cache.metric(problem.metric, model)
            total += PatchedModel(model, cache).edge_gradients(graph, edges, metric).cpu().double().numpy()
    return total / problem.n_prompts


def _read(path: Path, allowed: Array) -> tuple[Array, bool]:
    try:
        tensors = load(read_bytes(path))
        left = tensors["edges"]
        done = bool(tensors["done"][0])
    except (SafetensorError, LookupError, TypeError, ValueError):
        raise FileError(f"{path}: not a file of edges; remove the folder or use --force") from None
    if left.shape != allowed.shape or left.dtype != bool or (left & ~allowed).any():
        raise FileError(f"{path}: holds edges of another search; remove the folder or use --force")
    return left, done

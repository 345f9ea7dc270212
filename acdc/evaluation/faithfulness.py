"""How good a circuit is: what is measured of it on prompts, between the full model and everything ablated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.errors import UserError
from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.progress import Progress, Show, silent
from acdc.patching.activations import non_finite_advice
from acdc.patching.metrics import accuracy
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.setup.inputs import Inputs

Array = np.ndarray

ROUNDING = 100  # times a dtype's precision: a change of the metric by less is none
MISSES = 100  # paths in a row that are too long, before a random circuit is begun anew


@torch.inference_mode()
def circuit_rows(inputs: Inputs, half: str, circuit: Circuit | None) -> Tensor:
    """The normalised final residual stream at the scored rows of one half, `discovery` or `held_out`, of a circuit that
    is run as a whole by plain patching: Float[row d_model]. None is the full model."""
    parts, model = inputs.parts(half), inputs.model.transformer
    if circuit is None:
        return parts.targets.clean
    edges = circuit_edges(circuit, model)
    return torch.cat([patched_rows(model, circuit.graph, runs, edges) for runs in parts])


@torch.inference_mode()
def prompt_values(inputs: Inputs, half: str, rows: Tensor, metric: str) -> Array:
    """A metric's value for every prompt, Float[prompt], lower is better: rows as `circuit_rows` gives them.

    Raises:
        UserError: one is not finite.
    """
    return finite(inputs, half, metric, inputs.parts(half).metric(metric)(rows))


def finite(inputs: Inputs, half: str, what: str, values: Tensor) -> Array:
    """What a metric says of every prompt of a half, Float[prompt].

    Raises:
        UserError: a value is not finite.
    """
    found: Array = values.double().cpu().numpy()
    if len(wrong := np.flatnonzero(~np.isfinite(found))):
        prompt = inputs.prompt(half, int(wrong[0]))
        raise UserError(f"{what} is {found[wrong[0]]} on {prompt}; {non_finite_advice(inputs.model.transformer)}")
    return found


@torch.inference_mode()
def share_right(inputs: Inputs, half: str, rows: Tensor) -> float:
    """The share of scored positions at which the answer is right (`acdc.patching.metrics.accuracy`), NaN for a task
    without answers."""
    targets = inputs.parts(half).targets
    if not targets.correct.shape[1]:
        return np.nan
    return float(accuracy(inputs.model.transformer, targets, rows).double().mean())


def circuit_values(inputs: Inputs, half: str, circuit: Circuit | None) -> tuple[Array, float]:
    """The run's metric for every prompt, Float[prompt], and the share that is right, of a circuit or the full model."""
    rows = circuit_rows(inputs, half, circuit)
    return prompt_values(inputs, half, rows, inputs.config.metric), share_right(inputs, half, rows)


def faithfulness(circuit: Array, full: Array, ablated: Array, seed: int = 0) -> Estimate:
    """How much of what the full model has over the fully ablated one a circuit has, from a metric's values for every
    prompt, Float[prompt] each: (mean ablated − mean circuit) / (mean ablated − mean full). 1 is the full model, 0 is
    everything ablated; NaN where the two don't differ. As in Hanna et al. 2024 (section 3) and MIB (Mueller et al.
    2025).

    Of the complement of a circuit it is Wang et al.'s (2022) completeness, with all of the circuit knocked out: what
    the rest of the model does without it, the lower the better.
    """
    return estimate(ablated - circuit, ablated - full, seed)


def prompt_faithfulness(circuit: Array, full: Array, ablated: Array) -> Array:
    """The same for every prompt alone, Float[prompt]; NaN where the full model has nothing over the ablated one.

    Its mean is not the faithfulness, which weighs prompts by what there is to recover (Miller et al. 2024).
    """
    span = ablated - full
    some = span > ROUNDING * np.finfo(np.float32).eps * np.abs(ablated).max()
    return np.where(some, (ablated - circuit) / np.where(some, span, 1), np.nan)


class Judgement(NamedTuple):
    """How a circuit does on all prompts: the run's mean metric, faithfulness, and the share of right answers, NaN for a
    task without answers."""

    metric: float
    faithfulness: Estimate
    accuracy: float


class Judge:
    """Circuits on the prompts that they are judged on, between the full model and everything ablated.

    Args:
        half: those prompts, `held_out`, or `discovery` for a task that has no others
        full, ablated: the run's metric for every prompt, Float[prompt]
        full_accuracy, ablated_accuracy: see `share_right`
    """

    def __init__(self, inputs: Inputs) -> None:
        self.inputs, self.half = inputs, inputs.evaluation_split
        self.full, self.full_accuracy = circuit_values(inputs, self.half, None)
        none = Circuit.empty(inputs.problem(self.half).graph)
        self.ablated, self.ablated_accuracy = circuit_values(inputs, self.half, none)

    def judged(self, circuit: Circuit) -> Judgement:
        """How a circuit does."""
        values, right = circuit_values(self.inputs, self.half, circuit)
        found = faithfulness(values, self.full, self.ablated, self.inputs.config.seed)
        return Judgement(float(values.mean()), found, right)


def complement(circuit: Circuit) -> Circuit:
    """All edges but the circuit's."""
    kept = circuit.kept if circuit.direct is None else circuit.kept & (circuit.direct | ~circuit.graph.direct)
    return Circuit(circuit.graph, circuit.graph.edges & ~kept)


@torch.inference_mode()
def values_without(
    inputs: Inputs,
    half: str,
    circuit: Circuit,
    edges: Sequence[tuple[int, int]],
    metric: str,
    progress: Show = silent,
) -> Array:
    """A metric's value for every prompt when one edge alone is removed from a circuit, for each of some edges, by an
    exact patched pass each: Float[edge prompt].

    The rise over the circuit itself is the edge's minimality: Wang et al.'s (2022) criterion that nothing in a circuit
    is there for nothing, with the rest of the circuit as the set that the edge must matter beside.

    Args:
        edges: (sender, receiver) of each
    Raises:
        UserError: a value is not finite.
    """
    parts, model = inputs.parts(half), inputs.model.transformer
    kept, values = circuit_edges(circuit, model), []
    for i, runs in enumerate(parts):  # outside: a part may have to be read from its file
        measure, of_part = runs.metric(metric, model), []
        for edge in edges:
            fewer = kept.clone()
            fewer[edge] = 0
            of_part.append(measure(patched_rows(model, circuit.graph, runs, fewer)))
            done = i * len(edges) + len(of_part)
            progress(Progress(done, len(parts) * len(edges), "edges", circuit.graph.edge_name(*edge)))
        values.append(torch.stack(of_part))
    names = [f"{metric} without {circuit.graph.edge_name(*edge)}" for edge in edges]
    each = zip(names, torch.cat(values, 1), strict=True)
    return np.stack([finite(inputs, half, name, of_edge) for name, of_edge in each])


def random_circuit(graph: Graph, n: int, draw: np.random.Generator) -> Circuit:
    """A random circuit of n residual edges, all of them on a path from an input to the logits; n is the number of such
    edges of some circuit.

    It grows by random paths: an edge into a node that is reached already (the logits are), and on from its sender by
    one of the sender's receivers to one of that receiver's senders, up to a node that is reached or an input. A path
    that is longer than what is left is drawn again.
    """
    while True:
        kept, misses = np.zeros_like(graph.edges), 0
        reached = np.array([s.kind == "input" for s in graph.senders])
        open_ = np.zeros(len(graph.receivers), dtype=bool)  # receivers of the nodes that are reached
        open_[graph.receiver_index["logits"]] = True
        while (left := n - int(kept.sum())) and misses < MISSES:
            free = np.argwhere(graph.edges & open_ & ~kept)
            path = [tuple(map(int, draw.choice(free)))]
            while not reached[sender := path[-1][0]]:
                receiver = int(draw.choice(graph.own_receivers[sender]))
                path.append((int(draw.integers(graph.n_parents(graph.receivers[receiver]))), receiver))
            misses = misses + 1 if len(path) > left else 0
            for s, r in path if not misses else ():
                kept[s, r] = reached[s] = True
                open_[list(graph.own_receivers[s])] = True
        if not left:
            return Circuit(graph, kept)

"""Measure circuits on prompts, between the full model and everything ablated: faithfulness, minimality, and others."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from acdc.errors import UserError, short
from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.io.progress import Progress, Show, silent
from acdc.patching.activations import non_finite_advice
from acdc.patching.metrics import accuracy
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.setup.inputs import Inputs

Array = np.ndarray
Rows = dict[str, Tensor]  # what was run (`model`, `circuit`, `ablated`) → final stream, Float[row d_model]
Table = dict[str, dict[str, Array]]  # metric → what was run → Float[prompt]; `accuracy` → Float[row], 1 where right

ROUNDING = 100  # a change of the metric below this many times the dtype's precision counts as none
MISSES = 100  # after so many paths in a row that are too long, a random circuit is started again


@torch.inference_mode()
def circuit_rows(inputs: Inputs, half: str, circuit: Circuit | None) -> Tensor:
    """Run a circuit (None: the full model) on one half, by plain patching, not by the engine that found it. Return the
    normalised final residual stream at the scored rows, Float[row d_model]."""
    parts = inputs.parts(half)
    model = inputs.model.transformer
    if circuit is None:
        return parts.targets.clean
    edges = circuit_edges(circuit, model)
    return torch.cat([patched_rows(model, circuit.graph, runs, edges) for runs in parts])


def final_rows(inputs: Inputs, circuit: Circuit) -> dict[str, Rows]:
    """Run the full model, a circuit and everything ablated on each half: half → `Rows`."""
    runs = {"model": None, "circuit": circuit, "ablated": Circuit.empty(circuit.graph)}
    halves = dict.fromkeys(("discovery", inputs.evaluation_split))  # each once: a task may have one half only
    return {half: {what: circuit_rows(inputs, half, edges) for what, edges in runs.items()} for half in halves}


@torch.inference_mode()
def measure_rows(inputs: Inputs, half: str, rows: Rows, metrics: Iterable[str]) -> Table:
    """Take metrics of some runs on one half; lower is better. `accuracy` is left out for a task without answers. Raises
    UserError if a value is not finite."""
    parts = inputs.parts(half)
    table = Table()
    for name in metrics:
        metric = parts.metric(name)
        table[name] = {what: finite(inputs, half, name, metric(h)) for what, h in rows.items()}
    if parts.targets.correct.shape[1]:
        right = {what: accuracy(inputs.model.transformer, parts.targets, h) for what, h in rows.items()}
        table["accuracy"] = {what: of_row.cpu().double().numpy() for what, of_row in right.items()}
    return table


def measure_halves(inputs: Inputs, rows: dict[str, Rows]) -> dict[str, Table]:
    """Take every metric of the task of the runs of `final_rows`: half → `Table`."""
    return {half: measure_rows(inputs, half, of_half, inputs.task.metrics) for half, of_half in rows.items()}


def means(tables: dict[str, Table]) -> dict[str, float]:
    """`<half>.<what was run>.<metric>` → mean, as in circuit.json."""
    return {
        f"{half}.{what}.{metric}": float(values.mean())
        for half, table in tables.items()
        for metric, of_runs in table.items()
        for what, values in of_runs.items()
    }


def mean_accuracy(table: Table, what: str) -> float:
    """The share of scored positions with the right answer; NaN for a task without answers."""
    return float(table["accuracy"][what].mean()) if "accuracy" in table else np.nan


@torch.inference_mode()
def prompt_values(inputs: Inputs, half: str, circuit: Circuit | None, metric: str) -> Array:
    """One metric of a circuit (None: the full model) on every prompt of a half, Float[prompt]; lower is better. Raises
    UserError if a value is not finite."""
    rows = circuit_rows(inputs, half, circuit)
    return finite(inputs, half, metric, inputs.parts(half).metric(metric)(rows))


def finite(inputs: Inputs, half: str, what: str, values: Tensor) -> Array:
    """Return the values of every prompt, Float[prompt], in float64; raise UserError if one is not finite."""
    found: Array = values.cpu().double().numpy()
    if len(wrong := np.flatnonzero(~np.isfinite(found))):
        text = short(getattr(inputs.data, half).texts[wrong[0]][0])
        prompt = f"prompt {wrong[0] + 1} of the {half.replace('_', '-')} half: {text}"
        raise UserError(f"{what} is {found[wrong[0]]} on {prompt}; {non_finite_advice(inputs.model.transformer)}")
    return found


def faithfulness(circuit: Array, full: Array, ablated: Array, seed: int = 0) -> Estimate:
    """How much of the gap between the full and the fully ablated model a circuit recovers, from a metric's values per
    prompt, Float[prompt] each: (mean ablated − mean circuit) / (mean ablated − mean full). 1 is the full model, 0 is
    everything ablated; NaN where the two don't differ. See Hanna et al. 2024 (section 3), MIB (Mueller et al. 2025).

    Of a circuit's complement it is the completeness of Wang et al. (2022), with the whole circuit knocked out: what the
    rest of the model does without it; lower is better.
    """
    return estimate(ablated - circuit, ablated - full, seed)


def prompt_faithfulness(circuit: Array, full: Array, ablated: Array) -> Array:
    """Faithfulness on each prompt alone, Float[prompt]; NaN where the full model is not better than the ablated one.
    Its mean is not `faithfulness`, which weighs prompts by the gap to recover (Miller et al. 2024)."""
    span = ablated - full
    some = span > ROUNDING * np.finfo(np.float32).eps * np.abs(ablated).max()
    return np.where(some, (ablated - circuit) / np.where(some, span, 1), np.nan)


class Judge:
    """Measures circuits on one half of the prompts (by default the evaluation split), between the full model and
    everything ablated, of which it has the run's metric, Float[prompt], and the accuracy."""

    def __init__(self, inputs: Inputs, half: str | None = None) -> None:
        self.inputs = inputs
        self.half = half or inputs.evaluation_split
        self.full, self.full_accuracy = self._measured(None)
        self.ablated, self.ablated_accuracy = self._measured(Circuit.empty(inputs.problem(self.half).graph))

    def judged(self, circuit: Circuit) -> tuple[float, Estimate, float]:
        """A circuit's mean of the run's metric, its faithfulness, and its accuracy (NaN for a task without answers)."""
        values, right = self._measured(circuit)
        found = faithfulness(values, self.full, self.ablated, self.inputs.config.seed)
        return float(values.mean()), found, right

    def _measured(self, circuit: Circuit | None) -> tuple[Array, float]:
        """The run's metric, Float[prompt], and the accuracy, of a circuit or (None) the full model."""
        metric = self.inputs.config.metric
        rows = {"circuit": circuit_rows(self.inputs, self.half, circuit)}
        table = measure_rows(self.inputs, self.half, rows, [metric])
        return table[metric]["circuit"], mean_accuracy(table, "circuit")


def complement(circuit: Circuit) -> Circuit:
    """All edges but the circuit's, or all edge-spans."""
    return Circuit(circuit.graph, circuit.graph.edges_at(circuit.spans) & ~circuit.open, spans=circuit.spans)


@torch.inference_mode()
def values_without(
    inputs: Inputs, half: str, circuit: Circuit, edges: Sequence[tuple[int, ...]], metric: str, progress: Show = silent
) -> Array:
    """Remove each of some edges (sender, receiver), or edge-spans (sender, receiver, span), alone from a circuit, by an
    exact patched pass each, and take the metric on every prompt: Float[edge prompt].
    The rise over the circuit itself is the edge's minimality: the criterion of Wang et al. (2022) that every part of a
    circuit matters, with the rest of the circuit as the set beside which the edge must matter. Raises UserError if a
    value is not finite.
    """
    parts = inputs.parts(half)
    model = inputs.model.transformer
    kept = circuit_edges(circuit, model)
    names = [circuit.graph.part_name(edge, circuit.spans) for edge in edges]
    values = []
    for i, runs in enumerate(parts):  # the outer loop: reading a part from its file is slow
        measure = runs.metric(metric, model)
        of_part = []
        for edge, name in zip(edges, names, strict=True):
            fewer = kept.clone()
            fewer[edge] = 0
            of_part.append(measure(patched_rows(model, circuit.graph, runs, fewer)))
            progress(Progress("minimality", i * len(edges) + len(of_part), len(parts) * len(edges), f"without {name}"))
        values.append(torch.stack(of_part))
    each = zip(names, torch.cat(values, 1), strict=True)
    return np.stack([finite(inputs, half, f"{metric} without {name}", of_edge) for name, of_edge in each])


def random_circuit(graph: Graph, n: int, draw: np.random.Generator) -> Circuit:
    """Draw a circuit of n residual edges, all of them on a path from an input to the logits; some circuit of the graph
    must have n edges and none of them dead.

    It grows by random paths. A path starts with an edge into a reached node (at first the logits) and goes back from
    sender to sender, through a random receiver of each, until a sender is reached already or is an input. A path with
    more new edges than are still needed is drawn again.
    """
    while True:
        kept = np.zeros_like(graph.edges)
        misses = 0
        reached = np.array([s.kind == "input" for s in graph.senders])
        open_ = np.zeros(len(graph.receivers), dtype=bool)  # receivers of the reached nodes
        open_[graph.receiver_index["logits"]] = True
        while (left := n - int(kept.sum())) and misses < MISSES:
            free = np.argwhere(graph.edges & open_ & ~kept)
            path = [tuple(map(int, draw.choice(free)))]
            while not reached[sender := path[-1][0]]:
                receiver = int(draw.choice(graph.own_receivers[sender]))
                path.append((int(draw.integers(graph.n_parents(graph.receivers[receiver]))), receiver))
            if len(path) > left:
                misses += 1
                continue
            misses = 0
            for s, r in path:
                kept[s, r] = True
                reached[s] = True
                open_[list(graph.own_receivers[s])] = True
        if not left:
            return Circuit(graph, kept)

"""Compare methods on tasks: how faithful their circuits are, what they cost, and where they agree.

Every method gets the same prompts. A method that scores edges gives a circuit of its best edges for every size; ACDC
gives one for each of a grid of thresholds, and the score of an edge is the largest threshold at which it was kept. All
circuits are pruned and run as a whole on the held-out prompts. Each method works in `<out>/<task>/<method>/`, where a
second call resumes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from acdc.commands.compare_methods import Finder, Found
from acdc.commands.compare_plan import ComparePlan, has_threshold, ranked_by
from acdc.errors import FileError, UserError
from acdc.evaluation import ranking
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.faithfulness import Judge, circuit_rows, prompt_values
from acdc.files.circuit import read_circuit
from acdc.files.comparison import ComparedMethod, ComparedTask, Comparison, Judged, Similarity, to_csv
from acdc.graph.circuit import Circuit
from acdc.graph.scores import Scores
from acdc.io.files import to_json, write_atomic
from acdc.io.folder import locked
from acdc.io.progress import Show
from acdc.model.load import Model
from acdc.report import curves
from acdc.report.comparison import to_html
from acdc.report.panels import of_comparison
from acdc.setup.inputs import Inputs, load

Array = np.ndarray

# ACDC's thresholds: a log grid of shares of what ablating everything costs.
LOWEST = 0.001
HIGHEST = 0.3
THRESHOLDS = 8
NO_ROC: dict[str, Any] = {"auc": np.nan, "pessimistic_auc": np.nan, "node_auc": np.nan, "roc": ()}


def compare(
    plan: ComparePlan, memory: float | None, plots: bool, progress: Show, say: Callable[[str], None]
) -> Comparison:
    """Run all methods on all tasks, measure their circuits and write the files.

    Args:
        memory: bytes to stay below; by default half of the machine's
        say: shows the user a line
    Raises:
        UserError: the directory belongs to another comparison, is in use or can't be written; a size is larger than
            the graph; a reference is of another graph.
    """
    loaded = _load(plan, memory)
    with locked(plan.out):
        tasks = []
        while loaded:  # a task's activations are freed before the next one
            tasks.append(_on_task(plan, *loaded.pop(0), progress, say))
        result = Comparison(plan.sizes, plan.greedy, plan.tasks[0][0].abs, tuple(tasks))
        write_atomic(plan.out / "compare.json", to_json(result))
        write_atomic(plan.out / "table.csv", to_csv(result))
        write_atomic(plan.out / "report.html", to_html(result))
        if plots:
            for name, data in curves.draw(of_comparison(result)).items():
                write_atomic(plan.out / name, data)
    return result


def _load(plan: ComparePlan, memory: float | None) -> list[tuple[Inputs, Circuit | None]]:
    """Load the inputs of every task, and its reference if that is a file."""
    loaded: list[tuple[Inputs, Circuit | None]] = []
    models: dict[tuple[str, ...], Model] = {}  # tasks share a model
    for config, task in plan.tasks:
        inputs = load(config, task, memory, models.get(config.needs_model))
        models[config.needs_model] = inputs.model
        graph = inputs.model.transformer.config.graph()
        if plan.sizes[-1] > graph.n_edges:
            raise UserError(f"--sizes: {plan.sizes[-1]} of {graph.n_edges} edges of {config.model_name}; ask for fewer")
        reference = None
        if path := plan.references.get(config.task_name):
            reference = read_circuit(path).circuit()
            if reference.graph != graph:
                raise FileError(f"--reference {path}: is a circuit of another graph than that of {config.model_name}")
        loaded.append((inputs, reference))
    return loaded


def _on_task(
    plan: ComparePlan, inputs: Inputs, reference: Circuit | None, progress: Show, say: Callable[[str], None]
) -> ComparedTask:
    """Run all methods on a task and measure what they find."""
    config = inputs.config
    notes = []
    if doubt := warning(inputs, competence(inputs)):
        notes.append(doubt)
        say(doubt)
    judge = Judge(inputs)
    finder = Finder(plan, inputs, progress)
    thresholds = _thresholds(inputs)
    of_acdc = reference is None
    origin = str(plan.references.get(config.task_name))
    if reference is None:
        reference = finder.reference()
        origin = f"acdc at τ = {config.threshold:g}, the task's own"
    found: list[Found] = []
    for method in plan.methods:
        try:
            found.append(finder.find(method, thresholds))
        except FileError:
            raise
        except UserError as error:
            if method in plan.named:
                raise
            notes.append(f"{method} is left out: {error}")
            say(f"{config.task_name}: {notes[-1]}")
        else:
            say(f"{config.task_name}: {method} took {found[-1].cost.seconds:.1f} s")
    near = min(plan.sizes, key=lambda size: abs(size - reference.n_edges))
    unfiltered = next((f.circuits for f in found if f.method == "acdc"), None)
    return ComparedTask(
        name=config.task_name,
        model=config.model_name,
        model_hash=config.model_hash or "",
        data_hash=config.data_hash or "",
        metric=config.metric,
        ablation=config.ablation,
        examples=config.examples,
        seed=config.seed,
        half=judge.half,
        full=float(judge.full.mean()),
        ablated=float(judge.ablated.mean()),
        full_accuracy=judge.full_accuracy,
        ablated_accuracy=judge.ablated_accuracy,
        reference=origin,
        reference_edges=reference.n_edges,
        total=reference.graph.n_edges,
        methods=tuple(_method_part(judge, f, reference, of_acdc, unfiltered) for f in found),
        overlap=_overlap(found, near, config.abs),
        notes=tuple(notes),
    )


def _thresholds(inputs: Inputs) -> list[float]:
    """Return ACDC's thresholds, rising, in the metric's units.

    Raises:
        UserError: ablating everything costs nothing.
    """
    config = inputs.config
    none = Circuit.empty(inputs.model.transformer.config.graph())
    means = []
    for circuit in (None, none):
        rows = circuit_rows(inputs, "discovery", circuit)
        means.append(prompt_values(inputs, "discovery", rows, config.metric).mean())
    full, ablated = means
    if not ablated > full:
        raise UserError(
            f"--tasks: {config.model_name} does {config.task_name} as well with everything ablated "
            f"({config.metric} {ablated:.4g}, full model {full:.4g}): there is nothing to look for"
        )
    return [float(f"{x:.3g}") for x in np.geomspace(LOWEST, HIGHEST, THRESHOLDS) * (ablated - full)]


def _method_part(
    judge: Judge, found: Found, reference: Circuit, of_acdc: bool, unfiltered: dict[float, Circuit] | None
) -> ComparedMethod:
    """Measure a method's circuits and scores.

    Args:
        of_acdc: whether the reference is ACDC's
        unfiltered: ACDC's circuits without a filter, by threshold
    """
    config = judge.inputs.config
    swept = has_threshold(found.method)
    circuits = []
    shares = []  # (share of the edges, faithfulness)
    for bound, circuit in found.circuits.items():
        metric, (value, low, high), accuracy = judge.judged(circuit)
        lost = None
        if found.allowed is not None and unfiltered is not None:
            edges = np.argwhere(unfiltered[bound].kept & ~found.allowed)
            lost = tuple(circuit.graph.edge_name(s, r) for s, r in edges)
        judged = Judged(
            size=None if swept else int(bound),
            threshold=bound if swept else None,
            edges=circuit.n_edges,
            components=int(_components(circuit).sum()),
            metric=metric,
            faithfulness=value,
            low=low,
            high=high,
            accuracy=accuracy,
            lost=lost,
        )
        circuits.append(judged)
        shares.append(((circuit.n_edges if swept else bound) / circuit.graph.n_edges, value))
    areas = ranking.faithfulness_areas(np.array([(0.0, 0.0), *sorted(shares), (1.0, 1.0)]))
    return ComparedMethod(
        name=found.method,
        ranked_by=ranked_by(config, judge.inputs.task, found.method),
        seconds=found.cost.seconds,
        peak_memory_mb=found.cost.peak_memory_mb,
        circuits=tuple(circuits),
        cpr=areas.cpr,
        cmd=areas.cmd,
        **(NO_ROC if swept and of_acdc else _ranking(found.scores, reference, config.abs)),
    )


def _ranking(scores: Scores, reference: Circuit, magnitude: bool) -> dict[str, Any]:
    """Compare scores with a reference: the fields `auc`, `pessimistic_auc`, `node_auc` and `roc` of a method."""
    graph = reference.graph
    if not 0 < reference.n_edges < graph.n_edges:
        return NO_ROC
    importance = scores.importance(magnitude)
    curve = ranking.roc(importance[graph.edges], reference.kept[graph.edges])
    true_nodes = ranking.node_scores(graph, reference.kept) > 0
    node_auc = np.nan
    if 0 < true_nodes.sum() < len(true_nodes):
        node_auc = ranking.auc(ranking.roc(ranking.node_scores(graph, importance), true_nodes))
    return {
        "auc": ranking.auc(curve),
        "pessimistic_auc": ranking.pessimistic_auc(curve),
        "node_auc": node_auc,
        "roc": tuple((float(x), float(y)) for x, y in ranking.corners(curve)),
    }


def _overlap(found: list[Found], size: int, magnitude: bool) -> Similarity:
    """Compare the methods' circuits of about `size` edges, and their scores, with each other."""
    circuits = []
    for f in found:
        if has_threshold(f.method):
            circuits.append(min(f.circuits.values(), key=lambda c: abs(c.n_edges - size)))
        else:
            circuits.append(f.circuits[size])
    return Similarity(
        size=size,
        edges=_pairs(ranking.jaccard, [c.kept for c in circuits]),
        components=_pairs(ranking.jaccard, [_components(c) for c in circuits]),
        scores=_pairs(ranking.rank_correlation, [f.scores.importance(magnitude)[f.scores.graph.edges] for f in found]),
    )


def _pairs(like: Callable[[Array, Array], float], items: Sequence[Array]) -> list[list[float]]:
    """Compare every item with every other, and with itself: Float[item item]."""
    return [[like(a, b) for b in items] for a in items]


def _components(circuit: Circuit) -> Array:
    """Bool[sender]: the heads and MLPs that an edge of the circuit touches."""
    touched = set(circuit.nodes())
    return np.array([s.kind != "input" and s.name in touched for s in circuit.graph.senders])

"""Compare methods on tasks: how faithful their circuits are, what they cost, and where they agree.

A method that scores edges gives a circuit of its best edges for every size; ACDC gives one for each of a grid of
thresholds, and the score of an edge is the largest threshold at which it was kept; exact elimination gives one for each
of some targets of faithfulness. All circuits are pruned and run as a whole on the same held-out prompts. Each method
works in `<out>/<task>/<method>/`, where a second call resumes.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from acdc.commands import compare_plan
from acdc.commands.compare_plan import ELIMINATION, THEN_ACDC, THRESHOLDS, ComparePlan, bound_of, ranked_by
from acdc.commands.cost import Cost, metered, read_cost
from acdc.commands.run import describe, measure, run_or_read
from acdc.errors import FileError, UserError
from acdc.evaluation import ranking
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.faithfulness import Judge
from acdc.evaluation.frontier import Measured, edges_needed, measured_around
from acdc.files.circuit import CircuitFile, read_circuit
from acdc.files.comparison import LEVELS, ComparedMethod, ComparedTask, Comparison, Judged, Similarity, to_rows
from acdc.graph.circuit import Circuit
from acdc.graph.scores import Scores, read_scores, write_scores
from acdc.io.files import file_name, to_csv, to_json, write_atomic
from acdc.io.folder import claim, inside, locked
from acdc.io.progress import Progress, Say, Show, within
from acdc.io.sizes import in_name
from acdc.methods.discover import CHECKPOINT, SCORES, computed, eliminate, scored, search
from acdc.model.load import Model
from acdc.registry import METHODS, parse_filter
from acdc.report import curves
from acdc.report.comparison import to_html
from acdc.report.panels import of_comparison
from acdc.setup.inputs import Inputs, load

Array = np.ndarray

# Sizes on the path to a target that are measured, over that of its circuit.
AROUND = (0.85, 0.92, 0.96, 1.0, 1.04, 1.08, 1.15, 1.25)
COST = "cost.json"
BOUNDS: tuple[str, ...] = ("size", "threshold", "target")  # of a circuit; one of them applies
NO_ROC: dict[str, Any] = {"auc": np.nan, "pessimistic_auc": np.nan, "node_auc": np.nan, "roc": ()}


def compare(
    plan: ComparePlan,
    memory: float | None,
    plots: bool,
    progress: Show,
    say: Say,
    notes: Sequence[str] = (),
    model: Model | None = None,
) -> Comparison:
    """Run all methods on all tasks, staying below `memory` bytes, measure their circuits and write the files. `model`
    is the plan's, if it is loaded; `notes` on the plan are said when all inputs are known to be right. Raise UserError
    if the directory belongs to another comparison, or a size or a reference doesn't fit the graph."""
    loaded = _load(plan, memory, model)
    with locked(plan.out, others=("config.yaml", "runs")):
        compare_plan.check_same(plan)
        for note in notes:
            say(note)
        progress(compare_plan.expected(plan, [inputs for inputs, _ in loaded]))
        tasks = []
        while loaded:  # a task's activations are freed before the next one
            tasks.append(_on_task(plan, *loaded.pop(0), progress, say))
        result = Comparison(plan.sizes, plan.greedy, plan.tasks[0][0].abs, tuple(tasks))
        write_atomic(plan.out / "compare.json", to_json(result))
        columns, rows = to_rows(result)
        write_atomic(plan.out / "table.csv", to_csv([columns, *rows]))
        write_atomic(plan.out / "report.html", to_html(result))
        if plots:
            for name, data in curves.draw(of_comparison(result)).items():
                write_atomic(plan.out / name, data)
    return result


def _load(plan: ComparePlan, memory: float | None, model: Model | None) -> list[tuple[Inputs, Circuit | None]]:
    """Load the inputs of every task, and its reference if that is a file. `model` is the plan's, if it is loaded."""
    loaded: list[tuple[Inputs, Circuit | None]] = []
    models: dict[tuple[str, ...], Model] = {}  # tasks share a model
    for config, task in plan.tasks:
        inputs = load(config, task, memory, models.get(config.needs_model, model))
        models[config.needs_model] = inputs.model
        graph = inputs.model.transformer.config.graph()
        n = graph.n_edges * max(1, len(inputs.data.spans))
        if plan.sizes[-1] > n:
            what = "edge-spans" if inputs.data.spans else "edges"
            raise UserError(f"--sizes: {plan.sizes[-1]} of {n} {what} of {config.model_name}; ask for fewer")
        reference = None
        if path := plan.references.get(config.task_name):
            reference = read_circuit(path).union().circuit()
            if reference.graph != graph:
                raise FileError(f"--reference {path}: is a circuit of another graph than that of {config.model_name}")
        loaded.append((inputs, reference))
    return loaded


def _on_task(plan: ComparePlan, inputs: Inputs, reference: Circuit | None, progress: Show, say: Say) -> ComparedTask:
    """Run all methods on a task and measure what they find."""
    config = inputs.config
    notes = []
    if doubt := warning(inputs, competence(inputs)):
        notes.append(doubt)
        say(doubt)
    if spans := inputs.data.spans:
        notes.append(f"by position: counts are of edge-spans, of edges at {len(spans)} spans: {', '.join(spans)}")
    judge = Judge(inputs)
    thresholds = _thresholds(inputs)
    of_acdc = reference is None
    origin = str(plan.references.get(config.task_name))
    if reference is None:
        reference = Finder(plan, inputs, within(progress, "reference")).reference()
        origin = f"acdc at τ = {config.threshold:g}, the task's own"
    found: list[Found] = []
    for method in plan.methods:
        finder = Finder(plan, inputs, within(progress, f"{config.task_name} {method}"))
        finder.progress(Progress("", 0, 1))
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
    near = min(plan.sizes, key=lambda size: abs(size - reference.size))
    unfiltered = next((f.circuits for f in found if f.method == "acdc"), None)
    methods = []
    for i, f in enumerate(found):
        progress(Progress(f"{config.task_name} evaluation", i, len(found)))
        methods.append(_method_part(judge, f, reference, of_acdc, unfiltered))
    return ComparedTask(
        name=config.task_name,
        model=config.model_name,
        **config.model_dump(include={"model_hash", "data_hash", "metric", "ablation", "examples", "seed"}),
        half=judge.half,
        full=float(judge.full.mean()),
        ablated=float(judge.ablated.mean()),
        full_accuracy=judge.full_accuracy,
        ablated_accuracy=judge.ablated_accuracy,
        reference=origin,
        reference_edges=reference.size,
        total=found[0].scores.n if found else reference.graph.n_edges,
        methods=tuple(methods),
        overlap=_overlap(found, near, config.abs),
        notes=tuple(notes),
    )


def _thresholds(inputs: Inputs) -> list[float]:
    """Return ACDC's thresholds, rising, in the metric's units."""
    config = inputs.config
    judge = Judge(inputs, "discovery")
    full = judge.full.mean()
    ablated = judge.ablated.mean()
    if not ablated > full:
        found = f"{config.metric} {ablated:.4g}, full model {full:.4g}"
        raise UserError(f"--tasks: {config.model_name} does {config.task_name} as well with all ablated ({found})")
    return [float(f"{x:.3g}") for x in np.geomspace(0.001, 0.3, THRESHOLDS) * (ablated - full)]


# ---------------------------------------------------------------- run the methods


@dataclass(frozen=True)
class Found:
    """What a method found."""

    method: str
    cost: Cost
    scores: Scores
    circuits: dict[float, Circuit]  # by size, threshold or target, without dead edges
    allowed: Array | None = None  # Bool[sender receiver], the edges that a filter left
    others: tuple[Circuit, ...] = ()  # between those, to interpolate


@dataclass(frozen=True)
class Finder:
    """Runs methods on one task; each in a directory of its own, where a second call resumes."""

    plan: ComparePlan
    inputs: Inputs
    progress: Show

    def find(self, method: str, thresholds: list[float]) -> Found:
        """Find a method's circuits: for ACDC one at each threshold or target, for the others one of each size."""
        bound = bound_of(method)
        if bound == "threshold":
            return self.by_threshold(method, thresholds)
        if bound == "target":
            return self.by_target()
        config = self.inputs.config
        scores, cost = self.scores(method)
        pick = scores.greedy if self.plan.greedy else scores.top
        circuits: dict[float, Circuit] = {}
        for size in self.plan.sizes:
            circuits[size] = scores.circuit(pick(size, config.abs), config.direct).pruned()
        return Found(method, cost, scores, circuits)

    def scores(self, method: str) -> tuple[Scores, Cost]:
        """Return a method's scores of all edges, and what they cost."""
        changes: dict[str, Any] = {"method": method, "abs": False, "threshold": None}
        metric = ranked_by(self.inputs.config, self.inputs.task, method)
        if metric != "none":
            changes["metric"] = metric
        if "updates" in METHODS[method].options:
            changes["updates"] = self.plan.updates
        inputs, folder = self._enter(method, **changes)
        if not (folder / SCORES).exists():
            # The cost is written before the scores, so that scores never lack theirs.
            with metered(folder / COST, inputs.model.transformer.device):
                computed(inputs, method, folder / CHECKPOINT, self.progress)
        return scored(inputs, method, folder, self.progress), read_cost(folder / COST)

    def by_threshold(self, method: str, thresholds: list[float]) -> Found:
        """Find ACDC's circuits at rising thresholds, among the edges that a filter leaves if there is one."""
        allowed = None
        prefilter = None
        cost = Cost()
        if method != "acdc":
            prefilter = method.removesuffix(THEN_ACDC)
            name, share = parse_filter(prefilter)
            filtered, cost = self.scores(name)
            allowed = filtered.best(share)
        inputs, folder = self._enter(method, threshold=None, prefilter=prefilter)
        problem = inputs.problem("discovery")
        edges = np.where(problem.candidates, 0.0, np.nan)
        circuits = {}
        for threshold, circuit, _ in self._each(inputs, folder, "threshold", thresholds, allowed):
            circuits[threshold] = circuit
            edges[circuit.kept] = threshold
        scores = Scores(problem.graph, edges, spans=problem.spans)
        write_scores(folder / SCORES, scores)
        return Found(method, cost + read_cost(folder / COST), scores, circuits, allowed)

    def by_target(self) -> Found:
        """Find the smallest circuits of some targets of faithfulness, and larger ones on the paths to them."""
        inputs, folder = self._enter(ELIMINATION, threshold=None)
        circuits = {}
        others = []
        for target, circuit, at in self._each(inputs, folder, "faithfulness", LEVELS, None):
            scores = read_scores(at / SCORES, circuit.graph, circuit.spans)
            n_path = int((scores.edges > 0).sum())
            sizes = {round(circuit.size * ratio) for ratio in AROUND}
            others += [scores.circuit(scores.top(min(size, n_path))).pruned() for size in sizes]
            circuits[target] = circuit
        return Found(ELIMINATION, read_cost(folder / COST), scores, circuits, others=tuple(others))

    def _each(
        self, inputs: Inputs, folder: Path, key: str, values: Sequence[float], allowed: Array | None
    ) -> Iterator[tuple[float, Circuit, Path]]:
        """Find ACDC's circuit at each threshold or target; yield that, the circuit and its directory."""
        for i, value in enumerate(values):
            at = inside(folder, f"{key}-{in_name(value)}")
            part = replace(self, progress=within(self.progress, "", i, len(values)))
            yield value, part.acdc(inputs.at(**{key: value}), at, folder / COST, allowed), at

    def reference(self) -> Circuit:
        """Find ACDC's circuit at the task's own threshold."""
        inputs, folder = self._enter("reference")
        return self.acdc(inputs, folder, folder / COST, None)

    def acdc(self, inputs: Inputs, folder: Path, cost: Path, allowed: Array | None) -> Circuit:
        """Find ACDC's circuit at one threshold or target, without dead edges."""

        def make() -> CircuitFile:
            with metered(cost, inputs.model.transformer.device):
                run = eliminate if inputs.config.eliminates else search
                found = run(inputs, folder, self.progress, allowed)
            return describe(inputs, found, measure(inputs, found.circuit.pruned()))

        return run_or_read(folder, make).circuit()

    def _enter(self, name: str, **changes: Any) -> tuple[Inputs, Path]:
        """Return the inputs under a changed config, and a directory that belongs to this config."""
        inputs = self.inputs.under(self.inputs.config.model_copy(update=changes))
        folder = inside(self.plan.out, inputs.config.task_name, file_name(name))
        claim(folder, inputs.config.to_yaml())
        return inputs, folder


# ---------------------------------------------------------------- measure what they found


def _method_part(
    judge: Judge, found: Found, reference: Circuit, of_acdc: bool, unfiltered: dict[float, Circuit] | None
) -> ComparedMethod:
    """Measure a method's circuits and scores. `of_acdc`: whether the reference is ACDC's; `unfiltered`: ACDC's circuits
    without a filter, by threshold."""
    config = judge.inputs.config
    bounded_by = bound_of(found.method)
    circuits = []
    shares = []  # (share of the edges, faithfulness)
    for bound, circuit in found.circuits.items():
        metric, (value, low, high), accuracy = judge.judged(circuit)
        lost = None
        if found.allowed is not None and unfiltered is not None:
            edges = np.argwhere(unfiltered[bound].edges & ~found.allowed)
            lost = tuple(circuit.graph.edge_name(s, r) for s, r in edges)
        judged = Judged(
            **dict.fromkeys(BOUNDS) | {bounded_by: bound},
            edges=circuit.size,
            components=int(_components(circuit).sum()),
            metric=metric,
            faithfulness=value,
            low=low,
            high=high,
            accuracy=accuracy,
            lost=lost,
        )
        circuits.append(judged)
        shares.append(((bound if bounded_by == "size" else circuit.size) / found.scores.n, value))
    areas = ranking.faithfulness_areas(np.array([(0.0, 0.0), *sorted(shares), (1.0, 1.0)]))
    return ComparedMethod(
        name=found.method,
        ranked_by=ranked_by(config, judge.inputs.task, found.method),
        seconds=found.cost.seconds,
        peak_memory_mb=found.cost.peak_memory_mb,
        circuits=tuple(circuits),
        cpr=areas.cpr,
        cmd=areas.cmd,
        needed=_needed(judge, found, circuits),
        **(NO_ROC if bounded_by == "threshold" and of_acdc else _ranking(found.scores, reference, config.abs)),
    )


def _needed(judge: Judge, found: Found, judged: Sequence[Judged]) -> tuple[float, ...]:
    """Edges needed for each of `LEVELS`, of a method whose circuits are `judged` already. For a method that scores
    edges, they are ranked by score and by its magnitude, and the smaller number counts."""

    def measured(circuit: Circuit) -> Measured:
        return circuit.size, judge.judged(circuit)[1].value

    if bound_of(found.method) != "size":
        return edges_needed([*((c.edges, c.faithfulness) for c in judged), *map(measured, found.others)], LEVELS)
    scores = found.scores
    needed = []
    for magnitude in (False, True):

        def best(size: int, magnitude: bool = magnitude) -> Measured:
            return measured(scores.circuit(scores.top(size, magnitude)).pruned())

        needed.append(edges_needed(measured_around(LEVELS, best, scores.n), LEVELS))
    return tuple(np.fmin.reduce(needed).tolist())


def _ranking(scores: Scores, reference: Circuit, magnitude: bool) -> dict[str, Any]:
    """Compare scores with a reference: the fields `auc`, `pessimistic_auc`, `node_auc` and `roc` of a method."""
    graph = reference.graph
    if reference.spans != scores.spans:  # a file of a circuit without spans
        scores = scores.whole()
    if not 0 < reference.size < scores.n:
        return NO_ROC
    importance = scores.importance(magnitude)
    curve = ranking.roc(importance[scores.ranked], reference.kept[scores.ranked])
    true_nodes = ranking.node_scores(graph, reference.kept) > 0
    node_auc = np.nan
    if 0 < true_nodes.sum() < len(true_nodes):
        node_auc = ranking.auc(ranking.roc(ranking.node_scores(graph, importance), true_nodes))
    areas = (ranking.auc(curve), ranking.pessimistic_auc(curve), node_auc)
    roc = tuple((float(x), float(y)) for x, y in ranking.corners(curve))
    return dict(zip(NO_ROC, (*areas, roc), strict=True))


def _overlap(found: list[Found], size: int, magnitude: bool) -> Similarity:
    """Compare the methods' circuits of about `size` edges, and their scores, with each other."""
    circuits = []
    for f in found:
        near = min(f.circuits.values(), key=lambda c: abs(c.size - size))
        circuits.append(f.circuits[size] if bound_of(f.method) == "size" else near)
    edges = _pairs(ranking.jaccard, [c.kept for c in circuits])
    components = _pairs(ranking.jaccard, [_components(c) for c in circuits])
    scores = [f.scores.importance(magnitude)[f.scores.ranked] for f in found]
    return Similarity(size, edges, components, _pairs(ranking.rank_correlation, scores))


def _pairs(like: Callable[[Array, Array], float], items: Sequence[Array]) -> list[list[float]]:
    """Compare every item with every other, and with itself: Float[item item]."""
    return [[like(a, b) for b in items] for a in items]


def _components(circuit: Circuit) -> Array:
    """Bool[sender]: the heads and MLPs that an edge of the circuit touches."""
    touched = set(circuit.nodes())
    return np.array([s.kind != "input" and s.name in touched for s in circuit.graph.senders])

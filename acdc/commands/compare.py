"""Tasks × methods × sizes: how faithful the circuits of each method are, what they cost, and where methods agree.

Every method sees the same prompts. A method that scores edges gives a circuit for every size, of its best edges; ACDC
gives one for each of some thresholds, and an edge's score is the largest threshold at which it was kept. All circuits
are pruned, and run as a whole on the held-out prompts. What a method found lies in `<out>/<task>/<method>/`, from where
a second call goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.commands.compare_plan import THEN_ACDC, Plan, has_threshold, ranked_by
from acdc.commands.cost import Cost, metered, read_cost
from acdc.commands.run import describe, measure
from acdc.errors import FileError, UserError
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.faithfulness import Judge, circuit_rows, prompt_values
from acdc.evaluation.ranking import (
    auc,
    corners,
    faithfulness_areas,
    jaccard,
    node_scores,
    pessimistic_auc,
    rank_correlation,
    roc,
)
from acdc.files.circuit import read_circuit, write_circuit
from acdc.files.comparison import Comparison, Judged, MethodPart, Overlap, TaskPart, to_csv, to_json
from acdc.graph.circuit import Circuit
from acdc.graph.graph import Graph
from acdc.graph.scores import Scores, write_scores
from acdc.io.files import write_atomic
from acdc.io.folder import claim, enter, locked
from acdc.io.progress import Show
from acdc.methods.discover import CHECKPOINT, SCORES, computed, scored, search
from acdc.registry import METHODS, parse_filter
from acdc.report import curves
from acdc.report.comparison import to_html
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs, load

Array = np.ndarray

COST = "cost.json"
LOWEST, HIGHEST, THRESHOLDS = 0.001, 0.3, 8  # of ACDC, in shares of what ablating everything costs; a log grid


def compare(plan: Plan, memory: float | None, plots: bool, progress: Show, say: Callable[[str], None]) -> Comparison:
    """Run all methods on all tasks, judge their circuits, and write the files.

    Args:
        memory: bytes to stay below; by default half of what the machine has
        say: told what is going on
    Raises:
        UserError: the directory belongs to another comparison, is in use or can't be written; a size is larger than
            the graph; a reference is of another graph.
    """
    loaded = _load(plan, memory)
    with locked(plan.out):
        tasks = []
        while loaded:  # what is kept of a task goes before the next one
            tasks.append(_on_task(plan, loaded.pop(0), progress, say))
        first = plan.tasks[0][0]
        result = Comparison(plan.sizes, plan.greedy, first.abs, tuple(tasks))
        write_atomic(plan.out / "compare.json", to_json(result))
        write_atomic(plan.out / "table.csv", to_csv(result))
        write_atomic(plan.out / "report.html", to_html(result))
        if plots:
            for task in tasks:
                for kind, draw in (("faithfulness", curves.faithfulness), ("roc", curves.roc)):
                    for suffix, data in draw(task).items():
                        write_atomic(plan.out / f"{kind}-{task.name}.{suffix}", data)
    return result


def _load(plan: Plan, memory: float | None) -> list[tuple[Inputs, Circuit | None]]:
    """The inputs of every task, and its reference where that is a file."""
    out: list[tuple[Inputs, Circuit | None]] = []
    for config, task in plan.tasks:
        known = (other.model for other, _ in out if other.config.needs_model == config.needs_model)
        inputs, reference = load(config, task, memory, next(known, None)), None
        graph = inputs.model.transformer.config.graph()
        if plan.sizes[-1] > graph.n_edges:
            raise UserError(f"--sizes: {plan.sizes[-1]} of {graph.n_edges} edges of {config.model_name}; ask for fewer")
        if path := plan.references.get(config.task_name):
            reference = read_circuit(path).circuit()
            if reference.graph != graph:
                raise FileError(f"--reference {path}: is a circuit of another graph than that of {config.model_name}")
        out.append((inputs, reference))
    return out


@dataclass(frozen=True)
class _Found:
    """What a method found.

    Args:
        circuits: by size or threshold, without dead edges
        allowed: Bool[sender receiver], what a filter left
    """

    method: str
    cost: Cost
    scores: Scores
    circuits: dict[float, Circuit]
    allowed: Array | None = None


@dataclass(frozen=True)
class _Finder:
    """The methods at work on one task.

    Args:
        grid: thresholds of ACDC, in the metric's units, rising
    """

    plan: Plan
    inputs: Inputs
    progress: Show
    grid: list[float]

    @property
    def graph(self) -> Graph:
        return self.inputs.problem("discovery").graph

    def find(self, method: str) -> _Found:
        """The circuits of a method, at every size or threshold."""
        if has_threshold(method):
            return self.swept(method)
        scores, cost = self.scores(method)
        pick, config = scores.greedy if self.plan.greedy else scores.top, self.inputs.config
        circuits: dict[float, Circuit] = {
            n: scores.circuit(pick(n, config.abs), config.direct).pruned() for n in self.plan.sizes
        }
        return _Found(method, cost, scores, circuits)

    def scores(self, method: str) -> tuple[Scores, Cost]:
        """The scores that a method gives all edges, and what they cost."""
        config = self.inputs.config
        ranked = ranked_by(config, self.inputs.task, method)
        changes = {"method": method, "metric": ranked if ranked != "none" else config.metric, "abs": False}
        if "updates" in METHODS[method].options:
            changes["updates"] = self.plan.updates
        inputs = self._with(**changes)
        folder = self._folder(method, inputs.config)
        if not (folder / SCORES).exists():
            with metered(folder / COST, self._device):
                computed(inputs, method, folder / CHECKPOINT, self.progress)  # the cost is written before the scores
        return scored(inputs, method, folder, self.progress), read_cost(folder / COST)

    def swept(self, method: str) -> _Found:
        """The circuits of ACDC over the grid of thresholds, among the edges that a filter leaves if there is one."""
        allowed, cost, prefilter = None, Cost(), None
        if method != "acdc":
            prefilter = method.removesuffix(THEN_ACDC)
            name, share = parse_filter(prefilter)
            scores, cost = self.scores(name)
            allowed = scores.best(share)
        inputs = self._with(prefilter=prefilter)
        folder = self._folder(method, inputs.config)
        circuits, edges = {}, np.where(self.graph.edges, 0.0, np.nan)
        for threshold in self.grid:
            at = folder / f"threshold-{threshold:g}"
            circuits[threshold] = self.acdc(inputs.at(threshold), at, folder / COST, allowed)
            edges[circuits[threshold].kept] = threshold
        scores = Scores(self.graph, edges)
        write_scores(folder / SCORES, scores)
        return _Found(method, cost + read_cost(folder / COST), scores, circuits, allowed)

    def reference(self) -> Circuit:
        """What ACDC finds at the task's own threshold."""
        folder = self._folder("reference", self.inputs.config)
        return self.acdc(self.inputs, folder, folder / COST, None)

    def acdc(self, inputs: Inputs, folder: Path, cost: Path, allowed: Array | None) -> Circuit:
        """The circuit of ACDC at one threshold, without dead edges."""
        path = folder / "circuit.json"
        if path.exists():
            return read_circuit(path).circuit()
        enter(folder)
        with metered(cost, self._device):
            found = search(inputs, folder, self.progress, allowed).circuit
        circuit = found.pruned()
        write_circuit(path, describe(inputs, circuit, found, measure(inputs, circuit), ()))
        return circuit

    @property
    def _device(self) -> torch.device:
        return self.inputs.model.transformer.device

    def _with(self, **changes: Any) -> Inputs:
        """The inputs of a method, without a threshold."""
        return self.inputs.under(self.inputs.config.model_copy(update={"threshold": None, **changes}))

    def _folder(self, name: str, config: Config) -> Path:
        """Where a method's work lies, which belongs to one config."""
        folder = self.plan.out / config.task_name / re.sub(r"[^\w.-]+", "-", name)
        claim(folder, config.to_yaml())
        return folder


def _judged(
    judge: Judge, circuit: Circuit, size: int | None, threshold: float | None, lost: Sequence[str] | None
) -> Judged:
    """How a circuit does."""
    metric, (value, low, high), right = judge.judged(circuit)
    return Judged(
        size=size,
        threshold=threshold,
        edges=circuit.n_edges,
        components=int(_components(circuit).sum()),
        metric=metric,
        faithfulness=value,
        low=low,
        high=high,
        accuracy=right,
        lost=None if lost is None else tuple(lost),
    )


def _on_task(plan: Plan, loaded: tuple[Inputs, Circuit | None], progress: Show, say: Callable[[str], None]) -> TaskPart:
    inputs, reference = loaded
    config, graph, notes = inputs.config, inputs.problem("discovery").graph, list[str]()
    if doubt := warning(inputs, competence(inputs)):
        notes.append(doubt)
        say(doubt)
    judge = Judge(inputs)
    finder = _Finder(plan, inputs, progress, _grid(inputs))
    own = reference is None
    if reference is None:
        reference = finder.reference()
        said = f"acdc at τ = {config.threshold:g}, the task's own"
    else:
        said = str(plan.references[config.task_name])
    found: list[_Found] = []
    for method in plan.methods:
        try:
            found.append(finder.find(method))
        except FileError:
            raise
        except UserError as error:
            if method in plan.named:
                raise
            notes.append(f"{method} is left out: {error}")
            say(f"{config.task_name}: {notes[-1]}")
        else:
            say(f"{config.task_name}: {method} took {found[-1].cost.seconds:.1f} s")
    whole = {f.method: f.circuits for f in found}.get("acdc")
    return TaskPart(
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
        reference=said,
        reference_edges=reference.n_edges,
        total=graph.n_edges,
        methods=tuple(_method_part(judge, f, reference, own, whole) for f in found),
        overlap=_overlap(found, min(plan.sizes, key=lambda n: abs(n - reference.n_edges)), config.abs),
        notes=tuple(notes),
    )


def _grid(inputs: Inputs) -> list[float]:
    """The thresholds of ACDC, in the metric's units, rising."""
    none = Circuit.empty(inputs.problem("discovery").graph)
    ablated, full = (
        prompt_values(inputs, "discovery", circuit_rows(inputs, "discovery", c), inputs.config.metric).mean()
        for c in (none, None)
    )
    if not ablated > full:
        raise UserError(
            f"--tasks: {inputs.config.model_name} does {inputs.config.task_name} as well with everything ablated "
            f"({inputs.config.metric} {ablated:.4g}, full model {full:.4g}): there is nothing to look for"
        )
    return [float(f"{x:.3g}") for x in np.geomspace(LOWEST, HIGHEST, THRESHOLDS) * (ablated - full)]


def _method_part(
    judge: Judge, found: _Found, reference: Circuit, own: bool, whole: dict[float, Circuit] | None
) -> MethodPart:
    """A method's circuits and scores, judged.

    Args:
        own: whether the reference is of ACDC itself
        whole: the circuits of ACDC without a filter, by threshold
    """
    swept, circuits = has_threshold(found.method), []
    for bound, circuit in found.circuits.items():
        lost = None
        if found.allowed is not None and whole is not None:
            lost = [circuit.graph.edge_name(s, r) for s, r in np.argwhere(whole[bound].kept & ~found.allowed)]
        size, threshold = (None, bound) if swept else (int(bound), None)
        circuits.append(_judged(judge, circuit, size, threshold, lost))
    config, points, areas = judge.inputs.config, np.zeros((0, 2)), (np.nan, np.nan, np.nan)
    exist, graph = reference.graph.edges, reference.graph
    if not (swept and own) and 0 < reference.n_edges < exist.sum():
        importance = found.scores.importance(config.abs)
        curve = roc(importance[exist], reference.kept[exist])
        nodes, true = node_scores(graph, importance), node_scores(graph, reference.kept) > 0
        of_nodes = auc(roc(nodes, true)) if 0 < true.sum() < len(true) else np.nan
        points, areas = corners(curve), (auc(curve), pessimistic_auc(curve), of_nodes)
    shares = [((c.edges if c.size is None else c.size) / graph.n_edges, c.faithfulness) for c in circuits]
    under = faithfulness_areas(np.array([(0.0, 0.0), *sorted(shares), (1.0, 1.0)]))
    return MethodPart(
        name=found.method,
        ranked_by=ranked_by(config, judge.inputs.task, found.method),
        seconds=found.cost.seconds,
        peak_memory_mb=found.cost.peak_memory_mb,
        circuits=tuple(circuits),
        auc=areas[0],
        pessimistic_auc=areas[1],
        node_auc=areas[2],
        cpr=under.cpr,
        cmd=under.cmd,
        roc=tuple((float(x), float(y)) for x, y in points),
    )


def _overlap(found: list[_Found], size: int, magnitude: bool) -> Overlap:
    near = [
        min(f.circuits.values(), key=lambda c: abs(c.n_edges - size)) if has_threshold(f.method) else f.circuits[size]
        for f in found
    ]
    scores = [f.scores.importance(magnitude)[f.scores.graph.edges] for f in found]
    return Overlap(
        size=size,
        edges=_pairs(jaccard, [c.kept for c in near]),
        components=_pairs(jaccard, [_components(c) for c in near]),
        scores=_pairs(rank_correlation, scores),
    )


def _pairs(measure: Callable[[Array, Array], float], of: Sequence[Array]) -> list[list[float]]:
    return [[measure(a, b) for b in of] for a in of]


def _components(circuit: Circuit) -> Array:
    """Bool[sender]: the heads and MLPs that an edge touches."""
    touched = set(circuit.nodes())
    return np.array([s.kind != "input" and s.name in touched for s in circuit.graph.senders])

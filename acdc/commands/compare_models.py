"""Compare models, or checkpoints of one, on a task: a run each, what their circuits share, and how faithful each
circuit is in the other models."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from acdc.commands.options import Given, listed
from acdc.commands.run import run
from acdc.errors import UserError
from acdc.evaluation.faithfulness import Judge
from acdc.evaluation.ranking import jaccard, rank_correlation
from acdc.files.circuit import CircuitFile
from acdc.files.comparison import ModelComparison, OfModel, Pair
from acdc.graph.circuit import Circuit
from acdc.graph.scores import read_scores
from acdc.io.files import file_name, to_json, write_atomic
from acdc.io.folder import inside, locked
from acdc.io.progress import Say, Show, one_of
from acdc.methods.discover import SCORES
from acdc.model.checkpoint import open_checkpoint
from acdc.report.text import bound
from acdc.setup.config import Config, resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.schema import Task


@dataclass(frozen=True)
class ModelsPlan:
    """What a comparison of models does."""

    runs: tuple[tuple[Config, Task], ...]  # one for each model
    out: Path


@dataclass(frozen=True)
class Found:
    """A model's finished run. It holds neither the model nor activations: there may be room for one model only."""

    config: Config
    file: CircuitFile
    folder: Path

    @cached_property
    def circuit(self) -> Circuit:
        """The circuit that was found."""
        return self.file.circuit()


def make_plan(given: Given, wanted: Given) -> ModelsPlan:
    """Check the options as far as that goes without a model. `given` are options of runs, `wanted` those of
    `acdc compare` alone, of which task, method and number of edges are of the runs."""
    for key in ("reference", "updates"):
        if wanted[key] is not None:
            raise UserError(f"--{key}: compares methods, not models; leave it out with --models")
    if given["model"] is not None:
        raise UserError("--model: name all models in --models")
    models = listed("--models", wanted["models"])
    if len(models) < 2:
        raise UserError(f"--models: {models[0]} alone; name two or more, with commas between them")
    of_run: dict[str, Any] = {"faithfulness": wanted["faithfulness"], "greedy": wanted["greedy"] or None}
    of_run["task"] = _one("--tasks", wanted["tasks"])
    of_run["method"] = _one("--methods", wanted["methods"] or "acdc")
    if wanted["sizes"] is not None:
        of_run["edges"] = _one("--sizes", wanted["sizes"], int, "a whole number")
    resolved = [resolve({**given, **of_run, "model": model}, None, None) for model in models]
    runs = [(config, task) for config, task, _ in resolved]
    names = "-".join(map(file_name, (runs[0][0].task_name, *(config.model_name for config, _ in runs))))
    return ModelsPlan(tuple(runs), wanted["out"] or Path("compare") / names)


def _one(flag: str, text: str, kind: Callable[[str], Any] = str, what: str = "a name") -> Any:
    values = listed(flag, text, kind, what)
    if len(values) > 1:
        raise UserError(f"{flag}: {text!r}; with --models there can be one only")
    return values[0]


def compare_models(plan: ModelsPlan, memory: float | None, progress: Show, say: Say) -> ModelComparison:
    """Make a run for every model in `<out>/<number>-<model>/`, or go on with it, measure all circuits in every model,
    and write models.json. Raise UserError if the directory belongs to another comparison."""
    checkpoints = [open_checkpoint(config.model) for config, _ in plan.runs]  # none is missing after the first run
    with locked(plan.out, others=("config.yaml", "runs", "compare.json", "stability.json")):
        found = []
        for number, ((config, task), checkpoint) in enumerate(zip(plan.runs, checkpoints, strict=True), 1):
            inputs = load(config, task, memory, checkpoint)
            folder = inside(plan.out, f"{number}-{file_name(config.model_name)}")
            file, _ = run(inputs, folder, progress=one_of(progress, number - 1, len(checkpoints)), say=say)
            found.append(Found(config, file, folder))
            half = inputs.evaluation_split
            del inputs
        models = []
        for f, (config, task), checkpoint in zip(found, plan.runs, checkpoints, strict=True):
            models.append(_of_model(load(config, task, memory, checkpoint), f, found))
        first = found[0].config
        result = ModelComparison(
            task=first.task_name,
            **first.model_dump(include={"method", "metric", "ablation", "examples", "seed"}),
            half=half,
            models=tuple(models),
            pairs=tuple(_pair(a, b) for a, b in combinations(found, 2)),
            notes=_notes(found),
        )
        write_atomic(plan.out / "models.json", to_json(result))
    return result


def _notes(found: list[Found]) -> tuple[str, ...]:
    """The notes of all runs, and one if their thresholds differ."""
    notes = [note for f in found for note in f.file.notes]
    if len({f.file.method.threshold for f in found}) > 1:
        notes.append("the task has other thresholds for some models; --faithfulness finds circuits equally faithful")
    return tuple(dict.fromkeys(notes))


def _of_model(inputs: Inputs, one: Found, every: list[Found]) -> OfModel:
    """Measure the circuits of all models in one of them."""
    judge = Judge(inputs)
    method = one.file.method
    circuits = [found.circuit for found in every]
    return OfModel(
        name=one.config.model_name,
        hash=inputs.model.hash,
        folder=one.folder.name,
        bound=bound(method.name, method.threshold, method.options),
        edges=one.file.graph.edges.kept,
        total=one.file.graph.edges.total,
        accuracy=judge.full_accuracy,
        faithfulness=tuple(judge.judged(of)[1] if of.graph == one.circuit.graph else None for of in circuits),
    )


def _pair(a: Found, b: Found) -> Pair:
    nodes = [set(f.circuit.nodes()) for f in (a, b)]
    either = sorted(nodes[0] | nodes[1])
    has = [np.array([name in of_circuit for name in either]) for of_circuit in nodes]
    edges = scores = np.nan
    shared: tuple[str, ...] = ()
    graph = a.circuit.graph
    if b.circuit.graph == graph:
        kept = [f.circuit.kept for f in (a, b)]
        edges = jaccard(*kept)
        scores = rank_correlation(*(_scores(f)[graph.edges] for f in (a, b)))
        shared = tuple(graph.edge_name(int(s), int(r)) for s, r in np.argwhere(kept[0] & kept[1]))
    names = a.config.model_name, b.config.model_name
    return Pair(names, jaccard(*has), edges, scores, shared)


def _scores(found: Found) -> np.ndarray:
    """The scores of all edges, or those of the circuit, and 0 for edges without one: Float[sender receiver]."""
    path = found.folder / SCORES
    graph = found.circuit.graph
    scores = read_scores(path, graph).edges if path.exists() else found.circuit.scores
    return np.zeros(graph.edges.shape) if scores is None else np.nan_to_num(scores)

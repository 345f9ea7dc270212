"""`acdc evaluate`: circuit.json → model and prompts → quantities with intervals.

The prompts are those of the held-out half, or of the discovery half for a task that has no other.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from acdc.commands.run import environment
from acdc.errors import FileError, UserError
from acdc.evaluation.bootstrap import Estimate, estimate, share
from acdc.evaluation.faithfulness import (
    ROUNDING,
    Array,
    Rows,
    Table,
    circuit_rows,
    complement,
    faithfulness,
    mean_accuracy,
    measure_rows,
    prompt_faithfulness,
    prompt_values,
    random_circuit,
    values_without,
)
from acdc.files.circuit import CircuitFile, read_circuit
from acdc.files.evaluation import DRAWS, Evaluation, Measured, Minimality, Prompt, Random, RemovedEdge, Spread
from acdc.graph.circuit import Circuit
from acdc.io.progress import Progress, Show
from acdc.io.yaml_file import read_yaml
from acdc.model.load import Model, load_model
from acdc.registry import ABLATIONS, NAMES, refusal
from acdc.setup.config import Config, resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.load import load_task
from acdc.task.schema import Task
from acdc.task.tokenize import make_data

WORST = 5  # prompts to list
MOST = 0.5  # a circuit should be more faithful than this, and the rest of the model less
ROUNDED = {"float32": 1e-4, "float64": 1e-9}  # how much a metric may differ on another machine; relative if above 1


def evaluate(
    path: Path,
    given: dict[str, Any],
    memory: float | None,
    most: int,
    progress: Show,
) -> Evaluation:
    """Evaluate a circuit.json.

    Args:
        given: task, model, examples, seed and device to use instead of the circuit's own; None where not given
        memory: bytes to stay below; by default half of the machine's
        most: remove at most this many edges one by one, those with the smallest scores
    Raises:
        UserError: the circuit can't be read, or the model, its graph or the prompts aren't the circuit's.
    """
    return evaluate_file(read_circuit(path), str(path), given, memory, most, progress, config_beside(path))


def evaluate_file(
    file: CircuitFile,
    where: str,
    given: dict[str, Any],
    memory: float | None,
    most: int,
    progress: Show,
    found_with: Config | None = None,
    read_task: Callable[[str], Task] = load_task,
    model: Model | None = None,
) -> Evaluation:
    """Evaluate the content of a circuit.json; further arguments as in `evaluate`.

    Args:
        where: its name in messages
        found_with: the config of its run, if known, for the paths of task and model
        read_task: loads a task by name or path
        model: the circuit's model, if it is loaded already
    """
    config, task = _config(where, file, given, memory, found_with, read_task)
    try:
        inputs = load(config, task, memory, model)
    except UserError:
        # A wrong model is often the cause, and then the better message.
        _check_model(where, file, model or load_model(config.model, config.device, config.dtype))
        raise
    _check_model(where, file, inputs.model)
    notes = [*file.notes, *_other_prompts(where, file, inputs, given)]
    circuit = file.circuit()
    half = inputs.evaluation_split
    if half == "discovery":
        notes.append(f"{task.name} has one set of prompts: the circuit was found with these")
    table = measure_rows(inputs, half, _rows(inputs, half, circuit), task.metrics)
    notes += _differences(where, file, inputs, half, table)
    own = _measured(inputs, table)
    judged = _Judged(inputs, half, circuit, table[config.metric], progress)
    minimality = judged.minimality(most)
    random = judged.random()
    spread = judged.spread()
    others = tuple(_under(inputs, half, circuit, other) for other in ABLATIONS if other != config.ablation)
    notes += _claim([own, *others])
    return Evaluation(
        task=task.name,
        model=inputs.config.model_name,
        model_hash=inputs.model.hash,
        data_hash=inputs.config.data_hash or "",
        method=file.method.name,
        metric=config.metric,
        dtype=config.dtype,
        examples=config.examples,
        seed=config.seed,
        half=half,
        edges=circuit.n_edges,
        total=circuit.graph.n_edges,
        measured=own,
        others=others,
        minimality=minimality,
        random=random,
        spread=spread,
        notes=tuple(notes),
    )


def config_beside(path: Path) -> Config | None:
    """The config.yaml beside a circuit.json, if there is one."""
    beside = path.with_name("config.yaml")
    if not beside.exists():
        return None
    try:
        return Config.model_validate(read_yaml(beside, Config.model_fields))
    except ValidationError:
        raise FileError(f"{beside}: next to {path.name}, but not a run config; move it away") from None


def _config(
    where: str,
    file: CircuitFile,
    given: dict[str, Any],
    memory: float | None,
    found_with: Config | None,
    read_task: Callable[[str], Task],
) -> tuple[Config, Task]:
    """The config that the circuit was found with: from its file; paths of task and model from the config of its run."""
    method = file.method
    stated = {
        "task": file.task.name,
        "model": file.model.name,
        "examples": file.task.examples,
        "seed": file.task.seed,
        **{key: getattr(method, key) for key in ("metric", "ablation", "dtype")},
    }
    for key in ("metric", "ablation", "dtype"):
        if stated[key] not in NAMES[key]:
            raise FileError(f"{where}: method.{key}: {refusal(key, str(stated[key]))}")
    if found_with and (found_with.task_name, found_with.model_name) == (stated["task"], stated["model"]):
        stated |= {"task": found_with.task, "model": found_with.model, "device": found_with.device}
        if memory is None and found_with.part:
            stated["part"] = found_with.part
    # A threshold is required, and not used: the edges are known.
    own = {key: value for key, value in given.items() if value is not None}
    config, task, _ = resolve({**stated, **own, "threshold": 0.0}, None, None, read_task)
    return config, task


def _check_model(where: str, file: CircuitFile, model: Model) -> None:
    """Raise FileError unless the model has the circuit's graph and weights."""
    graph = model.transformer.config.graph()
    if graph != file.model.graph:
        sizes = [f"{g.words}, {g.n_edges:,} edges" for g in (file.model.graph, graph)]
        raise FileError(f"{where}: the circuit's graph has {sizes[0]}; that of {model.name} has {sizes[1]}")
    if model.hash != file.model.hash:
        raise FileError(
            f"{where}: the circuit was found in other weights: the hash of {file.model.name} was {file.model.hash}, "
            f"that of {model.name} is {model.hash}; choose the right model with --model"
        )


def _other_prompts(where: str, file: CircuitFile, inputs: Inputs, given: dict[str, Any]) -> list[str]:
    """A note if the prompts are not the circuit's.

    Raises:
        FileError: they are others, though no option asks for others.
    """
    config = inputs.config
    stated = file.task
    if config.data_hash == stated.data_hash:
        return []
    asked = [f"--{key} {given[key]}" for key in ("task", "examples", "seed") if given[key] is not None]
    if not asked:
        raise FileError(
            f"{where}: the prompts are not the circuit's: their data hash was {stated.data_hash}, and is "
            f"{config.data_hash} now; the task has changed (version {stated.version}, now {inputs.task.version}); to "
            "use other prompts, give --task, --examples or --seed"
        )
    note = f"{', '.join(asked)}: other prompts than those held out when the circuit was found"
    if given["task"] is None:
        first = make_data(inputs.task, inputs.model.tokenizer, stated.examples, stated.seed)
        texts = inputs.data.held_out.texts
        seen = len({clean for clean, _ in texts} & {clean for clean, _ in first.discovery.texts})
        if first.hash[:16] == stated.data_hash and seen:
            note += f"; it was found with {seen} of these {len(texts)}"
    return [note]


def _rows(inputs: Inputs, half: str, circuit: Circuit) -> Rows:
    """Run the full model, the circuit, everything ablated, and all edges but the circuit's."""
    runs = {"full": None, "circuit": circuit, "ablated": Circuit.empty(circuit.graph), "rest": complement(circuit)}
    return {what: circuit_rows(inputs, half, edges) for what, edges in runs.items()}


def _differences(where: str, file: CircuitFile, inputs: Inputs, half: str, table: Table) -> list[str]:
    """A warning if the metrics of the same prompts are not those in the file.

    Accuracies are not compared: they may flip where two answers have nearly the same logit.
    """
    if inputs.config.data_hash != file.task.data_hash:
        return []
    stated = "held_out" if any(key.startswith("held_out.") for key in file.metrics) else half
    rounded = max(ROUNDED[dtype] for dtype in (inputs.config.dtype, file.method.dtype))
    differ = []
    for metric in inputs.task.metrics:
        for what, values in table[metric].items():
            name = f"{stated}.{'model' if what == 'full' else what}.{metric}"
            value = float(values.mean())
            known = file.metrics.get(name, value)
            if abs(value - known) > rounded * max(1.0, abs(value), abs(known)):
                differ.append(f"{name} is {known:.6g} in the file, {value:.6g} now")
    if not differ:
        return []
    more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
    then = {**file.environment, "device": file.method.device}
    today = {**environment(), "device": inputs.model.transformer.device.type}
    changed = [f"{k} {then.get(k, 'unknown')}, now {v}" for k, v in today.items() if then.get(k) != v]
    why = f"then {'; '.join(changed)}" if changed else "versions and device are the same"
    return [f"warning: {where} was changed, or computes differently here: {differ[0]}{more}; {why}"]


def _under(inputs: Inputs, half: str, circuit: Circuit, ablation: str) -> Measured:
    """The means under another ablation."""
    config = inputs.config.model_copy(update={"ablation": ablation})
    other = replace(inputs, config=config, _parts={})  # without the activations of this ablation
    return _measured(other, measure_rows(other, half, _rows(other, half, circuit), [config.metric]))


def _measured(inputs: Inputs, table: Table) -> Measured:
    """The means of the run's metric and the accuracy, with intervals."""
    seed = inputs.config.seed
    values = table[inputs.config.metric]
    return Measured(
        ablation=inputs.config.ablation,
        **{what: estimate(of_run, seed=seed) for what, of_run in values.items()},
        accuracy={what: share(mean_accuracy(table, what), len(of_run)) for what, of_run in values.items()},
        faithfulness=faithfulness(values["circuit"], values["full"], values["ablated"], seed),
        completeness=faithfulness(values["rest"], values["full"], values["ablated"], seed),
    )


@dataclass(frozen=True)
class _Judged:
    """A circuit, and the run's metric of `_rows`, Float[prompt] each."""

    inputs: Inputs
    half: str
    circuit: Circuit
    values: dict[str, Array]
    progress: Show

    def minimality(self, most: int) -> Minimality | None:
        """Remove each edge alone, or only the `most` edges with the smallest scores; None without any."""
        c = self.circuit
        config = self.inputs.config
        edges = [(int(s), int(r)) for s, r in np.argwhere(c.graph.edges & ~complement(c).kept)]
        if not most or not edges:
            return None
        if len(edges) > most:
            scores = c.kept.astype(float) if c.scores is None else np.nan_to_num(c.scores, nan=-np.inf)
            edges = sorted(edges, key=lambda e: float(scores[e]))[:most]
        own = self.values["circuit"]
        without = values_without(self.inputs, self.half, c, edges, config.metric, self.progress)
        precision = np.finfo(config.dtype).eps * ROUNDING
        parts = []
        for edge, values in zip(edges, without, strict=True):
            rise = estimate(values - own, seed=config.seed)
            least = precision * float(np.abs(values).max())
            useless = not _at_least(rise) > least
            parts.append(RemovedEdge(c.graph.edge_name(*edge), rise, useless))
        return Minimality(c.n_edges, tuple(sorted(parts, key=lambda p: p.rise.value)))

    def random(self) -> Random | None:
        """Measure random circuits of as many edges; None for a circuit without edges."""
        circuit = self.circuit.pruned()
        config = self.inputs.config
        if not circuit.n_edges:
            return None
        draw = np.random.default_rng(config.seed)
        drawn = []
        for i in range(DRAWS):
            other = random_circuit(circuit.graph, circuit.n_edges, draw)
            rows = circuit_rows(self.inputs, self.half, other)
            drawn.append(prompt_values(self.inputs, self.half, rows, config.metric))
            self.progress(Progress(i + 1, DRAWS, "random circuits", ""))
        own = self.values["circuit"]
        means = np.mean(drawn, 1)  # over prompts
        mean = np.mean(drawn, 0)  # over circuits
        return Random(
            edges=circuit.n_edges,
            metric=tuple(map(float, np.sort(means))),
            faithfulness=faithfulness(mean, self.values["full"], self.values["ablated"], config.seed),
            advantage=estimate(mean - own, seed=config.seed),
            rank=1 + int((means < own.mean()).sum()),
        )

    def spread(self) -> Spread:
        """Quartiles over prompts, and the prompts with the worst metric."""
        own = self.values["circuit"]
        texts = getattr(self.inputs.data, self.half).texts
        each = prompt_faithfulness(own, self.values["full"], self.values["ablated"])
        some = each[np.isfinite(each)]
        return Spread(
            metric=_quartiles(own),
            faithfulness=_quartiles(some if len(some) else each),
            undefined=len(each) - len(some),
            worst=tuple(Prompt(texts[i][0], float(own[i]), float(each[i])) for i in np.argsort(-own)[:WORST]),
        )


def _at_least(x: Estimate) -> float:
    """The lower end of the interval, or the value if it has none."""
    return x.value if math.isnan(x.low) else x.low


def _at_most(x: Estimate) -> float:
    """The upper end of the interval, or the value if it has none."""
    return x.value if math.isnan(x.high) else x.high


def _quartiles(x: Array) -> tuple[float, ...]:
    return tuple(map(float, np.quantile(x, [0, 0.25, 0.5, 0.75, 1])))


def _claim(measured: list[Measured]) -> list[str]:
    """A note unless under every ablation the circuit recovers most of the behaviour, and the rest of the model does
    not; ablations that cost nothing don't count."""
    measured = [m for m in measured if math.isfinite(m.faithfulness.value)]
    holds = [m.ablation for m in measured if _at_least(m.faithfulness) > MOST > _at_most(m.completeness)]
    rest = [m.ablation for m in measured if m.ablation not in holds]
    where = (
        f"under {' and '.join(holds)} ablation only, not under {' or '.join(rest)}" if holds else "under no ablation"
    )
    claim = f"faithfulness above {MOST:g} and completeness below, with their intervals"
    return [f"{claim}: {where}"] if rest else []

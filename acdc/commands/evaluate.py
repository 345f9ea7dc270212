"""How good a circuit is, on prompts that it was not found with: circuit.json → model, prompts → quantities, intervals.

The prompts are those of the held-out half; where a task has one set of prompts only, those of the discovery.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError
from torch import Tensor

from acdc.commands.run import environment, measured
from acdc.errors import FileError, UserError
from acdc.evaluation.bootstrap import Estimate, estimate, share
from acdc.evaluation.faithfulness import (
    ROUNDING,
    Array,
    circuit_rows,
    complement,
    faithfulness,
    prompt_faithfulness,
    prompt_values,
    random_circuit,
    share_right,
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

WORST, MOST = 5, 0.5
ROUNDED = {"float32": 1e-4, "float64": 1e-9}  # what a metric, or its share, may differ by elsewhere


def evaluate(
    path: Path,
    given: dict[str, Any],
    memory: float | None,
    most: int,
    progress: Show,
) -> Evaluation:
    """Evaluate a circuit.json.

    Args:
        given: task, model, examples, seed and device, where they should not be the circuit's own, else None
        memory: bytes to stay below; by default half of what the machine has
        most: how many edges are removed one by one, those with the smallest scores
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
    """Evaluate the content of a circuit.json; the rest as in `evaluate`.

    Args:
        where: what messages call it
        found_with: the config of its run, where there is one: it says where task and model lie
        read_task: gives the task of a name or path
        model: the one that is meant, where it is already loaded
    """
    config, task = _config(where, file, given, memory, found_with, read_task)
    try:
        inputs = load(config, task, memory, model)
    except UserError:
        _check_model(where, file, model or load_model(config.model, config.device, config.dtype))  # says it better
        raise
    _check_model(where, file, inputs.model)
    notes = [*file.notes, *_other_prompts(where, file, inputs, given)]
    circuit, half = file.circuit(), inputs.evaluation_split
    if half == "discovery":
        notes.append(f"{task.name} has one set of prompts: these are those that the circuit was found with")
    rows = _rows(inputs, half, circuit)
    notes += _recomputed(where, file, inputs, half, rows)
    values, own = _measured(inputs, half, rows)
    judged = _Judged(inputs, half, circuit, values, progress)
    minimality, random, spread = judged.minimality(most), judged.random(), judged.spread()
    under = (_under(inputs, ablation) for ablation in ABLATIONS if ablation != config.ablation)
    others = tuple(_measured(other, half, _rows(other, half, circuit))[1] for other in under)
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
        raise FileError(f"{beside}: lies beside {path.name} and is no config of a run; move it away") from None


def _config(
    where: str,
    file: CircuitFile,
    given: dict[str, Any],
    memory: float | None,
    found_with: Config | None,
    read_task: Callable[[str], Task],
) -> tuple[Config, Task]:
    """What the circuit was found with, by its file; where task and model lie, by the config of its run."""
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
        stated |= {"part": found_with.part} if memory is None and found_with.part else {}
    # The threshold says which edges to keep, and that is known.
    own = {key: value for key, value in given.items() if value is not None}
    config, task, _ = resolve({**stated, **own, "threshold": 0.0}, None, None, read_task)
    return config, task


def _check_model(where: str, file: CircuitFile, model: Model) -> None:
    """Raise FileError unless these are the weights, and this is the graph, of the circuit."""
    graph = model.transformer.config.graph()
    if graph != file.model.graph:
        sizes = [f"{g.words}, {g.n_edges:,} edges" for g in (file.model.graph, graph)]
        raise FileError(f"{where}: the circuit is of a graph of {sizes[0]}; that of {model.name} has {sizes[1]}")
    if model.hash != file.model.hash:
        raise FileError(
            f"{where}: the weights are not those that the circuit was found in: hash {file.model.hash} of "
            f"{file.model.name}, but {model.hash} of {model.name} (another one: --model)"
        )


def _other_prompts(where: str, file: CircuitFile, inputs: Inputs, given: dict[str, Any]) -> list[str]:
    """What is to be said of prompts that are not those of the circuit, if they are not.

    Raises:
        FileError: they are others, though no others were asked for.
    """
    config, stated = inputs.config, file.task
    if config.data_hash == stated.data_hash:
        return []
    asked = [f"--{key} {given[key]}" for key in ("task", "examples", "seed") if given[key] is not None]
    if not asked:
        raise FileError(
            f"{where}: the prompts are not those of the circuit: data hash {stated.data_hash}, but {config.data_hash} "
            f"now; the task has changed since (its version was {stated.version}, now {inputs.task.version}); to take "
            "others, give --task, --examples or --seed"
        )
    note = f"{', '.join(asked)}: other prompts than those that were held out when the circuit was found"
    if given["task"] is None:
        first = make_data(inputs.task, inputs.model.tokenizer, stated.examples, stated.seed)
        texts = inputs.data.held_out.texts
        seen = len({clean for clean, _ in texts} & {clean for clean, _ in first.discovery.texts})
        if first.hash[:16] == stated.data_hash and seen:
            note += f"; {seen} of these {len(texts)} are among those that it was found with"
    return [note]


def _under(inputs: Inputs, ablation: str) -> Inputs:
    """The same under another ablation, without what is kept of this one."""
    return replace(inputs, config=inputs.config.model_copy(update={"ablation": ablation}), _parts={})


def _rows(inputs: Inputs, half: str, circuit: Circuit) -> dict[str, Tensor]:
    """The normalised final stream at the scored rows, Float[row d_model], under the inputs' ablation: of the full
    model, the circuit, everything ablated, and all edges but the circuit's."""
    none, rest = Circuit.empty(circuit.graph), complement(circuit)
    which = {"full": None, "circuit": circuit, "ablated": none, "rest": rest}
    return {name: circuit_rows(inputs, half, edges) for name, edges in which.items()}


def _recomputed(where: str, file: CircuitFile, inputs: Inputs, half: str, rows: dict[str, Tensor]) -> list[str]:
    """A warning unless the metrics that the file states of these prompts, if it does, come out again. An accuracy may
    flip where two answers are as good as equal, and is no sign of anything."""
    if inputs.config.data_hash != file.task.data_hash:
        return []
    stated = "held_out" if any(key.startswith("held_out.") for key in file.metrics) else half
    now = measured(inputs, {half: {"model": rows["full"], "circuit": rows["circuit"], "ablated": rows["ablated"]}})
    rounded, differ = max(ROUNDED[dtype] for dtype in (inputs.config.dtype, file.method.dtype)), []
    for key, value in now.items():
        name = stated + key.removeprefix(half)
        known = file.metrics.get(name, value)
        if abs(value - known) > rounded * max(1.0, abs(value), abs(known)) and not key.endswith(".accuracy"):
            differ.append(f"{name} is {known:.6g} there, and {value:.6g} now")
    if not differ:
        return []
    more = f" (and {len(differ) - 1} more)" if len(differ) > 1 else ""
    then = {**file.environment, "device": file.method.device}
    today = {**environment(), "device": inputs.model.transformer.device.type}
    changed = [f"{k} {then.get(k, 'unknown')}, now {v}" for k, v in today.items() if then.get(k) != v]
    why = f"then {'; '.join(changed)}" if changed else "versions and device are the same"
    return [f"warning: {where} was changed, or is computed otherwise here: {differ[0]}{more}; {why}"]


def _measured(inputs: Inputs, half: str, rows: dict[str, Tensor]) -> tuple[dict[str, Array], Measured]:
    """The metric for every prompt, and all means, from what `_rows` gives."""
    seed, values, right = inputs.config.seed, {}, {}
    for name, of in rows.items():
        values[name] = prompt_values(inputs, half, of, inputs.config.metric)
        right[name] = share(share_right(inputs, half, of), len(values[name]))
    full, ablated = values["full"], values["ablated"]
    return values, Measured(
        ablation=inputs.config.ablation,
        **{name: estimate(x, seed=seed) for name, x in values.items()},
        accuracy=right,
        faithfulness=faithfulness(values["circuit"], full, ablated, seed),
        completeness=faithfulness(values["rest"], full, ablated, seed),
    )


@dataclass(frozen=True)
class _Judged:
    """A circuit under judgement, with the metric for every prompt."""

    inputs: Inputs
    half: str
    circuit: Circuit
    values: dict[str, Array]
    progress: Show

    def minimality(self, most: int) -> Minimality | None:
        """Every edge removed alone, or the `most` with the smallest scores."""
        c, config = self.circuit, self.inputs.config
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
            useless = not _surely(rise) > least
            parts.append(RemovedEdge(c.graph.edge_name(*edge), rise, useless))
        return Minimality(c.n_edges, tuple(sorted(parts, key=lambda p: p.rise.value)))

    def random(self) -> Random | None:
        """Random circuits of as many edges."""
        circuit, config = self.circuit.pruned(), self.inputs.config
        if not circuit.n_edges:
            return None
        draw, drawn = np.random.default_rng(config.seed), []
        for i in range(DRAWS):
            other = random_circuit(circuit.graph, circuit.n_edges, draw)
            rows = circuit_rows(self.inputs, self.half, other)
            drawn.append(prompt_values(self.inputs, self.half, rows, config.metric))
            self.progress(Progress(i + 1, DRAWS, "random circuits", ""))
        means, own, mean = np.mean(drawn, 1), self.values["circuit"], np.mean(drawn, 0)
        return Random(
            edges=circuit.n_edges,
            metric=tuple(map(float, np.sort(means))),
            faithfulness=faithfulness(mean, self.values["full"], self.values["ablated"], config.seed),
            advantage=estimate(mean - own, seed=config.seed),
            rank=1 + int((means < own.mean()).sum()),
        )

    def spread(self) -> Spread:
        """Quartiles over prompts, and the prompts on which the circuit does worst."""
        own, texts = self.values["circuit"], getattr(self.inputs.data, self.half).texts
        each = prompt_faithfulness(own, self.values["full"], self.values["ablated"])
        some = each[np.isfinite(each)]
        return Spread(
            metric=_quartiles(own),
            faithfulness=_quartiles(some if len(some) else each),
            undefined=len(each) - len(some),
            worst=tuple(Prompt(texts[i][0], float(own[i]), float(each[i])) for i in np.argsort(-own)[:WORST]),
        )


def _surely(x: Estimate) -> float:
    """What a value is at least: the lower end of its interval, if it has one."""
    return x.value if math.isnan(x.low) else x.low


def _at_most(x: Estimate) -> float:
    return x.value if math.isnan(x.high) else x.high


def _quartiles(x: Array) -> tuple[float, ...]:
    return tuple(map(float, np.quantile(x, [0, 0.25, 0.5, 0.75, 1])))


def _claim(measured: list[Measured]) -> list[str]:
    """A note unless the circuit does most of what the model does, and the rest does not, under every ablation that
    leaves something to do."""
    measured = [m for m in measured if math.isfinite(m.faithfulness.value)]
    holds = [m.ablation for m in measured if _surely(m.faithfulness) > MOST > _at_most(m.completeness)]
    rest = [m.ablation for m in measured if m.ablation not in holds]
    where = (
        f"under {' and '.join(holds)} ablation only, not under {' or '.join(rest)}" if holds else "under no ablation"
    )
    claim = f"faithfulness above {MOST:g} and completeness below, with their intervals"
    return [f"{claim}: {where}"] if rest else []

"""`acdc evaluate`: circuit.json → model and prompts (the evaluation split) → quantities with intervals."""

import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from pydantic import ValidationError

from acdc.commands.run import environment, planned
from acdc.commands.stability import resampled
from acdc.errors import FileError
from acdc.evaluation.bootstrap import Estimate, estimate, share
from acdc.evaluation.faithfulness import (
    ROUNDING,
    Array,
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
from acdc.files.circuit import CircuitFile
from acdc.files.eap_ig import read_any
from acdc.files.evaluation import DRAWS, Evaluation, Measured, Minimality, Prompt, Random, RemovedEdge, Spread
from acdc.graph.circuit import Circuit
from acdc.io.progress import Plan, Progress, Show
from acdc.io.yaml_file import read_yaml
from acdc.model.checkpoint import Checkpoint, open_checkpoint
from acdc.model.load import Model
from acdc.registry import ABLATIONS, NAMES, refusal
from acdc.setup.config import Config, ReadTask, resolve
from acdc.setup.estimate import CURVE
from acdc.setup.inputs import Inputs, load
from acdc.task.load import load_task
from acdc.task.tokenize import make_data

RANDOM = "random circuits"  # stages
OTHERS = "other ablations"
WORST = 5  # prompts to list
MOST = 0.5  # a circuit should be more faithful than this, and the rest of the model less
ROUNDED = {"float32": 1e-4, "float64": 1e-9}  # how much a metric may differ on another machine; relative if above 1


class Opened(NamedTuple):
    """A circuit with its model and prompts."""

    where: str  # for messages
    file: CircuitFile
    inputs: Inputs
    circuit: Circuit
    other: list[str]  # a note if the prompts are other ones than the circuit's


def open_circuit(
    circuit: Path | CircuitFile,
    given: dict[str, Any],
    memory: float | None,
    found_with: Config | None = None,
    read_task: ReadTask = load_task,
    model: Model | None = None,
) -> Opened:
    """Open a circuit.json, a file in EAP-IG's format, or the content of a circuit.json. Raise UserError if the model,
    its graph or the prompts aren't its own.

    Args:
        given: task, model, metric, ablation, examples, seed and device to use instead of the circuit's own; None where
            not given; EAP-IG's format needs task and model
        memory: bytes to stay below
        found_with: the config of the run, if it isn't beside the file, for the paths of task and model
        model: the circuit's model, if it is loaded already
    """
    if isinstance(circuit, Path):
        where = str(circuit)
        file = read_any(circuit, given)
        found_with = None if file.of_eap_ig else config_beside(circuit)
    else:
        where = "circuit"
        file = circuit
    own = {key: value for key, value in given.items() if value is not None}
    if memory is not None:
        own["part"] = None  # as many prompts at once as fit
    config, task, _ = resolve(_stated(where, file, found_with) | own, None, None, read_task)
    checkpoint = model.checkpoint if model else open_checkpoint(config.model)
    check_graph(where, file, checkpoint)
    inputs = load(config, task, memory, model or checkpoint, file.model.features)
    own_model = file.model
    if inputs.model.hash != own_model.hash and not file.of_eap_ig:
        hashes = f"hash {own_model.hash} ({own_model.name}), not {inputs.model.hash} ({inputs.model.name})"
        raise FileError(f"{where}: the circuit was found in other weights: {hashes}; choose the model with --model")
    other = _other_prompts(where, file, inputs, given)
    edges = file.at_spans(inputs.data.spans, f"{where}: prompts of {task.name}").circuit()
    return Opened(where, file, inputs, edges, other)


def evaluate(
    circuit: Path | CircuitFile,
    given: dict[str, Any],
    memory: float | None,
    most: int,
    progress: Show,
    found_with: Config | None = None,
    read_task: ReadTask = load_task,
    model: Model | None = None,
) -> Evaluation:
    """Evaluate a circuit; what is given is said in `open_circuit`. At most `most` edges are removed one by one, those
    with the smallest scores."""
    where, file, inputs, edges, other = open_circuit(circuit, given, memory, found_with, read_task, model)
    config = inputs.config
    task = inputs.task
    notes = [*file.notes, *other]
    if inputs.evaluation_split == "discovery":
        notes.append(f"{task.name} has one set of prompts: the circuit was found with these")
    progress(_planned(inputs, edges, most))
    progress(Progress("evaluation", 0, 1))
    table = _table(inputs, edges, task.metrics)
    values = table[config.metric]
    if not other and config.ablation == file.method.ablation:
        notes += _differences(where, file, inputs, table)
    measured = _measured(inputs, table)
    minimality = _minimality(inputs, edges, values["circuit"], most, progress)
    random = _random(inputs, edges, values, progress)
    progress(Progress(OTHERS, 0, 1))
    others = []
    for ablation in [ablation for ablation in ABLATIONS if ablation != config.ablation]:
        other_config = inputs.config.model_copy(update={"ablation": ablation})
        under = replace(inputs, config=other_config, _parts={})  # without the activations of this ablation
        others.append(_measured(under, _table(under, edges, [config.metric])))
    notes += _claim([measured, *others])
    return Evaluation(
        task=task.name,
        model=inputs.config.model_name,
        model_hash=inputs.model.hash,
        data_hash=inputs.config.data_hash or "",
        method=file.method.name,
        **config.model_dump(include={"metric", "dtype", "examples", "seed"}),
        half=inputs.evaluation_split,
        edges=edges.n_edges,
        total=edges.graph.n_edges,
        measured=measured,
        by_metric={metric: _faithfulness(table[metric], config.seed) for metric in task.metrics},
        others=tuple(others),
        minimality=minimality,
        random=random,
        spread=_spread(inputs, values),
        notes=tuple(notes),
    )


def _planned(inputs: Inputs, circuit: Circuit, most: int) -> Plan:
    """The stages of an evaluation, with estimated seconds."""
    once = planned(inputs).stages["curve"] / CURVE
    edges = min(most, circuit.size)
    return Plan({"evaluation": 9 * once, "minimality": edges * once, RANDOM: DRAWS * once, OTHERS: 18 * once})


def config_beside(path: Path) -> Config | None:
    """The config.yaml beside a circuit.json, if there is one."""
    beside = path.with_name("config.yaml")
    if not beside.exists():
        return None
    try:
        return Config.model_validate(read_yaml(beside, Config.model_fields))
    except ValidationError:
        raise FileError(f"{beside}: next to {path.name}, but not a run config; move it away") from None


def _stated(where: str, file: CircuitFile, found_with: Config | None) -> dict[str, Any]:
    """The options that the circuit was found with; paths of task and model from the config of its run."""
    if file.of_eap_ig:  # the command line names task and model; all else is by the task's defaults
        return {"threshold": 0.0}
    method = file.method
    choices = {"metric": method.metric, "ablation": method.ablation, "dtype": method.dtype}
    for key, value in choices.items():
        if value not in NAMES[key]:
            raise FileError(f"{where}: method.{key}: {refusal(key, value)}")
    # A threshold is required, and not used: the edges are known.
    stated: dict[str, Any] = {"examples": file.task.examples, "seed": file.task.seed, "threshold": 0.0, **choices}
    stated |= {"task": file.task.name, "model": file.model.name}
    if file.spans:
        stated["positions"] = True
    if file.model.features:
        stated["features"] = file.method.options.get("features", "neurons:all")
        if found_with and found_with.features == stated["features"]:
            stated["features_hash"] = found_with.features_hash
    if found_with and (found_with.task_name, found_with.model_name) == (file.task.name, file.model.name):
        stated |= {key: getattr(found_with, key) for key in ("task", "model", "device", "part")}
    return stated


def check_graph(where: str, file: CircuitFile, of: Checkpoint) -> None:
    """Raise FileError unless the model has the circuit's graph."""
    graph = of.sizes.graph()
    if graph != file.model.graph.whole:
        sizes = [f"{g.words}, {g.n_edges:,} edges" for g in (file.model.graph.whole, graph)]
        raise FileError(f"{where}: the circuit's graph has {sizes[0]}; that of {of.name} has {sizes[1]}")
    width = of.sizes.d_model
    if file.of_eap_ig and width != file.model.d_model:
        wide = f"the circuit's model is {file.model.d_model} wide, {of.name} is {width}"
        raise FileError(f"{where}: cfg.d_model: {wide}")


def _other_prompts(where: str, file: CircuitFile, inputs: Inputs, given: dict[str, Any]) -> list[str]:
    """A note if the prompts are not the circuit's; raise FileError if no option asks for others."""
    stated = file.task
    now = inputs.config.data_hash
    if file.of_eap_ig:
        return ["the file doesn't say with which prompts the circuit was found; these may be among them"]
    number = file.method.options.get("resample")
    if isinstance(number, int):  # found by `acdc stability` on some of these prompts, and the same are held out
        now = resampled(inputs, number).config.data_hash
    if now == stated.data_hash:
        return []
    asked = [f"--{key} {given[key]}" for key in ("task", "examples", "seed") if given[key] is not None]
    if not asked:
        changed = f"version {stated.version}, now {inputs.task.version}; data hash {stated.data_hash}, now {now}"
        use = "to use other prompts, give --task, --examples or --seed"
        raise FileError(f"{where}: the prompts are not the circuit's: the task has changed ({changed}); {use}")
    note = f"{', '.join(asked)}: other prompts than those held out when the circuit was found"
    if given["task"] is None:
        first = make_data(inputs.task, inputs.model.tokenizer, stated.examples, stated.seed)
        texts = inputs.data.held_out.texts
        seen = len({clean for clean, _ in texts} & {clean for clean, _ in first.discovery.texts})
        if first.hash[:16] == stated.data_hash and seen:
            note += f"; it was found with {seen} of these {len(texts)}"
    return [note]


def _table(inputs: Inputs, circuit: Circuit, metrics: Iterable[str]) -> Table:
    """Measure the full model, the circuit, everything ablated, and all edges but the circuit's."""
    half = inputs.evaluation_split
    runs = {"full": None, "circuit": circuit, "ablated": Circuit.empty(circuit.graph), "rest": complement(circuit)}
    rows = {what: circuit_rows(inputs, half, edges) for what, edges in runs.items()}
    return measure_rows(inputs, half, rows, metrics)


def _differences(where: str, file: CircuitFile, inputs: Inputs, table: Table) -> list[str]:
    """A warning if the metrics of the same prompts are not those in the file. Accuracies are not compared: they may
    flip where two answers have nearly the same logit."""
    in_file = any(key.startswith("held_out.") for key in file.metrics)
    half = "held_out" if in_file else inputs.evaluation_split
    rounded = max(ROUNDED[dtype] for dtype in (inputs.config.dtype, file.method.dtype))
    differ = []
    for metric in inputs.task.metrics:
        for what, values in table[metric].items():
            name = f"{half}.{'model' if what == 'full' else what}.{metric}"
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


def _measured(inputs: Inputs, table: Table) -> Measured:
    """The means of the run's metric and the accuracy, with intervals."""
    seed = inputs.config.seed
    values = table[inputs.config.metric]
    return Measured(
        ablation=inputs.config.ablation,
        **{what: estimate(of_run, seed=seed) for what, of_run in values.items()},
        accuracy={what: share(mean_accuracy(table, what), len(of_run)) for what, of_run in values.items()},
        faithfulness=_faithfulness(values, seed),
        completeness=faithfulness(values["rest"], values["full"], values["ablated"], seed),
    )


def _faithfulness(values: dict[str, Array], seed: int) -> Estimate:
    return faithfulness(values["circuit"], values["full"], values["ablated"], seed)


def _minimality(inputs: Inputs, circuit: Circuit, own: Array, most: int, progress: Show) -> Minimality | None:
    """Remove each edge alone, or only the `most` edges with the smallest scores; None without any. `own` is the
    circuit's metric, Float[prompt]."""
    config = inputs.config
    graph = circuit.graph
    edges = [tuple(edge) for edge in np.argwhere(circuit.open).tolist()]
    if not most or not edges:
        return None
    if len(edges) > most:
        scores = circuit.kept.astype(float) if circuit.scores is None else np.nan_to_num(circuit.scores, nan=-np.inf)
        edges = sorted(edges, key=lambda e: float(scores[e]))[:most]
    without = values_without(inputs, inputs.evaluation_split, circuit, edges, config.metric, progress)
    precision = np.finfo(config.dtype).eps * ROUNDING
    removed = []
    for edge, values in zip(edges, without, strict=True):
        rise = estimate(values - own, seed=config.seed)
        low, _ = _interval(rise)
        useless = not low > precision * float(np.abs(values).max())
        removed.append(RemovedEdge(graph.part_name(edge, circuit.spans), rise, useless))
    return Minimality(circuit.size, tuple(sorted(removed, key=lambda r: r.rise.value)))


def _random(inputs: Inputs, circuit: Circuit, values: dict[str, Array], progress: Show) -> Random | None:
    """Measure random circuits of as many edges, each at the spans of an edge of the circuit; None for a circuit without
    edges."""
    pruned = circuit.pruned()
    n_edges = pruned.n_edges
    config = inputs.config
    if not n_edges:
        return None
    draw = np.random.default_rng(config.seed)
    drawn = []
    for i in range(DRAWS):
        other = random_circuit(circuit.graph, n_edges, draw)
        if circuit.spans:
            kept = np.zeros_like(circuit.kept)
            kept[other.kept] = draw.permutation(pruned.kept[pruned.edges])
            other = replace(circuit, kept=kept, direct=None)
        drawn.append(prompt_values(inputs, inputs.evaluation_split, other, config.metric))
        progress(Progress(RANDOM, i + 1, DRAWS))
    own = values["circuit"]
    means = np.mean(drawn, 1)  # over prompts
    mean = np.mean(drawn, 0)  # over circuits
    faithful = faithfulness(mean, values["full"], values["ablated"], config.seed)
    advantage = estimate(mean - own, seed=config.seed)
    rank = 1 + int((means < own.mean()).sum())
    return Random(n_edges, tuple(map(float, np.sort(means))), faithful, advantage, rank)


def _spread(inputs: Inputs, values: dict[str, Array]) -> Spread:
    """Quartiles over prompts, and the prompts with the worst metric."""
    own = values["circuit"]
    texts = getattr(inputs.data, inputs.evaluation_split).texts
    each = prompt_faithfulness(own, values["full"], values["ablated"])
    some = each[np.isfinite(each)]
    worst = tuple(Prompt(texts[i][0], float(own[i]), float(each[i])) for i in np.argsort(-own)[:WORST])
    return Spread(_quartiles(own), _quartiles(some if len(some) else each), len(each) - len(some), worst)


def _quartiles(x: Array) -> tuple[float, ...]:
    return tuple(map(float, np.quantile(x, [0, 0.25, 0.5, 0.75, 1])))


def _interval(x: Estimate) -> tuple[float, float]:
    """The ends of the interval, or the value twice if it has none."""
    return (x.value, x.value) if math.isnan(x.low) else (x.low, x.high)


def _claim(measured: list[Measured]) -> list[str]:
    """A note unless under every ablation the circuit recovers most of the behaviour, and the rest of the model does
    not; ablations that cost nothing don't count."""
    measured = [m for m in measured if math.isfinite(m.faithfulness.value)]
    holds = [m.ablation for m in measured if _interval(m.faithfulness)[0] > MOST > _interval(m.completeness)[1]]
    fails = [m.ablation for m in measured if m.ablation not in holds]
    if not fails:
        return []
    some = f"under {' and '.join(holds)} ablation only, not under {' or '.join(fails)}"
    where = some if holds else "under no ablation"
    return [f"faithfulness above {MOST:g} and completeness below, with their intervals: {where}"]

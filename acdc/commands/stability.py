"""How stable a circuit is across seeds, prompts and edge order.

A base run is repeated with other seeds, on bootstrap resamples of its prompts and, for ACDC, in other orders of the
edges. An edge's frequency is the share of reruns, without the base run, that find it; the edges of nearly all reruns
are the core. Every run works in `<out>/<name>/`, where a second call resumes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from acdc.commands.run import describe, measure, planned, run_or_read
from acdc.errors import UserError
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.faithfulness import Judge
from acdc.evaluation.ranking import jaccard
from acdc.files.circuit import CircuitFile, edges_of, write_circuit
from acdc.files.parts import MethodPart
from acdc.files.stability import EdgeFrequency, Kind, MeanRange, Run, Stability, share_of
from acdc.graph.circuit import Circuit
from acdc.graph.scores import write_scores
from acdc.io.files import plain, to_json, write_atomic
from acdc.io.folder import claim, inside, locked
from acdc.io.progress import Progress, Say, Show, one_of
from acdc.methods.discover import SCORES, Discovery, find, scored
from acdc.model.load import Model
from acdc.registry import METHODS, ORDERS, parse_filter
from acdc.report.picture import to_svg
from acdc.report.style import FREQUENCY, PictureStyle
from acdc.setup.config import Config, DefaultModel, ReadTask, resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.load import load_task
from acdc.task.schema import Task
from acdc.task.tokenize import Data

BASE = "base"
DEFAULT = 5  # reruns of a kind
Found = dict[str, dict[str, Circuit]]  # kind of reruns → name → circuit without dead edges


@dataclass(frozen=True)
class StabilityPlan:
    """What is repeated, and how often."""

    config: Config
    task: Task
    counts: dict[str, int]  # number of reruns by kind
    core: float  # share of the reruns, above 0 and up to 1, in which an edge of the core is found
    out: Path | None


def make_plan(
    given: dict[str, Any],
    file: Path | None,
    counts: dict[str, int | None],
    core: float,
    out: Path | None,
    default_model: DefaultModel | None,
    read_task: ReadTask = load_task,
) -> tuple[StabilityPlan, list[str]]:
    """Check the options as far as that goes without a model. Return the plan, and notes for the user. `counts` has the
    number of reruns of each of `KINDS`; None is `DEFAULT`, or 0 orders for a method without an order."""
    config, task, notes = resolve(given, file, default_model, read_task)
    ordered = "order" in METHODS[config.method].options and not config.eliminates
    if counts["orders"] and not ordered:
        raise UserError(f"--orders: only acdc with a threshold tests edges in an order; {config.method} here has none")
    numbers = {kind: DEFAULT if number is None else number for kind, number in counts.items()}
    if not ordered:
        numbers["orders"] = 0
    if not any(numbers.values()):
        raise UserError("nothing to repeat: one of --seeds, --resamples and --orders must be 1 or more")
    if not 0 < core <= 1:
        raise UserError(f"--core: is {core:g}; it must be above 0 and up to 1, the share of the runs")
    return StabilityPlan(config, task, numbers, core, out), notes


def stability(
    plan: StabilityPlan, memory: float | None, progress: Show, say: Say, model: Model | None = None
) -> tuple[Stability, Path]:
    """Do the base run and all reruns, staying below `memory` bytes, and write the files. Return the result and its
    directory. Raise UserError if that belongs to another base run, is in use or can't be written."""
    inputs = load(plan.config, plan.task, memory, model)
    out = plan.out or Path("stability") / inputs.config.folder
    with locked(out, config=inputs.config.to_yaml(), others=("runs", "compare.json", "circuit.json")):
        claim(out, inputs.config.to_yaml())
        notes = []
        if doubt := warning(inputs, competence(inputs)):
            notes.append(doubt)
            say(doubt)
        count = 1 + sum(plan.counts.values())
        base = run_or_resume(Rerun(BASE, BASE, inputs), inputs, out, one_of(progress, 0, count), say)
        found: Found = {}
        seeded = []
        for number, rerun in enumerate(reruns(inputs, plan.counts), 1):
            file = run_or_resume(rerun, inputs, out, one_of(progress, number, count), say)
            circuit = file.at_spans(base.spans, f"{rerun.name}: the base run's prompts").circuit()
            found.setdefault(rerun.kind, {})[rerun.name] = circuit
            if rerun.kind == "seeds":
                seeded.append(rerun.inputs.data)
        notes += _shared(inputs.data, seeded)
        circuits = [circuit for of_kind in found.values() for circuit in of_kind.values()]
        frequent = core_of(circuits, plan.core)
        result = _summary(plan, inputs, base, found, frequent, notes)
        core = frequent.pruned()
        title = f"{result.task} in {result.model}"
        often = f"{title}: how often edges are found in {len(circuits)} reruns"
        look = PictureStyle(measure=FREQUENCY)
        write_circuit(out / "core.json", _core_file(plan, inputs, core, result))
        write_atomic(out / "core.svg", to_svg(core, f"{title}: {share_of(result)}", look))
        write_atomic(out / "found.svg", to_svg(core_of(circuits, 1 / len(circuits)), often, look))
        write_atomic(out / "stability.json", to_json(result))
    return result, out


def core_of(circuits: list[Circuit], share: float) -> Circuit:
    """Return the edges that at least this share of the circuits has, dead ones included; scores are frequencies."""
    graph = circuits[0].graph
    often: np.ndarray = np.mean([c.kept for c in circuits], 0)
    direct = [c.direct for c in circuits if c.direct is not None]
    often_direct = np.mean(direct, 0) if direct else None
    kept_direct = None if often_direct is None else often_direct >= share
    return Circuit(graph, often >= share, kept_direct, often, often_direct, circuits[0].spans)


# ---------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Rerun:
    """The base run, or the base run with one thing changed."""

    kind: str
    name: str  # of its directory
    inputs: Inputs
    number: int = 0  # of a rerun that only `acdc stability` can repeat: which one of its kind
    notes: tuple[str, ...] = ()


def reruns(base: Inputs, counts: dict[str, int]) -> Iterator[Rerun]:
    """Yield all reruns of a base run. A rerun doesn't depend on how many others there are."""
    first = base.config.seed
    for seed in range(first + 1, first + counts["seeds"] + 1):
        config = base.config.model_copy(update={"seed": seed, "data_hash": None})
        yield Rerun("seeds", f"seed-{seed}", load(config, base.task, of=base.model))
    for number in range(1, counts["resamples"] + 1):
        note = f"found on bootstrap resample {number} of the prompts for discovery"
        yield Rerun("resamples", f"resample-{number}", resampled(base, number), number, (note,))
    orders = [(order, first) for order in ORDERS if order not in ("random", base.config.order)]
    orders += [("random", first + i) for i in range(1, counts["orders"] + 1)]
    for number, (order, seed) in enumerate(orders[: counts["orders"]], 1):
        name = f"order-{order}"
        note = f"edges tested in the order {order}"
        if order == "random":
            name += f"-{seed}"
            note += f", shuffled by seed {seed}"
        config = base.config.model_copy(update={"order": order, "seed": seed})
        yield Rerun("orders", name, replace(base, config=config), number, (note,))


def resampled(base: Inputs, number: int) -> Inputs:
    """Draw as many prompts for discovery, with replacement, from the base run's; the held-out prompts stay."""
    n = len(base.data.discovery.clean)
    rng = Random(f"resample {base.config.seed} {number}")
    discovery = base.data.discovery.take([rng.randrange(n) for _ in range(n)])
    data = Data.of(discovery, base.data.held_out, base.data.spans)
    return Inputs(base.config.model_copy(update={"data_hash": data.hash[:16]}), base.task, base.model, data)


def run_or_resume(rerun: Rerun, base: Inputs, out: Path, progress: Show, say: Say) -> CircuitFile:
    """Do a run, or read it if it is finished. Its circuit has no dead edges."""
    folder = inside(out, rerun.name)

    def make() -> CircuitFile:
        progress(planned(rerun.inputs))
        if rerun.kind == "orders" and base.config.prefilter is not None:
            # A filter may draw by the seed, which is the order's here. Take its scores from the base run instead.
            write_scores(folder / SCORES, scored(base, parse_filter(base.config.prefilter)[0], out / BASE, progress))
        found = find(rerun.inputs, folder, progress)
        circuit = found.circuit.pruned()
        progress(Progress("evaluation", 0, 1))
        measures = measure(rerun.inputs, circuit)
        file = describe(rerun.inputs, found, measures, rerun.notes)
        say(f"{rerun.name}: {circuit.n_edges} edges")
        if not rerun.number:
            return file
        task = file.task.model_copy(update={"seed": base.config.seed})  # the config's seed may be that of the order
        method = file.method
        if rerun.kind == "resamples":
            method = method.model_copy(update={"options": {**method.options, "resample": rerun.number}})
        command = f"acdc stability --config ../config.yaml --{rerun.kind} {rerun.number}"
        return file.model_copy(update={"task": task, "method": method, "command": command})

    return run_or_read(folder, make)


# ---------------------------------------------------------------- the result


def _shared(base: Data, seeded: list[Data]) -> list[str]:
    """Return notes on prompts that several seeds draw."""
    notes = []
    same = sum(data.hash == base.hash for data in seeded)
    if same:
        notes.append(f"{same} of {len(seeded)} other seeds draw the same prompts: the task has no others")
    if base.held_out is not base.discovery:
        seen = {clean for data in seeded for clean, _ in data.discovery.texts}
        texts = base.held_out.texts
        if known := sum(clean in seen for clean, _ in texts):
            served = f"{known} served the discovery with another seed, and so the core"
            notes.append(f"of the {len(texts)} held-out prompts, {served}")
    return notes


def _summary(
    plan: StabilityPlan, inputs: Inputs, base_file: CircuitFile, found: Found, frequent: Circuit, notes: list[str]
) -> Stability:
    """Return the content of stability.json. `frequent`: the core, with dead edges."""
    config = inputs.config
    judge = Judge(inputs)
    base = base_file.circuit()
    core = frequent.pruned()
    kinds = {kind: list(circuits.values()) for kind, circuits in found.items()}
    kinds["all"] = [circuit for circuits in kinds.values() for circuit in circuits]
    runs = [_run(judge, kind, name, circuit, base) for kind in found for name, circuit in found[kind].items()]
    edges = _edges(base, core, kinds)
    compared = []
    for kind, circuits in kinds.items():
        kept = [circuit.kept for circuit in circuits]
        sizes = MeanRange.of([circuit.size for circuit in circuits])
        of_two = MeanRange.of([jaccard(a, b) for a, b in combinations(kept, 2)])
        like_base = MeanRange.of([jaccard(k, base.kept) for k in kept])
        compared.append(Kind(kind, len(kept), sizes, of_two, like_base))
    direct_names = base.graph.direct_index
    return Stability(
        task=inputs.task.name,
        model=config.model_name,
        **config.model_dump(include={"model_hash", "data_hash", "examples", "seed"}),
        method=base_file.method.model_dump(),
        half=judge.half,
        total=base.graph.n_edges * max(1, len(base.spans)),
        full=float(judge.full.mean()),
        ablated=float(judge.ablated.mean()),
        base=_run(judge, BASE, BASE, base, base),
        runs=tuple(runs),
        kinds=tuple(compared),
        share=plan.core,
        core=_run(judge, "core", "core", core, base),
        dead=frequent.n_dead,
        edges=tuple(edge for edge in edges if edge.name not in direct_names),
        direct=tuple(edge for edge in edges if edge.name in direct_names),
        notes=tuple(notes),
    )


def _edges(base: Circuit, core: Circuit, kinds: dict[str, list[Circuit]]) -> list[EdgeFrequency]:
    """Return the residual and direct edges that any run found, the most frequent first."""
    counts = {kind: Counter(name for c in circuits for name in _names(c)) for kind, circuits in kinds.items()}
    in_base = set(_names(base))
    in_core = set(_names(core))
    edges = []
    for name in _names(Circuit.full(base.graph, base.spans)):
        by_kind = {kind: counts[kind][name] / len(circuits) for kind, circuits in kinds.items()}
        frequency = by_kind.pop("all")
        if frequency or name in in_base:
            edges.append(EdgeFrequency(name, frequency, by_kind, base=name in in_base, core=name in in_core))
    return sorted(edges, key=lambda edge: -edge.frequency)


def _names(circuit: Circuit) -> list[str]:
    """Return the names of a circuit's residual and direct edges."""
    return circuit.labels() + circuit.direct_names()


def _run(judge: Judge, kind: str, name: str, circuit: Circuit, base: Circuit) -> Run:
    """Measure a circuit on the base run's held-out prompts."""
    metric, faithfulness, accuracy = judge.judged(circuit)
    like_base = jaccard(circuit.kept, base.kept)
    return Run(name, kind, circuit.size, metric, tuple(plain(faithfulness)), plain(accuracy), like_base)


def _core_file(plan: StabilityPlan, inputs: Inputs, core: Circuit, result: Stability) -> CircuitFile:
    """Return the content of core.json, in which an edge's score is its frequency."""
    notes = (f"{share_of(result)}; score: the share", *result.notes)
    file = describe(inputs, Discovery(core), measure(inputs, core), notes)
    counts = " ".join(f"--{kind} {n}" for kind, n in plan.counts.items())
    options = {"of": file.method.name, "core": plan.core, **plan.counts, **file.method.options}
    method = MethodPart(**{**file.method.model_dump(), "name": "stability", "options": options})
    graph = file.graph.model_copy(update={"dead": result.dead})
    command = f"acdc stability --config config.yaml {counts} --core {plan.core:g}"
    return file.model_copy(update={"method": method, "graph": graph, "edges": edges_of(core), "command": command})

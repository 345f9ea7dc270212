"""How stable a circuit is across seeds, prompts and edge order.

A base run is repeated with other seeds, on bootstrap resamples of its prompts and, for ACDC, in other orders of the
edges. An edge's frequency is the share of reruns that find it; the edges of nearly all reruns are the core. The base
run itself isn't counted: the reruns are compared with it. Every run works in `<out>/<name>/`, where a second call
resumes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from acdc.commands.run import describe, measure
from acdc.commands.stability_reruns import BASE, Rerun, circuit_of, reruns
from acdc.errors import UserError
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.faithfulness import Judge
from acdc.evaluation.ranking import jaccard
from acdc.files.circuit import CircuitFile, MethodPart, edges_of, write_circuit
from acdc.files.stability import KINDS, EdgeFrequency, Kind, MeanRange, Run, Stability, share_of
from acdc.graph.circuit import Circuit
from acdc.io.files import to_json, write_atomic
from acdc.io.folder import claim, locked
from acdc.io.progress import Show
from acdc.registry import METHODS
from acdc.report.picture import to_svg
from acdc.setup.config import Config, DefaultModel, command_line, resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.schema import Task
from acdc.task.tokenize import Data

DEFAULT = 5  # reruns of a kind


@dataclass(frozen=True)
class StabilityPlan:
    """What is repeated.

    Args:
        counts: number of reruns by kind, in the order of `KINDS`
        core: share of the reruns, above 0 and up to 1, in which an edge of the core is found
    """

    config: Config
    task: Task
    counts: dict[str, int]
    core: float
    out: Path | None


def make_plan(
    given: dict[str, Any],
    file: Path | None,
    counts: dict[str, int | None],
    core: float,
    out: Path | None,
    default_model: DefaultModel,
) -> tuple[StabilityPlan, list[str]]:
    """Check the options as far as that goes without a model. Return the plan, and notes for the user.

    Args:
        given: options of the base run, None where not given
        file: config of the base run
        counts: number of reruns by kind; None is `DEFAULT`, or 0 orders for a method without an order
    Raises:
        UserError: names the option that is wrong.
    """
    config, task, notes = resolve(given, file, default_model)
    ordered = "order" in METHODS[config.method].options
    if counts["orders"] and not ordered:
        raise UserError(f"--orders: method {config.method} doesn't test edges one after the other; it has no order")
    numbers = {}
    for kind in KINDS:
        number = counts[kind]
        if number is None:
            number = DEFAULT if ordered or kind != "orders" else 0
        numbers[kind] = number
    if not any(numbers.values()):
        raise UserError("nothing to repeat: one of --seeds, --resamples and --orders must be 1 or more")
    if not 0 < core <= 1:
        raise UserError(f"--core: is {core:g}; it must be above 0 and up to 1, the share of the runs")
    return StabilityPlan(config, task, numbers, core, out), notes


def stability(
    plan: StabilityPlan, memory: float | None, progress: Show, say: Callable[[str], None]
) -> tuple[Stability, Path]:
    """Do the base run and all reruns, and write the files. Return the result and its directory.

    Args:
        memory: bytes to stay below; by default half of the machine's
        say: shows the user a line
    Raises:
        UserError: the directory belongs to another base run, is in use or can't be written.
    """
    inputs = load(plan.config, plan.task, memory)
    out = plan.out or Path("stability") / inputs.config.folder
    with locked(out):
        claim(out, inputs.config.to_yaml())
        notes = []
        if doubt := warning(inputs, competence(inputs)):
            notes.append(doubt)
            say(doubt)
        base_run = Rerun(BASE, BASE, inputs, inputs.config.seed, command_line(inputs.config), ())
        base = circuit_of(base_run, out, progress, say)
        found = []
        seeded = []
        for rerun in reruns(inputs, plan.counts, out, progress):
            found.append(_Found(rerun.name, rerun.kind, circuit_of(rerun, out, progress, say)))
            if rerun.kind == "seeds":
                seeded.append(rerun.inputs.data)
        notes += _shared(inputs.data, seeded)
        circuits = [f.circuit for f in found]
        frequent = core_of(circuits, plan.core)
        core = frequent.pruned()
        result = _summary(plan, inputs, base, found, core, frequent.n_edges - core.n_edges, notes)
        title = f"{result.task} in {result.model}"
        often = f"{title}: how often edges are found in {len(found)} reruns"
        write_circuit(out / "core.json", _core_file(plan, inputs, core, result))
        write_atomic(out / "core.svg", to_svg(core, f"{title}: {share_of(result)}"))
        write_atomic(out / "found.svg", to_svg(core_of(circuits, 1 / len(found)), often))
        write_atomic(out / "stability.json", to_json(result))
    return result, out


def _shared(base: Data, seeded: list[Data]) -> list[str]:
    """Return notes on prompts that several seeds draw."""
    notes = []
    same = sum(data.hash == base.hash for data in seeded)
    if same:
        notes.append(f"{same} of {len(seeded)} other seeds draw the same prompts: the task has no others")
    if base.held_out is not base.discovery:
        seen = {clean for data in seeded for clean, _ in data.discovery.texts}
        texts = base.held_out.texts
        known = sum(clean in seen for clean, _ in texts)
        if known:
            notes.append(
                f"of the {len(texts)} held-out prompts, {known} served the discovery with another seed, and so the core"
            )
    return notes


@dataclass(frozen=True)
class _Found:
    """A rerun's circuit, without dead edges."""

    name: str
    kind: str
    circuit: Circuit


def core_of(circuits: list[Circuit], share: float) -> Circuit:
    """Return the edges that at least this share of the circuits has, dead ones included. The scores of all edges are
    their frequencies."""
    graph = circuits[0].graph
    often: np.ndarray = np.mean([c.kept for c in circuits], 0)
    direct = [c.direct for c in circuits if c.direct is not None]
    if not direct:
        return Circuit(graph, often >= share, None, often)
    often_direct: np.ndarray = np.mean(direct, 0)
    return Circuit(graph, often >= share, often_direct >= share, often, often_direct)


def _summary(
    plan: StabilityPlan,
    inputs: Inputs,
    base: Circuit,
    found: list[_Found],
    core: Circuit,
    dead: int,
    notes: list[str],
) -> Stability:
    """Return the content of stability.json."""
    config = inputs.config
    judge = Judge(inputs)
    kinds = dict.fromkeys(f.kind for f in found)
    edges = _edges(base, core, found)
    n_edges = base.graph.n_edges
    return Stability(
        task=inputs.task.name,
        model=config.model_name,
        model_hash=config.model_hash or "",
        data_hash=config.data_hash or "",
        examples=config.examples,
        seed=config.seed,
        method=describe(inputs, base, base, {}, ()).method.model_dump(),
        half=judge.half,
        total=n_edges,
        full=float(judge.full.mean()),
        ablated=float(judge.ablated.mean()),
        base=_run(judge, _Found(BASE, BASE, base), base),
        runs=tuple(_run(judge, f, base) for f in found),
        kinds=tuple(_kind(kind, found, base) for kind in (*kinds, "all")),
        share=plan.core,
        core=_run(judge, _Found("core", "core", core), base),
        dead=dead,
        edges=_by_frequency(edges[:n_edges]),
        direct=_by_frequency(edges[n_edges:]),
        notes=tuple(notes),
    )


def _edges(base: Circuit, core: Circuit, found: list[_Found]) -> list[EdgeFrequency]:
    """Return every residual edge of the graph and, if the method tests them, every direct one."""
    graph = base.graph
    names = [graph.edge_name(s, r) for s, r in np.argwhere(graph.edges)]
    if base.direct is not None:
        names += graph.direct_index
    kept = np.stack([_flat(f.circuit) for f in found])
    of_kind = {f.kind: kept[[other.kind == f.kind for other in found]].mean(0) for f in found}
    in_base = _flat(base)
    in_core = _flat(core)
    return [
        EdgeFrequency(
            name=name,
            frequency=float(kept[:, i].mean()),
            by_kind={kind: float(frequency[i]) for kind, frequency in of_kind.items()},
            base=bool(in_base[i]),
            core=bool(in_core[i]),
        )
        for i, name in enumerate(names)
    ]


def _flat(circuit: Circuit) -> np.ndarray:
    """Bool[edge]: whether the circuit has each residual edge of the graph and, if they were tested, each direct one."""
    residual: np.ndarray = circuit.kept[circuit.graph.edges]
    if circuit.direct is None:
        return residual
    return np.append(residual, circuit.direct[circuit.graph.direct])


def _by_frequency(edges: list[EdgeFrequency]) -> tuple[EdgeFrequency, ...]:
    """Return the edges that any run found, the most frequent first."""
    return tuple(sorted((e for e in edges if e.frequency or e.base), key=lambda e: -e.frequency))


def _kind(name: str, found: list[_Found], base: Circuit) -> Kind:
    """Compare the reruns of one kind, or all, with each other and with the base run."""
    kept = [f.circuit.kept for f in found if name in (f.kind, "all")]
    return Kind(
        name=name,
        runs=len(kept),
        edges=MeanRange.of([int(k.sum()) for k in kept]),
        jaccard=MeanRange.of([jaccard(a, b) for a, b in combinations(kept, 2)]),
        like_base=MeanRange.of([jaccard(k, base.kept) for k in kept]),
    )


def _run(judge: Judge, found: _Found, base: Circuit) -> Run:
    """Measure a circuit on the base run's held-out prompts."""
    metric, faithfulness, accuracy = judge.judged(found.circuit)
    return Run(
        name=found.name,
        kind=found.kind,
        edges=found.circuit.n_edges,
        metric=metric,
        faithfulness=tuple(_finite(x) for x in faithfulness),
        accuracy=_finite(accuracy),
        like_base=jaccard(found.circuit.kept, base.kept),
    )


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _core_file(plan: StabilityPlan, inputs: Inputs, core: Circuit, result: Stability) -> CircuitFile:
    """Return the content of core.json, in which an edge's score is its frequency."""
    notes = (f"{share_of(result)}; score: the share", *result.notes)
    file = describe(inputs, core, core, measure(inputs, core), notes)
    counts = " ".join(f"--{kind} {n}" for kind, n in plan.counts.items())
    options = {"of": file.method.name, "core": plan.core, **plan.counts, **file.method.options}
    return file.model_copy(
        update={
            "method": MethodPart(**{**file.method.model_dump(), "name": "stability", "options": options}),
            "graph": file.graph.model_copy(update={"dead": result.dead}),
            "edges": tuple(edges_of(core)),
            "command": f"acdc stability --config config.yaml {counts} --core {plan.core:g}",
        }
    )

"""How far a circuit hangs on what was chosen beside it: the prompts' seed, the very prompts, the order of the edges.

A base run is done again with other seeds, on bootstrap resamples of its prompts, and, for ACDC, in other orders. How
often an edge is found says how sure it is; the edges of nearly all reruns are the core. The base run itself does not
count: it is what the reruns are compared with. Every run lies in `<out>/<name>/`, from where a second call goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import combinations, count, islice
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from acdc.commands.run import describe, measure
from acdc.errors import UserError
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.faithfulness import Judge
from acdc.evaluation.ranking import jaccard
from acdc.files.circuit import CircuitFile, MethodPart, edges_of, read_circuit, write_circuit
from acdc.files.stability import KINDS, EdgeFrequency, Kind, MeanRange, Run, Stability, share_of, to_json
from acdc.graph.circuit import Circuit
from acdc.io.files import write_atomic
from acdc.io.folder import claim, enter, locked
from acdc.io.progress import Show
from acdc.methods.discover import find, scored
from acdc.registry import METHODS, ORDERS, parse_filter
from acdc.report.picture import to_svg
from acdc.setup.config import Config, DefaultModel, command_line, resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.schema import Task
from acdc.task.tokenize import Split, make_data

DEFAULT = 5  # reruns of a kind
BASE = "base"


@dataclass(frozen=True)
class Plan:
    """What is done again.

    Args:
        counts: reruns by kind, in the order of `KINDS`
        core: share of the reruns, above 0 and up to 1, that an edge of the core is found in
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
) -> tuple[Plan, list[str]]:
    """What the options of the command line ask for, checked as far as it can be without a model; and notes.

    Args:
        given, file: options of the base run, None where not given, and its config
        counts: reruns by kind; None is `DEFAULT`, and no orders for a method that has none
    Raises:
        UserError: one line that names the option.
    """
    config, task, notes = resolve(given, file, default_model)
    ordered = "order" in METHODS[config.method].options
    if counts["orders"] and not ordered:
        raise UserError(f"--orders: method {config.method} tests no edges one after the other; it has no order")
    stated = {kind: n for kind, n in counts.items() if n is not None}
    numbers = {kind: stated.get(kind, DEFAULT if ordered or kind != "orders" else 0) for kind in KINDS}
    if not any(numbers.values()):
        raise UserError("nothing to do again: one of --seeds, --resamples and --orders must be 1 or more")
    if not 0 < core <= 1:
        raise UserError(f"--core: is {core:g}; it must be above 0 and up to 1, the share of the runs")
    return Plan(config, task, numbers, core, out), notes


def stability(plan: Plan, memory: float | None, progress: Show, say: Callable[[str], None]) -> tuple[Stability, Path]:
    """Do the base run and all reruns, and write the files.

    Args:
        memory: bytes to stay below; by default half of what the machine has
        say: told what is going on
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
        base = _found(Rerun(BASE, BASE, inputs, inputs, command_line(inputs.config), ()), out, progress, say)
        kinds, circuits, seeded = list[str](), dict[str, Circuit](), list[Inputs]()
        for rerun in reruns(inputs, plan.counts, out, progress):
            circuits[rerun.name] = _found(rerun, out, progress, say)
            kinds.append(rerun.kind)
            if rerun.kind == "seeds":
                seeded.append(replace(rerun.inputs, _parts={}))
        notes += _shared(inputs, seeded)
        result, core = _summary(plan, inputs, base, circuits, kinds, notes)
        write_circuit(out / "core.json", _core_file(plan, inputs, core, result))
        found = core_of(list(circuits.values()), 1 / len(circuits))
        of = f"{result.task} in {result.model}"
        write_atomic(out / "core.svg", to_svg(core, f"{of}: {share_of(result)}"))
        write_atomic(out / "found.svg", to_svg(found, f"{of}: how often edges are found in {len(circuits)} reruns"))
        write_atomic(out / "stability.json", to_json(result))
    return result, out


# ---------------------------------------------------------------- the runs


@dataclass(frozen=True)
class Rerun:
    """A run that is varied in one thing.

    Args:
        name: of its folder
        inputs: what is run
        stated: what its circuit.json says was run: with the seed of the prompts
    """

    name: str
    kind: str
    inputs: Inputs
    stated: Inputs
    command: str
    notes: tuple[str, ...]


def reruns(base: Inputs, counts: dict[str, int], out: Path, progress: Show) -> Iterator[Rerun]:
    """All reruns of a base run, which has been done; each is the same whatever the numbers of the others."""
    first = base.config.seed
    for number in range(1, counts["seeds"] + 1):
        other = with_seed(base, first + number)
        yield Rerun(f"seed-{first + number}", "seeds", other, other, command_line(other.config), ())
    for number in range(1, counts["resamples"] + 1):
        other = resampled(base, number)
        note = f"found on bootstrap resample {number} of the prompts for discovery"
        yield Rerun(f"resample-{number}", "resamples", other, other, _command("resamples", number), (note,))
    for number, (order, seed) in enumerate(islice(orders(base.config), counts["orders"]), 1):
        other = in_order(base, order, seed, out, progress)
        stated = replace(other, config=other.config.model_copy(update={"seed": first}))
        name, note = f"order-{order}", f"edges tested in the order {order}"
        if order == "random":
            name, note = f"{name}-{seed}", f"{note}, shuffled by seed {seed}"
        yield Rerun(name, "orders", other, stated, _command("orders", number), (note,))


def _command(kind: str, number: int) -> str:
    return f"acdc stability --config ../config.yaml --{kind} {number}"


def with_seed(base: Inputs, seed: int) -> Inputs:
    """The inputs of `acdc run` with another seed: other prompts, and what else a method draws."""
    data = make_data(base.task, base.model.tokenizer, base.config.examples, seed)
    base.model.check_fits(data.discovery, data.held_out)
    return Inputs(_changed(base.config, seed=seed, data_hash=data.hash[:16]), base.task, base.model, data)


def resampled(base: Inputs, number: int) -> Inputs:
    """As many prompts for discovery, drawn with replacement from those that there are; the others stay."""
    n, rng = len(base.data.discovery.clean), Random(f"resample {base.config.seed} {number}")
    discovery = take(base.data.discovery, [rng.randrange(n) for _ in range(n)])
    return Inputs(base.config, base.task, base.model, replace(base.data, discovery=discovery))


def take(prompts: Split, examples: list[int]) -> Split:
    """Some of the examples, in this order; one may come more than once."""
    rows = [np.flatnonzero(prompts.rows[:, 0] == example) for example in examples]
    places = [np.stack([np.full(len(at), i), prompts.rows[at, 1]], 1) for i, at in enumerate(rows)]
    scored_rows = np.concatenate(rows)
    return Split(
        clean=prompts.clean[examples],
        corrupted=prompts.corrupted[examples],
        pad=prompts.pad[examples],
        rows=np.concatenate(places),
        correct=prompts.correct[scored_rows],
        wrong=prompts.wrong[scored_rows],
        texts=tuple(prompts.texts[example] for example in examples),
    )


def orders(config: Config) -> Iterator[tuple[str, int]]:
    """All orders but the config's own, with their seeds: first those that are not random."""
    yield from ((order, config.seed) for order in ORDERS if order not in ("random", config.order))
    yield from (("random", seed) for seed in count(config.seed + 1))


def in_order(base: Inputs, order: str, seed: int, out: Path, progress: Show) -> Inputs:
    """The same prompts, edges in another order; a filter, which may draw by the seed, too, leaves what it left."""
    if base.config.prefilter is not None:
        scored(base, parse_filter(base.config.prefilter)[0], out / BASE, progress)
    return replace(base, config=_changed(base.config, order=order, seed=seed))


def _changed(config: Config, **values: str | int) -> Config:
    return config.model_copy(update=values)


def _found(rerun: Rerun, out: Path, progress: Show, say: Callable[[str], None]) -> Circuit:
    """The circuit of a run, without dead edges: from its file where it has been done already."""
    folder = out / rerun.name
    path = folder / "circuit.json"
    if not path.exists():
        enter(folder)
        found = find(rerun.inputs, folder, progress).circuit
        circuit = found.pruned()
        file = describe(rerun.stated, circuit, found, measure(rerun.inputs, circuit), rerun.notes)
        write_circuit(path, file.model_copy(update={"command": rerun.command}))
        say(f"{rerun.name}: {circuit.n_edges} edges")
    return read_circuit(path).circuit()


def _shared(base: Inputs, seeded: list[Inputs]) -> list[str]:
    """What is to be said of prompts that seeds share."""
    notes = []
    same = sum(other.config.data_hash == base.config.data_hash for other in seeded)
    if same:
        notes.append(f"{same} of {len(seeded)} other seeds draw the same prompts: the task has no others")
    if base.data.held_out is not base.data.discovery:
        seen = {clean for other in seeded for clean, _ in other.data.discovery.texts}
        texts = base.data.held_out.texts
        known = sum(clean in seen for clean, _ in texts)
        if known:
            notes.append(
                f"of the {len(texts)} held-out prompts, {known} served the discovery with another seed, and so the core"
            )
    return notes


# ---------------------------------------------------------------- what they say


def core_of(circuits: list[Circuit], share: float) -> Circuit:
    """The edges that this share of the circuits has, dead ones too; the scores of all edges are their frequencies."""
    graph, direct = circuits[0].graph, [c.direct for c in circuits if c.direct is not None]
    often: np.ndarray = np.mean([c.kept for c in circuits], 0)
    if not direct:
        return Circuit(graph, often >= share, None, often)
    often_direct: np.ndarray = np.mean(direct, 0)
    return Circuit(graph, often >= share, often_direct >= share, often, often_direct)


def _summary(
    plan: Plan, inputs: Inputs, base: Circuit, circuits: dict[str, Circuit], kinds: list[str], notes: list[str]
) -> tuple[Stability, Circuit]:
    """The result, and the core's circuit without dead edges."""
    config, graph, judge = inputs.config, base.graph, Judge(inputs)
    whole = core_of(list(circuits.values()), plan.core)
    core = whole.pruned()
    found = np.stack([_flat(c) for c in circuits.values()])
    of_kind = {kind: np.array([k == kind for k in kinds]) for kind, n in plan.counts.items() if n}
    names = [graph.edge_name(s, r) for s, r in np.argwhere(graph.edges)]
    names += list(graph.direct_index) if base.direct is not None else []
    edges = [
        EdgeFrequency(
            name, float(f.mean()), {kind: float(f[of].mean()) for kind, of in of_kind.items()}, bool(b), bool(c)
        )
        for name, f, b, c in zip(names, found.T, _flat(base), _flat(core), strict=True)
    ]
    result = Stability(
        task=inputs.task.name,
        model=config.model_name,
        model_hash=config.model_hash or "",
        data_hash=config.data_hash or "",
        examples=config.examples,
        seed=config.seed,
        method=describe(inputs, base, base, {}, ()).method.model_dump(),
        half=judge.half,
        total=graph.n_edges,
        full=float(judge.full.mean()),
        ablated=float(judge.ablated.mean()),
        base=_run(judge, BASE, BASE, base, base),
        runs=tuple(_run(judge, name, kind, c, base) for (name, c), kind in zip(circuits.items(), kinds, strict=True)),
        kinds=tuple(
            _kind(kind, [c.kept for c, of in zip(circuits.values(), kinds, strict=True) if kind in (of, "all")], base)
            for kind in (*of_kind, "all")
        ),
        share=plan.core,
        core=_run(judge, "core", "core", core, base),
        dead=whole.n_edges - core.n_edges,
        edges=_often_first(edges[: graph.n_edges]),
        direct=_often_first(edges[graph.n_edges :]),
        notes=tuple(notes),
    )
    return result, core


def _flat(circuit: Circuit) -> np.ndarray:
    """Bool[edge]: whether it has each residual edge of the graph and, if they were tested, each direct one."""
    residual: np.ndarray = circuit.kept[circuit.graph.edges]
    return residual if circuit.direct is None else np.append(residual, circuit.direct[circuit.graph.direct])


def _often_first(edges: list[EdgeFrequency]) -> tuple[EdgeFrequency, ...]:
    """Those that any run found."""
    return tuple(sorted((e for e in edges if e.frequency or e.base), key=lambda e: -e.frequency))


def _kind(name: str, kept: list[np.ndarray], base: Circuit) -> Kind:
    """The reruns of a kind, by their edges Bool[sender receiver]."""
    return Kind(
        name=name,
        runs=len(kept),
        edges=MeanRange.of([int(k.sum()) for k in kept]),
        jaccard=MeanRange.of([jaccard(a, b) for a, b in combinations(kept, 2)]),
        like_base=MeanRange.of([jaccard(k, base.kept) for k in kept]),
    )


def _run(judge: Judge, name: str, kind: str, circuit: Circuit, base: Circuit) -> Run:
    """How a circuit does on the base run's prompts that are held out."""
    metric, found, right = judge.judged(circuit)
    return Run(
        name=name,
        kind=kind,
        edges=circuit.n_edges,
        metric=metric,
        faithfulness=tuple(map(_finite, found)),
        accuracy=_finite(right),
        like_base=jaccard(circuit.kept, base.kept),
    )


def _finite(x: float) -> float | None:
    return float(x) if np.isfinite(x) else None


def _core_file(plan: Plan, inputs: Inputs, core: Circuit, result: Stability) -> CircuitFile:
    """The core as a circuit.json: an edge's score is the share of the reruns that found it."""
    file = describe(inputs, core, core, measure(inputs, core), (f"{share_of(result)}; score: the share", *result.notes))
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

"""What `acdc compare` compares: the command line's options, checked, as tasks, methods and sizes."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from acdc.commands.options import Given, listed
from acdc.commands.run import planned
from acdc.errors import FileError, UserError, unknown
from acdc.files.circuit import find_circuit
from acdc.files.comparison import LEVELS
from acdc.io.files import file_name, read_json
from acdc.io.progress import Plan
from acdc.registry import LIMITS, METHODS, check_method, parse_filter
from acdc.setup.config import Config, DefaultModel, ReadTask, resolve
from acdc.setup.inputs import Inputs
from acdc.task.load import load_task
from acdc.task.schema import Task

THEN_ACDC = "+acdc"
THRESHOLDS = 8  # of ACDC: a log grid from 0.001 to 0.3 of what ablating everything costs
ELIMINATION = "elimination"  # the name here of acdc with --faithfulness
SIZES = "5,10,20,50,100"


@dataclass(frozen=True)
class ComparePlan:
    """What a comparison does."""

    tasks: tuple[tuple[Config, Task], ...]  # configs of method acdc, at the task's own threshold
    methods: tuple[str, ...]  # names; `eap-ig:0.05+acdc` is ACDC among the best 5 % of eap-ig's edges
    named: frozenset[str]  # the methods asked for by name; any other is left out of a task that it can't do
    sizes: tuple[int, ...]  # numbers of edges, rising
    greedy: bool  # grow circuits from the logits instead of taking the best edges
    references: dict[str, Path]  # task → file of the circuit taken for true; by default ACDC's at the task's threshold
    updates: int | None  # of the methods that train gates
    out: Path


def make_plan(
    given: Given, wanted: Given, default_model: DefaultModel | None, read_task: ReadTask = load_task
) -> tuple[ComparePlan, list[str]]:
    """Check the options as far as that goes without a model. Return the plan, and notes for the user. `given` are
    options of runs, `wanted` those of `acdc compare` alone."""
    if wanted.get("faithfulness") is not None:
        raise UserError(f"--faithfulness: is for --models; methods are compared at {', '.join(map(str, LEVELS))}")
    resolved: list[tuple[Config, Task]] = []
    notes: list[str] = []
    for name in listed("--tasks", wanted["tasks"]):
        config, task, new = resolve(given | {"task": name}, None, default_model, read_task)
        resolved.append((config, task))
        notes += [note for note in new if note not in notes]
    names = [config.task_name for config, _ in resolved]
    if len(set(names)) < len(names):
        raise UserError(f"--tasks: {wanted['tasks']!r} has a task twice")
    every, named = _methods(wanted["methods"] or "all")
    if given.get("positions"):
        every = _by_position(every, named)
        if wanted["greedy"]:
            raise UserError("--greedy: grows by whole edges; leave it out with --positions")
    for config, task in resolved:
        for method in named:
            ranked_by(config, task, method)  # raises for a method that can't do the task
        notes += _other_metrics(config, task, every)
    sizes = sorted(listed("--sizes", wanted["sizes"] or SIZES, int, "a whole number"))
    if not 1 <= sizes[0] <= sizes[-1] <= LIMITS["edges"]:
        wrong = sizes[0] if sizes[0] < 1 else sizes[-1]
        raise UserError(f"--sizes: {wrong} edges; it must be 1 or more, and not more than the graph has")
    models = dict.fromkeys(file_name(config.model_name) for config, _ in resolved)
    plan = ComparePlan(
        tasks=tuple(resolved),
        methods=every,
        named=named,
        sizes=tuple(sizes),
        greedy=wanted["greedy"],
        references=_references(wanted["reference"], names),
        updates=wanted["updates"],
        out=wanted["out"] or Path("compare") / "-".join([*names, *models]),
    )
    return plan, notes


def _methods(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return all methods, and those that were named."""
    names = listed("--methods", text)
    groups = {"all": [*METHODS, ELIMINATION]}
    every = [method for name in names for method in groups.get(name, [name])]
    for name in every:
        if name.endswith(THEN_ACDC):
            try:
                parse_filter(name.removesuffix(THEN_ACDC))
            except ValueError as error:
                raise UserError(f"--methods: {name} {error}") from None
        elif name not in METHODS and name != ELIMINATION:
            raise UserError(f"--methods: {unknown('method', name, ['all', *METHODS, ELIMINATION])}")
    return tuple(dict.fromkeys(every)), frozenset(names) - {"all"}


def _by_position(every: tuple[str, ...], named: frozenset[str]) -> tuple[str, ...]:
    """The methods that can say where in the prompt an edge matters; raise UserError if one that was named can't."""
    able = tuple(m for m in every if m not in METHODS or "positions" in METHODS[m].options)
    if wrong := [m for m in every if m in named and m not in able]:
        raise UserError(f"--positions: {wrong[0]} can't say where in the prompt; leave it out")
    return able


def _references(text: str | None, tasks: list[str]) -> dict[str, Path]:
    """Return the reference files by task."""
    if text is None:
        return {}
    files = {}
    for part in listed("--reference", text):
        task, equals, file = part.rpartition("=")
        if not equals and len(tasks) > 1:
            raise UserError(f"--reference: {file} for which task? With several tasks, write TASK=FILE,TASK=FILE")
        if equals and task not in tasks:
            raise UserError(f"--reference: {unknown('task', task, tasks)}")
        if (of := task or tasks[0]) in files:
            raise UserError(f"--reference: {text!r} has two files for {of}")
        files[of] = find_circuit(Path(file))
    return files


def ranked_by(config: Config, task: Task, method: str) -> str:
    """Return the metric that a method ranks edges by: the config's, or the task's first other one that it can use.
    Raise UserError if it can't use any."""
    if method == "random":
        return "none"
    if method == ELIMINATION:
        return config.metric
    if method == "diffmask":  # always trains on KL
        return "kl"
    if method.endswith(THEN_ACDC):
        name, _ = parse_filter(method.removesuffix(THEN_ACDC))
        first = ranked_by(config, task, name)
        return first if first == config.metric else f"{first}, {config.metric}"
    refusals = []
    for metric in (config.metric, *task.metrics):
        try:
            check_method(method, metric, config.ablation, task.metrics)
            return metric
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def _other_metrics(config: Config, task: Task, methods: tuple[str, ...]) -> Iterator[str]:
    """Notes on methods that rank edges by another metric than the config's."""
    methods_by: dict[str, list[str]] = {}
    for method in methods:
        with suppress(UserError):
            by = ranked_by(config, task, method).partition(",")[0]  # of a filter
            methods_by.setdefault(by, []).append(method)
    for metric, names in methods_by.items():
        if metric not in ("none", config.metric):
            yield f"note: {config.task_name}: where {config.metric} won't do, {metric} ranks edges: {', '.join(names)}"


def bound_of(method: str) -> str:
    """Return what bounds a method's circuits: `threshold` for ACDC, with or without a filter before it, `target` for
    elimination, `size` for all others."""
    if method == ELIMINATION:
        return "target"
    return "threshold" if method == "acdc" or method.endswith(THEN_ACDC) else "size"


def check_same(plan: ComparePlan) -> None:
    """Raise FileError if the directory holds the result of another comparison, which would be lost."""
    file = plan.out / "compare.json"
    if not file.exists():
        return
    found = read_json(file)
    wanted = {"sizes": list(plan.sizes), "greedy": plan.greedy, "tasks": [config.task_name for config, _ in plan.tasks]}
    found["tasks"] = [task.get("name") for task in found.get("tasks") or [] if isinstance(task, dict)]
    for key, value in wanted.items():
        if (stated := found.get(key)) != value:
            other = f"{key} ({stated}, here {value})"
            raise FileError(f"{plan.out}: holds a comparison of other {other}; choose another --out")


def expected(plan: ComparePlan, of_tasks: list[Inputs]) -> Plan:
    """A stage for every method on every task, with estimated seconds."""
    out = {}
    for inputs in of_tasks:
        for method in plan.methods:
            bound = bound_of(method)
            of = {"method": method if bound == "size" else "acdc", "updates": plan.updates}
            config = inputs.config.model_copy(update=of | {"faithfulness": LEVELS[0] if bound == "target" else None})
            stages = planned(inputs.under(config)).stages
            times = {"size": 1, "threshold": THRESHOLDS, "target": len(LEVELS)}[bound]
            names = ("scores", "search", "gradients", "elimination")
            out[f"{config.task_name} {method}"] = times * sum(stages.get(name, 0.0) for name in names)
        out[f"{config.task_name} evaluation"] = len(plan.methods) * 2 * len(plan.sizes) * stages["evaluation"] / 3
    return Plan(out)

"""What a comparison compares: from the options of the command line to tasks, methods and sizes, checked."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acdc.errors import UserError, unknown
from acdc.registry import METHODS, check_method, parse_filter
from acdc.setup.config import Config, DefaultModel, resolve
from acdc.task.schema import Task

THEN_ACDC = "+acdc"


@dataclass(frozen=True)
class Plan:
    """What is compared.

    Args:
        tasks: each with its config: method acdc, at the task's own threshold
        methods: names; `eap-ig:0.05+acdc` is ACDC among the best edges of another method
        named: those that were asked for by name; another one that can't do a task is left out
        references: by task, a circuit that is taken for true; by default ACDC's at the task's own threshold
        updates: of methods that train
    """

    tasks: tuple[tuple[Config, Task], ...]
    methods: tuple[str, ...]
    named: frozenset[str]
    sizes: tuple[int, ...]
    greedy: bool
    references: dict[str, Path]
    updates: int | None
    out: Path


def make_plan(
    given: dict[str, Any],
    tasks: str,
    methods: str,
    sizes: str,
    greedy: bool,
    reference: str | None,
    updates: int | None,
    out: Path | None,
    default_model: DefaultModel,
) -> tuple[Plan, list[str]]:
    """What the options of the command line ask for, checked as far as it can be without a model; and notes.

    Args:
        given: options of every task's config, None where not given
        tasks, methods, sizes: with commas between them; methods may be `all`
        reference: a file, or for each task `TASK=FILE`
    Raises:
        UserError: one line that names the option.
    """
    resolved, notes = [], list[str]()
    for name in tasks.split(","):
        config, task, said = resolve(given | {"task": name.strip()}, None, default_model)
        resolved.append((config, task))
        notes += [note for note in said if note not in notes]
    names = [config.task_name for config, _ in resolved]
    if len(set(names)) < len(names):
        raise UserError(f"--tasks: {tasks!r} has a task twice")
    every, named = _methods(methods)
    for config, task in resolved:
        for method in named:
            ranked_by(config, task, method)
    models = dict.fromkeys(re.sub(r"[^\w.-]+", "-", config.model_name) for config, _ in resolved)
    out = out or Path("compare") / "-".join([*names, *models])
    references = _references(reference, names)
    return Plan(tuple(resolved), every, named, _sizes(sizes), greedy, references, updates, out), notes


def _methods(text: str) -> tuple[tuple[str, ...], frozenset[str]]:
    """All methods, and those that were named."""
    names = [name.strip() for name in text.split(",")]
    every = [m for name in names for m in (METHODS if name == "all" else [name])]
    for name in every:
        if name.endswith(THEN_ACDC):
            try:
                parse_filter(name.removesuffix(THEN_ACDC))
            except ValueError as error:
                raise UserError(f"--methods: {name} {error}") from None
        elif name not in METHODS:
            raise UserError(f"--methods: {unknown('method', name, ['all', *METHODS])}")
    return tuple(dict.fromkeys(every)), frozenset(names) - {"all"}


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = sorted({int(part) for part in text.split(",")})
    except ValueError:
        raise UserError(f"--sizes: {text!r} is not a whole number, nor several with commas between them") from None
    if sizes[0] < 1:
        raise UserError(f"--sizes: {sizes[0]} edges; it must be 1 or more")
    return tuple(sizes)


def _references(text: str | None, tasks: list[str]) -> dict[str, Path]:
    if text is None:
        return {}
    out = {}
    for part in text.split(","):
        task, equals, file = part.rpartition("=")
        if not equals and len(tasks) > 1:
            raise UserError(f"--reference: {file} for which task? With several tasks, write TASK=FILE,TASK=FILE")
        if equals and task not in tasks:
            raise UserError(f"--reference: {unknown('task', task, tasks)}")
        out[task or tasks[0]] = Path(file)
    return out


def ranked_by(config: Config, task: Task, method: str) -> str:
    """The metric that a method ranks edges by: the task's, or where it can't use that one the first other that it can.

    Raises:
        UserError: it can use none.
    """
    if method == "random":
        return "none"
    if method == "diffmask":  # whatever the metric
        return "kl"
    if method.endswith(THEN_ACDC):
        first = ranked_by(config, task, parse_filter(method.removesuffix(THEN_ACDC))[0])
        return first if first == config.metric else f"{first}, {config.metric}"
    refusals = []
    for metric in (config.metric, *task.metrics):
        try:
            check_method(method, metric, config.ablation)
            return metric
        except UserError as error:
            refusals.append(error)
    raise refusals[0]


def has_threshold(method: str) -> bool:
    """Whether a method is ACDC, with or without a filter, which has thresholds instead of sizes."""
    return method == "acdc" or method.endswith(THEN_ACDC)

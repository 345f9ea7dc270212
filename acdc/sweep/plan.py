"""The plan of a sweep: its runs, checked for everything that can be wrong before one is made."""

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch

from acdc.errors import FileError, TaskError, UserError, plural
from acdc.files.circuit import read_circuit
from acdc.files.metrics import read_metrics
from acdc.files.published import load_published
from acdc.files.table import ENDED, OPTIONS, Row, row_of, state
from acdc.graph.circuit import Circuit
from acdc.io.folder import FOUND, differences
from acdc.io.sizes import parse_bytes
from acdc.io.yaml_file import read_yaml
from acdc.model.checkpoint import open_checkpoint
from acdc.model.config import ModelConfig
from acdc.model.load import pick_device
from acdc.report.results import summary, to_text
from acdc.setup import estimate
from acdc.setup.config import Config, DefaultModel
from acdc.setup.features import with_most_features
from acdc.setup.inputs import check_number
from acdc.setup.memory import SPARE, default_memory, expected
from acdc.sweep.executors import Executor, Local
from acdc.sweep.file import SweepFile, read_sweep
from acdc.sweep.grid import Run, runs_of
from acdc.sweep.slurm import Cluster
from acdc.task.load import find_config
from acdc.task.tokenize import Data, Split, make_data

MANY = 1000  # runs; for more, the user is asked


class _Prompted(NamedTuple):
    """A run, the sizes of its model, and its prompts for discovery."""

    run: Run
    sizes: ModelConfig
    prompts: Split


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep."""

    file: SweepFile
    runs: list[Run]
    out: Path  # the sweep's directory
    executor: Executor  # where the runs are made
    seconds: dict[str, float]  # estimated duration of each run, by its name
    references: dict[str, Circuit]  # taken as the truth, by task
    retry: bool  # make failed runs again
    plots: bool  # draw plots

    def left(self) -> list[Run]:
        """Return the runs that are not done; failed ones only if they are to be made again."""
        skipped = ("done",) if self.retry else ENDED
        return [run for run in self.runs if state(run.folder(self.out)) not in skipped]

    def row(self, run: Run) -> Row:
        """Return a run's row of the table."""
        options = run.config.model_dump() | {"task": run.task.name, "model": run.config.model_name}
        return row_of(run.folder(self.out), self.out, options, self.references.get(run.config.task))


def make_plan(
    path: Path, out: Path | None, given: dict[str, Any], sure: Callable[[int], bool], default_model: DefaultModel
) -> tuple[SweepPlan, list[str]]:
    """Read a sweep file and check everything that can be wrong before a run is made. Return the plan, and notes.

    `given` are options of the command line (None if not given): executor, workers, threads, memory (bytes), retry,
    plots. `sure` is asked whether to go on with more than `MANY` runs. Raises UserError with file and line.
    """
    file = read_sweep(find_config(path))
    if file.size > MANY and not sure(file.size):
        raise UserError(f"{path}: {file.size:,} runs; say --yes if you mean it")
    runs, notes = runs_of(file, default_model)
    out = out or Path("sweeps") / path.stem
    for run in runs:
        _check_begun(run, run.folder(out))
    prompted = _prompted(file, runs)
    executor = _executor(file, out, given, prompted)
    threads = executor.threads if isinstance(executor, Local) else file.sweep.slurm.cpus
    seconds = _estimates(prompted, out, threads, executor)
    references = _references(file, runs)
    return SweepPlan(file, runs, out, executor, seconds, references, bool(given["retry"]), given["plots"]), notes


def overview(plan: SweepPlan) -> str:
    """Return the plan as text: every run, its state, and the time that it will take."""
    rows = [plan.row(run) for run in plan.runs]
    counts = summary(rows)
    varied = [k for k in OPTIONS if len({row[k] for row in rows}) > 1]
    words = {"waiting": "to do"} | ({"failed": "to be made again"} if plan.retry else {})
    left = {run.name for run in plan.left()}
    for row in rows:
        row["state"] = words.get(row["state"], row["state"])
        row["about"] = estimate.in_words(plan.seconds[row["run"]]) if row["run"] in left else ""
    total = sum(plan.seconds[name] for name in left)
    if isinstance(plan.executor, Local):
        workers = min(plan.executor.workers, max(1, len(left)))
        total_time = f"about {estimate.in_words(total / workers)} on {workers} × {plan.executor.threads} threads"
        if cards := set(plan.executor.cards):
            total_time += f", {plural(len(cards), 'card')}"
    else:
        total_time = f"about {estimate.in_words(total)} of work for Slurm"
    table = to_text(rows, ["run", *varied, "state", "about"])
    return f"{table}\n\n{counts}; {len(left):,} to run, {total_time}\nfiles     {plan.out}/"


def _check_begun(run: Run, folder: Path) -> None:
    """Raise FileError if a run's directory has a run with another config."""
    stated = folder / "config.yaml"
    if not stated.exists():
        return
    try:
        found = read_yaml(stated, Config.model_fields)
    except FileError:
        raise FileError(f"{stated}: is not the config of a run; remove {folder} to make the run") from None
    options = {key: value for key, value in found.items() if key not in FOUND}
    if others := differences(options, run.config.model_dump(exclude_none=True)):
        how = "choose another --out, or a run_name that tells them apart"
        raise FileError(f"{folder}: holds a run with another config: {others}; {how}")


def _prompted(file: SweepFile, runs: list[Run]) -> list[_Prompted]:
    """Return the runs with the sizes of their models and their prompts; raise UserError if a model can't be found, or
    its tokenizer doesn't fit a task."""
    opened = lru_cache(maxsize=None)(open_checkpoint)
    prompts: dict[tuple[object, ...], Data] = {}
    found = []
    for run in runs:
        c = run.config
        kind = (c.task, c.model, c.examples, c.positions)
        try:
            checkpoint = opened(c.model)
            if kind not in prompts:
                prompts[kind] = make_data(run.task, checkpoint.tokenizer, c.examples, c.seed, bool(c.positions))
            check_number(c, with_most_features(checkpoint.sizes, c), prompts[kind])
        except UserError as error:
            raise type(error)(f"{file.path}: run {run.name}: {error}") from None
        found.append(_Prompted(run, with_most_features(checkpoint.sizes, c), prompts[kind].discovery))
    return found


def _estimates(prompted: list[_Prompted], out: Path, threads: int, executor: Executor) -> dict[str, float]:
    """Return the estimated duration of every run, corrected by finished runs of the same model and method."""
    guesses: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
    taken: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for run, sizes, prompts in prompted:
        c = run.config
        guess = estimate.seconds(c, sizes, prompts, executor.device(c.device), threads)
        guesses[c.model, c.method][run.name] = guess
        folder = run.folder(out)
        if state(folder) == "done":
            taken[c.model, c.method].append((guess, read_metrics(folder / "metrics.json").cost.seconds))
    seconds: dict[str, float] = {}
    for same, found in guesses.items():
        seconds |= dict(zip(found, estimate.corrected(list(found.values()), taken[same]), strict=True))
    return seconds


def _references(file: SweepFile, runs: list[Run]) -> dict[str, Circuit]:
    """Return the circuits taken as the truth, by the configs' name of the task."""
    found: dict[str, Circuit] = {}
    for name, source in file.sweep.references.items():
        where = f"{file.lines.at('references', name)}: references: {name}"
        tasks = {run.config.task for run in runs if name in (run.config.task, run.task.name)}
        if not tasks:
            raise FileError(f"{where}: no run is of this task")
        try:
            if source.endswith(".json"):
                circuit: Circuit | None = read_circuit(file.path.parent / source).union().circuit()
            else:
                circuit = load_published(str(file.path.parent / source) if "/" in source else source).circuit
        except (FileError, TaskError) as error:
            raise FileError(f"{where}: {error}") from None
        if circuit is None:
            raise FileError(f"{where}: {source}: only nodes of this circuit were published; a ROC curve needs edges")
        found |= dict.fromkeys(tasks, circuit)
    return found


def _executor(file: SweepFile, out: Path, given: dict[str, Any], prompted: list[_Prompted]) -> Executor:
    """Return where the runs are made, by command line and file."""
    sweep = file.sweep
    name = sweep.executor if given["executor"] is None else given["executor"]
    if name == "slurm":
        for flag in ("workers", "threads", "memory"):
            if given[flag] is not None:
                raise UserError(f"--{flag}: is for --executor local; for slurm, give cpus and memory in the sweep file")
        cluster = Cluster(out, sweep.slurm)
        cluster.check()
        return cluster
    if name != "local":
        raise UserError(f"--executor: unknown executor {name!r}. Known: local, slurm")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    memory = given["memory"] or (parse_bytes(sweep.memory) if sweep.memory else None)
    cards = _cards(file, prompted, memory)
    at_once = min(len(cards), max(len(set(cards)), cores)) or cores
    workers = min(given["workers"] or sweep.workers or at_once, len(prompted))
    threads = given["threads"] or sweep.threads or max(1, cores // workers)
    return Local(out, workers, threads, memory, cards)


def _cards(file: SweepFile, prompted: list[_Prompted], memory: float | None) -> list[str]:
    """Return the CUDA devices for processes, as often as runs fit beside each other into the smallest one's memory:
    all of them once, then all of them again. Empty for runs on the CPU. Raises UserError if a run names its device.

    Runs fit if each takes no more than its share of the memory that runs are planned with (`default_memory`), so that
    no prompts have to be held in parts for the sake of the others; `memory` is what each may take at most.
    """
    names = {run.config.device for run, _, _ in prompted}
    if all(pick_device(name).type != "cuda" for name in names):
        return []
    if named := sorted(name for name in names if ":" in name):
        how = f"use device cuda, and CUDA_VISIBLE_DEVICES={named[0].partition(':')[2]} for a part of them"
        raise UserError(f"{file.path}: device {named[0]}: a sweep deals its runs out to the devices itself; {how}")
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    found = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    each = memory or max(expected(run.config, sizes, x, device="cuda") for run, sizes, x in prompted) / SPARE
    room = min(default_memory(torch.device("cuda", i)) for i in range(len(found)))
    return found * max(1, int(room / each))

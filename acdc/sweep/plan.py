"""The plan of a sweep: its runs, checked for everything that can be wrong before one is made."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from acdc.errors import FileError, TaskError, UserError
from acdc.files.circuit import read_circuit
from acdc.files.published import load_published
from acdc.files.table import ENDED, OPTIONS, Row, row_of, state
from acdc.graph.circuit import Circuit
from acdc.io.sizes import parse_bytes
from acdc.io.yaml_file import read_yaml
from acdc.model.load import load_tokenizer, pick_device
from acdc.report.results import summary
from acdc.report.text import grid
from acdc.setup.config import Config, DefaultModel
from acdc.sweep import estimate
from acdc.sweep.executors import Executor, Local
from acdc.sweep.file import SweepFile, read_sweep
from acdc.sweep.grid import Run, runs_of
from acdc.sweep.slurm import Cluster
from acdc.task.load import find_config
from acdc.task.tokenize import make_data

MANY = 1000  # runs; for more, the user is asked
FOUND = ("model_hash", "data_hash", "part")  # keys of a run's config.yaml that the run finds out; not options


@dataclass(frozen=True)
class SweepPlan:
    """A checked sweep.

    Args:
        out: the sweep's directory
        executor: where the runs are made
        seconds: estimated duration of each run, by its name
        references: circuits taken as the truth, by task
        retry: make failed runs again
        plots: draw plots if matplotlib is installed
    """

    file: SweepFile
    runs: tuple[Run, ...]
    out: Path
    executor: Executor
    seconds: dict[str, float]
    references: dict[str, Circuit]
    retry: bool
    plots: bool

    def folder(self, run: Run) -> Path:
        """Return a run's directory."""
        return self.out / "runs" / run.name

    def left(self) -> list[Run]:
        """Return the runs that are not done; failed ones only if they are to be made again."""
        skipped = ("done",) if self.retry else ENDED
        return [run for run in self.runs if state(self.folder(run)) not in skipped]

    def row(self, run: Run) -> Row:
        """Return a run's row of the table."""
        folder = self.folder(run)
        options = {key: value for key, value in run.config.model_dump().items() if value is not None}
        options |= {"task": run.task.name, "model": run.config.model_name}
        where = str(folder.relative_to(self.out))
        return row_of(run.name, folder, options, where, self.references.get(run.config.task))


def make_plan(
    path: Path, out: Path | None, given: dict[str, Any], sure: Callable[[int], bool], default_model: DefaultModel
) -> tuple[SweepPlan, list[str]]:
    """Read a sweep file and check everything that can be wrong before a run is made. Return the plan, and notes.

    Args:
        path: of the file, or the name of a shipped one
        given: options of the command line, None if not given: executor, workers, threads, memory (bytes), retry, plots
        sure: called with the number of runs if there are more than `MANY`; returns whether to go on
    Raises:
        UserError: one line that says what is wrong, and in which line of the file.
    """
    file = read_sweep(find_config(path))
    if file.size > MANY and not sure(file.size):
        raise UserError(f"{path}: {file.size:,} runs; say --yes if you mean it")
    runs, notes = runs_of(file, default_model)
    out = out or Path("sweeps") / path.stem
    _check_begun(runs, out)
    kinds = _check_prompts(file, runs)
    devices = {name: pick_device(name).type for name in {run.config.device for run in runs}}
    executor = _executor(file, out, given, len(runs), "cuda" in devices.values())
    threads = executor.threads if isinstance(executor, Local) else file.sweep.slurm.cpus
    seconds = {}
    for run in runs:
        sizes, prompts = kinds[_kind(run.config)]
        seconds[run.name] = estimate.seconds(run.config, sizes, prompts, devices[run.config.device], threads)
    references = _references(file, runs)
    plan = SweepPlan(file, tuple(runs), out, executor, seconds, references, bool(given["retry"]), given["plots"])
    return replace(plan, seconds=_corrected(plan)), notes


def overview(plan: SweepPlan) -> str:
    """Return the plan as text: every run, its state, and the time that it will take."""
    rows = [plan.row(run) for run in plan.runs]
    varied = [k for k in OPTIONS if len({row[k] for row in rows}) > 1]
    shown = [["run", *varied, "state", "about"]]
    words = {"waiting": "to do"}
    if plan.retry:
        words["failed"] = "to be made again"
    left = {run.name for run in plan.left()}
    for row in rows:
        about = estimate.in_words(plan.seconds[row["run"]]) if row["run"] in left else ""
        now = words.get(row["state"], str(row["state"]))
        shown.append([row["run"], *("–" if row[k] is None else str(row[k]) for k in varied), now, about])
    total = sum(plan.seconds[name] for name in left)
    if isinstance(plan.executor, Local):
        workers = min(plan.executor.workers, max(1, len(left)))
        total_time = f"about {estimate.in_words(total / workers)} on {workers} × {plan.executor.threads} threads"
    else:
        total_time = f"about {estimate.in_words(total)} of work for Slurm"
    table = grid(shown, left=1 + len(varied))
    return f"{table}\n\n{summary(rows)}; {len(left):,} to make, {total_time}\nfiles     {plan.out}/"


# ---------------------------------------------------------------- checks


def _check_begun(runs: list[Run], out: Path) -> None:
    """Raise FileError if a run's directory has a run with another config."""
    for run in runs:
        stated = out / "runs" / run.name / "config.yaml"
        if not stated.exists():
            continue
        try:
            found = read_yaml(stated, Config.model_fields)
        except FileError:
            raise FileError(f"{stated}: is not the config of a run; remove {stated.parent} to make the run") from None
        now = {k: v for k, v in run.config.model_dump(exclude_none=True).items() if k not in FOUND}
        then = {k: v for k, v in found.items() if k not in FOUND}
        if now != then:
            keys = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
            raise FileError(
                f"{stated.parent}: has a run with another {', '.join(keys)}; choose another --out, or a run_name "
                "in the sweep file that tells them apart"
            )


def _kind(config: Config) -> tuple[object, ...]:
    return config.task, config.model, config.examples


def _check_prompts(file: SweepFile, runs: list[Run]) -> dict[tuple[object, ...], tuple[Any, Any]]:
    """Return model sizes and prompts of every kind of run.

    Raises:
        UserError: a model can't be found, or its tokenizer doesn't fit a task.
    """
    kinds: dict[tuple[object, ...], tuple[Any, Any]] = {}
    models: dict[str, tuple[Any, Any]] = {}
    for run in runs:
        c = run.config
        kind = _kind(c)
        try:
            if c.model not in models:
                models[c.model] = load_tokenizer(c.model)
            sizes, tokenizer = models[c.model]
            if kind not in kinds:
                kinds[kind] = sizes, make_data(run.task, tokenizer, c.examples, c.seed).discovery
            n_edges = sizes.graph().n_edges
            if c.edges is not None and c.edges > n_edges:
                raise UserError(f"--edges: {c.edges} of {n_edges:,} residual edges; ask for fewer")
        except UserError as error:
            raise type(error)(f"{file.path}: run {run.name}: {error}") from None
    return kinds


def _references(file: SweepFile, runs: list[Run]) -> dict[str, Circuit]:
    """Return the circuits taken as the truth, by the configs' name of the task."""
    found: dict[str, Circuit] = {}
    for name, source in file.sweep.references.items():
        where = f"{file.at('references', name)}: references: {name}"
        tasks = {run.config.task for run in runs if name in (run.config.task, run.task.name)}
        if not tasks:
            raise FileError(f"{where}: no run is of this task")
        try:
            if source.endswith(".json"):
                circuit = read_circuit(file.path.parent / source).circuit()
            else:
                published = load_published(str(file.path.parent / source) if "/" in source else source).circuit
                if published is None:
                    raise FileError(f"{source}: only the nodes of this circuit were published; a ROC curve needs edges")
                circuit = published
        except (FileError, TaskError) as error:
            raise FileError(f"{where}: {error}") from None
        found |= dict.fromkeys(tasks, circuit)
    return found


def _executor(file: SweepFile, out: Path, given: dict[str, Any], n_runs: int, cuda: bool) -> Executor:
    """Return where the runs are made, by command line and file."""
    sweep = file.sweep
    name = given["executor"] or sweep.executor
    if name == "slurm":
        for flag in ("workers", "threads", "memory"):
            if given[flag] is not None:
                raise UserError(f"--{flag}: is for --executor local; for slurm, give cpus and memory in the sweep file")
        cluster = Cluster(sweep.slurm, out / "slurm")
        cluster.check()
        return cluster
    if name != "local":
        raise UserError(f"--executor: unknown executor {name!r}. Known: local, slurm")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus() if cuda else ()
    workers = given["workers"] or sweep.workers or len(gpus) or cores
    workers = min(workers, n_runs)
    threads = given["threads"] or sweep.threads or max(1, cores // workers)
    memory = given["memory"] or (parse_bytes(sweep.memory) if sweep.memory else None)
    return Local(workers, threads, memory, gpus, out / "logs")


def _gpus() -> tuple[str, ...]:
    """Return the GPUs of this machine, named as in CUDA_VISIBLE_DEVICES."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(visible.split(",")) if visible else tuple(map(str, range(torch.cuda.device_count())))


def _corrected(plan: SweepPlan) -> dict[str, float]:
    """Return the estimates, corrected by the finished runs of the same model and method."""
    taken = defaultdict(list)
    names = defaultdict(list)
    for run in plan.runs:
        kind = (run.config.model, run.config.method)
        names[kind].append(run.name)
        if state(plan.folder(run)) == "done":
            seconds = plan.row(run)["seconds"]
            taken[kind].append((plan.seconds[run.name], seconds))
    corrected: dict[str, float] = {}
    for kind, members in names.items():
        guesses = [plan.seconds[name] for name in members]
        corrected |= dict(zip(members, estimate.corrected(guesses, taken[kind]), strict=True))
    return corrected

"""A grid of runs, from its file to its table: read and check all → see what is done → make the rest → table and plots.

    <out>/runs/<name>/      one directory per run, as `acdc run` writes it; failure.json where it failed
    <out>/results.csv       a row per run (acdc/files/table.py); results.parquet beside it, where pyarrow is installed
    <out>/report.html       the same as a page, with plots; every point leads to its run's page
    <out>/*.svg, *.png      plots, where matplotlib is
    <out>/logs/, slurm/     what the processes or jobs said

Everything that is known is in the runs' directories. So a sweep can be killed anywhere: called again, it does what is
not done. A run that failed is made again if that is asked for (`retry`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from acdc.errors import FileError, TaskError, UserError
from acdc.files.circuit import read_circuit
from acdc.files.published import load_published
from acdc.files.table import FAILURE, OPTIONS, Row, every_column, row_of, state, to_csv, to_parquet
from acdc.graph.circuit import Circuit
from acdc.io.files import write_atomic
from acdc.io.folder import locked
from acdc.io.progress import Progress, Show
from acdc.io.yaml_file import read_yaml
from acdc.model.load import load_tokenizer, pick_device
from acdc.report import sweep_curves
from acdc.report.many import render_many
from acdc.report.panels import of_rows
from acdc.report.results import summary
from acdc.report.text import grid
from acdc.setup.config import Config, DefaultModel, parse_bytes
from acdc.sweep import estimate
from acdc.sweep.executors import Callbacks, Executor, Job, Local
from acdc.sweep.file import SweepFile, read_sweep
from acdc.sweep.grid import Run, runs_of
from acdc.sweep.slurm import Cluster
from acdc.sweep.tracking import Tracking
from acdc.task.load import find_config
from acdc.task.tokenize import make_data

HIDDEN = ("folder", "model_hash", "data_hash")  # of the page's table
MANY = 1000  # runs; for more, the user is asked
HASHED = ("model_hash", "data_hash", "part")  # what a run finds out, and is no option


@dataclass(frozen=True)
class Plan:
    """A sweep that has been checked, with what it takes to make it.

    Args:
        seconds: about how long each run takes, by its name
        references: by task, a circuit that is taken for true
    """

    file: SweepFile
    runs: tuple[Run, ...]
    out: Path
    place: Executor
    seconds: dict[str, float]
    references: dict[str, Circuit]
    retry: bool
    plots: bool

    def folder(self, run: Run) -> Path:
        """Where a run lies."""
        return self.out / "runs" / run.name

    def left(self) -> list[Run]:
        """The runs that are not done, and have not failed unless they are to be made again."""
        done = ("done",) if self.retry else ("done", "failed")
        return [run for run in self.runs if state(self.folder(run)) not in done]


def make_plan(
    path: Path, out: Path | None, given: dict[str, Any], sure: Callable[[int], bool], default_model: DefaultModel
) -> tuple[Plan, list[str]]:
    """Read a sweep file and check everything that can be wrong before a run is made; and notes.

    Args:
        path: of the file, or the name of a shipped one
        given: of the command line, None where not given: executor, workers, threads, memory (bytes), retry, plots
        sure: asked whether so many runs are meant, if they are many
    Raises:
        UserError: one line that says what is wrong, and in which line of the file.
    """
    file = read_sweep(find_config(path))
    sweep = file.sweep
    if file.size > MANY and not sure(file.size):
        raise UserError(f"{path}: {file.size:,} runs; say --yes if you mean it")
    runs, notes = runs_of(file, default_model)
    out = out or Path("sweeps") / path.stem
    _check_begun(runs, out)
    kinds = _check_prompts(file, runs)
    devices = {config.device: pick_device(config.device).type for config in (run.config for run in runs)}
    place = _place(file, out, given, runs, set(devices.values()))
    threads = place.threads if isinstance(place, Local) else sweep.slurm.cpus
    guesses = {}
    for run in runs:
        sizes, prompts = kinds[_kind(run.config)]
        guesses[run.name] = estimate.seconds(run.config, sizes, prompts, devices[run.config.device], threads)
    plan = Plan(file, tuple(runs), out, place, guesses, _references(file, runs), bool(given["retry"]), given["plots"])
    return replace(plan, seconds=_corrected(plan)), notes


def sweep(plan: Plan, progress: Show, say: Callable[[str], None]) -> list[Row]:
    """Make what is left, then the table and the plots; a run that fails does not stop the others.

    Raises:
        UserError: the directory is in use or can't be written, or the cluster refuses.
    """
    tracking = Tracking(plan.file.sweep.track, plan.file.path.stem, plan.out, say)
    with locked(plan.out, "this sweep"):
        left = plan.left()
        todo, folders = [Job(run.name, plan.folder(run), run.config) for run in left], {r.name: r for r in plan.runs}
        for job in todo:  # what is made again has not failed
            (job.folder / FAILURE).unlink(missing_ok=True)
        done, failed = len(plan.runs) - len(todo), 0

        def show(now: dict[str, str]) -> None:
            doing = ", ".join(f"{name} {at}".strip() for name, at in now.items())
            progress(Progress(done, len(plan.runs), "runs", f"{failed} failed; {doing}" if failed else doing))

        def ended(name: str) -> None:
            nonlocal done, failed
            done += 1
            row = _row(plan, folders[name])
            if row["state"] == "failed":
                failed += 1
                say(f"{name} failed: {row['message']}")
            tracking.log(row)
            show({})

        show({})
        if todo:
            plan.place.make(todo, Callbacks(ended, say, show))
        rows = [_row(plan, run) for run in plan.runs]
        for note in _mixed(rows):
            say(note)
        write_table(plan.out, rows, say)
        panels = of_rows(rows)
        page = render_many(plan.file.path.stem, plan.file.sweep.description, summary(rows), *table(rows), panels)
        write_atomic(plan.out / "report.html", page)
        if plan.plots and not sweep_curves.available():
            say("note: no plots; for them, pip install 'acdc-circuits[sweeps]'")
        elif plan.plots:
            for name, data in sweep_curves.draw(panels).items():
                write_atomic(plan.out / name, data)
    return rows


def write_table(out: Path, rows: list[Row], say: Callable[[str], None]) -> None:
    """Write results.csv, and results.parquet if that can be."""
    write_atomic(out / "results.csv", to_csv(rows))
    data = to_parquet(rows)
    if data is None:
        say("note: no results.parquet; for it, pip install 'acdc-circuits[sweeps]'")
    else:
        write_atomic(out / "results.parquet", data)


def _row(plan: Plan, run: Run) -> Row:
    folder = plan.folder(run)
    options = {k: v for k, v in run.config.model_dump().items() if v is not None}
    options |= {"task": run.task.name, "model": run.config.model_name}
    where = str(folder.relative_to(plan.out))
    return row_of(run.name, folder, options, where, plan.references.get(run.config.task))


# ---------------------------------------------------------------- checks


def _check_begun(runs: list[Run], out: Path) -> None:
    """Raise FileError if a run's directory is that of another config."""
    for run in runs:
        stated = out / "runs" / run.name / "config.yaml"
        if not stated.exists():
            continue
        try:
            found = read_yaml(stated, Config.model_fields)
        except TaskError:
            raise FileError(f"{stated}: is no config of a run; remove {stated.parent}, and the run is made") from None
        now = {k: v for k, v in run.config.model_dump(exclude_none=True).items() if k not in HASHED}
        then = {k: v for k, v in found.items() if k not in HASHED}
        if now != then:
            keys = sorted(k for k in now.keys() | then.keys() if now.get(k) != then.get(k))
            raise FileError(
                f"{stated.parent}: holds a run with another {', '.join(keys)}; choose another --out, or a run_name "
                "in the sweep file that says it"
            )


def _kind(config: Config) -> tuple[object, ...]:
    return config.task, config.model, config.examples


def _check_prompts(file: SweepFile, runs: list[Run]) -> dict[tuple[object, ...], tuple[Any, Any]]:
    """Sizes and prompts of every kind of run: that each model can be had, and its tokenizer can serve each task.

    Raises:
        UserError: one can't.
    """
    kinds: dict[tuple[object, ...], tuple[Any, Any]] = {}
    models: dict[str, tuple[Any, Any]] = {}
    for run in runs:
        c, kind = run.config, _kind(run.config)
        try:
            if c.model not in models:
                models[c.model] = load_tokenizer(c.model)
            sizes, tokenizer = models[c.model]
            if kind not in kinds:
                kinds[kind] = sizes, make_data(run.task, tokenizer, c.examples, c.seed).discovery
            if c.edges is not None and c.edges > (most := sizes.graph().n_edges):
                raise UserError(f"--edges: {c.edges} of {most:,} residual edges; ask for fewer")
        except UserError as error:
            raise type(error)(f"{file.path}: run {run.name}: {error}") from None
    return kinds


def _references(file: SweepFile, runs: list[Run]) -> dict[str, Circuit]:
    """The circuits that are taken for true, by the task as the configs name it."""
    out: dict[str, Circuit] = {}
    for name, said in file.sweep.references.items():
        where = f"{file.at('references', name)}: references: {name}"
        tasks = {run.config.task for run in runs if name in (run.config.task, run.task.name)}
        if not tasks:
            raise FileError(f"{where}: no run is of this task")
        try:
            if said.endswith(".json"):
                circuit = read_circuit(file.path.parent / said).circuit()
            else:
                published = load_published(said if "/" not in said else str(file.path.parent / said)).circuit
                if published is None:
                    raise FileError(f"{said}: only nodes of this circuit were published, and a ROC needs edges")
                circuit = published
        except (FileError, TaskError) as error:
            raise FileError(f"{where}: {error}") from None
        out |= dict.fromkeys(tasks, circuit)
    return out


def _place(file: SweepFile, out: Path, given: dict[str, Any], runs: list[Run], devices: set[str]) -> Executor:
    """Where the runs are made."""
    sweep = file.sweep
    executor = given["executor"] or sweep.executor
    if executor == "slurm":
        for flag in ("workers", "threads", "memory"):
            if given[flag] is not None:
                raise UserError(f"--{flag}: is for --executor local; slurm has cpus and memory in the sweep file")
        cluster = Cluster(sweep.slurm, out / "slurm")
        cluster.check()
        return cluster
    if executor != "local":
        raise UserError(f"--executor: unknown executor {executor!r}. Known: local, slurm")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = _gpus() if "cuda" in devices else ()
    workers = given["workers"] or sweep.workers or len(gpus) or cores
    workers = min(workers, len(runs))
    threads = given["threads"] or sweep.threads or max(1, cores // workers)
    memory = given["memory"] or (parse_bytes(sweep.memory) if sweep.memory else None)
    return Local(workers, threads, memory, gpus, out / "logs")


def _gpus() -> tuple[str, ...]:
    """The GPUs of this machine, as CUDA_VISIBLE_DEVICES names them."""
    import torch

    stated = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(stated.split(",")) if stated else tuple(map(str, range(torch.cuda.device_count())))


def _corrected(plan: Plan) -> dict[str, float]:
    """The estimates, by what runs of the same model and method took."""
    taken, names = defaultdict(list), defaultdict(list)
    for run in plan.runs:
        kind = (run.config.model, run.config.method)
        names[kind].append(run.name)
        if state(plan.folder(run)) == "done":
            seconds = _row(plan, run)["seconds"]
            taken[kind].append((plan.seconds[run.name], seconds))
    out: dict[str, float] = {}
    for kind, of in names.items():
        out |= dict(zip(of, estimate.corrected([plan.seconds[n] for n in of], taken[kind]), strict=True))
    return out


def _mixed(rows: list[Row]) -> list[str]:
    """Notes on runs that should have had the same weights or prompts, and had others."""
    notes = []
    for what, keys in (("weights", ("model", "dtype")), ("prompts", ("task", "model", "examples", "seed"))):
        hashes = defaultdict(set)
        for row in rows:
            if row["state"] == "done":
                hashes[tuple(row[k] for k in keys)].add(row["model_hash" if what == "weights" else "data_hash"])
        for kind, found in hashes.items():
            if len(found) > 1:
                said = ", ".join(f"{k} {v}" for k, v in zip(keys, kind, strict=True))
                notes.append(f"warning: runs of {said} were made with different {what}; remove those of the old ones")
    return notes


def table(rows: list[Row]) -> tuple[list[str], list[list[object]], list[str | None]]:
    """The columns that are shown, their values, and where each run's page is, for a page of the sweep."""
    columns = [c for c in every_column(rows) if c not in HIDDEN and any(row.get(c) is not None for row in rows)]
    links = [f"{quote(row['folder'])}/report.html" if row["state"] == "done" else None for row in rows]
    return columns, [[row.get(c) for c in columns] for row in rows], links


def overview(plan: Plan) -> str:
    """What a plan would do: every run, whether it is done, and about what it takes."""
    rows = [_row(plan, run) for run in plan.runs]
    varied = [k for k in OPTIONS if len({row[k] for row in rows}) > 1]
    shown = [["run", *varied, "state", "about"]]
    words = {"waiting": "to do"} | ({"failed": "to be made again"} if plan.retry else {})
    left = {run.name for run in plan.left()}
    for row in rows:
        about = estimate.in_words(plan.seconds[row["run"]]) if row["run"] in left else ""
        now = words.get(row["state"], str(row["state"]))
        shown.append([row["run"], *("–" if row[k] is None else str(row[k]) for k in varied), now, about])
    total = sum(plan.seconds[name] for name in left)
    if isinstance(plan.place, Local):
        workers = min(plan.place.workers, max(1, len(left)))
        said = f"about {estimate.in_words(total / workers)} on {workers} × {plan.place.threads} threads"
    else:
        said = f"about {estimate.in_words(total)} of work for Slurm"
    return (
        f"{grid(shown, left=1 + len(varied))}\n\n{summary(rows)}; {len(left):,} to make, {said}\nfiles     {plan.out}/"
    )

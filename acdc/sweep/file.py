"""Sweep files: their keys, read and checked, with the line of every key. `grid.py` makes runs of them.

base: {model: tiny, examples: 50}                  # options of `acdc run`, the same for all
grid:                                              # every combination; or a list of such grids
  task: [greater-than, ioi]
  threshold: {log: [0.001, 0.3], count: 6}
  ablation: [corrupted, zero]
exclude:                                           # named, so that the file says why
  induction has no zero: {task: induction, ablation: zero}
run_name: "{task}-{ablation}-{threshold}"          # of the runs' folders; default: the options that differ
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from acdc.errors import FileError, unknown
from acdc.io.folder import FOUND
from acdc.io.schema import Flag, Line, Name, Number, Strict, Text, UnknownKey, Whole, mistakes
from acdc.io.sizes import parse_bytes
from acdc.io.yaml_file import Lines, check_trail, merge, read_yaml
from acdc.registry import LIMITS
from acdc.setup.config import Config

OPTIONS = tuple(key for key in Config.model_fields if key not in FOUND)
WHOLE = ("edges", "examples", "seed", "batch", "steps", "updates")  # options whose ranges have whole numbers
MAX_RUNS = 1_000_000
MAX_FILES = 100  # included in a sweep file

Option = str | int | float | bool | None
Keys = tuple[str | int, ...]  # the keys that lead to a place in a file


class AxisRange(Strict):
    """`count` values from first to last, spaced by equal ratios (`log`) or equal steps (`linear`). Give one of the two.

    Args:
        log: the first and the last value, both above 0
        linear: the first and the last value
        count: number of values, both ends included
    """

    log: tuple[Number, Number] | None = None
    linear: tuple[Number, Number] | None = None
    count: Annotated[Whole, Field(ge=2, le=10_000)]

    @model_validator(mode="after")
    def _one(self) -> AxisRange:
        if (self.log is None) == (self.linear is None):
            raise ValueError("a range is {log: [first, last], count: n} or {linear: [first, last], count: n}")
        if self.log is not None and min(self.log) <= 0:
            raise ValueError(f"log: is {list(self.log)}; both ends should be above 0")
        return self

    def values(self, whole: bool) -> list[Option]:
        """Return the values: distinct whole numbers, or numbers with three digits or as many as tell them apart."""
        ends = self.log or self.linear or (0.0, 0.0)
        spaced = np.geomspace(*ends, self.count) if self.log else np.linspace(*ends, self.count)
        if whole:
            return list(dict.fromkeys(round(float(x)) for x in spaced))
        for digits in range(3, 17):
            values: list[Option] = [float(f"{x:.{digits}g}") for x in spaced]
            if len(set(values)) == self.count:
                break
        return values


class Slurm(Strict):
    """What each Slurm job requests.

    Args:
        partition, account: names on the cluster
        time: limit in minutes
        cpus: number of cores, and threads of the run
        gpus: number of GPUs; with none, runs are on the CPU
        memory: such as `8GB` or `500MB`
        parallel: maximum number of jobs at a time
        runs_per_job: maximum number of runs in a job; by default all that share a model and prompts
        extra: other options of sbatch, by their long names
    """

    partition: Name | None = None  # a line break would start a new line in the job's script
    account: Name | None = None
    time: Annotated[Whole, Field(ge=1)] = 60
    cpus: Annotated[Whole, Field(ge=1)] = 1
    gpus: Annotated[Whole, Field(ge=0)] = 0
    memory: Annotated[Text, Field(pattern=r"^[1-9]\d*(MB|GB)$")] | None = None
    parallel: Annotated[Whole, Field(ge=1)] = 100
    runs_per_job: Annotated[Whole, Field(ge=1)] | None = None
    extra: dict[Text, Line | Whole | Flag] = Field(default_factory=dict)

    @field_validator("extra")
    @classmethod
    def _names(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if not re.fullmatch("[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is not an option of sbatch; give its long name without the dashes")
        return extra


class Sweep(Strict):
    """The content of a sweep file.

    Args:
        include: other sweep files, relative to this one; this file wins
        description: for readers; also shown in the report
        base: options of `acdc run` that are the same for all runs
        grid: options with a value, a list of values, or a range; every combination is a run. Or a list of such grids
        exclude: named sets of options; a run that has all options of a set is left out
        run_name: name of a run's folder, with options as in `{task}-{threshold}`; by default the options that differ
        references: circuits taken as the truth for ROC curves, by task: a circuit.json (relative to the file) or the
            name of a published circuit
        executor: where the runs are made: on this machine, or on a Slurm cluster
        workers: number of processes on this machine; by default one per core, or as many per GPU as fit
        threads: threads of each process; by default cores / workers
        memory: each process stays below it, as `4GB`; by default the processes share half the machine's memory
        slurm: what each Slurm job requests
        track: a service that every run is also logged to
    """

    include: Text | tuple[Text, ...] = ()
    description: Text = ""
    base: dict[Text, Any] = Field(default_factory=dict)
    grid: dict[Text, Any] | tuple[dict[Text, Any], ...]
    exclude: dict[Text, dict[Text, Any]] = Field(default_factory=dict)
    run_name: Text | None = None
    references: dict[Text, Text] = Field(default_factory=dict)
    executor: Literal["local", "slurm"] = "local"
    workers: Annotated[Whole, Field(ge=1, le=LIMITS["workers"])] | None = None
    threads: Annotated[Whole, Field(ge=1, le=LIMITS["threads"])] | None = None
    memory: Text | None = None
    slurm: Slurm = Slurm()
    track: Literal["wandb", "trackio"] | None = None

    @field_validator("memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @property
    def grids(self) -> dict[Keys, dict[str, Any]]:
        """All grids, by the keys that lead to them."""
        if isinstance(self.grid, dict):
            return {("grid",): self.grid}
        return {("grid", i): grid for i, grid in enumerate(self.grid)}


@dataclass(frozen=True)
class SweepFile:
    """A sweep file, read and checked."""

    path: Path
    sweep: Sweep
    lines: Lines  # of the file and those that it includes, nearest first
    axes: dict[Keys, dict[str, list[Option]]]  # the values of every option of a grid, by the keys that lead to the grid
    size: int  # number of runs before exclusions


def read_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file and those that it includes, but not yet the options of its runs; raise FileError with
    one line that says what is wrong and where."""
    content, paths = _read_included(path, ())
    lines = Lines(paths)
    try:
        sweep = Sweep.model_validate(content)
    except ValidationError as error:
        raise FileError(mistakes(lines.at(*_keys(lines, error)), error)) from None
    mappings: dict[Keys, dict[str, Any]] = {("base",): sweep.base, **sweep.grids}
    mappings |= {("exclude", name): rule for name, rule in sweep.exclude.items()}
    for where, options in mappings.items():
        for key in options:
            if key not in OPTIONS:
                place = f"{lines.at(*where, key)}: {'.'.join(map(str, where))}"
                raise FileError(f"{place}: {unknown('option', key, OPTIONS)}")
    axes: dict[Keys, dict[str, list[Option]]] = {}
    runs = 0
    for where, grid in (sweep.grids or {("grid",): {}}).items():
        if not grid:
            raise FileError(f"{lines.at(*where)}: grid: is empty; give options with their values")
        axes[where] = {key: _values(lines, (*where, key), given) for key, given in grid.items()}
        runs += math.prod(map(len, axes[where].values()))
        if runs > MAX_RUNS:
            raise FileError(f"{lines.at('grid')}: grid: has more than {MAX_RUNS:,} runs")
    return SweepFile(path, sweep, lines, axes, runs)


def _keys(lines: Lines, error: ValidationError) -> list[str | int]:
    """Return the keys that lead to the first of pydantic's errors. Its own names for the forms of a value, which no
    file has, are left out."""
    problem = error.errors()[0]
    cause = problem.get("ctx", {}).get("error")
    keys: list[str | int] = []
    for part in (*problem["loc"], *([cause.key] if isinstance(cause, UnknownKey) else [])):
        if lines.has(*keys, part):
            keys.append(part)
    return keys


def _values(lines: Lines, where: Keys, given: Any) -> list[Option]:
    """Return the values of an option, given as one value, a list or a range."""
    prefix = f"{lines.at(*where)}: {'.'.join(map(str, where))}"
    if isinstance(given, dict):
        try:
            return AxisRange.model_validate(given).values(where[-1] in WHOLE)
        except ValidationError as error:
            raise FileError(mistakes(prefix, error)) from None
    values = given if isinstance(given, list) else [given]
    if not values:
        raise FileError(f"{prefix}: is an empty list; give at least one value")
    if not all(isinstance(value, str | int | float | bool) for value in values):
        raise FileError(f"{prefix}: should be a value, a list of values or a range")
    if len({repr(value) for value in values}) < len(values):
        raise FileError(f"{prefix}: has a value twice")
    return values


def _read_included(path: Path, trail: tuple[Path, ...]) -> tuple[dict[str, Any], list[Path]]:
    """Read a file and those that it includes, and merge them."""
    content = read_yaml(path, Sweep.model_fields)
    paths = [path]
    check_trail(path, trail)
    given = content.pop("include", ())
    parents = [given] if isinstance(given, str) else given
    if not isinstance(parents, list | tuple) or not all(isinstance(p, str) for p in parents):
        raise FileError(f"{path}: include: should be a .yaml file, or a list of them")
    merged: dict[str, Any] = {}
    for parent in parents:
        included, more = _read_included(path.parent / parent, (*trail, path.resolve()))
        merged = merge(merged, included)
        paths += more
        if len(paths) > MAX_FILES:
            raise FileError(f"{path}: includes more than {MAX_FILES} files; include each once")
    return merge(merged, content), paths

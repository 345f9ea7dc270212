"""Sweep files: YAML → the runs of a grid, each a checked config with a name of its own.

base: {model: tiny, examples: 50}                  # options of `acdc run`, the same for all
grid:                                              # every combination; or a list of such grids
  task: [greater-than, ioi]
  threshold: {log: [0.001, 0.3], count: 6}
  ablation: [corrupted, zero]
exclude:                                           # by name, so that it says why
  induction has no zero: {task: induction, ablation: zero}
run_name: "{task}-{ablation}-{threshold}"          # of the runs' folders; default: what differs
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, ValidationError, field_validator, model_validator

from acdc.errors import FileError, TaskError, UserError, unknown
from acdc.io.schema import Flag, Number, Strict, Text, Whole, mistakes
from acdc.io.sizes import parse_bytes
from acdc.io.yaml_file import Lines, check_trail, merge, read_yaml
from acdc.setup.config import Config, DefaultModel, resolve
from acdc.task.load import load_task
from acdc.task.schema import Task
from acdc.task.template import render

Option = str | int | float | bool | None

OPTIONS = tuple(key for key in Config.model_fields if key not in ("part", "model_hash", "data_hash"))
WHOLE = ("edges", "examples", "seed", "batch", "steps", "updates")  # options that are whole numbers
MANY = 1000  # runs: for more one has to be asked
MAX_RUNS = 1_000_000
MAX_FILES = 100  # that a sweep file includes


class Range(Strict):
    """`count` values from the first to the last, in equal ratios (`log`) or steps (`linear`): one of the two.

    Args:
        log: the first and the last value, both above 0
        linear: the first and the last value
        count: how many, both ends included
    """

    log: tuple[Number, Number] | None = None
    linear: tuple[Number, Number] | None = None
    count: Annotated[Whole, Field(ge=2, le=10_000)]

    @model_validator(mode="after")
    def _one(self) -> Range:
        if (self.log is None) == (self.linear is None):
            raise ValueError("a range is {log: [first, last], count: n} or {linear: [first, last], count: n}")
        if self.log is not None and min(self.log) <= 0:
            raise ValueError(f"log: is {list(self.log)}; both ends should be above 0")
        return self

    def values(self, whole: bool) -> list[Option]:
        """The values, to three digits or as many as tell them apart; or whole numbers, each once."""
        ends = self.log or self.linear or (0.0, 0.0)
        spaced = np.geomspace(*ends, self.count) if self.log else np.linspace(*ends, self.count)
        if whole:
            return list(dict.fromkeys(round(float(x)) for x in spaced))
        for digits in range(3, 17):
            values: list[Option] = [float(f"{x:.{digits}g}") for x in spaced]
            if len(set(values)) == self.count:
                break
        return values


Line = Annotated[Text, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]  # a line break would end a line of the job's script


class Slurm(Strict):
    """What Slurm is asked for, for each job.

    Args:
        partition, account: as the cluster calls it
        time: minutes
        cpus: cores, and threads of the run
        gpus: how many
        memory: as `8GB` or `500MB`
        parallel: jobs at a time, at most
        runs_per_job: runs in a job, at most; by default all that share a model and prompts
        extra: other options of sbatch, by their long names
    """

    partition: Line | None = None
    account: Line | None = None
    time: Annotated[Whole, Field(ge=1)] = 60
    cpus: Annotated[Whole, Field(ge=1)] = 1
    gpus: Annotated[Whole, Field(ge=0)] = 0
    memory: Annotated[Text, Field(pattern=r"^\d+(MB|GB)$")] | None = None
    parallel: Annotated[Whole, Field(ge=1)] = 100
    runs_per_job: Annotated[Whole, Field(ge=1)] | None = None
    extra: dict[Text, Line | Whole | Flag] = Field(default_factory=dict)

    @field_validator("extra")
    @classmethod
    def _names(cls, extra: dict[str, Any]) -> dict[str, Any]:
        for name in extra:
            if not re.fullmatch("[a-z][a-z0-9_-]*", name):
                raise ValueError(f"{name!r} is no option of sbatch; its long names have no dashes in front")
        return extra


Executor = Literal["local", "slurm"]
Tracker = Literal["wandb", "trackio"]


class Sweep(Strict):
    """The content of a sweep file.

    Args:
        include: other sweep files, relative to this one, which wins
        description: for people
        base: options of `acdc run` that are the same for all runs
        grid: options with their values: one, a list, or a range; every combination is a run. Or a list of such grids
        exclude: sets of options by name; runs that have all of one set are left out
        run_name: name of a run's folder, with options as `{task}-{threshold}`; by default what differs among the runs
        references: circuits that are taken for true, by task: a circuit.json (relative to the file) or the name of a
            published circuit; they give the ROC
        executor: where the runs are made: on this machine, or on a cluster
        workers: processes on this machine; by default one per core, or GPU
        threads: of each process; by default cores / workers
        memory: each process stays below it, as `4GB`; by default its share of half the machine's
        slurm: what jobs ask of Slurm
        track: a service that every run is logged to, too
    """

    include: Text | tuple[Text, ...] = ()
    description: Text = ""
    base: dict[Text, Any] = Field(default_factory=dict)
    grid: dict[Text, Any] | tuple[dict[Text, Any], ...]
    exclude: dict[Text, dict[Text, Any]] = Field(default_factory=dict)
    run_name: Text | None = None
    references: dict[Text, Text] = Field(default_factory=dict)
    executor: Executor = "local"
    workers: Annotated[Whole, Field(ge=1)] | None = None
    threads: Annotated[Whole, Field(ge=1)] | None = None
    memory: Text | None = None
    slurm: Slurm = Slurm()
    track: Tracker | None = None

    @field_validator("memory")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None:
            parse_bytes(value)
        return value

    @property
    def grids(self) -> tuple[dict[str, Any], ...]:
        """All grids; the short form is one."""
        return (self.grid,) if isinstance(self.grid, dict) else self.grid


@dataclass(frozen=True)
class Run:
    """One run of a sweep; `name` is that of its folder."""

    name: str
    config: Config
    task: Task


@dataclass(frozen=True)
class SweepFile:
    """A sweep file, read and checked, with what it includes.

    Args:
        path: of the file
        files: all that were read, nearest first
    """

    path: Path
    sweep: Sweep
    files: tuple[Lines, ...]

    def at(self, *keys: str | int) -> str:
        """Where a key is: file and line."""
        return place(self.files, keys)

    @property
    def size(self) -> int:
        """Runs before exclusions."""
        return sum(math.prod(len(values) for values in self.axes(i).values()) for i in range(len(self.sweep.grids)))

    def axes(self, index: int) -> dict[str, list[Option]]:
        """The values of every option of one grid.

        Raises:
            FileError: one has none, or one that can't be.
        """
        axes = {}
        for key, given in self.sweep.grids[index].items():
            where = (*self._grid_at(index), key)
            axes[key] = self._values(key, given, where)
        return axes

    def _grid_at(self, index: int) -> tuple[str | int, ...]:
        return ("grid",) if isinstance(self.sweep.grid, dict) else ("grid", index)

    def _values(self, key: str, given: Any, where: tuple[str | int, ...]) -> list[Option]:
        said = ".".join(map(str, where))
        if isinstance(given, dict):
            try:
                return Range.model_validate(given).values(key in WHOLE)
            except ValidationError as error:
                raise FileError(mistakes(f"{self.at(*where)}: {said}", error)) from None
        values = given if isinstance(given, list) else [given]
        if not values:
            raise FileError(f"{self.at(*where)}: {said}: is an empty list, so there is nothing to run; give values")
        for value in values:
            if not isinstance(value, str | int | float | bool):
                raise FileError(f"{self.at(*where)}: {said}: should be a value, a list of values or a range")
        if len({repr(v) for v in values}) < len(values):
            raise FileError(f"{self.at(*where)}: {said}: has a value twice")
        return values

    def runs(self, default_model: DefaultModel) -> tuple[list[Run], list[str]]:
        """All runs in the order of the grid, checked, with names; and notes for the user.

        Raises:
            UserError: one of them can't be, with the place that says so.
        """
        load = lru_cache(maxsize=None)(load_task)
        configs, notes, used = list[tuple[Config, Task]](), list[str](), set[str]()
        for index in range(len(self.sweep.grids)):
            for point in self._points(index, used):
                given = {**self.sweep.base, **point}
                try:
                    config, task, said = resolve(given, None, default_model, load)
                except UserError as error:
                    raise FileError(f"{self._blame(str(error), index)}: {_said(point)}: {error}") from None
                configs.append((config, task))
                notes += [note for note in said if note not in notes]
        for name in self.sweep.exclude:
            if name not in used:
                raise FileError(
                    f"{self.at('exclude', name)}: exclude: {name}: no run is like that; nothing is left out"
                )
        if not configs:
            raise FileError(f"{self.path}: exclude: every run is left out; nothing is left")
        names = self._names([config for config, _ in configs])
        return [Run(name, config, task) for name, (config, task) in zip(names, configs, strict=True)], notes

    def _points(self, index: int, used: set[str]) -> Iterator[dict[str, Option]]:
        """The combinations of one grid that no exclusion leaves out; `used` gets the exclusions that did."""
        axes = self.axes(index)
        for combination in product(*axes.values()):
            point = dict(zip(axes, combination, strict=True))
            given = {**self.sweep.base, **point}
            out = [name for name, rule in self.sweep.exclude.items() if _matches(given, rule)]
            used.update(out)
            if not out:
                yield point

    def _blame(self, message: str, index: int) -> str:
        """The place of the option that a message is about."""
        match = re.match(r"--([a-z-]+)", message)
        key = match.group(1).replace("-", "_") if match else "task"
        return self.at(*self._grid_at(index), key) if key in self.sweep.grids[index] else self.at("base", key)

    def _names(self, configs: list[Config]) -> list[str]:
        """A name for every run, from the template, or of what differs between them."""
        dumped = [config.model_dump() for config in configs]
        in_order = dict.fromkeys([*(key for grid in self.sweep.grids for key in grid), *OPTIONS])
        differ = [key for key in in_order if len({repr(d[key]) for d in dumped}) > 1]
        template, names = self.sweep.run_name, []
        for config, values in zip(configs, dumped, strict=True):
            words = {key: _word(config, key, values[key]) for key in OPTIONS} | {"digest": config.digest}
            if template is None:
                parts = [words[key] for key in differ if words[key]]
                names.append("-".join(parts) if parts else config.folder)
                continue
            try:
                names.append(_plain(render(template, words)))
            except (KeyError, ValueError) as error:
                what = unknown("name", str(error.args[0]), words) if isinstance(error, KeyError) else str(error)
                raise FileError(f"{self.at('run_name')}: run_name: {what}") from None
        first: dict[str, int] = {}
        for i, name in enumerate(names):
            if not name or name.startswith("."):
                raise FileError(f"{self.at('run_name')}: run_name: gives {name!r}, which is no name of a folder")
            if (other := first.setdefault(name, i)) != i:
                missing = [key for key in OPTIONS if dumped[i][key] != dumped[other][key]]
                why = f"they differ in {', '.join(missing)}" if missing else "they are the same run"
                raise FileError(f"{self.at('run_name')}: run_name: two runs would be called {name!r}; {why}")
        return names


def place(files: tuple[Lines, ...], keys: Sequence[str | int]) -> str:
    """File and line of a key, in the first file that has it; else the first file."""
    for lines in files:
        if line := lines.of(keys):
            return f"{lines.path} line {line}"
    return str(files[0].path)


def read_sweep(path: Path) -> SweepFile:
    """Read and check a sweep file and what it includes; no run is resolved yet.

    Raises:
        FileError: one line that says what is wrong and where.
    """
    try:
        content, files = _read_included(path, ())
    except TaskError as error:
        raise FileError(str(error)) from None
    try:
        file = SweepFile(path, Sweep.model_validate(content), files)
    except ValidationError as error:
        keys = [part for part in error.errors()[0]["loc"] if not _of_union(part)]
        problem = error.errors()[0]
        if problem["type"] == "value_error":  # an unknown key is named in the message, not in the place
            named = re.match(r"unknown key '([^']*)'", str(problem["ctx"]["error"]))
            keys += [named.group(1)] if named else []
        raise FileError(mistakes(place(files, keys), error)) from None
    for where, options in (
        (("base",), file.sweep.base),
        *((file._grid_at(i), grid) for i, grid in enumerate(file.sweep.grids)),
        *((("exclude", name), rule) for name, rule in file.sweep.exclude.items()),
    ):
        for key in options:
            if key not in OPTIONS:
                said = ".".join(map(str, where))
                raise FileError(f"{file.at(*where, key)}: {said}: {unknown('option', key, OPTIONS)}")
    runs = 0
    for i, grid in enumerate(file.sweep.grids):
        if not grid:
            raise FileError(f"{file.at(*file._grid_at(i))}: grid: is empty; give options with their values")
        runs += math.prod(len(values) for values in file.axes(i).values())
        if runs > MAX_RUNS:
            raise FileError(f"{file.at('grid')}: grid: has more than {MAX_RUNS:,} runs")
    if not file.sweep.grids:
        raise FileError(f"{file.at('grid')}: grid: is empty; give options with their values")
    return file


def _read_included(path: Path, trail: tuple[Path, ...]) -> tuple[dict[str, Any], tuple[Lines, ...]]:
    content, files = read_yaml(path, Sweep.model_fields), [Lines(path)]
    check_trail(path, trail)
    given = content.pop("include", ())
    parents = [given] if isinstance(given, str) else given
    if not isinstance(parents, list | tuple) or not all(isinstance(p, str) for p in parents):
        raise TaskError(f"{path}: include: should be a .yaml file, or a list of them")
    merged: dict[str, Any] = {}
    for parent in parents:
        included, more = _read_included(path.parent / parent, (*trail, path.resolve()))
        merged, files = merge(merged, included), [*files, *more]
        if len(files) > MAX_FILES:
            raise TaskError(
                f"{path}: includes more than {MAX_FILES} files, some of them several times; state each once"
            )
    return merge(merged, content), tuple(files)


def _of_union(part: str | int) -> bool:
    """Whether a part of the place that pydantic gives is one of its own, not a key."""
    return isinstance(part, str) and (part.startswith(("~", "dict[", "tuple[", "function-", "str", "literal[")))


def _matches(given: dict[str, Option], rule: dict[str, Any]) -> bool:
    return all(given.get(k) in (v if isinstance(v, list) else [v]) for k, v in rule.items())


def _said(point: dict[str, Option]) -> str:
    return ", ".join(f"{k} {v}" for k, v in point.items())


def _word(config: Config, key: str, value: Option) -> str:
    """An option's value in a name."""
    if value is None or value is False:
        return ""
    if value is True:
        return key
    named = {"task": config.task_name, "model": config.model_name}.get(key)
    return _plain(named or (f"{value:g}" if isinstance(value, float) else str(value)))


def _plain(text: str) -> str:
    """As the name of a folder."""
    return re.sub(r"[^\w.+-]+", "-", text).strip("-")

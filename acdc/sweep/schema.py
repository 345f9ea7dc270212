"""The keys of a sweep file, and their values."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from acdc.io.schema import Flag, Number, Strict, Text, Whole
from acdc.io.sizes import parse_bytes

Option = str | int | float | bool | None


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


# A line break would start a new line in the job's script.
Line = Annotated[Text, Field(pattern=r"^[^\x00-\x1f\x7f]*$")]


class Slurm(Strict):
    """What each Slurm job requests.

    Args:
        partition, account: names on the cluster
        time: limit in minutes
        cpus: number of cores, and threads of the run
        gpus: number of GPUs
        memory: such as `8GB` or `500MB`
        parallel: maximum number of jobs at a time
        runs_per_job: maximum number of runs in a job; by default all that share a model and prompts
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
                raise ValueError(f"{name!r} is not an option of sbatch; give its long name without the dashes")
        return extra


Executor = Literal["local", "slurm"]
Tracker = Literal["wandb", "trackio"]


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
        workers: number of processes on this machine; by default one per core, or per GPU
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
        """All grids, also if the file has just one and no list."""
        return (self.grid,) if isinstance(self.grid, dict) else self.grid

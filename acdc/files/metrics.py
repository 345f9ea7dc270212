"""`metrics.json`: the measurements of a run on both halves of the prompts, and its cost."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AfterValidator, Field, model_validator

from acdc.errors import short
from acdc.io.files import read_json, write_atomic
from acdc.io.schema import Number, Strict, Text, Whole, validated

Half = Literal["held_out", "discovery"]
HALVES: tuple[Half, ...] = get_args(Half)  # as results are listed


def measure(name: str) -> str:
    """Return the name of a measurement; raise ValueError if it is none: each becomes a column of tables."""
    if not re.fullmatch(r"(discovery|held_out)\.(model|circuit|ablated)\.[\w.-]+", name):
        raise ValueError(f"{short(name)} should be <half>.<what>.<metric>, such as held_out.circuit.kl")
    return name


Measures = dict[Annotated[Text, AfterValidator(measure)], Number]
Interval = tuple[Number | None, Number | None, Number | None]  # value, low and high end; None if undefined


class CostPart(Strict):
    """Time and memory of a run."""

    seconds: Number  # of the process that finished it
    peak_memory_mb: Number  # of the process, or of the device on CUDA
    expected_memory_mb: Number | None = None  # the estimate made before the run; null in files of older versions
    evaluations: Whole  # how often ACDC took the metric of the whole model
    threads: Whole  # of PyTorch


class MetricsFile(Strict):
    """The content of `metrics.json`."""

    metrics: Measures  # every metric and the accuracy, `<half>.<model, circuit or ablated>.<metric>`
    faithfulness: dict[Half, Interval]  # of the circuit by the run's metric, with its 95 % interval over prompts
    # The same by every metric of the task, and empty in files of older versions.
    by_metric: dict[Half, dict[Text, Interval]] = Field(default={})
    metric: dict[Half, Interval]  # mean of the run's metric, with its 95 % interval
    cost: CostPart

    @model_validator(mode="after")
    def _halves(self) -> MetricsFile:
        if not self.faithfulness or self.faithfulness.keys() != self.metric.keys():
            raise ValueError("faithfulness and metric should have the same halves of the prompts")
        return self

    def by_metrics(self, own: str) -> dict[Half, dict[str, Interval]]:
        """Faithfulness by metric; in older files by the run's `own` alone."""
        return {half: {own: value, **self.by_metric.get(half, {})} for half, value in self.faithfulness.items()}

    @property
    def half(self) -> Half:
        """The half whose prompts the circuit is judged on."""
        return "held_out" if "held_out" in self.faithfulness else "discovery"


def write_metrics(path: Path, file: MetricsFile) -> None:
    """Write `metrics.json` atomically; raise FileError if it can't be written."""
    write_atomic(path, json.dumps(file.model_dump(), indent=1, sort_keys=True) + "\n")


def read_metrics(path: Path) -> MetricsFile:
    """Read and check `metrics.json`; raise FileError with a line per problem."""
    return validated(MetricsFile, read_json(path), str(path))

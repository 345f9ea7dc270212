"""`metrics.json`: what a run measured on both halves of the prompts, and what it cost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from acdc.errors import FileError
from acdc.io.files import read_json, write_atomic

Half = Literal["discovery", "held_out"]
Interval = tuple[float | None, float | None, float | None]  # value, low and high end; None where there is none


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class CostPart(_Part):
    """What a run cost.

    Args:
        seconds: of the process that finished it
        peak_memory_mb: the most that the process had in memory while it was made, on CUDA the device
        expected_memory_mb: what was expected of that before it began; null of versions that did not say it
        evaluations: metrics of the whole model that ACDC took
        threads: of PyTorch
    """

    seconds: float
    peak_memory_mb: float
    expected_memory_mb: float | None = None
    evaluations: int
    threads: int


class MetricsFile(_Part):
    """The content of `metrics.json`.

    Args:
        metrics: every metric and the accuracy, `<half>.<model, circuit or ablated>.<metric>`
        faithfulness: of the circuit by the run's metric, with its 95 % interval over prompts
        metric: the mean of the run's metric, with its 95 % interval
        cost: time and memory
    """

    metrics: dict[str, float]
    faithfulness: dict[Half, Interval]
    metric: dict[Half, Interval]
    cost: CostPart

    @model_validator(mode="after")
    def _halves(self) -> MetricsFile:
        if not self.faithfulness or self.faithfulness.keys() != self.metric.keys():
            raise ValueError("faithfulness and metric should be of the same halves of the prompts")
        return self

    @property
    def half(self) -> Half:
        """The prompts that the circuit is judged on."""
        return "held_out" if "held_out" in self.faithfulness else "discovery"


def write_metrics(path: Path, file: MetricsFile) -> None:
    """Write `metrics.json`, whole or not at all.

    Raises:
        FileError: it can't be written.
    """
    write_atomic(path, json.dumps(file.model_dump(), indent=1, sort_keys=True) + "\n")


def read_metrics(path: Path) -> MetricsFile:
    """Read and check a `metrics.json`.

    Raises:
        FileError: it can't be read, or isn't one.
    """
    try:
        return MetricsFile.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise FileError(
            f"{path}: is not the metrics.json of a run of this version ({where}: {first['msg']}); remove it"
        ) from None

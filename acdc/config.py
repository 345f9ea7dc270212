"""What a run is: every option with its value, from the command line, a YAML config, the task and built-in defaults.

Precedence: command line > YAML config (`--config`) > the task's own defaults > built-in defaults.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from acdc.errors import FileError, UserError, unknown
from acdc.taskfile import load_task, read_yaml
from acdc.taskschema import METRICS, Task

METHODS = {"acdc": "remove every edge whose removal raises the metric by less than a threshold (Conmy et al. 2023)"}
ABLATIONS = {
    "corrupted": "a removed edge carries the sender's output on the paired corrupted prompt",
    "zero": "a removed edge carries nothing; attention output biases stay",
    "mean": "a removed edge carries the sender's mean over the clean prompts, per position",
}
ORDERS = {
    "paper": "heads high to low, later parents first",
    "heads-ascending": "heads low to high",
    "parents-ascending": "earlier parents first",
    "random": "heads and parents shuffled by the seed",
}
DTYPES = ("float32", "float64")
DEVICES = ("auto", "cpu", "cuda", "mps")
DEFAULT_MODEL, FALLBACK_MODEL = "gpt2", "tiny"
NAMES: dict[str, tuple[str, ...]] = {
    "method": tuple(METHODS),
    "metric": METRICS,
    "ablation": tuple(ABLATIONS),
    "order": tuple(ORDERS),
    "dtype": DTYPES,
}


class Config(BaseModel):
    """A resolved run.

    `part` is how many prompts are held in memory at once (None: all). `model_hash` and `data_hash` say what weights and
    prompts it was resolved with; a run refuses others.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    task: str
    model: str
    method: str = "acdc"
    metric: str
    threshold: float
    abs: bool = False
    ablation: str
    direct: bool = True
    order: str = "paper"
    examples: int
    seed: int
    dtype: str = "float32"
    device: str = "auto"
    batch: int = 64
    part: int | None = None
    model_hash: str | None = None
    data_hash: str | None = None

    @field_validator("threshold", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("threshold")
    @classmethod
    def _finite(cls, value: float) -> float:
        if not math.isfinite(value) or value < 0:
            raise ValueError(f"is {value}; it must be a finite number, 0 or above, in the metric's units")
        return value

    @field_validator("examples", "batch", "part")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"is {value}; it must be 1 or more")
        return value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(unknown("device", value, DEVICES))
        return value

    @property
    def digest(self) -> str:
        """Eight hex digits that stand for the whole config."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude_none=True), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def task_name(self) -> str:
        return Path(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task

    @property
    def model_name(self) -> str:
        """A name without folders: what files say of the model."""
        return Path(self.model).name if Path(self.model).is_dir() else self.model

    @property
    def folder(self) -> str:
        """Name of the run's directory."""
        parts = (self.task_name, re.sub(r"[^\w.-]+", "-", self.model_name), self.method, self.digest)
        return "-".join(parts)

    def to_yaml(self) -> str:
        out: str = yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
        return out

    def command(self) -> str:
        """The command that makes this run again."""
        flags = [f"--task {self.task_name if '/' in self.task else self.task}", f"--model {self.model_name}"]
        flags += [f"--{k} {getattr(self, k)}" for k in ("method", "metric", "threshold", "ablation", "order")]
        flags += [f"--examples {self.examples}", f"--seed {self.seed}", f"--dtype {self.dtype}"]
        flags += ["--direct" if self.direct else "--no-direct"] + (["--abs"] if self.abs else [])
        return "acdc run " + " ".join(flags)


def resolve(given: dict[str, Any], file: Path | None, default_model: Any) -> tuple[Config, Task, list[str]]:
    """The config of a run, its task, and notes for the user.

    Args:
        given: options of the command line, None where not given
        file: a YAML config, or None
        default_model: called without arguments when nothing names a model; returns its name and a note (or None)
    Raises:
        UserError: one line that names the flag or the file and key
    """
    command_line = {k: v for k, v in given.items() if v is not None}
    from_file = _read(file) if file else {}
    explicit = {**from_file, **command_line}

    def where(key: str) -> str:
        return f"{file}: {key}" if key not in command_line and key in from_file else f"--{key.replace('_', '-')}"

    if "task" not in explicit:
        raise UserError("no task; give --task NAME (see `acdc tasks`) or a --config with the key task")
    task = load_task(str(explicit["task"]))
    notes: list[str] = []
    if "model" not in explicit:
        model, note = (task.defaults.model, None) if task.defaults.model else default_model()
        explicit["model"] = model
        notes += [note] if note else []
    defaults = task.defaults_for(str(explicit["model"])).model_dump(
        include={"metric", "threshold", "examples", "seed", "ablation"}
    )
    values = {**defaults, **explicit}
    for key, names in NAMES.items():
        if key in values and values[key] not in names:
            raise UserError(f"{where(key)}: {unknown(key, str(values[key]), names)}")
    if values["metric"] not in task.metrics:
        raise UserError(
            f"{where('metric')}: task {task.name} has no answers for {values['metric']}; "
            f"it has {', '.join(task.metrics)}"
        )
    if values["metric"] != defaults["metric"] and "threshold" not in explicit:
        raise UserError(
            f"{where('metric')}: the task's default threshold is for {defaults['metric']}; "
            f"give --threshold for {values['metric']}"
        )
    try:
        return Config(**values), task, notes
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{where(key)}: {message}") from None


def _read(file: Path) -> dict[str, Any]:
    raw = read_yaml(file, Config.model_fields)
    for key in raw:
        if key not in Config.model_fields:
            raise FileError(f"{file}: {unknown('key', str(key), Config.model_fields)}")
    return raw

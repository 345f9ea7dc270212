"""What a run is: every option with its value, from the command line, a YAML config, the task and built-in defaults.

Precedence: command line > YAML config (`--config`) > the task's own defaults > built-in defaults.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from acdc.errors import FileError, UserError, unknown
from acdc.io.yaml_file import read_yaml
from acdc.registry import DEVICES, METHOD_OPTIONS, METHODS, NAMES, check_method, parse_filter, refusal
from acdc.task.load import find_config, load_task
from acdc.task.schema import MAX_WORDS, Task

DefaultModel = Callable[[], tuple[str, str | None]]  # gives a model's name, and a note or None


DEFAULT_MODEL, FALLBACK_MODEL = "gpt2", "tiny"
LARGEST_SEED = 2**62  # NumPy takes none below 0, and PyTorch and Parquet none above 64 bits


class Config(BaseModel):
    """A resolved run.

    Args:
        task: a shipped task, or the path of a YAML file
        model: a bundled model, a local directory, a .gguf file or a Hugging Face id; by default the task's, else gpt2,
            or tiny where that can't be had
        method: how edges are chosen
        metric: what is minimised, one of the task's; by default the task's
        threshold: τ in the metric's units: an edge goes if its removal raises the metric by less. Of a method with
            scores: the least one to keep. By default the task's, or the method's
        edges: how many to keep, those with the highest scores, instead of a threshold; not for acdc
        greedy: grow these edges from the logits
        abs: go by the size of a change or score, not its sign
        ablation: what a removed edge carries; by default the task's
        direct: test whole q, k and v vectors first, and count them
        order: in which acdc tests edges
        examples: prompts for discovery, and as many held out; by default the task's
        seed: of the prompts and of everything random; by default the task's
        dtype: of weights and activations
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:1`; auto is CUDA, else MPS, else the CPU
        batch: most candidates evaluated at once; it changes speed only
        prefilter: `METHOD:SHARE`: acdc decides among this share of the edges, the best of another method, as in
            `eap-ig:0.05`
        steps: points on the path, for eap-ig and eap-ig-activations; by default 5
        updates: of a method that trains gates; by default its own number
        penalty: price of open gates, for subnetwork-probing; by default 0.3
        sparsity: share of edges to close, for edge-pruning; by default 0.9
        part: prompts held in memory at once; by default as many as fit
        model_hash: of the weights it was resolved with; a run refuses others
        data_hash: of the prompts it was resolved with; a run refuses others
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    task: str
    model: str
    method: str = "acdc"
    metric: str
    threshold: float | None = None
    edges: int | None = None
    greedy: bool | None = None
    abs: bool = False
    ablation: str
    direct: bool = True
    order: str = "paper"
    examples: int
    seed: int
    dtype: str = "float32"
    device: str = "auto"
    batch: int = 64
    prefilter: str | None = None
    steps: int | None = None
    updates: int | None = None
    penalty: float | None = None
    sparsity: float | None = None
    part: int | None = None
    model_hash: str | None = None
    data_hash: str | None = None

    @field_validator("threshold", "penalty", "sparsity", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        if not isinstance(value, int) or isinstance(value, bool):
            return value
        try:
            return float(value)
        except OverflowError:  # of hundreds of digits
            return math.inf if value > 0 else -math.inf

    @field_validator("threshold", "penalty")
    @classmethod
    def _finite(cls, value: float | None) -> float | None:
        if value is not None and (not math.isfinite(value) or value < 0):
            raise ValueError(f"is {value}; it must be a finite number, 0 or above, in the metric's units")
        return value

    @field_validator("sparsity")
    @classmethod
    def _share(cls, value: float | None) -> float | None:
        if value is not None and not 0 <= value < 1:
            raise ValueError(f"is {value}; it must be from 0 to less than 1, the share of edges that go")
        return value

    @field_validator("prefilter")
    @classmethod
    def _filter(cls, value: str | None) -> str | None:
        if value is not None:
            parse_filter(value)
        return value

    @field_validator("examples", "batch", "part", "edges", "steps", "updates")
    @classmethod
    def _positive(cls, value: int | None) -> int | None:
        if value is not None and value < 1:
            raise ValueError(f"is {value}; it must be 1 or more")
        return value

    @field_validator("examples")
    @classmethod
    def _few(cls, value: int) -> int:
        if value > MAX_WORDS:
            raise ValueError(f"is {value}; it must be from 1 to {MAX_WORDS}")
        return value

    @field_validator("seed")
    @classmethod
    def _seed(cls, value: int) -> int:
        if not 0 <= value <= LARGEST_SEED:
            raise ValueError(f"is {value}; it must be from 0 to {LARGEST_SEED}")
        return value

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(unknown("device", value, DEVICES))
        return value

    @property
    def needs_model(self) -> tuple[str, ...]:
        """The options that say which model it needs, and how; configs that agree in them can share it."""
        return self.model, self.device, self.dtype

    @property
    def needs(self) -> tuple[str | int, ...]:
        """The options that say which model, prompts and clean and ablated runs it needs."""
        return (*self.needs_model, self.task, self.examples, self.seed, self.ablation)

    @property
    def digest(self) -> str:
        """Eight hex digits that stand for the whole config."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude_none=True), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def task_name(self) -> str:
        """A name without folders: what files say of the task."""
        return Path(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task

    @property
    def model_name(self) -> str:
        """A name without folders: what files say of the model."""
        return Path(self.model).name if os.path.isdir(self.model) else self.model

    @property
    def folder(self) -> str:
        """Name of the run's directory."""
        parts = (self.task_name, re.sub(r"[^\w.-]+", "-", self.model_name), self.method, self.digest)
        return "-".join(parts)

    def to_yaml(self) -> str:
        """The content of the run's config.yaml, without what is None."""
        out: str = yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True)
        return out

    def command(self) -> str:
        """The command that makes this run again."""
        flags = [f"--task {self.task_name if '/' in self.task else self.task}", f"--model {self.model_name}"]
        stated = [f"--{k} {v}" for k, v in self.options().items() if not isinstance(v, bool)]
        flags += [f"--method {self.method}", f"--metric {self.metric}", f"--ablation {self.ablation}", *stated]
        flags += [f"--examples {self.examples}", f"--seed {self.seed}", f"--dtype {self.dtype}"]
        flags += ["--direct" if self.direct else "--no-direct"] + (["--abs"] if self.abs else [])
        return "acdc run " + " ".join(flags + (["--greedy"] if self.greedy else []))

    def options(self) -> dict[str, bool | int | float | str]:
        """The options that decide what the method finds; `batch` only says how fast."""
        names = [name for name in METHODS[self.method].options if name != "batch"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def parse_bytes(text: str) -> float:
    """A size such as 4GB, 500MB or 1.5 GiB.

    Raises:
        ValueError: it is no such thing.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MG])(i?)B?", text.strip(), re.IGNORECASE)
    if not match:
        raise ValueError(f"{text!r} is not a size; write it as 4GB or 500MB")
    number, unit, binary = match.groups()
    return float(number) * (1024 if binary else 1000) ** (2 if unit in "Mm" else 3)


def memory_bound(text: str | None) -> float | None:
    """The bytes of --memory; None where it is not given.

    Raises:
        UserError: it is no size.
    """
    try:
        return None if text is None else parse_bytes(str(text))
    except ValueError as error:
        raise UserError(f"--memory: {error}") from None


def resolve(
    given: dict[str, Any],
    file: Path | None,
    default_model: DefaultModel | None,
    load: Callable[[str], Task] = load_task,
) -> tuple[Config, Task, list[str]]:
    """The config of a run, its task, and notes for the user.

    Args:
        given: options of the command line, None where not given
        file: a YAML config, or the name of a shipped one; or None
        default_model: called when nothing names a model; None where something does
        load: reads a task; for many configs, one that reads each task once
    Raises:
        UserError: one line that names the flag or the file and key
    """
    stated = _Stated({k: v for k, v in given.items() if v is not None}, *_file(file))
    explicit = stated.values
    if "task" not in explicit:
        raise UserError("no task; give --task NAME (see `acdc tasks`) or a --config with the key task")
    task = load(str(explicit["task"]))
    note = None
    if "model" not in explicit:
        explicit["model"] = task.defaults.model
        if not task.defaults.model and default_model is not None:
            explicit["model"], note = default_model()
    _check_options(explicit, stated)
    defaults = _defaults(explicit, task)
    values = {**defaults, **explicit}
    _check_choices(values, task, stated)
    _check_bound(explicit, defaults, stated)
    config = _config(values, stated)
    for method in (config.method, *([parse_filter(config.prefilter)[0]] if config.prefilter else [])):
        check_method(method, config.metric, config.ablation)
    return config, task, [note] if note else []


class _Stated(NamedTuple):
    """Options as they were given; the command line wins."""

    command_line: dict[str, Any]
    from_file: dict[str, Any]
    file: Path | None

    @property
    def values(self) -> dict[str, Any]:
        return {**self.from_file, **self.command_line}

    def wrong(self, key: str, text: str) -> UserError:
        """The error of an option, which says where that was given."""
        in_file = key not in self.command_line and key in self.from_file
        return UserError(f"{f'{self.file}: {key}' if in_file else '--' + key.replace('_', '-')}: {text}", key)


def _check_options(explicit: dict[str, Any], stated: _Stated) -> None:
    """The method is known and has the options that are given."""
    name = str(explicit.get("method", "acdc"))
    if name not in METHODS:
        raise stated.wrong("method", unknown("method", name, METHODS))
    options = METHODS[name].options
    for key in METHOD_OPTIONS:
        if key in explicit and key not in options:
            raise stated.wrong(key, f"method {name} has no {key}; it has {', '.join(options)}")


def _defaults(explicit: dict[str, Any], task: Task) -> dict[str, Any]:
    """What the task says of a run, with the method's own threshold where it has one."""
    defaults = task.defaults_for(str(explicit["model"])).model_dump(
        include={"metric", "threshold", "examples", "seed", "ablation"}
    )
    threshold = METHODS[explicit.get("method", "acdc")].threshold
    if "edges" in explicit or threshold is None:
        del defaults["threshold"]
    elif threshold != "task":
        defaults["threshold"] = threshold
    return defaults


def _check_choices(values: dict[str, Any], task: Task, stated: _Stated) -> None:
    """What is chosen by name is there, and the task has answers for the metric."""
    for key, names in NAMES.items():
        if key in values and values[key] not in names:
            raise stated.wrong(key, refusal(key, str(values[key])))
    metric = values["metric"]
    if metric not in task.metrics:
        raise stated.wrong("metric", f"task {task.name} has no answers for {metric}; it has {', '.join(task.metrics)}")


def _check_bound(explicit: dict[str, Any], defaults: dict[str, Any], stated: _Stated) -> None:
    """It is said how many edges to keep, once, and in the units of the metric."""
    name = explicit.get("method", "acdc")
    by_edges, by_threshold = "edges" in explicit, "threshold" in explicit
    metric = explicit.get("metric", defaults["metric"])
    by_task = not by_threshold and "threshold" in defaults and METHODS[name].threshold == "task"
    if by_task and metric != defaults["metric"]:
        raise stated.wrong(
            "metric",
            f"the task's default threshold is for {defaults['metric']}; give --threshold for {metric}"
            + (" or --edges" if "edges" in METHODS[name].options else ""),
        )
    if by_threshold and by_edges:
        raise stated.wrong("edges", "--threshold says already which edges to keep; give one of the two")
    if not by_edges and not by_threshold and "threshold" not in defaults:
        raise UserError(f"--method {name}: how many edges to keep? Give --edges N or --threshold X", "method")
    if explicit.get("greedy") and not by_edges:
        raise stated.wrong("greedy", "needs --edges N, the number of edges to grow to")


def _config(values: dict[str, Any], stated: _Stated) -> Config:
    """The config of these values."""
    try:
        return Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        raise stated.wrong(key, str(first["msg"]).removeprefix("Value error, ")) from None


def _file(file: Path | None) -> tuple[dict[str, Any], Path | None]:
    """The options of a config file, and where it is."""
    file = find_config(file) if file else None
    return (_read(file) if file else {}), file


def _read(file: Path) -> dict[str, Any]:
    """What a config file states. Null says that a key has its default, where that is null."""
    raw, fields = read_yaml(file, Config.model_fields), Config.model_fields
    for key in raw:
        if key not in fields:
            raise FileError(f"{file}: {unknown('key', str(key), fields)}")
    return {key: value for key, value in raw.items() if value is not None or fields[key].default is not None}

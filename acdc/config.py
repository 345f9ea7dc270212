"""What a run is: every option with its value, from the command line, a YAML config, the task and built-in defaults.

Precedence: command line > YAML config (`--config`) > the task's own defaults > built-in defaults.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from acdc.errors import FileError, UserError, unknown
from acdc.taskfile import find_config, load_task, read_yaml
from acdc.taskschema import METRICS, Task

DefaultModel = Callable[[], tuple[str, str | None]]  # gives a model's name, and a note or None


class Method(NamedTuple):
    """What a method does, and what can be known of it without running it.

    Args:
        options: those that it has beside those of every run
        threshold: where it comes from if none is given: a number, "task" (scores are in the metric's units), or None
            (the user has to choose)
        slope: whether it needs the metric's gradient at the full model, which kl and l2 don't have
        paired: whether it needs corrupted prompts
    """

    what: str
    options: tuple[str, ...]
    threshold: float | Literal["task"] | None = "task"
    slope: bool = False
    paired: bool = False

    @property
    def bound(self) -> str:
        """The default threshold in words."""
        if self.threshold is None:
            return "none: give --edges or --threshold"
        return "the task's, in the metric's units" if self.threshold == "task" else f"{self.threshold}, of 0 to 1"


SELECT = ("threshold", "edges", "greedy", "abs", "direct")
METHODS = {
    "acdc": Method(
        "remove every edge whose removal raises the metric by less than a threshold (Conmy et al. 2023)",
        ("threshold", "abs", "direct", "order", "batch", "prefilter"),
    ),
    "eap": Method("gradient × difference at the clean run, for every edge (Syed et al. 2023)", SELECT, slope=True),
    "eap-ig": Method(
        "the same, with the gradient's mean over inputs from corrupted to clean (Hanna et al. 2024)",
        (*SELECT, "steps"),
        paired=True,
    ),
    "eap-ig-activations": Method(
        "the same, with each layer's output in turn going from ablated to clean (Hanna et al. 2024)",
        (*SELECT, "steps"),
    ),
    "eap-ig-clean-corrupted": Method(
        "the same, with the clean and the corrupted run (Hanna et al. 2024)", SELECT, paired=True
    ),
    "edge-patching": Method("the exact effect of removing each edge alone from the full model", SELECT),
    "hisp": Method(
        "gradient × difference of every head and MLP, per layer (Michel et al. 2019)", SELECT, None, slope=True
    ),
    "causal-mediation": Method("the exact effect of each head and MLP alone (Vig et al. 2020)", SELECT),
    "subnetwork-probing": Method(
        "a trained gate for every head and MLP, as few open as can be (Cao et al. 2021)",
        (*SELECT, "updates", "penalty"),
        0.5,
    ),
    "edge-pruning": Method(
        "a trained gate for every edge, a given share of them closed (Bhaskar et al. 2024)",
        (*SELECT, "updates", "sparsity"),
        0.5,
    ),
    "diffmask": Method(
        "the fewest heads and MLPs whose corrupted outputs give the corrupted prediction (Chintam et al. 2023)",
        (*SELECT, "updates"),
        0.5,
    ),
    "random": Method("a random number for every edge: the baseline", SELECT, None),
}
FLAT = ("kl", "l2")  # metrics that are smallest at the full model
METHOD_OPTIONS = sorted({option for method in METHODS.values() for option in method.options})
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
LARGEST_SEED = 2**62  # NumPy takes none below 0, and PyTorch and Parquet none above 64 bits
NAMES: dict[str, tuple[str, ...]] = {
    "metric": METRICS,
    "ablation": tuple(ABLATIONS),
    "order": tuple(ORDERS),
    "dtype": DTYPES,
}


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
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

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
        stated = [f"--{k} {v}" for k, v in self.options().items() if not isinstance(v, bool)]
        flags += [f"--method {self.method}", f"--metric {self.metric}", f"--ablation {self.ablation}", *stated]
        flags += [f"--examples {self.examples}", f"--seed {self.seed}", f"--dtype {self.dtype}"]
        flags += ["--direct" if self.direct else "--no-direct"] + (["--abs"] if self.abs else [])
        return "acdc run " + " ".join(flags + (["--greedy"] if self.greedy else []))

    def options(self) -> dict[str, bool | int | float | str]:
        """The options that decide what the method finds; `batch` only says how fast."""
        names = [name for name in METHODS[self.method].options if name != "batch"]
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


def parse_filter(text: str) -> tuple[str, float]:
    """Method and share of `--prefilter METHOD:SHARE`.

    Raises:
        ValueError: it is no such thing.
    """
    name, _, share = text.partition(":")
    if name not in METHODS or name == "acdc":
        raise ValueError("is " + repr(text) + "; " + unknown("method", name, set(METHODS) - {"acdc"}))
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"is {text!r}; write METHOD:SHARE with a share above 0 and up to 1, as eap-ig:0.05")
    return name, value


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
    command_line = {k: v for k, v in given.items() if v is not None}
    file = find_config(file) if file else None
    from_file = _read(file) if file else {}
    explicit = {**from_file, **command_line}

    def where(key: str) -> str:
        return f"{file}: {key}" if key not in command_line and key in from_file else f"--{key.replace('_', '-')}"

    if "task" not in explicit:
        raise UserError("no task; give --task NAME (see `acdc tasks`) or a --config with the key task")
    task = load(str(explicit["task"]))
    notes: list[str] = []
    if "model" not in explicit:
        if task.defaults.model or default_model is None:
            model, note = task.defaults.model, None
        else:
            model, note = default_model()
        explicit["model"] = model
        notes += [note] if note else []
    defaults = task.defaults_for(str(explicit["model"])).model_dump(
        include={"metric", "threshold", "examples", "seed", "ablation"}
    )
    name = str(explicit.get("method", "acdc"))
    if name not in METHODS:
        raise UserError(f"{where('method')}: {unknown('method', name, METHODS)}")
    method = METHODS[name]
    for key in METHOD_OPTIONS:
        if key in explicit and key not in method.options:
            raise UserError(f"{where(key)}: method {name} has no {key}; it has {', '.join(method.options)}")
    if "edges" in explicit or method.threshold is None:
        defaults.pop("threshold")
    elif method.threshold != "task":
        defaults["threshold"] = method.threshold
    values = {**defaults, **explicit}
    for key, names in NAMES.items():
        if key in values and values[key] not in names:
            raise UserError(f"{where(key)}: {unknown(key, str(values[key]), names)}")
    if values["metric"] not in task.metrics:
        raise UserError(
            f"{where('metric')}: task {task.name} has no answers for {values['metric']}; "
            f"it has {', '.join(task.metrics)}"
        )
    by_task = "threshold" in defaults and method.threshold == "task" and "threshold" not in explicit
    if by_task and values["metric"] != defaults["metric"]:
        raise UserError(
            f"{where('metric')}: the task's default threshold is for {defaults['metric']}; give --threshold "
            f"for {values['metric']}" + (" or --edges" if "edges" in method.options else "")
        )
    if "threshold" in explicit and "edges" in explicit:
        raise UserError(f"{where('edges')}: --threshold says already which edges to keep; give one of the two")
    if "threshold" not in values and "edges" not in values:
        raise UserError(f"--method {name}: how many edges to keep? Give --edges N or --threshold X")
    if values.get("greedy") and "edges" not in values:
        raise UserError(f"{where('greedy')}: needs --edges N, the number of edges to grow to")
    try:
        config = Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else ""
        message = str(first["msg"]).removeprefix("Value error, ")
        raise UserError(f"{where(key)}: {message}") from None
    for used in (name, *([parse_filter(config.prefilter)[0]] if config.prefilter else [])):
        check_method(used, config.metric, config.ablation)
    return config, task, notes


def check_method(name: str, metric: str, ablation: str) -> None:
    """Whether a method can work with a metric and an ablation.

    Raises:
        UserError: it can't.
    """
    if METHODS[name].slope and metric in FLAT:
        raise UserError(
            f"--metric {metric}: its gradient at the full model is zero, so {name} can't rank edges by it; choose "
            "another one (logit-diff, prob-diff, nll), or --method eap-ig"
        )
    if METHODS[name].paired and ablation != "corrupted":
        raise UserError(
            f"--ablation {ablation}: {name} goes from the corrupted to the clean inputs and needs corrupted prompts; "
            "use --ablation corrupted, or --method eap-ig-activations"
        )


def _read(file: Path) -> dict[str, Any]:
    raw = read_yaml(file, Config.model_fields)
    for key in raw:
        if key not in Config.model_fields:
            raise FileError(f"{file}: {unknown('key', str(key), Config.model_fields)}")
    return raw

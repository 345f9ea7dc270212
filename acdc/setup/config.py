"""The options of a run, resolved from the command line, a YAML config, the task and built-in defaults.

Precedence: command line > YAML config (`--config`) > the task's own defaults > built-in defaults.
"""

import hashlib
import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import Field, ValidationError, field_validator

from acdc.errors import FileError, UserError, unknown
from acdc.io.files import file_name
from acdc.io.schema import Flag, Name, Number, Strict, Whole, problems
from acdc.io.yaml_file import read_yaml
from acdc.model.find import is_path
from acdc.registry import (
    BOUNDS,
    DEVICES,
    LIMITS,
    METHOD_OPTIONS,
    METHODS,
    NAMES,
    OF_THRESHOLD,
    check_method,
    parse_features,
    parse_filter,
    refusal,
)
from acdc.task.load import find_config, load_task
from acdc.task.schema import Task

DefaultModel = Callable[[], tuple[str, str | None]]  # returns a model's name, and a note or None
ReadTask = Callable[[str], Task]  # reads a task by name or path

DEFAULT_MODEL = "gpt2"
FALLBACK_MODEL = "tiny"
LARGEST_SEED = 2**62  # NumPy refuses negative seeds, PyTorch and Parquet more than 64 bits

NonNegative = Annotated[Number, Field(ge=0)]


class Config(Strict):
    """A run with every option resolved.

    Args:
        task: a shipped task, or the path of a YAML file
        model: a bundled model, a local directory, a .gguf file or a Hugging Face id; by default the task's model, else
            gpt2, or tiny if gpt2 is not available
        method: the method that scores or tests edges
        metric: the metric to minimise, one of the task's; by default the task's default
        threshold: τ in the metric's units: an edge is removed if its removal raises the metric by less. For methods
            with scores: the smallest score to keep. By default the task's, or the method's
        faithfulness: for acdc, instead of a threshold: find the smallest circuit that is at least as faithful on the
            discovery half, above 0 and up to 1
        edges: number of edges to keep instead of a threshold: those with the highest scores or, for acdc, the best
            circuit of so many
        greedy: grow these edges from the logits
        abs: use the absolute value of changes and scores
        ablation: what a removed edge carries; by default the task's
        direct: also test the direct edges of q, k and v, before their residual edges, and count them
        positions: also decide at which spans of the prompts (`acdc tasks NAME --model M`) an edge is kept
        features: `neurons:N` or `DIR:N`: in each MLP the N neurons, or features of the transcoders in DIR, that matter
            most are nodes of their own, and the rest of the MLP is one more
        order: the order in which acdc tests edges
        examples: prompts for discovery, and as many held out; by default the task's
        seed: seed of the prompts and of everything random; by default the task's
        dtype: of weights and activations
        device: `auto`, `cpu`, `mps`, `cuda` or `cuda:1`; auto is CUDA, else MPS, else the CPU
        batch: most candidates evaluated at once; changes the speed, not the result
        prefilter: `METHOD:SHARE`: acdc tests only this share of the edges, the best of another method, as in
            `eap-ig:0.05`
        steps: integration steps of eap-ig and eap-ig-activations; by default 5
        updates: training steps of methods that train gates; by default the method's own number
        penalty: penalty on open gates, for subnetwork-probing; by default 0.3
        sparsity: share of edges to remove, for edge-pruning; by default 0.9
        part: prompts held in memory at once; by default as many as fit
        model_hash: hash of the weights that the config was resolved with; a run with others is refused
        data_hash: hash of the prompts that the config was resolved with; a run with others is refused
        features_hash: hash of the transcoders that the config was resolved with; a run with others is refused
    """

    task: Name
    model: Name
    method: Name = "acdc"
    metric: Name
    threshold: NonNegative | None = None
    faithfulness: Annotated[Number, Field(gt=0, le=1)] | None = None
    edges: Annotated[Whole, Field(ge=1, le=LIMITS["edges"])] | None = None
    greedy: Flag | None = None
    abs: Flag = False
    ablation: Name
    direct: Flag = True
    positions: Flag | None = None
    features: Name | None = None
    order: Name = "paper"
    examples: Annotated[Whole, Field(ge=1, le=LIMITS["examples"])]
    seed: Annotated[Whole, Field(ge=0, le=LARGEST_SEED)]
    dtype: Name = "float32"
    device: Name = "auto"
    batch: Annotated[Whole, Field(ge=1, le=LIMITS["batch"])] = 64
    prefilter: Name | None = None
    steps: Annotated[Whole, Field(ge=1, le=LIMITS["steps"])] | None = None
    updates: Annotated[Whole, Field(ge=1, le=LIMITS["updates"])] | None = None
    penalty: NonNegative | None = None
    sparsity: Annotated[Number, Field(ge=0, lt=1)] | None = None
    part: Annotated[Whole, Field(ge=1, le=LIMITS["part"])] | None = None
    model_hash: Name | None = None
    data_hash: Name | None = None
    features_hash: Name | None = None

    @field_validator("prefilter")
    @classmethod
    def _filter(cls, value: str | None) -> str | None:
        if value is not None:
            parse_filter(value)
        return value

    @field_validator("features")
    @classmethod
    def _features(cls, value: str | None) -> str | None:
        # With no features, a config is what it was before there were any.
        return value if value is not None and parse_features(value)[1] != 0 else None

    @field_validator("positions")
    @classmethod
    def _positions(cls, value: bool | None) -> bool | None:
        return value or None  # without positions, a config is what it was before there were any

    @field_validator("device")
    @classmethod
    def _device(cls, value: str) -> str:
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value):
            raise ValueError(unknown("device", value, DEVICES))
        return value

    @property
    def needs_model(self) -> tuple[str, ...]:
        """The options that decide how the model is loaded; configs that agree in them can share it."""
        return self.model, self.device, self.dtype

    @property
    def needs(self) -> tuple[str | int | None, ...]:
        """The options that decide model, prompts and activations; configs that agree in them can share these."""
        own = self.task, self.examples, self.seed, self.ablation, bool(self.positions), self.features
        # Features are chosen by the metric.
        return (*self.needs_model, *own, self.metric if self.features else None)

    @property
    def eliminates(self) -> bool:
        """Whether acdc looks for the smallest or the best circuit, rather than decide by a threshold."""
        return self.method == "acdc" and self.threshold is None

    @property
    def digest(self) -> str:
        """Eight hex digits that identify the config."""
        return hashlib.sha256(json.dumps(self.model_dump(exclude_none=True), sort_keys=True).encode()).hexdigest()[:8]

    @property
    def task_name(self) -> str:
        """The task's name without folders, as in result files."""
        return Path(self.task).stem if self.task.endswith((".yaml", ".yml")) else self.task

    @property
    def model_name(self) -> str:
        """The model's name in result files: a path without its folders, any other name as it is."""
        return Path(self.model).name or "model" if is_path(self.model) else self.model

    @property
    def folder(self) -> str:
        """The default name of the run's directory."""
        return "-".join((self.task_name, file_name(self.model_name), self.method, self.digest))

    def to_yaml(self) -> str:
        """Return the content of the run's config.yaml; options that are None are left out."""
        return str(yaml.safe_dump(self.model_dump(exclude_none=True), sort_keys=False, allow_unicode=True))

    def options(self) -> dict[str, bool | int | float | str]:
        """Return the options that decide the result of the method; not `batch`, which changes only the speed."""
        without = OF_THRESHOLD if self.eliminates else ("batch",)
        values = {name: getattr(self, name) for name in METHODS[self.method].options if name not in without}
        return {name: value for name, value in values.items() if value is not None}


def command_line(config: Config) -> str:
    """Return the command that makes a run again, quoted for a shell, with the paths of task and model as given."""
    flags = config.model_dump(include={"task", "model", "method", "metric", "ablation"})
    flags |= {key: value for key, value in config.options().items() if not isinstance(value, bool)}
    flags |= config.model_dump(include={"examples", "seed", "dtype"})
    words = ["acdc", "run"]
    for key, value in flags.items():
        words += [f"--{key}", str(value)]
    if config.batch != Config.model_fields["batch"].default:
        words += ["--batch", str(config.batch)]
    words.append("--direct" if config.direct else "--no-direct")
    words += [f"--{name}" for name in ("abs", "greedy", "positions") if getattr(config, name)]
    return shlex.join(words)


def resolve(
    given: dict[str, Any], file: Path | None, default_model: DefaultModel | None, load: ReadTask = load_task
) -> tuple[Config, Task, list[str]]:
    """Return the config of a run, its task, and notes for the user; raise UserError with a line per problem.

    `given` are the options of the command line (None if not given), `file` is a YAML config or the name of a shipped
    one, `default_model` is called if nothing names a model, and `load` reads a task (pass a caching one for many).
    """
    path = find_config(file) if file else None
    from_file = _read(path) if path else {}
    from_command_line = {key: value for key, value in given.items() if value is not None}
    explicit = {**from_file, **from_command_line}
    stated = _Stated(path, from_file.keys() - from_command_line.keys())
    if "task" not in explicit:
        raise UserError("no task; give --task NAME (see `acdc tasks`) or a --config with the key task")
    task = load(str(explicit["task"]))
    note = None
    if "model" not in explicit:
        explicit["model"] = task.defaults.model
        if not task.defaults.model:
            if default_model is None:
                raise UserError("name the model; there is no default here", "model")
            explicit["model"], note = default_model()
    _check_options(explicit, stated)
    defaults = _defaults(explicit, task)
    values = {**defaults, **explicit}
    for key, names in NAMES.items():
        if key in values and values[key] not in names:
            raise stated.wrong(key, refusal(key, str(values[key])))
    metric = values["metric"]
    if metric not in task.metrics:
        raise stated.wrong("metric", f"task {task.name} has no answers for {metric}; it has {', '.join(task.metrics)}")
    _check_bound(explicit, defaults, stated)
    try:
        config = Config(**values)
    except ValidationError as error:
        found = problems(error)
        raise UserError("\n".join(stated.message(key, text) for key, text in found), found[0][0]) from None
    for method in (config.method, *([parse_filter(config.prefilter)[0]] if config.prefilter else [])):
        check_method(method, config.metric, config.ablation, task.metrics)
    return config, task, [note] if note else []


class _Stated(NamedTuple):
    """A config file, and the options that it decides; for all others, messages name the flag."""

    file: Path | None
    keys: set[str]

    def message(self, key: str, text: str) -> str:
        where = f"{self.file}: {key}" if key in self.keys else f"--{key.replace('_', '-')}"
        return f"{where}: {text}"

    def wrong(self, key: str, text: str) -> UserError:
        return UserError(self.message(key, text), key)


def _check_options(explicit: dict[str, Any], stated: _Stated) -> None:
    """Raise UserError unless the method is known and has the given options."""
    name = str(explicit.get("method", "acdc"))
    if name not in METHODS:
        raise stated.wrong("method", unknown("method", name, METHODS))
    options = METHODS[name].options
    for key in METHOD_OPTIONS:
        if key in explicit and key not in options:
            if key in ("positions", "features"):
                able = ", ".join(other for other, facts in METHODS.items() if key in facts.options)
                what = "nodes" if METHODS[name].nodes else "edges"
                instead = "where in the prompt" if key == "positions" else "about single features"
                raise stated.wrong(key, f"{name} decides about whole {what}, not {instead}; use {able}")
            raise stated.wrong(key, f"does not apply to {name}, which has {', '.join(options)}")
    if explicit.get("positions") and explicit.get("greedy"):
        raise stated.wrong("greedy", "grows by whole edges; leave it out with --positions")


def _defaults(explicit: dict[str, Any], task: Task) -> dict[str, Any]:
    """Return the task's defaults, with the method's own threshold if it has one."""
    defaults = task.defaults_for(str(explicit["model"])).model_dump(exclude={"model", "models"})
    threshold = METHODS[explicit.get("method", "acdc")].threshold
    if "edges" in explicit or "faithfulness" in explicit or threshold is None:
        del defaults["threshold"]
    elif threshold != "task":
        defaults["threshold"] = threshold
    return defaults


def _check_bound(explicit: dict[str, Any], defaults: dict[str, Any], stated: _Stated) -> None:
    """Raise UserError unless exactly one of `BOUNDS` is given, a threshold in the units of the metric."""
    name = explicit.get("method", "acdc")
    bounds = [key for key in BOUNDS if key in explicit]
    by_edges = "edges" in explicit
    by_threshold = "threshold" in explicit
    metric = explicit.get("metric", defaults["metric"])
    by_task = not by_threshold and "threshold" in defaults and METHODS[name].threshold == "task"
    if by_task and metric != defaults["metric"]:
        or_edges = " or --edges" if "edges" in METHODS[name].options else ""
        advice = f"give --threshold for {metric}{or_edges}"
        raise stated.wrong("metric", f"the task's default threshold is for {defaults['metric']}; {advice}")
    if len(bounds) > 1:
        raise stated.wrong(bounds[1], f"--{bounds[0]} says already which edges to keep; give one of the two")
    for key in OF_THRESHOLD:
        if name == "acdc" and key in explicit and bounds and not by_threshold:
            raise stated.wrong(key, f"is for deciding by a threshold; leave it out with --{bounds[0]}")
    if not bounds and "threshold" not in defaults:
        raise UserError(f"--method {name}: how many edges to keep? Give --edges N or --threshold X", "method")
    if explicit.get("greedy") and not by_edges:
        raise stated.wrong("greedy", "needs --edges N, the number of edges to grow to")


def _read(file: Path) -> dict[str, Any]:
    """Return the options in a config file. Null stands for a default that is null; for other keys it is a value."""
    raw = read_yaml(file, Config.model_fields)
    fields = Config.model_fields
    for key in raw:
        if key not in fields:
            raise FileError(f"{file}: {unknown('key', str(key), fields)}")
    return {key: value for key, value in raw.items() if value is not None or fields[key].default is not None}

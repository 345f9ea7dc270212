"""The Python interface: load models and tasks, discover, evaluate and save circuits, as the command line does."""

import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from html import escape
from inspect import signature
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

import torch
from pydantic import PrivateAttr

from acdc.commands.evaluate import evaluate as evaluate_circuit
from acdc.commands.run import run
from acdc.errors import UserError, short, unknown
from acdc.files.circuit import CircuitFile, write_circuit
from acdc.files.evaluation import Evaluation
from acdc.graph.circuit import Circuit
from acdc.io.progress import progress_bar
from acdc.io.sizes import memory_bound
from acdc.model import load
from acdc.model.load import Model
from acdc.registry import DTYPES, refusal
from acdc.report import evaluation as evaluation_report
from acdc.report import run as run_report
from acdc.report.picture import to_svg
from acdc.setup import inputs
from acdc.setup.config import Config, resolve
from acdc.setup.inputs import Inputs
from acdc.task import load as taskfile
from acdc.task.schema import Task

OF_MODEL = ("dtype", "device")  # options that `load_model` takes
OPTIONS = sorted(Config.model_fields.keys() - {"task", "model", "part", "model_hash", "data_hash", *OF_MODEL})


class LoadedTask(Task):
    """A task that knows the name or path it was loaded by, for the files of a circuit."""

    _name: str = PrivateAttr()


class FoundCircuit(CircuitFile):  # noqa: PLW1641  no hash: a CircuitFile holds dicts
    """The content of circuit.json (`edges`, `metrics`, …; `circuit()` has the arrays), shown as a table or picture.
    Circuits are equal if their files are."""

    _inputs: Inputs = PrivateAttr()  # model and task for `evaluate`
    _text: str = PrivateAttr()  # the table that `acdc run` prints

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CircuitFile) and self.model_dump() == other.model_dump()

    def __repr__(self) -> str:
        return self._text

    __str__ = __repr__

    def _repr_html_(self) -> str:
        picture = _picture(self.circuit(), f"{self.task.name} in {self.model.name}")
        return f"{picture}\n<pre>{escape(self._text)}</pre>"


def _picture(circuit: Circuit, title: str = "") -> str:
    """The picture of a circuit as an HTML fragment."""
    svg = to_svg(circuit, title)
    svg = svg[svg.index("<svg") :]  # HTML has no XML declaration
    return svg.replace("<svg", '<svg style="max-width: 100%; height: auto"', 1)


Circuit._repr_html_ = _picture


class ShownEvaluation(Evaluation):
    """An evaluation, shown as `acdc evaluate` prints it."""

    def __repr__(self) -> str:
        return _noted(evaluation_report.to_text(self), self.notes)


F = TypeVar("F", bound=Callable[..., Any])


def _checked(function: F) -> F:
    """Raise UserError if an argument has none of the types that the function states for it."""
    hints = get_type_hints(function)

    @wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        for name, value in signature(function).bind(*args, **options).arguments.items():
            kinds = get_args(hints[name]) or (hints[name],)
            if name != "options" and not isinstance(value, kinds):
                names = " or ".join(kind.__name__ for kind in kinds).replace("NoneType", "None")
                raise UserError(f"{function.__name__}: {name} should be {names}, got {short(value)}")
        return function(*args, **options)

    return call  # type: ignore[return-value]


@_checked
def load_model(name: str | Path, device: str | torch.device = "auto", dtype: str | torch.dtype = "float32") -> Model:
    """Load a bundled model (`acdc models`), a local directory, a .gguf file or a Hugging Face id.
    `device` is cpu, cuda, cuda:N, mps, or auto for the best available; `dtype` is float32 or float64. Raises UserError
    if the model isn't found, or can't be read, represented or put on the device."""
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in DTYPES:
        raise UserError(f"--dtype: {refusal('dtype', dtype)}")
    return load.load_model(str(name), str(device), dtype)


@_checked
def load_task(name: str | Path) -> Task:
    """Load a shipped task (`acdc tasks`) or a .yaml file of your own, and check all that needs no model. Raises
    UserError if it isn't found or is wrong, with a line for each problem."""
    task = LoadedTask.model_construct(**dict(taskfile.load_task(str(name))))
    task._name = str(name)
    return task


@_checked
def discover(
    model: Model | str,
    task: Task | str,
    *,
    out: str | Path | None = None,
    force: bool = False,
    memory: str | None = None,
    progress: bool = False,
    **options: Any,
) -> FoundCircuit:
    """Find the circuit of a task in a model, as `acdc run` does. A notebook shows its picture.

    Keeps no files unless `out` is given. Warns if the model can't do the task.

    Args:
        model, task: from `load_model` and `load_task`, or their names
        out: directory of the run, with all files that `acdc run` writes; an interrupted run there continues
        force: replace what the directory holds
        memory: stay below this, as "4GB"; by default half of the machine's
        progress: show a progress bar
        options: options of `acdc run` by name: method, metric (lower is better), threshold (in the units of the metric,
            or of the method's scores), faithfulness (above 0, up to 1), edges (a number), ablation, examples (for
            discovery, and as many held out), seed, direct, order, abs, batch, prefilter, greedy, steps, updates,
            penalty, sparsity; by default the task's or the method's
    Raises:
        UserError: an option, the model or the task is wrong, they don't fit together, or `out` is another run's.
    """
    if out is not None and not str(out).strip():
        raise UserError("out: is empty; name a folder")
    for key in options:
        if key in OF_MODEL:
            raise UserError(f"--{key}: the model has one already; give it to load_model")
        if key not in OPTIONS:
            raise UserError(unknown("option", key, OPTIONS))
    model = model if isinstance(model, Model) else load_model(model)
    task = task if isinstance(task, Task) else load_task(task)
    given = {**options, "task": _name(task), **_stated(model), "device": model.transformer.device.type}
    config, _, notes = resolve(given, None, None, lambda _: task)
    loaded = inputs.load(config, task, memory_bound(memory), model)

    def say(doubt: str) -> None:
        warnings.warn(doubt.removeprefix("warning: "), stacklevel=8)  # at the line that calls discover

    with tempfile.TemporaryDirectory() as temporary, progress_bar(progress) as show:
        folder = Path(out) if out is not None else Path(temporary) / "run"
        file, _ = run(loaded, folder, force, tuple(notes), show, say)
        text = run_report.to_text(file, folder)
    circuit = FoundCircuit.model_construct(**dict(file))
    circuit._inputs = replace(loaded, scores={}, effects={}, _parts={})  # these may be large
    circuit._text = _noted(text.rsplit("\n\nfiles ", 1)[0], file.notes)
    return circuit


@_checked
def evaluate(
    circuit: CircuitFile | str | Path,
    model: Model | str | None = None,
    task: Task | str | None = None,
    *,
    examples: int | None = None,
    seed: int | None = None,
    minimality: int = 200,
    memory: str | None = None,
    progress: bool = False,
) -> Evaluation:
    """Measure how good a circuit is on held-out prompts, as `acdc evaluate` does: faithfulness (1 is the full model, 0
    everything ablated), completeness, minimality and more, with 95 % intervals. The result prints as a table.

    Args:
        circuit: from `discover`, or the path of a circuit.json
        model, task: the circuit's, if they can't be found by their names in the file; or another task
        examples, seed: for prompts other than those held out when the circuit was found
        minimality: remove at most this many edges one by one, those with the smallest scores; 0: none
        memory, progress: as of `discover`
    Raises:
        UserError: the circuit can't be read, or the model, its graph or the prompts aren't the circuit's.
    """
    if minimality < 0:
        raise UserError(f"--minimality: is {minimality}; it must be 0 or more")
    given = {"task": _name(task), "examples": examples, "seed": seed, **_stated(model)}
    config = None
    if isinstance(circuit, FoundCircuit):
        config = circuit._inputs.config
        model = model or circuit._inputs.model
        task = task or circuit._inputs.task
    elif not isinstance(circuit, CircuitFile):
        circuit = Path(circuit)
    loaded = model if isinstance(model, Model) else None

    def read_task(name: str) -> Task:
        return task if isinstance(task, Task) else taskfile.load_task(name)

    with progress_bar(progress) as show:
        result = evaluate_circuit(circuit, given, memory_bound(memory), minimality, show, config, read_task, loaded)
    return ShownEvaluation(**vars(result))


@_checked
def save(circuit: CircuitFile, path: str | Path) -> None:
    """Write a circuit as circuit.json, with the same bytes as `acdc run`. Raises UserError if it can't be written."""
    write_circuit(Path(path), circuit)


def _name(task: Task | str | None) -> str | None:
    """The task of a config: the name or path that it was loaded by."""
    if isinstance(task, LoadedTask):
        return task._name
    return task.name if isinstance(task, Task) else task


def _stated(model: Model | str | None) -> dict[str, str | None]:
    """The options of a config that a model decides: its name and, if it is loaded, its dtype."""
    if not isinstance(model, Model):
        return {"model": model}
    return {"model": model.name, "dtype": str(model.transformer.dtype).removeprefix("torch.")}


def _noted(text: str, notes: tuple[str, ...]) -> str:
    """A table, and notes below it."""
    lines = [note if note.startswith(("warning", "note")) else f"note: {note}" for note in notes]
    return text + "\n\n" + "\n".join(lines) if lines else text

"""Circuits: discovered, read from files, evaluated and saved."""

from html import escape
from pathlib import Path
from typing import Any

from pydantic import PrivateAttr

from acdc.commands.evaluate import config_beside
from acdc.commands.evaluate import evaluate as evaluate_circuit
from acdc.commands.run import run
from acdc.errors import UserError
from acdc.files.circuit import CircuitFile, find_circuit, write_circuit
from acdc.files.eap_ig import read_all
from acdc.files.evaluation import Evaluation
from acdc.graph.circuit import Circuit
from acdc.io.folder import FOUND
from acdc.io.progress import progress_bar
from acdc.io.sizes import memory_bound
from acdc.library.arguments import checked, folder_for, loaded_task, of_model, refuse_unknown, task_name, warn
from acdc.library.models import load_model
from acdc.library.shown import ShownEvaluation, noted
from acdc.model.load import Model
from acdc.report import run as run_report
from acdc.report.picture import to_svg
from acdc.setup import inputs
from acdc.setup.config import Config, resolve
from acdc.task.schema import Task

OF_MODEL = ("dtype", "device")  # options that `load_model` takes
OPTIONS = sorted(Config.model_fields.keys() - {"task", "model", *FOUND, *OF_MODEL})


class FoundCircuit(CircuitFile):  # noqa: PLW1641  no hash: a CircuitFile holds dicts
    """The content of circuit.json (`edges`, `metrics`, …; `circuit()` has the arrays), shown as a table or picture.
    Circuits are equal if their files are."""

    _text: str = PrivateAttr()  # the table that `acdc run` prints
    _config: Config | None = PrivateAttr()  # of its run, and what it was given: for `evaluate`
    _model: Model | str | None = PrivateAttr()
    _task: Task | str | None = PrivateAttr()

    @classmethod
    def of(
        cls,
        file: CircuitFile,
        text: str,
        config: Config | None,
        model: Model | str | None = None,
        task: Task | str | None = None,
    ) -> "FoundCircuit":
        """The content of a file, with the table of its run."""
        found = cls.model_construct(**dict(file))
        found._text = noted(text.rsplit("\n\nfiles ", 1)[0], file.notes)
        found._config = config
        found._model = model
        found._task = task
        return found

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


@checked
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
            discovery, and as many held out), seed, direct, positions, features, order, abs, batch, prefilter, greedy,
            steps, updates, penalty, sparsity; by default the task's or the method's
    Raises:
        UserError: an option, the model or the task is wrong, they don't fit together, or `out` is another run's.
    """
    if out is not None and not str(out).strip():
        raise UserError("out: is empty; name a folder")
    for key in options:
        if key in OF_MODEL:
            raise UserError(f"--{key}: the model has one already; give it to load_model")
    refuse_unknown(options, OPTIONS)
    model = model if isinstance(model, Model) else load_model(model)
    task = loaded_task(task)
    given = {**options, "task": task_name(task), **of_model(model), "device": model.transformer.device.type}
    config, _, notes = resolve(given, None, None, lambda _: task)
    if model.checkpoint.module is not None:
        notes.append(f"{config.model_name} was a module in memory; model.hash is of its tensors, not of files")
    loaded = inputs.load(config, task, memory_bound(memory), model)
    with folder_for(out) as folder, progress_bar(progress) as show:
        file, _ = run(loaded, folder, force, tuple(notes), show, warn)
        text = run_report.to_text(file, folder)
    return FoundCircuit.of(file, text, loaded.config, loaded.model, loaded.task)


@checked
def load_circuit(path: str | Path, task: str | None = None, model: str | None = None) -> FoundCircuit:
    """Read a circuit.json, the directory of a run, or a circuit in EAP-IG's format, as MIB's are.

    Args:
        path: of the file or directory
        task, model: names, for EAP-IG's format, which doesn't say them
    Raises:
        UserError: the file can't be read or is wrong.
    """
    path = find_circuit(Path(path))
    (file,) = read_all([path], {"task": task, "model": model})
    config = None if file.of_eap_ig else config_beside(path)
    folder = path.parent if path.name == "circuit.json" else path  # metrics.json beside another file isn't its own
    return FoundCircuit.of(file, run_report.to_text(file, folder), config, model, task)


@checked
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
    given = {"task": task_name(task), "examples": examples, "seed": seed, **of_model(model)}
    config = None
    if isinstance(circuit, FoundCircuit):
        config = circuit._config
        model = model or circuit._model
        task = task or circuit._task
        if circuit.of_eap_ig:
            given |= {"task": task_name(task), **of_model(model)}
    elif not isinstance(circuit, CircuitFile):
        circuit = Path(circuit)
    loaded = model if isinstance(model, Model) else None
    own = (config, lambda name: loaded_task(task or name), loaded)
    with progress_bar(progress) as show:
        result = evaluate_circuit(circuit, given, memory_bound(memory), minimality, show, *own)
    return ShownEvaluation(**vars(result))


@checked
def save(circuit: CircuitFile, path: str | Path) -> None:
    """Write a circuit as circuit.json, with the same bytes as `acdc run`. Raises UserError if it can't be written."""
    write_circuit(Path(path), circuit)

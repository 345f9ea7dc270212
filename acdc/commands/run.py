"""`acdc run`, the main flow: loaded inputs → competence → circuit → measures → explanation → files.

A run owns one directory. `config.yaml` is written first, `log.jsonl` grows with every batch of decisions, and
`circuit.json` is written last: a directory that has it holds a finished run.
"""

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.commands.cost import watched
from acdc.errors import FileError
from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.explain import Explanation, explain
from acdc.evaluation.faithfulness import Table, faithfulness, final_rows, means, measure_halves
from acdc.evaluation.frontier import CurvePoint, curve
from acdc.files.circuit import CircuitFile, edges_of, read_circuit, version_of, write_circuit
from acdc.files.frontier import to_csv
from acdc.files.metrics import CostPart, Interval, MetricsFile, write_metrics
from acdc.files.parts import GraphPart, MethodPart, ModelPart, TaskPart
from acdc.files.published import published_for
from acdc.graph.circuit import Circuit
from acdc.io.files import write_atomic
from acdc.io.folder import differences, enter, locked
from acdc.io.progress import Plan, Progress, Show, one_of, silent
from acdc.io.sizes import in_name
from acdc.io.yaml_file import read_yaml
from acdc.methods.discover import CHECKPOINT, LOG, SCORES, SUPERSET, Discovery, check_threshold, find
from acdc.registry import METRICS
from acdc.report.page import render_report
from acdc.report.picture import title_of, to_svg
from acdc.report.positions import Prompted
from acdc.report.style import PictureStyle
from acdc.setup.config import Config, command_line
from acdc.setup.estimate import stages
from acdc.setup.inputs import Inputs

FILES = (
    *("config.yaml", LOG, CHECKPOINT, SUPERSET, SCORES),
    *("metrics.json", "frontier.csv", "circuit.svg", "report.html", "circuit.json"),
)
POINTS = 10  # sizes of the strongest edges that are measured, beside the circuit's own,
FRONTIER = 30  # and of the nested circuits on the path to a target


def run(
    inputs: Inputs,
    out: Path | None = None,
    force: bool = False,
    notes: tuple[str, ...] = (),
    progress: Show = silent,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[CircuitFile, Path]:
    """Find the circuit and write its directory, with `notes` in its file; `say` gets a warning at once. A finished run
    is only read; an interrupted one continues. Raise UserError if the directory belongs to another run, is in use or
    can't be written."""
    folder = out or Path("runs") / inputs.config.folder
    with _owned(folder, inputs.config, force):
        return run_or_read(folder, lambda: _discover(inputs, folder, notes, progress, say)), folder


def run_each(
    inputs: Inputs,
    out: Path | None,
    force: bool,
    key: str,
    values: Sequence[float],
    notes: tuple[str, ...],
    progress: Show,
    say: Callable[[str], None],
) -> list[tuple[CircuitFile, Path]]:
    """Make a run, or one for each of several `values` of the option `key`, in folders of their own."""
    runs = [(inputs, out)]
    if len(values) > 1:
        runs = [(inputs.at(**{key: v}), out / f"{key}-{in_name(v)}" if out else None) for v in values]
    if len(runs) > 1:  # a wrong value is refused before the first run
        for at, _ in runs:
            check_threshold(at)
    return [run(*of, force, notes, one_of(progress, i, len(runs)), say) for i, of in enumerate(runs)]


def run_or_read(folder: Path, make: Callable[[], CircuitFile]) -> CircuitFile:
    """Read the circuit of a finished run, or `make` it. `circuit.json` is written last: it says that the run is
    finished. Raises UserError if the circuit can't be read or written."""
    path = folder / "circuit.json"
    if path.exists():
        return read_circuit(path)
    enter(folder)
    file = make()
    write_circuit(path, file)
    return file


def _discover(
    inputs: Inputs, folder: Path, notes: tuple[str, ...], progress: Show, say: Callable[[str], None]
) -> CircuitFile:
    """Find a circuit, measure and explain it, and write every file of its run but circuit.json."""
    started = time.monotonic()
    progress(planned(inputs))
    progress(Progress("activations", 0, 1))
    with watched(inputs.model.transformer.device) as memory:
        if doubt := warning(inputs, competence(inputs)):
            notes = (*notes, doubt)
            say(doubt)
        found = find(inputs, folder, progress)
        circuit = found.circuit.pruned()
        progress(Progress("evaluation", 0, 1))
        rows = final_rows(inputs, circuit)
        tables = measure_halves(inputs, rows)
        half = inputs.evaluation_split
        curves = _curves(inputs, circuit, found.path, tables, progress)
        progress(Progress("report", 0, 1))
        explanation = explain(inputs, circuit, rows[half], curves)
        _, peak = memory()
    measured = intervals(inputs, tables)
    below = _below_target(inputs, measured["faithfulness"][half])
    notes = (*notes, *found.notes, *_no_edges(inputs, circuit, tables), *below)
    file = describe(inputs, found, means(tables), notes)
    cost = CostPart(
        seconds=time.monotonic() - started,
        peak_memory_mb=peak / 1e6,
        expected_memory_mb=inputs.expected_memory / 1e6,
        evaluations=found.evaluations,
        threads=torch.get_num_threads(),
    )
    metrics = MetricsFile(metrics=file.metrics, **measured, cost=cost)
    if found.path:
        write_atomic(folder / "frontier.csv", to_csv(curves))
    _write(folder, circuit, found, file, metrics, explanation)
    return file


def planned(inputs: Inputs) -> Plan:
    """The stages of a run, with estimated seconds."""
    model = inputs.model.transformer
    threads = torch.get_num_threads()
    return Plan(stages(inputs.config, model.config, inputs.data.discovery, model.device.type, threads))


def _curves(
    inputs: Inputs, circuit: Circuit, path: Circuit | None, tables: dict[str, Table], progress: Show
) -> dict[str, tuple[CurvePoint, ...]]:
    """How faithful the circuit's strongest edges are alone, on the evaluation split, or the nested circuits on the path
    to a target, on both halves."""
    metric = inputs.config.metric
    of = path or circuit
    sizes = [*np.geomspace(1, max(1, of.size), FRONTIER if path else POINTS), circuit.size]
    curves = {}
    halves = list(tables) if path else [inputs.evaluation_split]
    for i, half in enumerate(halves):

        def measured(n: int, before: int = i * len(sizes)) -> None:
            progress(Progress("curve", before + n, len(halves) * len(sizes)))

        curves[half] = curve(inputs, half, of, sizes, tables[half][metric], circuit, measured)
    return curves


def _no_edges(inputs: Inputs, circuit: Circuit, tables: dict[str, Table]) -> tuple[str, ...]:
    """A note if the circuit is empty: what its threshold compares with."""
    c = inputs.config
    if circuit.n_edges or c.threshold is None:
        return ()
    values = tables["discovery"][c.metric]
    effect = float((values["ablated"] - values["model"]).mean())
    unit = METRICS[c.metric].unit
    instead = "choose a smaller --threshold" + (", or name a --faithfulness" if c.method == "acdc" else ", or --edges")
    whole = f"ablating everything makes the {METRICS[c.metric].label} worse by {effect:.4g} {unit}"
    return (f"no edge is left: --threshold {c.threshold:g} is too large here, where {whole}; {instead}",)


def _below_target(inputs: Inputs, measured: Interval) -> tuple[str, ...]:
    """A note if a target of faithfulness isn't surely met on prompts that the search hasn't seen."""
    target = inputs.config.faithfulness
    value, low, _ = measured
    if target is None or value is None or (low is not None and low >= target):
        return ()
    half = inputs.evaluation_split.replace("_", "-")
    interval = "" if low is None else f" (95 % interval from {low:.4f})"
    found = f"on the {half} prompts the circuit's faithfulness is {value:.4f}{interval}"
    return (f"{found}, so {target:g} is not certain there; more prompts (--examples) help",)


def measure(inputs: Inputs, circuit: Circuit) -> dict[str, float]:
    """Every metric of the task and the accuracy, for the full model, the circuit and the fully ablated model, on both
    halves: `<half>.<model, circuit or ablated>.<metric>` → mean."""
    return means(measure_halves(inputs, final_rows(inputs, circuit)))


def intervals(inputs: Inputs, tables: dict[str, Table]) -> dict[str, Any]:
    """The 95 % intervals in metrics.json, by half: of the circuit's `faithfulness` by the run's metric and `by_metric`,
    and of its mean `metric`."""
    seed = inputs.config.seed
    metric = inputs.config.metric
    out: dict[str, dict[str, Any]] = {"faithfulness": {}, "by_metric": {}, "metric": {}}
    for half, table in tables.items():
        by_metric = {
            name: _interval(faithfulness(table[name]["circuit"], table[name]["model"], table[name]["ablated"], seed))
            for name in inputs.task.metrics
        }
        out["faithfulness"][half] = by_metric[metric]
        out["by_metric"][half] = by_metric
        out["metric"][half] = _interval(estimate(table[metric]["circuit"], seed=seed))
    return out


def _interval(x: Estimate) -> Interval:
    value, low, high = (number if np.isfinite(number) else None for number in x)
    return value, low, high


def describe(inputs: Inputs, found: Discovery, measures: dict[str, float], notes: tuple[str, ...] = ()) -> CircuitFile:
    """Return the content of circuit.json: the circuit that was found, without its dead edges, and its `measures`."""
    circuit = found.circuit.pruned()
    config = inputs.config
    task = inputs.task
    model = inputs.model
    return CircuitFile(
        format_version=version_of(circuit.spans, circuit.graph),
        task=TaskPart(
            name=task.name,
            version=task.version,
            **config.model_dump(include={"examples", "seed"}),
            data_hash=config.data_hash or "",
        ),
        model=ModelPart(
            name=config.model_name,
            family=model.checkpoint.family,
            hash=model.hash,
            d_model=model.transformer.config.d_model,
            **asdict(circuit.graph),
        ),
        method=MethodPart(
            name=config.method,
            **config.model_dump(include={"metric", "ablation", "dtype", "threshold"}),
            device=model.transformer.device.type,
            options={k: v for k, v in config.options().items() if k != "threshold"},
        ),
        graph=GraphPart.of(circuit, found.circuit.n_dead),
        metrics=measures,
        spans=circuit.spans,
        edges=edges_of(circuit, found.changes),
        environment=environment(),
        command=command_line(config),
        notes=notes,
    )


def environment() -> dict[str, str]:
    """Versions of the software that computes."""
    return {"acdc": version("acdc-circuits"), "python": platform.python_version(), "torch": torch.__version__}


def _write(
    out: Path, circuit: Circuit, found: Discovery, file: CircuitFile, metrics: MetricsFile, explanation: Explanation
) -> None:
    """Write the files that show a result: metrics.json, circuit.svg and report.html."""
    log = [asdict(decision) for decision in found.decisions]
    published = published_for(file.task.name, circuit.graph)
    look = PictureStyle(published=published, prompted=Prompted.of(file, explanation))
    svg = to_svg(circuit, title_of(file), look)
    write_metrics(out / "metrics.json", metrics)
    write_atomic(out / "circuit.svg", svg)
    write_atomic(out / "report.html", render_report(file, log, metrics, explanation, published))


@contextmanager
def _owned(out: Path, config: Config, force: bool) -> Iterator[None]:
    """Lock the run's directory against other processes, and check that it holds no other config's run."""
    with locked(out, "this run", config.to_yaml(), ("runs", "compare.json", "stability.json", "base")):
        stated = out / "config.yaml"
        instead = "choose another --out, or replace it with --force"
        if force:
            for name in reversed(FILES):
                (out / name).unlink(missing_ok=True)
        elif stated.exists():
            found = read_yaml(stated, Config.model_fields)
            if others := differences(found, config.model_dump(exclude_none=True)):
                raise FileError(f"{out}: holds a run with another config: {others}; {instead}")
        elif any((out / name).exists() for name in FILES):
            raise FileError(f"{out}: holds files of a run but no config.yaml; {instead}")
        if not stated.exists():
            write_atomic(stated, config.to_yaml())
        yield

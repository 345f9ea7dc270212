"""The main flow: task → model → prompts → runs → circuit → measures → files.

A run owns one directory. `config.yaml` is written when it starts, `log.jsonl` grows with every batch of decisions, and
`circuit.json` comes last: where it is, the run is finished.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.commands.cost import watched
from acdc.errors import FileError
from acdc.evaluation.bootstrap import estimate
from acdc.evaluation.competence import competence, warning
from acdc.evaluation.explain import explain
from acdc.evaluation.faithfulness import circuit_rows, faithfulness, finite, prompt_values
from acdc.files.circuit import (
    CircuitFile,
    GraphPart,
    MethodPart,
    ModelPart,
    TaskPart,
    edges_of,
    read_circuit,
    write_circuit,
)
from acdc.files.metrics import CostPart, MetricsFile, write_metrics
from acdc.files.published import published_for
from acdc.graph.circuit import Circuit
from acdc.io.files import read_text, write_atomic
from acdc.io.folder import locked
from acdc.io.progress import Show, silent
from acdc.methods.discover import CHECKPOINT, LOG, SCORES, find
from acdc.patching.metrics import accuracy
from acdc.report.page import render_report
from acdc.report.picture import to_svg
from acdc.report.style import PictureStyle
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs

FILES = ("config.yaml", LOG, CHECKPOINT, SCORES, "metrics.json", "circuit.svg", "report.html", "circuit.json")


def run(
    inputs: Inputs,
    out: Path | None = None,
    force: bool = False,
    notes: tuple[str, ...] = (),
    progress: Show = silent,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[CircuitFile, Path]:
    """Find the circuit and write its directory; a finished run is only read, an interrupted one goes on.

    Args:
        notes: what the circuit's file should say beside what is found out here
        say: told at once what the user should know before it is done

    Raises:
        UserError: the directory belongs to another run, is in use or can't be written.
    """
    config, task = inputs.config, inputs.task
    out = out or Path("runs") / config.folder
    with _owned(out, config, force):
        if (out / "circuit.json").exists():
            return read_circuit(out / "circuit.json"), out
        started = time.monotonic()
        with watched(inputs.model.transformer.device) as memory:
            if doubt := warning(inputs, competence(inputs)):
                notes = (*notes, doubt)
                say(doubt)
            found = find(inputs, out, progress)
            circuit = found.circuit.pruned()
            rows = final_rows(inputs, circuit)
            measures = measured(inputs, rows)
            estimated = estimates(inputs, rows)
            explanation = explain(inputs, circuit, rows[inputs.evaluation_split])
            _, most = memory()
        file = describe(inputs, circuit, found.circuit, measures, notes)
        cost = CostPart(
            seconds=time.monotonic() - started,
            peak_memory_mb=most / 1e6,
            expected_memory_mb=inputs.expected_memory / 1e6,
            evaluations=found.evaluations,
            threads=torch.get_num_threads(),
        )
        metrics = MetricsFile(metrics=measures, **estimated, cost=cost)
        log = [asdict(d) for d in found.decisions]
        published = published_for(task.name, circuit.graph)
        svg = to_svg(circuit, f"{task.name} in {file.model.name}", PictureStyle(published=published))
        write_metrics(out / "metrics.json", metrics)
        write_atomic(out / "circuit.svg", svg)
        write_atomic(out / "report.html", render_report(file, log, metrics, explanation, published))
        write_circuit(out / "circuit.json", file)
    return file, out


Rows = dict[str, dict[str, Tensor]]


def measure(inputs: Inputs, circuit: Circuit) -> dict[str, float]:
    """Every metric of the task and the accuracy, for the full model, the circuit and the fully ablated model, on both
    halves.

    Keys are `<half>.<what>.<metric>`. The circuit is run as a whole by plain patching, not by the engine that found it.
    """
    return measured(inputs, final_rows(inputs, circuit))


def final_rows(inputs: Inputs, circuit: Circuit) -> Rows:
    """The normalised final stream at the scored rows, Float[row d_model], by half and by `model`, `circuit` and
    `ablated`."""
    halves = dict.fromkeys(("discovery", inputs.evaluation_split))
    which = {"model": None, "circuit": circuit, "ablated": Circuit.empty(circuit.graph)}
    return {half: {what: circuit_rows(inputs, half, c) for what, c in which.items()} for half in halves}


@torch.inference_mode()
def measured(inputs: Inputs, rows: Rows) -> dict[str, float]:
    """The numbers of `measure`, from what `final_rows` gives."""
    model, out = inputs.model.transformer, dict[str, float]()
    for half, of in rows.items():
        parts = inputs.parts(half)
        for name in inputs.task.metrics:
            metric = parts.metric(name)
            out |= {
                f"{half}.{what}.{name}": float(finite(inputs, half, name, metric(h)).mean()) for what, h in of.items()
            }
        if parts.targets.correct.shape[1]:
            for what, h in of.items():
                out[f"{half}.{what}.accuracy"] = float(accuracy(model, parts.targets, h).double().mean())
    return out


def estimates(inputs: Inputs, rows: Rows) -> dict[str, Any]:
    """Value, low and high end of the 95 % interval (None where there is no such number) of the circuit's `faithfulness`
    by the run's metric (`acdc.evaluation.faithfulness.faithfulness`) and of its mean `metric`, by half."""
    config = inputs.config
    out: dict[str, dict[str, tuple[float | None, ...]]] = {"faithfulness": {}, "metric": {}}
    for half, of in rows.items():
        full, circuit, ablated = (prompt_values(inputs, half, h, config.metric) for h in of.values())
        for name, found in (
            ("faithfulness", faithfulness(circuit, full, ablated, config.seed)),
            ("metric", estimate(circuit, seed=config.seed)),
        ):
            out[name][half] = tuple(x if np.isfinite(x) else None for x in found)
    return out


def describe(
    inputs: Inputs, circuit: Circuit, found: Circuit, measures: dict[str, float], notes: tuple[str, ...]
) -> CircuitFile:
    """The content of circuit.json."""
    config, task, model, graph = inputs.config, inputs.task, inputs.model, circuit.graph
    changes: dict[str, float] = {}
    if config.method == "acdc":
        changes = {graph.edge_name(s, r): float(x) for (s, r), x in _scored(circuit.scores)}
    if circuit.direct_scores is not None:
        changes |= {graph.direct_name(r): float(x) for (r,), x in _scored(circuit.direct_scores)}
    dead = found.n_edges + found.n_direct - circuit.n_edges - circuit.n_direct
    return CircuitFile(
        task=TaskPart(
            name=task.name,
            version=task.version,
            examples=config.examples,
            seed=config.seed,
            data_hash=config.data_hash or "",
        ),
        model=ModelPart(
            name=config.model_name,
            family=model.family,
            hash=model.hash,
            n_layers=graph.n_layers,
            n_heads=graph.n_heads,
            d_model=model.transformer.config.d_model,
            mlp=graph.mlp,
            inputs=graph.inputs,
            parallel=graph.parallel,
        ),
        method=MethodPart(
            name=config.method,
            metric=config.metric,
            ablation=config.ablation,
            dtype=config.dtype,
            device=model.transformer.device.type,
            threshold=config.threshold,
            options={k: v for k, v in config.options().items() if k != "threshold"},
        ),
        graph=GraphPart.of(circuit, dead),
        metrics=measures,
        edges=tuple(edges_of(circuit, changes)),
        environment=environment(),
        command=config.command(),
        notes=notes,
    )


def environment() -> dict[str, str]:
    """Versions of what computes."""
    return {"acdc": version("acdc-circuits"), "python": platform.python_version(), "torch": torch.__version__}


def _scored(scores: object) -> Iterator[tuple[tuple[int, ...], float]]:
    array = np.asarray(scores)
    return ((tuple(int(i) for i in at), array[tuple(at)]) for at in np.argwhere(np.isfinite(array)))


@contextmanager
def _owned(out: Path, config: Config, force: bool) -> Iterator[None]:
    """The run's directory, locked against other processes; it holds this config's run and no other."""
    created = not out.exists()
    with locked(out, "this run"):
        stated = out / "config.yaml"
        if stated.exists() and not force and read_text(stated) != config.to_yaml():
            raise FileError(f"{out}: holds a run with another config; choose another --out, or --force to replace it")
        if not stated.exists() and not created and not force and any((out / f).exists() for f in FILES):
            raise FileError(f"{out}: holds files of a run without its config.yaml; choose another --out, or --force")
        if force:
            for name in reversed(FILES):
                (out / name).unlink(missing_ok=True)
        if not stated.exists():
            write_atomic(stated, config.to_yaml())
        yield

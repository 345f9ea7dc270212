"""The main flow: task → model → prompts → runs → circuit → measures → files.

A run owns one directory. `config.yaml` is written when it starts, `log.jsonl` grows with every batch of decisions, and
`circuit.json` comes last: where it is, the run is finished.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock, Timeout

from acdc.config import Config
from acdc.errors import FileError
from acdc.formats.atomic import read_text, write_atomic
from acdc.formats.circuit_file import (
    CircuitFile,
    GraphPart,
    MethodPart,
    ModelPart,
    TaskPart,
    edges_of,
    read_circuit,
    write_circuit,
)
from acdc.graph import Circuit
from acdc.incremental import Engine
from acdc.journal import Journal
from acdc.methods.acdc import Options, Progress, discover
from acdc.metrics import accuracy
from acdc.model.load import Model, load_model
from acdc.parts import PartedEngine, Parts, prompts_at_once
from acdc.patching import circuit_edges, patched_rows
from acdc.report.page import render_report
from acdc.report.picture import to_svg
from acdc.task import Data, make_data
from acdc.taskschema import Task

FILES = ("config.yaml", "log.jsonl", "metrics.json", "circuit.svg", "report.html", "circuit.json")


@dataclass(frozen=True)
class Inputs:
    """What a config names, loaded and checked; nothing has been written yet. Copies at other thresholds share all."""

    config: Config
    task: Task
    model: Model
    data: Data
    _parts: dict[str, Parts] = field(default_factory=dict)

    def at(self, threshold: float) -> Inputs:
        """The same at another threshold."""
        return replace(self, config=self.config.model_copy(update={"threshold": threshold}))

    def parts(self, half: str) -> Parts:
        """The clean and ablated runs of the prompts of one half, `discovery` or `held_out`."""
        if half not in self._parts:
            prompts = getattr(self.data, half)
            self._parts[half] = Parts(self.model.transformer, prompts, self.config.ablation, self.config.part)
        return self._parts[half]


def load(config: Config, task: Task, memory: float | None = None) -> Inputs:
    """Load the model, draw the prompts and check all; the returned config states the hashes of both.

    Args:
        memory: bytes to stay below; by default half of what the machine has
    """
    model = load_model(config.model, config.device, config.dtype)
    data = make_data(task, model.tokenizer, config.examples, config.seed)
    model.check_fits(data.discovery, data.held_out)
    for key, found in (("model_hash", model.hash), ("data_hash", data.hash[:16])):
        stated = getattr(config, key)
        if stated not in (None, found):
            raise FileError(f"config: {key} is {stated}, but it is {found} now; the {key[:5].rstrip('_')} has changed")
    part = _part(config, model, data, memory)
    resolved = config.model_copy(update={"model_hash": model.hash, "data_hash": data.hash[:16], "part": part})
    return Inputs(resolved, task, model, data)


def _part(config: Config, model: Model, data: Data, memory: float | None) -> int | None:
    """How many prompts are held in memory at once, if not all."""
    if config.part is not None:
        return config.part
    t, d = model.transformer, data.discovery
    n_pos = n_live = d.clean.shape[1]
    if config.ablation == "corrupted" and t.config.causal:
        n_live -= int((d.clean == d.corrupted).all(0).cumprod().sum())
    n = prompts_at_once(t.config, n_pos, n_live, t.dtype.itemsize, memory or default_memory(t.device))
    return n if n < len(d.clean) else None


def default_memory(device: torch.device) -> float:
    """Half of the memory that the device has, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2


def run(
    inputs: Inputs,
    out: Path | None = None,
    force: bool = False,
    notes: tuple[str, ...] = (),
    progress: Callable[[Progress], None] = lambda _: None,
) -> tuple[CircuitFile, Path]:
    """Find the circuit and write its directory; a finished run is only read, an interrupted one goes on.

    Raises:
        UserError: the directory belongs to another run, is in use or can't be written.
    """
    config, task = inputs.config, inputs.task
    out = out or Path("runs") / config.folder
    with _owned(out, config, force):
        if (out / "circuit.json").exists():
            return read_circuit(out / "circuit.json"), out
        started = time.monotonic()
        with torch.inference_mode():
            engine = make_engine(inputs)
            journal = Journal(out / "log.jsonl")
            found = discover(engine, options(config), journal, progress)
            circuit = found.pruned()
            measures = measure(inputs, circuit)
        file = describe(inputs, circuit, found, measures, notes)
        cost = {
            "seconds": time.monotonic() - started,
            "peak_memory_mb": peak_memory(),
            "evaluations": engine.evaluations,
        }
        log = [asdict(d) for d in journal.decisions]
        svg = to_svg(circuit, title=f"{task.name} in {file.model.name}")
        write_atomic(out / "metrics.json", _json({"metrics": measures, "cost": cost}))
        write_atomic(out / "circuit.svg", svg)
        write_atomic(out / "report.html", render_report(file, svg, log))
        write_circuit(out / "circuit.json", file)
    return file, out


def make_engine(inputs: Inputs) -> Engine | PartedEngine:
    """The engine for a config's metric on the prompts for discovery."""
    model, name, parts = inputs.model.transformer, inputs.config.metric, inputs.parts("discovery")
    graph, metric, guess = model.config.graph(), parts.metric(name), parts.guess(name)
    if len(parts) == 1:
        return Engine(model, graph, parts[0], metric, guess)
    return PartedEngine(model, graph, parts, metric, guess)


def options(config: Config) -> Options:
    """The options of ACDC that a config states."""
    return Options(config.threshold, config.abs, config.order, config.direct, config.seed, config.batch)


def measure(inputs: Inputs, circuit: Circuit) -> dict[str, float]:
    """Every metric of the task and the accuracy, for the full model, the circuit and the fully ablated model, on both
    halves.

    Keys are `<half>.<what>.<metric>`. The circuit is run as a whole by plain patching, not by the engine that found it.
    """
    model, graph = inputs.model.transformer, circuit.graph
    halves = ["discovery"] if inputs.data.held_out is inputs.data.discovery else ["discovery", "held_out"]
    none = circuit_edges(Circuit.empty(graph), model)
    out: dict[str, float] = {}
    for half in halves:
        parts = inputs.parts(half)
        rows = {
            "model": parts.targets.clean,
            "circuit": torch.cat([patched_rows(model, graph, runs, circuit_edges(circuit, model)) for runs in parts]),
            "ablated": torch.cat([patched_rows(model, graph, runs, none) for runs in parts]),
        }
        for name in inputs.task.metrics:
            metric = parts.metric(name)
            out |= {f"{half}.{what}.{name}": float(metric(h).double().mean()) for what, h in rows.items()}
        if parts.targets.correct.shape[1]:
            for what, h in rows.items():
                out[f"{half}.{what}.accuracy"] = float(accuracy(model, parts.targets, h).double().mean())
    return out


def describe(
    inputs: Inputs, circuit: Circuit, found: Circuit, measures: dict[str, float], notes: tuple[str, ...]
) -> CircuitFile:
    """The content of circuit.json."""
    config, task, model, graph = inputs.config, inputs.task, inputs.model, circuit.graph
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
            options={"order": config.order, "abs": config.abs, "direct": config.direct},
        ),
        graph=GraphPart.of(circuit, dead),
        metrics=measures,
        edges=tuple(edges_of(circuit, changes)),
        environment={
            "acdc": version("acdc-circuits"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "threads": str(torch.get_num_threads()),
        },
        command=config.command(),
        notes=notes,
    )


def _scored(scores: object) -> Iterator[tuple[tuple[int, ...], float]]:
    array = np.asarray(scores)
    return ((tuple(int(i) for i in at), array[tuple(at)]) for at in np.argwhere(np.isfinite(array)))


@contextmanager
def _owned(out: Path, config: Config, force: bool) -> Iterator[None]:
    """The run's directory, locked against other processes; it holds this config's run and no other."""
    created = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        lock = FileLock(out / ".lock", timeout=0)
        lock.acquire()
    except Timeout:
        raise FileError(
            f"{out}: another acdc process is writing this run; wait for it or choose another --out"
        ) from None
    except OSError as error:
        raise FileError(f"--out {out}: can't be written ({error.strerror or error})") from None
    try:
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
    finally:
        lock.release()
        (out / ".lock").unlink(missing_ok=True)


def peak_memory() -> float:
    """Peak memory of this process in MB: the device's on CUDA, else resident memory."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def _json(value: object) -> str:
    return json.dumps(value, indent=1, sort_keys=True) + "\n"

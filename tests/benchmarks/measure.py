"""One setting, in a process of its own, so that its peak of memory is its own.

`python -m tests.benchmarks.measure NAME --out FILE.json [--device cuda]`; `python -m tests.benchmarks` runs it for all
settings.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.graph.circuit import Circuit
from acdc.methods.acdc import Options, discover
from acdc.model.transformer import VOCAB_BLOCK, Transformer
from acdc.patching.activations import ActivationCache, prepare
from acdc.patching.metrics import make_guess
from acdc.patching.patch import patched_rows
from tests.benchmarks.hf import forward, to_hugging_face
from tests.benchmarks.models import FULL, LARGER, LLAMA, QUICK, Setting, Split, make
from tests.benchmarks.record import (
    GUESS,
    OUTPUT,
    REST,
    Launches,
    Products,
    Recorder,
    Watch,
    WatchedEngine,
    kernels,
    replay,
    shortest,
    synchronise,
)

SETTINGS = {s.name: s for s in (*FULL, *LARGER, *LLAMA, *QUICK)}


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    synchronise()
    started = time.perf_counter()
    out = f()
    synchronise()
    return time.perf_counter() - started, out


def peak_mb(device: torch.device) -> float:
    """Peak memory in MB since it was last reset, of a CUDA device or of this process; the system may not reset that."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    status = Path("/proc/self/status")
    if status.exists():
        (peak,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(peak.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def reset_peak(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def ours(model: Transformer, batch: Split, options: Options, watch: Watch) -> tuple[Circuit, ActivationCache]:
    """One whole discovery, the clean and the corrupted run included; its engine is the watch's."""
    runs = prepare(model, batch, "corrupted")
    metrics = runs.metric("kl", model), make_guess("kl", model, runs.targets)
    watch.engine = WatchedEngine(model, model.config.graph(), runs, *metrics)
    return discover(watch.engine, options, watch).pruned(), runs


def measure(s: Setting, device: str = "cpu") -> dict[str, Any]:
    model, batch = make(s, device=device)
    reset_peak(model.device)  # making the weights took more than keeping them
    before = peak_mb(model.device)
    options = Options(s.threshold)
    times, cpu = [], []
    on_cpu = model.device.type == "cpu"
    if s.tiny or s.width < 768 or (s.instrument and not on_cpu):
        ours(model, batch, options, Watch())  # not counted: the first calls of every operation are slow
    elif not on_cpu:
        prepare(model, batch, "corrupted")
    for _ in range(s.repeats):
        watch, begun = Watch(), time.process_time()
        seconds, (circuit, runs) = timed(lambda: ours(model, batch, options, watch))  # noqa: B023
        times.append(seconds)
        cpu.append(time.process_time() - begun)
    median = statistics.median(times)
    graph, evaluations = circuit.graph, watch.engine.evaluations
    tested = len(watch.decisions)
    out: dict[str, Any] = {
        "setting": vars(s),
        "graph_edges": graph.n_edges,
        "seconds": times,
        "cpu_seconds": cpu,
        "median": median,
        "edges": circuit.n_edges,
        "direct": circuit.n_direct,
        "tested": tested,
        "needed": watch.needed,
        "evaluated": evaluations,
        "carried": sum(watch.asked),
        "wasted": evaluations - watch.needed,
        "wasted_share": 1 - watch.needed / max(evaluations, 1),
        "peak_mb": peak_mb(model.device),
        "peak_mb_before": before,
    }
    out["hugging_face"] = plain_passes(model, batch, watch.needed, median, s.llama)
    if s.instrument:
        model.few_launches = True  # as on a GPU
        with Launches() as launches:
            ours(model, batch, options, Watch())
        model.few_launches = not on_cpu
        out["launches"] = launches.count
        if model.device.type == "cuda":
            out["kernels"] = kernels(lambda: ours(model, batch, options, Watch()))
        out["limit"] = limit(model, batch, options, watch, runs, median, s.replay if on_cpu else s.replay / 5)
    if s.naive:
        out["naive"] = naive(model, runs, s.naive, tested, median)
    return out


def plain_passes(model: Transformer, batch: Split, needed: int, median: float, own: bool) -> dict[str, Any]:
    """Plain forward passes on the same prompts, as many as evaluations were needed: of the same weights in Hugging
    Face's model, or our `own` passes, of which there is no second copy."""
    tokens, pad = (torch.as_tensor(x).to(model.device) for x in (batch.clean, batch.pad))

    def ours_at(rows: slice) -> Tensor:
        return model.logits(model.normalise(model.run(tokens, pad)[1][-1][:, rows]))

    error = 0.0
    passes = [lambda: ours_at(slice(None)), lambda: ours_at(slice(-1, None))]
    if not own:
        hf = to_hugging_face(model)
        passes = [lambda: forward(hf, batch, model.device, False), lambda: forward(hf, batch, model.device, True)]
        error = float((ours_at(slice(-1, None)) - passes[1]()).abs().max())
        if not error < 1e-3:
            raise SystemExit(f"Hugging Face's logits differ by {error}: the benchmark is wrong")
    whole, last = (shortest_few(each) for each in passes)
    return {
        "logits_differ_by": error,
        "forward_all_positions": whole,
        "forward_last_position": last,
        "bound_all_positions": needed * whole / median,
        "bound": needed * last / median,  # the stricter one: the output layer at the scored position only
    }


def shortest_few(f: Callable[[], Tensor]) -> float:
    f()
    return shortest(f, budget=1.0, least=3)


def limit(
    model: Transformer,
    batch: Split,
    options: Options,
    watch: Watch,
    runs: ActivationCache,
    median: float,
    budget: float,
) -> dict[str, Any]:
    """What the matrix products take alone, and where the time goes: one more run, under the recorder."""
    recorder, needed, executed = Recorder(model), Products(), Products()

    def split(nodes: float, output: float) -> None:
        executed.take(recorder.recent, lambda phase: 1.0)
        needed.take(recorder.recent, lambda phase: {OUTPUT: output, GUESS: 0.0}.get(phase, nodes))
        recorder.recent = Products()

    again = Watch()
    again.then = split
    with recorder:
        wall, _ = timed(lambda: ours(model, batch, options, again))
    split(1.0, 1.0)
    alone = replay(needed, budget, model.dtype, model.device)
    products, others = executed.by_phase("seconds"), dict(recorder.seconds)
    python = wall - sum(products.values()) - sum(others.values())
    rows = len(runs.rows)
    block = output_seconds(model, rows * max(1, round(float(np.mean(watch.asked or [1])))))
    only_output = block * rows * watch.needed
    top = sorted(recorder.functions.items(), key=lambda item: -item[1])[:12]
    phases = {p: {"products": products.get(p, 0.0), "other": others.get(p, 0.0)} for p in sorted({*products, *others})}
    phases.setdefault(REST, {"products": 0.0, "other": 0.0})["python"] = python
    return {
        "output_layer_seconds": only_output,
        "products_seconds": sum(alone.values()),
        "products_by_phase": alone,
        "ours_over_output_layer": median / only_output,
        "ours_over_products": median / sum(alone.values()),
        "output_share_of_products": alone.get(OUTPUT, 0.0) / sum(alone.values()),
        "gflop_needed": sum(needed.flops.values()) / 1e9,
        "gflop_executed": sum(executed.flops.values()) / 1e9,
        "gflop_needed_by_phase": {p: f / 1e9 for p, f in needed.by_phase("flops").items()},
        "gflops_replayed": sum(needed.flops.values()) / 1e9 / sum(alone.values()),
        "mean_batch": float(np.mean(watch.asked or [0])),
        "profile": {"wall": wall, "operations": recorder.calls, "phases": phases, "functions": dict(top)},
    }


def output_seconds(model: Transformer, rows: int) -> float:
    """Seconds per row of only the products of the output layer, in blocks of the vocabulary."""
    w, b = model.weights["unembed.weight"], model.weights["unembed.bias"]
    h = torch.randn(rows, w.shape[1], dtype=w.dtype, device=w.device)

    def products() -> None:
        for i in range(0, len(w), VOCAB_BLOCK):
            torch.addmm(b[i : i + VOCAB_BLOCK], h, w[i : i + VOCAB_BLOCK].T)

    return shortest(products, budget=2.0) / rows


def naive(model: Transformer, runs: ActivationCache, samples: int, tested: int, median: float) -> dict[str, Any]:
    """A whole patched pass for each of some edges, extrapolated to all that the algorithm tests."""
    graph, metric = model.config.graph(), runs.metric("kl", model)
    edges = np.argwhere(graph.edges)
    chosen = edges[np.linspace(0, len(edges) - 1, samples).round().astype(int)]
    seconds = []
    for sender, receiver in chosen:
        mask = torch.as_tensor(graph.edges).to(model.device, model.dtype)
        mask[sender, receiver] = 0.0
        seconds.append(timed(lambda: float(metric(patched_rows(model, graph, runs, mask)).mean()))[0])  # noqa: B023
    each = statistics.median(seconds)
    return {"samples": samples, "seconds_per_edge": each, "total": each * tested, "ratio": each * tested / median}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name", choices=sorted(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--repeats", type=int)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threshold", type=float)
    a = parser.parse_args()
    s = SETTINGS[a.name]
    s = replace(s, repeats=a.repeats or s.repeats, threshold=a.threshold or s.threshold)
    with torch.inference_mode():
        a.out.write_text(json.dumps(measure(s, a.device)))


if __name__ == "__main__":
    main()

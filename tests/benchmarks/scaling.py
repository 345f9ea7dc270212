"""How the time grows: with layers, prompts, sequence length, and edges kept.

`python -m tests.benchmarks.scaling --out FILE.json [--quick] [--device cuda]`
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.methods.acdc import Options
from acdc.model.transformer import Transformer
from tests.benchmarks.measure import ours, timed
from tests.benchmarks.models import GREATER_THAN, MIDDLE, Shape, config, prompts, raw_weights
from tests.benchmarks.record import Watch

SWEEPS: dict[str, tuple[float, ...]] = {
    "layers": (2, 4, 6, 12, 18, 24),
    "prompts": (12, 25, 50, 100, 200),
    "positions": (12, 16, 24, 32, 48),
    "threshold": (0.03, 0.01, 0.005, 0.003, 0.0015),
}
QUICK: dict[str, tuple[float, ...]] = {"layers": (2, 4, 8), "prompts": (12, 25, 50)}


def point(sweep: str, x: float, runs: int, device: str) -> dict[str, Any]:
    s, shape = MIDDLE, GREATER_THAN
    if sweep == "positions":
        shape = Shape(int(x), (1,))  # all but one position are live
    else:
        s = replace(s, **{sweep: x if sweep == "threshold" else int(x)})
    c = config(s.layers, s.heads, s.width, s.vocab)
    model, batch = Transformer(c, raw_weights(c, device=device)), prompts(shape, s.prompts, s.vocab)
    best = float("inf")
    for _ in range(runs):
        watch = Watch()
        seconds, (circuit, _) = timed(lambda: ours(model, batch, Options(s.threshold), watch))  # noqa: B023
        best = min(best, seconds)
    return {
        "x": x,
        "seconds": best,
        "edges": circuit.n_edges,
        "graph_edges": circuit.graph.n_edges,
        "needed": watch.needed,
        "evaluated": watch.engine.evaluations,
        "per_evaluation": best / max(watch.needed, 1),
    }


def exponent(x: list[float], y: list[float]) -> float | None:
    """Slope of log y over log x by least squares."""
    if len(x) < 2 or min(*x, *y) <= 0 or len(set(x)) < 2:
        return None
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def sweep(name: str, values: tuple[float, ...], runs: int, device: str) -> dict[str, Any]:
    points = [point(name, x, runs, device) for x in values]
    over = "edges" if name == "threshold" else "x"
    found = [p for p in points if p[over] > 0]
    xs = [float(p[over]) for p in found]
    return {
        "points": points,
        "over": "edges kept" if name == "threshold" else name,
        "exponent_seconds": exponent(xs, [p["seconds"] for p in found]),
        "exponent_per_evaluation": exponent(xs, [p["per_evaluation"] for p in found]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    with torch.inference_mode():
        point("layers", 2, 1, a.device)  # not counted: the first calls of every operation are slow
        sweeps, runs = (QUICK, 1) if a.quick else (SWEEPS, 2)
        found = {name: sweep(name, values, runs, a.device) for name, values in sweeps.items()}
    a.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

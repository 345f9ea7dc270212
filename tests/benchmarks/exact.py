"""Whether the engine takes the naive algorithm's decisions: both run whole, in float64, and their edges compared.

`python -m tests.benchmarks.exact --out FILE.json [--quick] [--device cuda]`; exit code 1 where edges differ.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from acdc.graph.circuit import Circuit
from acdc.methods.acdc import Options
from tests.benchmarks.measure import ours
from tests.benchmarks.models import FULL, WHOLE, Setting, make
from tests.benchmarks.record import Watch
from tests.support.oracle import Naive, naive_acdc

SETTINGS = (WHOLE, *(s for s in FULL if s.tiny))


def compare(s: Setting, device: str) -> dict[str, Any]:
    """The oracle runs on the CPU."""
    model, batch = make(s, torch.float64)
    options = Options(s.threshold)
    there = model if device == "cpu" else make(s, torch.float64, device)[0]
    ours(there, batch, options, Watch())  # not counted: the first calls of every operation are slow
    started = time.perf_counter()
    circuit, _ = ours(there, batch, options, Watch())
    mine = time.perf_counter() - started
    started = time.perf_counter()
    edges, direct, _, margin = naive_acdc(Naive(model, batch, "kl", "corrupted"), s.threshold, options.direct)
    theirs = time.perf_counter() - started
    mine_found = {*circuit.edge_names(), *circuit.direct_names()}
    oracle = _pruned(circuit, edges, direct)
    return {
        "name": s.name,
        "edges": circuit.n_edges,
        "direct": circuit.n_direct,
        "margin": margin,
        "seconds_ours": mine,
        "seconds_oracle": theirs,
        "ratio": theirs / mine,
        "differ": sorted(mine_found ^ oracle),
    }


def _pruned(circuit: Circuit, edges: set[str], direct: set[str]) -> set[str]:
    """The oracle's edges without the dead ones, as `ours` gives them."""
    g = circuit.graph
    kept = np.zeros_like(g.edges)
    for name in edges:
        kept[g.parse_edge(name)] = True
    found = Circuit(g, kept, np.array([g.direct_name(j) in direct for j in range(len(g.receivers))])).pruned()
    return {*found.edge_names(), *found.direct_names()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="fewer prompts")
    parser.add_argument("--device", default="cpu")
    a = parser.parse_args()
    with torch.inference_mode():
        found = [compare(replace(s, prompts=min(s.prompts, 10)) if a.quick else s, a.device) for s in SETTINGS]
    a.out.write_text(json.dumps(found))
    raise SystemExit(any(f["differ"] for f in found))


if __name__ == "__main__":
    main()

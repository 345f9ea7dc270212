"""Hands a model and prompts to auto-circuit in its own environment, and compares what comes back."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from acdc.methods.acdc import Options
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache
from acdc.patching.patch import patched_rows
from tests.benchmarks.measure import ours
from tests.benchmarks.models import WHOLE, Setting, make, unfolded
from tests.benchmarks.record import Watch

SCRIPT = Path(__file__).with_name("peer_auto_circuit.py")


def ask(python: str, s: Setting, whole: bool, timeout: float) -> dict[str, Any]:
    """What auto-circuit says of a setting: its kept edges (`whole`), or its seconds per edge and layer."""
    model, batch = make(s)
    c = model.config
    if batch.pad.any():
        raise ValueError("prompts for auto-circuit must not be padded")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tensors = {k: w.contiguous() for k, w in unfolded(model).items()}
        tensors |= {"clean": torch.as_tensor(batch.clean), "corrupted": torch.as_tensor(batch.corrupted)}
        save_file(tensors, folder / "tensors.safetensors")
        job = {"config": vars(c), "threshold": s.threshold, "samples": s.peer, "whole": whole}
        job["threads"] = torch.get_num_threads()
        (folder / "job.json").write_text(json.dumps(job))
        del model, tensors
        env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        done = subprocess.run(
            [python, SCRIPT, folder], check=False, timeout=timeout, env=env, capture_output=True, text=True
        )
        if done.returncode:
            return {"error": done.stderr.strip().splitlines()[-1:]}
        return json.loads((folder / "result.json").read_text())


def overlap(python: str, timeout: float) -> dict[str, Any]:
    """Both whole on one small model, residual edges only: the edges that one of them keeps and the other doesn't.

    The order of the tests differs (auto-circuit sorts by layer only, and takes the rest as a Python set gives it), so
    the circuits may. That it is the same algorithm on the same model is shown by `in_its_order`: the edges that differ
    when our patching takes the decisions in auto-circuit's order.
    """
    theirs = ask(python, WHOLE, True, timeout)
    if "error" in theirs:
        return theirs
    model, batch = make(WHOLE)
    with torch.inference_mode():
        watch = Watch()
        circuit, runs = ours(model, batch, Options(WHOLE.threshold, direct=False), watch)
        again = _one_by_one(model, runs, theirs["order"], WHOLE.threshold)
    graph = circuit.graph
    mine = {graph.edge_name(*e) for e in np.argwhere(watch.engine.kept)}
    kept = set(theirs["kept"])
    unknown = [e for e in kept if graph.parse_edge(e) is None]
    both = mine & kept
    return {
        "edges": graph.n_edges,
        "ours": len(mine),
        "peer": len(kept),
        "both": len(both),
        "jaccard": len(both) / max(len(mine | kept), 1),
        "only_ours": sorted(mine - kept),
        "only_peer": sorted(kept - mine),
        "unknown": unknown,
        "in_its_order": sorted(again ^ kept),
        "seconds_peer": theirs["seconds"],
    }


def _one_by_one(model: Transformer, runs: ActivationCache, order: list[str], threshold: float) -> set[str]:
    """The edges that stay when each is tested in the given order by a whole patched pass."""
    graph, metric = model.config.graph(), runs.metric("kl", model)
    mask, kept, before = torch.as_tensor(graph.edges).to(model.dtype), set(), 0.0
    for name in order:
        at = graph.parse_edge(name)
        mask[at] = 0.0
        after = float(metric(patched_rows(model, graph, runs, mask)).mean())
        if after - before < threshold:
            before = after
        else:
            mask[at] = 1.0
            kept.add(name)
    return kept

"""Circuit files, and when two circuits are equal."""

from __future__ import annotations

from typing import Any

import numpy as np

from acdc.files.circuit import CircuitFile, edges_of
from acdc.files.parts import GraphPart, MethodPart, ModelPart, TaskPart
from acdc.graph.circuit import Circuit


def file_of(circuit: Circuit, **changed: Any) -> CircuitFile:
    """The content of circuit.json for a circuit, with made-up facts about the run."""
    g = circuit.graph
    model = ModelPart(
        name="tiny", family="gpt2", hash="ab12", n_layers=g.n_layers, n_heads=g.n_heads, d_model=16,
        mlp=g.mlp, inputs=g.inputs, parallel=g.parallel,
    )  # fmt: skip
    method = MethodPart(
        name="acdc", metric="kl", ablation="corrupted", dtype="float64", device="cpu", threshold=0.01,
        options={"order": "paper", "abs": False, "batch": 3, "share": 0.5},
    )  # fmt: skip
    parts: dict[str, Any] = {
        "task": TaskPart(name="greater-than", version=1, examples=50, seed=7, data_hash="cd34"),
        "model": model,
        "method": method,
        "graph": GraphPart.of(circuit, dead=2),
        "metrics": {"held_out.circuit.kl": 0.123, "held_out.circuit.accuracy": 0.9},
        "edges": edges_of(circuit),
        "environment": {"python": "3.11", "acdc": "0.1.0"},
        "command": "acdc run --task greater-than",
        "notes": ("a note with ünïcode",),
    }
    return CircuitFile(**parts | changed)


def same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    """Whether both are missing, or equal, NaN included."""
    return a is b or (a is not None and b is not None and np.array_equal(a, b, equal_nan=a.dtype != bool))


def assert_same(a: Circuit, b: Circuit) -> None:
    """Missing scores count as NaN everywhere."""
    nothing, none = np.full(a.kept.shape, np.nan), np.full(len(a.graph.receivers), np.nan)
    assert a.graph == b.graph
    assert same(a.kept, b.kept)
    assert same(a.direct, b.direct)
    assert same(nothing if a.scores is None else a.scores, nothing if b.scores is None else b.scores)
    assert same(
        none if a.direct_scores is None else a.direct_scores,
        none if b.direct_scores is None else b.direct_scores,
    )

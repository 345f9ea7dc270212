"""`stability.json`: how often the edges of a circuit are found again. NaN and infinity become null."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

KINDS = {
    "seeds": "prompts of other seeds",
    "resamples": "bootstrap resamples of the prompts",
    "orders": "the edges in other orders",
}


@dataclass(frozen=True)
class Run:
    """A circuit without dead edges, measured on the prompts that all circuits here are judged on."""

    name: str
    kind: str  # a key of KINDS, or "base" or "core"
    edges: int  # residual edges
    metric: float  # mean over prompts, lower is better
    faithfulness: tuple[float | None, ...]  # 1 is the full model, 0 everything ablated; with 95 % interval
    accuracy: float | None  # share of scored positions with the right answer; None for a task without answers
    like_base: float  # Jaccard index of its edges and those of the base run


class MeanRange(NamedTuple):
    """Mean, lowest and highest; None for no values."""

    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: list[float]) -> MeanRange:
        """Return the range of some values."""
        if not values:
            return cls(None, None, None)
        return cls(float(np.mean(values)), min(values), max(values))


@dataclass(frozen=True)
class Kind:
    """The reruns of one kind, or all of them."""

    name: str
    runs: int
    edges: MeanRange  # residual edges per circuit
    jaccard: MeanRange  # Jaccard index of the edges of each two of these reruns
    like_base: MeanRange  # Jaccard index of the edges of each rerun and the base run


@dataclass(frozen=True)
class EdgeFrequency:
    """An edge, the share of reruns that found it, in all and by kind, and whether the base run and the core have it."""

    name: str
    frequency: float
    by_kind: dict[str, float]
    base: bool
    core: bool


@dataclass(frozen=True)
class Stability:
    """The content of `stability.json`."""

    task: str
    model: str
    model_hash: str
    data_hash: str
    examples: int
    seed: int
    method: dict[str, Any]  # as in circuit.json
    half: str  # the base run's prompts for judging: held_out, or discovery for a task without held-out prompts
    total: int  # residual edges of the graph
    full: float  # metric of the full model
    ablated: float  # with everything ablated
    base: Run
    runs: tuple[Run, ...]
    kinds: tuple[Kind, ...]
    share: float  # an edge is in the core if at least this share of reruns found it
    core: Run  # the circuit of these edges, without dead ones
    dead: int  # core edges, residual and direct, on no path from an input to the logits
    edges: tuple[EdgeFrequency, ...]  # residual edges that any run found, the most frequent first
    direct: tuple[EdgeFrequency, ...]  # direct edges, likewise, if the method tests them
    notes: tuple[str, ...]


def share_of(s: Stability) -> str:
    """Return which edges are in the core, in words."""
    return f"edges found in {s.share:.0%} or more of {len(s.runs)} reruns"

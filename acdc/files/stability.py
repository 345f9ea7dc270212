"""`stability.json`: how often the edges of a circuit are found again."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np

from acdc.io.files import plain_json

KINDS = {
    "seeds": "prompts of other seeds",
    "resamples": "bootstrap resamples of the prompts",
    "orders": "the edges in other orders",
}


@dataclass(frozen=True)
class Run:
    """A circuit without dead edges, measured on the prompts that all circuits here are judged on.

    Args:
        kind: a key of `KINDS`, or "base" or "core"
        edges: residual edges
        metric: mean of the metric, lower is better
        faithfulness: 1 is the full model, 0 everything ablated, with its 95 % interval; None if undefined
        accuracy: share of scored positions with the right answer; None for a task without answers
        like_base: Jaccard index of its edges and those of the base run
    """

    name: str
    kind: str
    edges: int
    metric: float
    faithfulness: tuple[float | None, ...]
    accuracy: float | None
    like_base: float


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
    """The reruns of one kind, or all of them.

    Args:
        edges: residual edges per circuit
        jaccard: Jaccard index of the edges of each two of these reruns
        like_base: Jaccard index of the edges of each rerun and the base run
    """

    name: str
    runs: int
    edges: MeanRange
    jaccard: MeanRange
    like_base: MeanRange


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
    """The content of `stability.json`.

    Args:
        method: as in circuit.json
        half: the base run's prompts that circuits are judged on: `held_out`, or `discovery` for a task without
            held-out prompts
        total: residual edges of the graph
        full, ablated: metric of the full model, and with everything ablated
        share: an edge is in the core if at least this share of reruns found it
        core: the circuit of these edges, without the `dead` ones, which are on no path from an input to the logits
        edges: residual edges that any run found, the most frequent first
        direct: direct edges, likewise, if the method tests them
    """

    task: str
    model: str
    model_hash: str
    data_hash: str
    examples: int
    seed: int
    method: dict[str, Any]
    half: str
    total: int
    full: float
    ablated: float
    base: Run
    runs: tuple[Run, ...]
    kinds: tuple[Kind, ...]
    share: float
    core: Run
    dead: int
    edges: tuple[EdgeFrequency, ...]
    direct: tuple[EdgeFrequency, ...]
    notes: tuple[str, ...]


def share_of(s: Stability) -> str:
    """Return which edges are in the core, in words."""
    return f"edges found in {s.share:.0%} or more of {len(s.runs)} reruns"


def to_json(result: Stability) -> str:
    """Return JSON text; the same values give the same text. A range is [mean, lowest, highest], an estimate
    [value, low, high], null for NaN."""
    return plain_json({"format_version": 1, **asdict(result)})

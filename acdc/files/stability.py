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
    """A circuit without dead edges, on the prompts that all circuits here are judged on.

    Args:
        kind: of `KINDS`; "base" and "core" for these two
        edges: residual ones
        metric: its mean, lower is better
        faithfulness: 1 is the full model, 0 everything ablated, with its 95 % interval; None where there is no number
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
    """Mean, lowest and highest; None where there is nothing."""

    mean: float | None
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: list[float]) -> MeanRange:
        """Of some values."""
        return cls(float(np.mean(values)), min(values), max(values)) if values else cls(None, None, None)


@dataclass(frozen=True)
class Kind:
    """The reruns of one kind, or all of them.

    Args:
        edges: residual edges of a circuit
        jaccard: Jaccard index of the edges of two of these reruns
        like_base: of one and the base run
    """

    name: str
    runs: int
    edges: MeanRange
    jaccard: MeanRange
    like_base: MeanRange


@dataclass(frozen=True)
class EdgeFrequency:
    """An edge that a run found: in what share of all reruns, and of those of each kind; whether it is an edge of the
    base run's circuit, and of the core."""

    name: str
    frequency: float
    by_kind: dict[str, float]
    base: bool
    core: bool


@dataclass(frozen=True)
class Stability:
    """The content of `stability.json`.

    Args:
        method: as it is in a circuit.json
        half: the prompts that circuits are judged on, the base run's: `held_out`, or `discovery` for a task that has
            no others
        total: residual edges of the graph
        full, ablated: metric of the full model, and with everything ablated
        share: that an edge of the core is found in
        core: its circuit; of the edges that are found as often, `dead` are on no path from an input to the logits
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
    """Which edges are in the core."""
    return f"edges found in {s.share:.0%} or more of {len(s.runs)} reruns"


def to_json(result: Stability) -> str:
    """The same values give the same text; a range is [mean, lowest, highest], an estimate [value, low, high], null
    where there is no number."""
    return plain_json({"format_version": 1, **asdict(result)})

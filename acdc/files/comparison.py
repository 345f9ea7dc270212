"""`compare.json` and `table.csv`: the results of a comparison of methods. NaN and infinity become null."""

from __future__ import annotations

import csv
import io
from dataclasses import asdict, dataclass

from acdc.io.files import plain, plain_json


@dataclass(frozen=True)
class Judged:
    """A circuit without dead edges, measured on the prompts for evaluation.

    Args:
        size: number of edges asked for; None for ACDC, which has a threshold
        threshold: τ, in the metric's units
        edges: residual edges after dead ones are removed
        components: heads and MLPs that these edges touch
        metric: mean of the metric, lower is better
        faithfulness: 1 is the full model, 0 everything ablated; `low` to `high` is its 95 % interval
        accuracy: share of scored positions with the right answer
        lost: edges that ACDC on the whole graph keeps but the prefilter dropped; None without a prefilter, or if ACDC
            on the whole graph is not compared
    """

    size: int | None
    threshold: float | None
    edges: int
    components: int
    metric: float
    faithfulness: float
    low: float
    high: float
    accuracy: float
    lost: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ComparedMethod:
    """The results of a method on a task.

    Args:
        ranked_by: the metric that the scores are computed from
        seconds, peak_memory_mb: see `acdc.commands.cost.Cost`
        circuits: ordered from few to many edges asked for, or from low to high threshold
        auc, pessimistic_auc: areas under `roc`; NaN if the reference comes from the same method
        node_auc: as `auc`, for heads and MLPs, each scored by its largest edge
        cpr, cmd: MIB's areas under faithfulness by share of edges, and between faithfulness and 1, over the circuits
            and both ends, where faithfulness is 0 and 1
        roc: points (false positive rate, true positive rate) of the scores against the reference
    """

    name: str
    ranked_by: str
    seconds: float
    peak_memory_mb: float
    circuits: tuple[Judged, ...]
    auc: float
    pessimistic_auc: float
    node_auc: float
    cpr: float
    cmd: float
    roc: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Similarity:
    """How similar the methods are: Float[method method] each, in the order of the methods.

    Args:
        size: edges of the circuits that `edges` and `components` compare; with thresholds, of the nearest circuits
        edges, components: Jaccard indices
        scores: Spearman's ρ over all edges of the graph
    """

    size: int
    edges: list[list[float]]
    components: list[list[float]]
    scores: list[list[float]]


@dataclass(frozen=True)
class ComparedTask:
    """A task, and the results of the methods on it.

    Args:
        half: the prompts for evaluation: `held_out`, or `discovery` for a task without held-out prompts
        full, ablated: mean metric of the full model and with everything ablated; `…_accuracy` likewise
        reference: the circuit that scores are compared with
        total: residual edges of the graph
    """

    name: str
    model: str
    model_hash: str
    data_hash: str
    metric: str
    ablation: str
    examples: int
    seed: int
    half: str
    full: float
    ablated: float
    full_accuracy: float
    ablated_accuracy: float
    reference: str
    reference_edges: int
    total: int
    methods: tuple[ComparedMethod, ...]
    overlap: Similarity
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Comparison:
    """The content of `compare.json`."""

    sizes: tuple[int, ...]
    greedy: bool
    abs: bool
    tasks: tuple[ComparedTask, ...]


def to_json(comparison: Comparison) -> str:
    """Return JSON text; the same values give the same text."""
    return plain_json({"format_version": 1, **asdict(comparison)})


def to_rows(comparison: Comparison) -> tuple[list[str], list[list[object]]]:
    """Return the columns, and a row per circuit."""
    of_circuit = ("size", "threshold", "edges", "components", "metric", "faithfulness", "low", "high", "accuracy")
    of_method = ("ranked_by", "seconds", "peak_memory_mb", "auc", "pessimistic_auc", "node_auc", "cpr", "cmd")
    rows: list[list[object]] = []
    for task in comparison.tasks:
        for method in task.methods:
            for c in method.circuits:
                lost = None if c.lost is None else len(c.lost)
                values = [*(getattr(method, k) for k in of_method), *(getattr(c, k) for k in of_circuit), lost]
                rows.append([task.name, task.model, method.name, *map(plain, values)])
    return ["task", "model", "method", *of_method, *of_circuit, "lost"], rows


def to_csv(comparison: Comparison) -> str:
    """Return CSV text, a line per circuit."""
    columns, rows = to_rows(comparison)
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([columns, *rows])
    return out.getvalue()

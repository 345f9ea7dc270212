"""`compare.json` and `table.csv`, the results of a comparison of methods, and `models.json`, of one of models. NaN and
infinity become null."""

from dataclasses import dataclass, fields

from acdc.evaluation.bootstrap import Estimate
from acdc.io.files import plain

LEVELS = (0.5, 0.7, 0.8, 0.9, 0.95)  # of faithfulness


@dataclass(frozen=True)
class Judged:
    """A circuit without dead edges, measured on the prompts for evaluation."""

    size: int | None  # number of edges asked for; None for ACDC, which has a threshold or a target
    threshold: float | None  # τ, in the metric's units
    target: float | None  # the faithfulness asked for on the discovery half
    edges: int  # residual edges
    components: int  # heads and MLPs that these edges touch
    metric: float  # mean over prompts, lower is better
    faithfulness: float  # 1 is the full model, 0 everything ablated
    low: float  # of the 95 % interval of the faithfulness
    high: float
    accuracy: float  # share of scored positions with the right answer
    # Edges that ACDC on the whole graph keeps but the prefilter dropped; None if there is only one of the two.
    lost: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ComparedMethod:
    """The results of a method on a task."""

    name: str
    ranked_by: str  # the metric that the scores are computed from
    seconds: float  # see acdc.commands.cost.Cost
    peak_memory_mb: float
    circuits: tuple[Judged, ...]  # from few to many edges asked for, or from low to high threshold
    auc: float  # area under `roc`; NaN if the reference comes from the same method
    pessimistic_auc: float
    node_auc: float  # for heads and MLPs, each scored by its largest edge
    cpr: float  # MIB's area under faithfulness by share of edges, over the circuits and both ends (0 and 1)
    cmd: float  # MIB's area between faithfulness and 1
    needed: tuple[float, ...]  # edges needed for each of `LEVELS`; NaN where no circuit is so faithful
    roc: tuple[tuple[float, float], ...]  # (false, true positive rate) of the scores against the reference


@dataclass(frozen=True)
class Similarity:
    """How similar the methods are: Float[method method] each, in the order of the methods."""

    size: int  # edges of the circuits that are compared; with thresholds, of the nearest circuits
    edges: list[list[float]]  # Jaccard indices
    components: list[list[float]]  # Jaccard indices
    scores: list[list[float]]  # Spearman's ρ over all edges of the graph


@dataclass(frozen=True)
class ComparedTask:
    """A task, and the results of the methods on it."""

    name: str
    model: str
    model_hash: str
    data_hash: str
    metric: str
    ablation: str
    examples: int
    seed: int
    half: str  # the prompts for evaluation: held_out, or discovery for a task without held-out prompts
    full: float  # mean metric of the full model
    ablated: float  # with everything ablated
    full_accuracy: float
    ablated_accuracy: float
    reference: str  # the circuit that scores are compared with
    reference_edges: int
    total: int  # residual edges of the graph
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


@dataclass(frozen=True)
class OfModel:
    """A model, and the circuit that was found in it."""

    name: str
    hash: str
    folder: str  # of the run
    bound: str  # which edges were kept
    edges: int  # residual edges of the circuit
    total: int  # of the graph
    accuracy: float  # of the full model, on the prompts for evaluation; NaN for a task without answers
    # Of every model's circuit in this model, in the order of the models; None where it is of another graph.
    faithfulness: tuple[Estimate | None, ...]


@dataclass(frozen=True)
class Pair:
    """How much the circuits of two models have in common; NaN for what needs the same graph."""

    models: tuple[str, str]
    nodes: float  # Jaccard index of the nodes' names
    edges: float  # Jaccard index of the residual edges
    scores: float  # Spearman's ρ of the scores of all edges, 0 for edges without one
    shared: tuple[str, ...]  # edges of both, by name


@dataclass(frozen=True)
class ModelComparison:
    """The content of `models.json`."""

    task: str
    method: str
    metric: str
    ablation: str
    examples: int
    seed: int
    half: str  # the prompts for evaluation
    models: tuple[OfModel, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]


def to_rows(comparison: Comparison) -> tuple[list[str], list[list[object]]]:
    """Return the columns of table.csv, and a row per circuit."""
    of_circuit = [field.name for field in fields(Judged) if field.name != "lost"]
    of_method = ("ranked_by", "seconds", "peak_memory_mb", "auc", "pessimistic_auc", "node_auc", "cpr", "cmd")
    rows: list[list[object]] = []
    for task in comparison.tasks:
        for method in task.methods:
            for c in method.circuits:
                lost = None if c.lost is None else len(c.lost)
                values = [getattr(method, k) for k in of_method]
                values += [*method.needed, *(getattr(c, k) for k in of_circuit), lost]
                rows.append([task.name, task.model, method.name, *map(plain, values)])
    needed = [f"needed_{level:g}" for level in LEVELS]
    return ["task", "model", "method", *of_method, *needed, *of_circuit, "lost"], rows

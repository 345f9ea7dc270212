"""`models.json`: one behaviour in several models. NaN and infinity become null."""

from dataclasses import dataclass

from acdc.evaluation.bootstrap import Estimate


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

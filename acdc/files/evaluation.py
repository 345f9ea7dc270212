"""The output of `acdc evaluate --json`: how good a circuit is."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from acdc.evaluation.bootstrap import Estimate
from acdc.io.files import plain_json

DRAWS = 20  # random circuits

LEGEND = {
    "intervals": "95 %, studentised bootstrap over prompts, in pairs where two things are compared; accuracy: Wilson",
    "faithfulness": "(everything ablated − circuit) / (everything ablated − full model), of the mean metric: 1 is the "
    "full model, 0 everything ablated (Hanna et al. 2024; MIB, Mueller et al. 2025)",
    "completeness": "the same of all edges but the circuit's: what the rest of the model does without the circuit, low "
    "is good (Wang et al. 2022, with the whole circuit knocked out; Conmy et al. 2023)",
    "minimality": "the rise of the metric when one edge alone is removed from the circuit, an exact pass each (Wang et "
    "al. 2022); superfluous: the interval reaches 0 or below. No correction for the number of edges: of edges "
    "without effect, 1 in 40 seems to have one",
    "random": f"{DRAWS} random circuits of as many residual edges, all on a path from an input to the logits, as the "
    "circuit's are: edges drawn one by one almost never connect, and would be no match",
    "prompts": "each prompt alone; the mean of its faithfulness is not the one above, which weighs prompts by what "
    "there is to recover (Miller et al. 2024)",
    "ablations": "what a removed edge carries: the sender's output on the corrupted prompt, nothing, or its mean over "
    "the clean prompts; a circuit is found under one of them",
}


@dataclass(frozen=True)
class Measured:
    """Means over prompts under one ablation; metrics are minimised.

    Args:
        full, circuit, ablated, rest: metric of the full model, of the circuit, with everything ablated, and of all
            edges outside the circuit
        accuracy: under the same names, the share of scored positions with the right answer; NaN without answers
        faithfulness, completeness: see `acdc.evaluation.faithfulness.faithfulness`
    """

    ablation: str
    full: Estimate
    circuit: Estimate
    ablated: Estimate
    rest: Estimate
    accuracy: dict[str, Estimate]
    faithfulness: Estimate
    completeness: Estimate


@dataclass(frozen=True)
class RemovedEdge:
    """An edge of the circuit, the rise of the metric when it alone is removed, and whether that may be zero."""

    name: str
    rise: Estimate
    superfluous: bool


@dataclass(frozen=True)
class Minimality:
    """The edges that were removed one by one, from the least to the most needed.

    Args:
        kept: residual edges of the circuit; if only some were tested, it was those with the smallest scores
    """

    kept: int
    edges: tuple[RemovedEdge, ...]


@dataclass(frozen=True)
class Random:
    """Random circuits of the same size.

    Args:
        edges: of each; as many as the circuit has without dead ones
        metric: mean metric of each draw, sorted
        faithfulness: of the mean over draws, per prompt
        advantage: how much lower the circuit's metric is than the mean over draws, per prompt
        rank: rank of the circuit among the draws and itself; 1 is the lowest metric
    """

    edges: int
    metric: tuple[float, ...]
    faithfulness: Estimate
    advantage: Estimate
    rank: int


@dataclass(frozen=True)
class Prompt:
    """A prompt, the circuit's metric on it, and its faithfulness."""

    text: str
    metric: float
    faithfulness: float


@dataclass(frozen=True)
class Spread:
    """The circuit on each prompt alone.

    Args:
        metric, faithfulness: minimum, quartiles, maximum
        undefined: number of prompts without faithfulness: the full model is not better than everything ablated
        worst: the prompts with the highest metric
    """

    metric: tuple[float, ...]
    faithfulness: tuple[float, ...]
    undefined: int
    worst: tuple[Prompt, ...]


@dataclass(frozen=True)
class Evaluation:
    """How good a circuit is.

    Args:
        edges, total: residual edges of the circuit and of the graph
        half: the prompts: `held_out`, or `discovery` for a task without held-out prompts
        measured: under the circuit's own ablation; `others` under the other ablations
        minimality: None if not asked for
        random: None for a circuit without edges
    """

    task: str
    model: str
    model_hash: str
    data_hash: str
    method: str
    metric: str
    dtype: str
    examples: int
    seed: int
    half: str
    edges: int
    total: int
    measured: Measured
    others: tuple[Measured, ...]
    minimality: Minimality | None
    random: Random | None
    spread: Spread
    notes: tuple[str, ...]


def to_json(evaluation: Evaluation) -> str:
    """Return JSON text; the same values give the same text. An estimate is [value, low, high], null for NaN."""
    return plain_json({"format_version": 1, **asdict(evaluation), "legend": LEGEND})

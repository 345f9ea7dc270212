"""What `acdc evaluate --json` prints: how good a circuit is."""

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
        full, circuit, ablated, rest: metric of the full model, the circuit, everything ablated, and all edges but the
            circuit's
        accuracy: by these names, the share of scored positions with the right answer; NaN for a task without answers
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
    """An edge of the circuit: how much the metric rises when it alone is removed, and whether that may be nothing."""

    name: str
    rise: Estimate
    superfluous: bool


@dataclass(frozen=True)
class Minimality:
    """The edges that were removed one by one, from the least to the most needed.

    Args:
        kept: how many residual edges the circuit has; where it is more than were tested, those with the smallest scores
            were
    """

    kept: int
    edges: tuple[RemovedEdge, ...]


@dataclass(frozen=True)
class Random:
    """Random circuits of the size of this one.

    Args:
        edges: of each; the circuit's own without dead ones
        metric: means of all draws, sorted
        faithfulness: of their mean, per prompt
        advantage: how much lower the circuit's metric is than their mean, prompt by prompt
        rank: of the circuit among them and itself, 1 is the lowest metric
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
        undefined: prompts on which the full model is not better than everything ablated: they have no faithfulness
        worst: those with the highest metric
    """

    metric: tuple[float, ...]
    faithfulness: tuple[float, ...]
    undefined: int
    worst: tuple[Prompt, ...]


@dataclass(frozen=True)
class Evaluation:
    """How good a circuit is.

    Args:
        edges, total: residual edges
        half: the prompts, `held_out`, or `discovery` for a task that has no others
        measured: under the circuit's own ablation; `others` under the others
        minimality: None if it was not asked for
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
    """The same values give the same text; an estimate is [value, low, high], null where there is no number."""
    return plain_json({"format_version": 1, **asdict(evaluation), "legend": LEGEND})

"""The output of `acdc evaluate --json`: how good a circuit is. An estimate is [value, low, high], null for NaN."""

from dataclasses import dataclass, field

from acdc.evaluation.bootstrap import Estimate

DRAWS = 20  # random circuits

LEGEND = {
    "intervals": "95 %, studentised bootstrap over prompts, in pairs where two things are compared; accuracy: Wilson",
    "faithfulness": "(everything ablated − circuit) / (everything ablated − full model), of the mean metric: 1 is the "
    "full model, 0 everything ablated (Hanna et al. 2024; MIB, Mueller et al. 2025)",
    "completeness": "faithfulness of the complement: what the rest of the model does without the circuit, low "
    "is good (Wang et al. 2022, with the whole circuit knocked out; Conmy et al. 2023)",
    "minimality": "how much worse the metric is when one edge alone is removed from the circuit, an exact pass each "
    "(Wang et al. 2022); superfluous: the interval reaches 0 or below. No correction for the number of edges: of edges "
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
    """Means over prompts under one ablation; metrics are minimised."""

    ablation: str
    full: Estimate  # metric of the full model
    circuit: Estimate
    ablated: Estimate  # everything ablated
    rest: Estimate  # all edges outside the circuit
    accuracy: dict[str, Estimate]  # by these names, share of scored positions that are right; NaN without answers
    faithfulness: Estimate  # see acdc.evaluation.faithfulness
    completeness: Estimate


@dataclass(frozen=True)
class RemovedEdge:
    """An edge of the circuit, the rise of the metric when it alone is removed, and whether that may be zero."""

    name: str
    rise: Estimate
    superfluous: bool


@dataclass(frozen=True)
class Minimality:
    """The edges that were removed one by one, from the least to the most needed."""

    kept: int  # residual edges of the circuit; if only some were tested, those with the smallest scores
    edges: tuple[RemovedEdge, ...]


@dataclass(frozen=True)
class Random:
    """Random circuits of the same size."""

    edges: int  # of each; as many as the circuit has without dead ones
    metric: tuple[float, ...]  # mean metric of each draw, sorted
    faithfulness: Estimate  # of the mean over draws, per prompt
    advantage: Estimate  # how much lower the circuit's metric is than the mean over draws, per prompt
    rank: int  # of the circuit among the draws and itself; 1 is the lowest metric


@dataclass(frozen=True)
class Prompt:
    """A prompt, the circuit's metric on it, and its faithfulness."""

    text: str
    metric: float
    faithfulness: float


@dataclass(frozen=True)
class Spread:
    """The circuit on each prompt alone."""

    metric: tuple[float, ...]  # minimum, quartiles, maximum
    faithfulness: tuple[float, ...]  # likewise
    undefined: int  # prompts without faithfulness: the full model is not better than everything ablated
    worst: tuple[Prompt, ...]  # those with the highest metric


@dataclass(frozen=True)
class Evaluation:
    """How good a circuit is."""

    task: str
    model: str
    model_hash: str
    data_hash: str
    method: str
    metric: str
    dtype: str
    examples: int
    seed: int
    half: str  # the prompts: held_out, or discovery for a task without held-out prompts
    edges: int  # residual edges of the circuit
    total: int  # of the graph
    measured: Measured  # under the circuit's own ablation
    by_metric: dict[str, Estimate]  # faithfulness by every metric of the task, likewise
    others: tuple[Measured, ...]  # under the other ablations
    minimality: Minimality | None  # None if not asked for
    random: Random | None  # None for a circuit without edges
    spread: Spread
    notes: tuple[str, ...]
    legend: dict[str, str] = field(default_factory=LEGEND.copy)

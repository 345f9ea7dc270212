"""The names of metrics, methods, ablations and orders, with the facts about each, and which of them go together."""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

from acdc.errors import UserError, unknown


class Metric(NamedTuple):
    """Facts about a metric; `acdc.patching.metrics` computes it."""

    label: str  # in sentences
    unit: str  # of its values
    # What it needs of the output layer: the logits of the answers, the log-sum-exp over the vocabulary, or all logits.
    output: Literal["answers", "logsumexp", "logits"]
    needs_correct: bool = False  # answers
    needs_wrong: bool = False  # answers
    flat: bool = False  # whether it compares with the full model, so that its gradient there is zero
    negated: bool = False  # whether it is minimised with a minus sign, which people aren't shown (`acdc.report.text`)


METRICS = {
    "kl": Metric("KL divergence", "nats", "logsumexp", flat=True),
    "logit-diff": Metric("logit difference", "logits", "answers", needs_correct=True, needs_wrong=True, negated=True),
    "prob-diff": Metric(
        "probability difference", "of probability", "logsumexp", needs_correct=True, needs_wrong=True, negated=True
    ),
    "nll": Metric("negative log-likelihood", "nats", "logsumexp", needs_correct=True),
    "l2": Metric("squared distance of logits", "squared logits", "logits", flat=True),
}


BOUNDS = ("threshold", "faithfulness", "edges")  # options that say which edges to keep; one of them applies
OF_THRESHOLD = ("abs", "order", "batch")  # options of acdc that apply with a threshold only
SELECT = ("threshold", "edges", "greedy", "abs", "direct")  # options of every method that scores edges
LOCATE = (*SELECT, "positions")  # of one that scores edge-spans, too
SPLIT = (*LOCATE, "features")  # and edges of single features
PENALTY = 0.3  # of subnetwork-probing: what all nodes together cost, in shares of the span
SPARSITY = 0.9  # of edge-pruning: share of the residual edges that is removed, below 1


class Method(NamedTuple):
    """Facts about a method; `acdc.methods.discover` runs it."""

    what: str  # in the list of methods up to the publication
    # ACDC's search, gradients, exact patching of one edge or node at a time, training of gates, the activations of the
    # clean run alone, or a random draw.
    kind: Literal["search", "gradient", "exact", "training", "activations", "random"]
    options: tuple[str, ...] = SELECT  # beside those of every run
    # Forward passes per step (eap-ig), per step and layer (eap-ig-activations), per update (training), else in all; a
    # backward pass counts as two.
    passes: int = 0
    repeats: int = 1  # the default number of steps or updates
    threshold: float | Literal["task"] | None = "task"  # the default; "task": in the metric's units; None: no default
    slope: bool = False  # whether it needs the metric's gradient at the full model, which is zero for a flat metric
    paired: bool = False  # whether it needs corrupted prompts
    nodes: bool = False  # whether it scores nodes rather than edges

    @property
    def bound(self) -> str:
        """The default threshold in words."""
        if self.threshold is None:
            return "none: give --edges or --threshold"
        if self.threshold == "task":
            return "the task's, in the metric's units"
        return f"{self.threshold}, of 0 to 1"


METHODS = {
    "acdc": Method(
        "remove each edge whose removal costs less than τ (Conmy et al. 2023)",
        "search",
        ("threshold", "faithfulness", "edges", "direct", "positions", "features", "prefilter", *OF_THRESHOLD),
    ),
    "eap": Method(
        "gradient × difference of each edge, at the clean run (Syed et al. 2023)",
        "gradient",
        SPLIT,
        passes=4,
        slope=True,
    ),
    "eap-ig": Method(
        "as eap, mean gradient from corrupted to clean inputs (Hanna et al. 2024)",
        "gradient",
        (*SPLIT, "steps"),
        passes=3,
        repeats=5,  # as MIB uses it (Mueller et al. 2025, arXiv 2504.13151)
        paired=True,
    ),
    "eap-ig-activations": Method(
        "as eap-ig, from ablated to clean outputs of each layer (Hanna et al. 2024)",
        "gradient",
        (*SPLIT, "steps"),
        passes=3,
        repeats=5,
    ),
    "eap-ig-clean-corrupted": Method(
        "as eap-ig, with the clean and the corrupted run alone (Hanna et al. 2024)",
        "gradient",
        SPLIT,
        passes=6,
        paired=True,
    ),
    "relp": Method(
        "as eap, with the coefficients of relevance propagation (Jafari et al. 2025)",
        "gradient",
        LOCATE,
        passes=4,
        slope=True,
    ),
    "information-flow-routes": Method(
        "share of each sender in what its receiver reads (Ferrando and Voita 2024)",
        "activations",
        passes=2,
        threshold=None,
    ),
    "edge-patching": Method("exact effect of removing each edge alone", "exact", SPLIT),
    "hisp": Method(
        "gradient × difference of each head and MLP, per layer (Michel et al. 2019)",
        "gradient",
        passes=4,
        threshold=None,
        slope=True,
        nodes=True,
    ),
    "causal-mediation": Method(
        "exact effect of removing each head and MLP alone (Vig et al. 2020)", "exact", nodes=True
    ),
    "subnetwork-probing": Method(
        "trained gates on heads and MLPs, few of them open (Cao et al. 2021)",
        "training",
        (*SELECT, "updates", "penalty"),
        passes=3,
        repeats=300,
        threshold=0.5,
        nodes=True,
    ),
    "edge-pruning": Method(
        "trained gates on edges, a given share of them closed (Bhaskar et al. 2024)",
        "training",
        (*SELECT, "updates", "sparsity"),
        passes=3,
        repeats=400,
        threshold=0.5,
    ),
    "diffmask": Method(
        "fewest heads and MLPs that give the corrupted answer (Chintam et al. 2023)",
        "training",
        (*SELECT, "updates"),
        passes=3,
        repeats=400,
        threshold=0.5,
        nodes=True,
    ),
    "random": Method("a random score for each edge: the baseline", "random", SPLIT, threshold=None),
}
METHOD_OPTIONS = sorted({option for method in METHODS.values() for option in method.options})
ABLATIONS = {
    "corrupted": "a removed edge carries the sender's output on the paired corrupted prompt",
    "zero": "a removed edge carries nothing; attention output biases stay",
    "mean": "a removed edge carries the sender's mean over the clean prompts, per position",
}
ORDERS = {
    "paper": "heads high to low, later parents first",
    "heads-ascending": "heads low to high",
    "parents-ascending": "earlier parents first",
    "random": "heads and parents shuffled by the seed",
}


class Format(NamedTuple):
    """Facts about a format of `acdc export`; `acdc.commands.export` writes it."""

    ending: str  # of a file that isn't named
    what: str
    picture: bool = False  # whether it takes the options of a picture
    named: tuple[str, ...] = ("task", "model")  # what it names of these


FORMATS = {
    "svg": Format("svg", "a picture for the web; its edges have their names as ids", picture=True),
    "png": Format("png", "a picture as a bitmap", picture=True),
    "pdf": Format("pdf", "a picture for print, with its fonts", picture=True),
    "tikz": Format("tikz.tex", "a picture for LaTeX: `\\usepackage{tikz}` and `\\input{circuit.tikz}`", picture=True),
    "html": Format("html", "the interactive page"),
    "dot": Format("dot", "nodes and edges for Graphviz"),
    "graphml": Format("graphml", "a graph for Gephi, Cytoscape, yEd and networkx", named=()),
    "gexf": Format("gexf", "a graph for Gephi, with its nodes in layers", named=()),
    "csv": Format("csv", "a line per edge: source, target, label, input, weight, score, change", named=()),
    "node-link": Format("node-link.json", "a graph for D3 and networkx", named=()),
    "eap-ig": Format("eap-ig.json", "a graph for EAP-IG and MIB, with the scores of all edges if they exist", named=()),
    "parameters": Format(
        "parameters.json", "the model's parameters that the circuit's components are made of", named=("model",)
    ),
    "circuit": Format("circuit.json", "the circuit as `acdc run` writes it"),
}

# The largest numbers that options take: more would be a slip, and run for days.
LIMITS = dict.fromkeys(("examples", "part", "batch", "updates"), 100_000) | {"edges": 1_000_000_000, "steps": 10_000}
LIMITS |= dict.fromkeys(("reruns", "workers", "threads", "features"), 1_000)
DTYPES = ("float32", "float64")
COARSE = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # dtypes that are refused: their precision
DEVICES = ("auto", "cpu", "cuda", "mps")
NAMES: dict[str, tuple[str, ...]] = {
    "metric": tuple(METRICS),
    "ablation": tuple(ABLATIONS),
    "order": tuple(ORDERS),
    "dtype": DTYPES,
}


def refusal(key: str, value: str) -> str:
    """The message for a value that is not among a key's `NAMES`."""
    if key == "dtype" and value in COARSE:
        return (
            f"{value} can't tell apart changes of the metric below about {10 * COARSE[value]:.1g} (its precision times "
            "logits of about 10), and thresholds are as small; use float32 or float64, however the weights are stored"
        )
    return unknown(key, value, NAMES[key])


def parse_features(text: str) -> tuple[str, int | None]:
    """Return what MLPs are split into, and how many features of each MLP become nodes, None for all, of `--features
    neurons:N` or `DIR:N`; raise ValueError for another form."""
    name, _, number = text.rpartition(":")
    if not name or not (number == "all" or (number.isdecimal() and int(number) <= LIMITS["features"])):
        raise ValueError(f"is {text!r}; write neurons:N, or DIR:N for transcoders, with a number or all, as neurons:20")
    return name, None if number == "all" else int(number)


def parse_filter(text: str) -> tuple[str, float]:
    """Return method and share of `--prefilter METHOD:SHARE`; raise ValueError for another form or unknown method."""
    name, _, share = text.partition(":")
    if name not in METHODS or name == "acdc":
        raise ValueError("is " + repr(text) + "; " + unknown("method", name, set(METHODS) - {"acdc"}))
    try:
        value = float(share)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise ValueError(f"is {text!r}; write METHOD:SHARE with a share above 0 and up to 1, as eap-ig:0.05")
    return name, value


def check_method(name: str, metric: str, ablation: str, metrics: Sequence[str] = tuple(METRICS)) -> None:
    """Raise UserError if a method can't work with a metric, one of the task's `metrics`, or an ablation."""
    if METHODS[name].slope and METRICS[metric].flat:
        first, *more = [other for other in metrics if not METRICS[other].flat] or [""]
        others = f" (or {', '.join(more)})" if more else ""
        instead = f"use --metric {first}{others} with --edges N, or eap-ig" if first else "use eap-ig"
        raise UserError(
            f"--metric {metric}: its gradient at the full model is zero, {name} can't rank edges by it; {instead}",
            "metric",
        )
    if METHODS[name].paired and ablation != "corrupted":
        raise UserError(
            f"--ablation {ablation}: {name} goes from the corrupted to the clean inputs and needs corrupted prompts; "
            "use --ablation corrupted, or --method eap-ig-activations",
            "ablation",
        )

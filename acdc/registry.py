"""What can be chosen by name: metrics, methods, ablations, orders, and which of them go together."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

from acdc.errors import UserError, unknown

METRICS = ("kl", "logit-diff", "prob-diff", "nll", "l2")
FLAT = ("kl", "l2")  # metrics that are smallest at the full model


class Method(NamedTuple):
    """What a method does, and what can be known of it without running it.

    Args:
        options: those that it has beside those of every run
        threshold: where it comes from if none is given: a number, "task" (scores are in the metric's units), or None
            (the user has to choose)
        slope: whether it needs the metric's gradient at the full model, which kl and l2 don't have
        paired: whether it needs corrupted prompts
    """

    what: str
    options: tuple[str, ...]
    threshold: float | Literal["task"] | None = "task"
    slope: bool = False
    paired: bool = False

    @property
    def bound(self) -> str:
        """The default threshold in words."""
        if self.threshold is None:
            return "none: give --edges or --threshold"
        return "the task's, in the metric's units" if self.threshold == "task" else f"{self.threshold}, of 0 to 1"


SELECT = ("threshold", "edges", "greedy", "abs", "direct")
METHODS = {
    "acdc": Method(
        "remove every edge whose removal raises the metric by less than a threshold (Conmy et al. 2023)",
        ("threshold", "abs", "direct", "order", "batch", "prefilter"),
    ),
    "eap": Method("gradient × difference at the clean run, for every edge (Syed et al. 2023)", SELECT, slope=True),
    "eap-ig": Method(
        "the same, with the gradient's mean over inputs from corrupted to clean (Hanna et al. 2024)",
        (*SELECT, "steps"),
        paired=True,
    ),
    "eap-ig-activations": Method(
        "the same, with each layer's output in turn going from ablated to clean (Hanna et al. 2024)",
        (*SELECT, "steps"),
    ),
    "eap-ig-clean-corrupted": Method(
        "the same, with the clean and the corrupted run (Hanna et al. 2024)", SELECT, paired=True
    ),
    "edge-patching": Method("the exact effect of removing each edge alone from the full model", SELECT),
    "hisp": Method(
        "gradient × difference of every head and MLP, per layer (Michel et al. 2019)", SELECT, None, slope=True
    ),
    "causal-mediation": Method("the exact effect of each head and MLP alone (Vig et al. 2020)", SELECT),
    "subnetwork-probing": Method(
        "a trained gate for every head and MLP, as few open as can be (Cao et al. 2021)",
        (*SELECT, "updates", "penalty"),
        0.5,
    ),
    "edge-pruning": Method(
        "a trained gate for every edge, a given share of them closed (Bhaskar et al. 2024)",
        (*SELECT, "updates", "sparsity"),
        0.5,
    ),
    "diffmask": Method(
        "the fewest heads and MLPs whose corrupted outputs give the corrupted prediction (Chintam et al. 2023)",
        (*SELECT, "updates"),
        0.5,
    ),
    "random": Method("a random number for every edge: the baseline", SELECT, None),
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
DTYPES = ("float32", "float64")
COARSE = {"float16": 2.0**-10, "bfloat16": 2.0**-7}  # dtypes that are refused, and their precision
DEVICES = ("auto", "cpu", "cuda", "mps")
NAMES: dict[str, tuple[str, ...]] = {
    "metric": METRICS,
    "ablation": tuple(ABLATIONS),
    "order": tuple(ORDERS),
    "dtype": DTYPES,
}


def refusal(key: str, value: str) -> str:
    """The message for a value that is none of a key's `NAMES`."""
    if key == "dtype" and value in COARSE:
        return (
            f"{value} can't tell apart changes of the metric below about {10 * COARSE[value]:.1g} (its precision times "
            "logits of about 10), and thresholds are as small; use float32 or float64, however the weights are stored"
        )
    return unknown(key, value, NAMES[key])


def parse_filter(text: str) -> tuple[str, float]:
    """Method and share of `--prefilter METHOD:SHARE`.

    Raises:
        ValueError: it is no such thing.
    """
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


def check_method(name: str, metric: str, ablation: str) -> None:
    """Whether a method can work with a metric and an ablation.

    Raises:
        UserError: it can't.
    """
    if METHODS[name].slope and metric in FLAT:
        raise UserError(
            f"--metric {metric}: its gradient at the full model is zero, so {name} can't rank edges by it; choose "
            "another one (logit-diff, prob-diff, nll), or --method eap-ig",
            "metric",
        )
    if METHODS[name].paired and ablation != "corrupted":
        raise UserError(
            f"--ablation {ablation}: {name} goes from the corrupted to the clean inputs and needs corrupted prompts; "
            "use --ablation corrupted, or --method eap-ig-activations",
            "ablation",
        )

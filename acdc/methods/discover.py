"""From a config to a circuit; the one place that calls every method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from acdc.errors import UserError
from acdc.graph.circuit import Circuit
from acdc.graph.scores import Scores, read_scores, write_scores
from acdc.io.progress import Show
from acdc.methods import (
    causal_mediation,
    diffmask,
    eap,
    eap_ig,
    edge_patching,
    edge_pruning,
    hisp,
    random_scores,
    subnetwork_probing,
)
from acdc.methods.acdc import Options, discover
from acdc.methods.log import Decision, Journal
from acdc.patching.activations import non_finite_advice
from acdc.patching.engine import Engine
from acdc.patching.metrics import resolution
from acdc.patching.offload import PartedEngine
from acdc.registry import parse_filter
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs

SCORES = "scores.safetensors"
CHECKPOINT = "masks.safetensors"
LOG = "log.jsonl"


@dataclass(frozen=True)
class Discovery:
    """The result of a method.

    Args:
        circuit: the circuit with its scores, dead edges included
        decisions: the logged decisions of ACDC
        evaluations: how often ACDC evaluated the metric
    """

    circuit: Circuit
    decisions: tuple[Decision, ...] = ()
    evaluations: int = 0


def find(inputs: Inputs, out: Path, progress: Show) -> Discovery:
    """Run a config's method; an interrupted one resumes from the files that it writes into `out`."""
    config = inputs.config
    if config.method != "acdc":
        scores = scored(inputs, config.method, out, progress)
        return Discovery(scores.circuit(select(config, scores), config.direct))
    allowed = None
    if config.prefilter is not None:
        method, share = parse_filter(config.prefilter)
        allowed = scored(inputs, method, out, progress).best(share)
    return search(inputs, out, progress, allowed)


def search(inputs: Inputs, out: Path, progress: Show, allowed: np.ndarray | None) -> Discovery:
    """Run ACDC, or resume it from its log in `out`.

    Args:
        allowed: Bool[sender receiver], the edges that a filter left; None without a filter
    Raises:
        UserError: the threshold is below the rounding of the metric, or the metric is not finite.
    """
    _check_threshold(inputs)
    with torch.inference_mode():
        engine = make_engine(inputs)
        journal = Journal(out / LOG)
        circuit = discover(engine, options(inputs.config), journal, progress, allowed)
    return Discovery(circuit, tuple(journal.decisions), engine.evaluations)


def _check_threshold(inputs: Inputs) -> None:
    """Raise UserError for a threshold below the rounding of the metric, but for 0, which accepts no rise at all."""
    model = inputs.model.transformer
    config = inputs.config
    with torch.inference_mode():
        least = resolution(model, inputs.parts("discovery").targets)
    if 0 < (config.threshold or 0.0) < least:
        wider = "" if config.dtype == "float64" else "--dtype float64 or "
        raise UserError(
            f"--threshold {config.threshold:g}: is below what {config.dtype} can tell apart (about {least:.1g} here, "
            f"its precision times the size of the logits); use {wider}a larger one"
        )


def scored(inputs: Inputs, method: str, out: Path, progress: Show) -> Scores:
    """A method's scores of all edges, read from their file if it exists; otherwise computed and written there."""
    path = out / SCORES
    known = inputs.scores
    what = _what(inputs.config, method)
    if path.exists():
        known[what] = read_scores(path, inputs.problem("discovery").graph)
    else:
        write_scores(path, computed(inputs, method, out / CHECKPOINT, progress))
    (out / CHECKPOINT).unlink(missing_ok=True)
    return known[what]


def computed(inputs: Inputs, method: str, checkpoint: Path, progress: Show) -> Scores:
    """A method's scores of all edges, computed once for these inputs."""
    known = inputs.scores
    what = _what(inputs.config, method)
    if what not in known:
        known[what] = score(inputs, method, checkpoint, progress)
    return known[what]


def _what(c: Config, method: str) -> tuple[object, ...]:
    """What scores depend on; threshold and number of edges are not part of it."""
    return method, c.metric, c.steps, c.updates, c.penalty, c.sparsity


def score(inputs: Inputs, method: str, checkpoint: Path | None, progress: Show) -> Scores:
    """Run a method that scores all edges.

    Args:
        checkpoint: where a training method keeps its state
    Raises:
        UserError: a score is not finite, or the method can't work with these inputs.
    """
    c = inputs.config
    problem = inputs.problem("discovery")
    steps = c.steps or eap_ig.STEPS

    def trained(module: ModuleType, **own: float | None) -> Scores:
        stated = {k: v for k, v in own.items() if v is not None} | ({"updates": c.updates} if c.updates else {})
        scores: Scores = module.score(problem, **stated, seed=c.seed, checkpoint=checkpoint, progress=progress)
        return scores

    run: dict[str, Callable[[], Scores]] = {
        "eap": lambda: eap.score(problem, progress),
        "eap-ig": lambda: eap_ig.score(problem, "inputs", steps, progress),
        "eap-ig-activations": lambda: eap_ig.score(problem, "activations", steps, progress),
        "eap-ig-clean-corrupted": lambda: eap_ig.score(problem, "clean-corrupted", 2, progress),
        "edge-patching": lambda: edge_patching.score(problem, progress),
        "hisp": lambda: hisp.score(problem, progress),
        "causal-mediation": lambda: causal_mediation.score(problem, progress),
        "subnetwork-probing": lambda: trained(subnetwork_probing, penalty=c.penalty),
        "edge-pruning": lambda: trained(edge_pruning, sparsity=c.sparsity),
        "diffmask": lambda: trained(diffmask),
        "random": lambda: random_scores.score(problem.graph, c.seed),
    }
    with torch.no_grad():
        scores = run[method]()
    if wrong := scores.non_finite():
        raise UserError(f"--method {method}: the score of {wrong} is not finite; {non_finite_advice(problem.model)}")
    return scores


def select(config: Config, scores: Scores) -> np.ndarray:
    """Bool[sender receiver]: the edges that a config keeps."""
    if config.edges is None:
        return scores.above(config.threshold or 0.0, config.abs)
    return (scores.greedy if config.greedy else scores.top)(config.edges, config.abs)


def make_engine(inputs: Inputs) -> Engine | PartedEngine:
    """The engine for a config's metric on the discovery prompts."""
    model = inputs.model.transformer
    name = inputs.config.metric
    parts = inputs.parts("discovery")
    graph = model.config.graph()
    metric = parts.metric(name)
    guess = parts.guess(name)
    if len(parts) == 1:
        return Engine(model, graph, parts[0], metric, guess)
    return PartedEngine(model, graph, parts, metric, guess)


def options(config: Config) -> Options:
    """A config's options of ACDC."""
    return Options(config.threshold or 0.0, config.abs, config.order, config.direct, config.seed, config.batch)

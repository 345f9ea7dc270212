"""From a config to a circuit; the one place that calls every method."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from acdc.errors import UserError
from acdc.graph.circuit import Circuit
from acdc.graph.scores import Scores, read_scores, write_scores
from acdc.io.progress import Plan, Progress, Show
from acdc.methods import (
    causal_mediation,
    diffmask,
    eap,
    eap_ig,
    edge_patching,
    edge_pruning,
    hisp,
    information_flow_routes,
    relp,
    subnetwork_probing,
)
from acdc.methods.acdc import Options, discover
from acdc.methods.elimination import Goal, smallest
from acdc.methods.log import Decision, Journal
from acdc.methods.superset import FEWEST, Ends, metric_of, superset
from acdc.patching.activations import non_finite_advice
from acdc.patching.circuit_engine import CircuitEngine
from acdc.patching.engine import Engine
from acdc.patching.metrics import resolution
from acdc.patching.offload import PartedEngine
from acdc.registry import METHODS, parse_filter
from acdc.setup.config import Config
from acdc.setup.inputs import Inputs

SCORES = "scores.safetensors"
SUPERSET = "superset.safetensors"
CHECKPOINT = "masks.safetensors"
LOG = "log.jsonl"
BY_GRADIENT = 0.6  # shares of the faithfulness that may be lost: so much is lost by ruling out edges by gradients,
BY_ACDC = 0.8  # and so much in all by ACDC, before exact elimination
LOSS = 0.2  # of faithfulness, where a number of edges is asked for,
TRIES = 5  # halved so often at most if ACDC leaves too few
ROOM = 2  # times that number, which exact elimination begins with
MANY = 256  # edges from which on ACDC comes before exact elimination


@dataclass(frozen=True)
class Discovery:
    """The result of a method."""

    circuit: Circuit  # with its scores, dead edges included
    decisions: tuple[Decision, ...] = ()  # of ACDC, logged
    evaluations: int = 0  # how often ACDC evaluated the metric
    changes: Circuit | None = None  # its scores are the rises of the metric when the edges were tested
    path: Circuit | None = None  # its strongest edges are nested circuits of every size
    notes: tuple[str, ...] = ()  # for the user


def find(inputs: Inputs, out: Path, progress: Show) -> Discovery:
    """Run a config's method; an interrupted one resumes from the files that it writes into `out`."""
    config = inputs.config
    if config.method != "acdc":
        scores = scored(inputs, config.method, out, progress)
        if config.edges is None:
            kept = scores.above(config.threshold or 0.0, config.abs)
        else:
            kept = (scores.greedy if config.greedy else scores.top)(config.edges, config.abs)
        return Discovery(scores.circuit(kept, config.direct))
    allowed = None
    if config.prefilter is not None:
        method, share = parse_filter(config.prefilter)
        allowed = scored(inputs, method, out, progress).best(share)
    return (eliminate if config.eliminates else search)(inputs, out, progress, allowed)


def search(inputs: Inputs, out: Path, progress: Show, allowed: np.ndarray | None) -> Discovery:
    """Run ACDC, or resume it from its log in `out`.

    Args:
        allowed: Bool[sender receiver], the edges that a filter left; None without a filter
    Raises:
        UserError: the threshold is below the rounding of the metric, or the metric is not finite.
    """
    check_threshold(inputs)
    c = inputs.config
    journal = Journal(out / LOG)
    options = Options(c.threshold or 0.0, None, c.abs, c.order, c.direct, c.seed, c.batch)
    circuit, evaluations = _acdc(inputs, options, journal, progress, allowed)
    return Discovery(circuit, tuple(journal.decisions), evaluations, changes=circuit)


def _acdc(
    inputs: Inputs, options: Options, journal: Journal, progress: Show, allowed: np.ndarray | None
) -> tuple[Circuit, int]:
    """Run ACDC; returns its circuit, and how often it evaluated the metric."""
    progress(Progress("search", 0, 1))
    model = inputs.model.transformer
    parts = inputs.parts("discovery")
    graph = model.config.graph()
    with torch.inference_mode():
        metric = parts.metric(inputs.config.metric)
        guess = parts.guess(inputs.config.metric)
        engine: Engine | PartedEngine
        if len(parts) == 1:
            engine = Engine(model, graph, parts[0], metric, guess, parts.spans)
        else:
            engine = PartedEngine(model, graph, parts, metric, guess)
        return discover(engine, options, journal, progress, allowed), engine.evaluations


def eliminate(inputs: Inputs, out: Path, progress: Show, allowed: np.ndarray | None) -> Discovery:
    """Find the smallest circuit that is faithful enough, or the best one with so many edges, or resume from the log.

    Args:
        allowed: Bool[sender receiver], the edges that a filter left; None without a filter
    Raises:
        UserError: no circuit of these edges is so faithful, or the metric is not finite.
    """
    c = inputs.config
    problem = inputs.problem("discovery")
    graph = problem.graph
    if allowed is None:
        allowed = problem.candidates
    elif problem.spans:
        allowed = allowed[:, :, None] & problem.candidates
    ends = Ends.of(problem)
    flag = "--edges" if c.faithfulness is None else f"--faithfulness {c.faithfulness:g}"
    if not ends.full < ends.ablated:
        values = f"{c.metric} {ends.ablated:.4g}, full model {ends.full:.4g}"
        raise UserError(f"{flag}: {c.model_name} does {c.task_name} as well with everything ablated ({values})")
    goal = Goal(edges=c.edges) if c.faithfulness is None else Goal(metric=ends.metric(c.faithfulness))
    if c.prefilter and goal.metric is not None and (metric := metric_of(problem, allowed)) > goal.metric:
        reached = f"are {ends.faithfulness(metric):.3g} faithful on the discovery half"
        raise UserError(f"{flag}: the edges that --prefilter {c.prefilter} leaves {reached}; leave more")
    journal = Journal(out / LOG)
    start, evaluations = _superset(inputs, out, ends, journal, progress, allowed)
    progress(Progress("elimination", 0, 1))
    with torch.inference_mode():
        engine = CircuitEngine(problem.model, problem.parts, problem.parts.metric(c.metric), start)
        found = smallest(engine, problem, start, allowed, goal, ends, journal, progress)
    scores = Scores(graph, found.scores, spans=problem.spans)
    write_scores(out / SCORES, scores)
    notes: tuple[str, ...] = ()
    if found.kept.any() and goal.metric is not None:
        what = "edge-spans" if problem.spans else "edges"
        next_best = ends.faithfulness(found.metric + float(np.nanmin(found.effects)))
        notes = (
            f"1-minimal: without any one of its {found.kept.sum():,} {what} the circuit is at most {next_best:.4f} "
            "faithful on the discovery half",
        )
    return Discovery(
        scores.circuit(found.kept, c.direct),
        tuple(journal.decisions),
        evaluations + engine.evaluations,
        changes=replace(problem.circuit(found.kept), scores=found.effects),
        path=scores.circuit(found.scores > 0, c.direct),
        notes=notes,
    )


def _superset(
    inputs: Inputs, out: Path, ends: Ends, journal: Journal, progress: Show, allowed: np.ndarray
) -> tuple[np.ndarray, int]:
    """The edges, or edge-spans, that elimination begins with, and how often ACDC evaluated the metric.

    Gradients rule out edges until the share `BY_GRADIENT` of the faithfulness that may be lost is lost. If many are
    left, ACDC goes on to `BY_ACDC`. For a number of edges, losses are tried until enough edges are left.
    """
    c = inputs.config
    problem = inputs.problem("discovery")
    least = 0 if c.edges is None else ROOM * c.edges
    loss = LOSS if c.faithfulness is None else 1 - c.faithfulness
    worst = ends.metric(1 - BY_GRADIENT * loss)
    start = superset(problem, allowed, max(FEWEST, least), worst, out / SUPERSET, inputs.effects, progress)
    evaluations = 0
    for _ in range(TRIES):
        if start.sum() <= MANY or BY_ACDC * loss <= ends.loss(metric_of(problem, start)):
            break
        options = Options(limit=ends.metric(1 - BY_ACDC * loss))
        circuit, n = _acdc(inputs, options, journal, progress, problem.circuit(start).edges)
        evaluations += n
        if (smaller := circuit.live()).sum() >= least:
            return smaller, evaluations
        loss /= 2
    return start, evaluations


def check_threshold(inputs: Inputs) -> None:
    """Raise UserError for a threshold of acdc below the rounding of the metric, but for 0, which accepts no rise."""
    model = inputs.model.transformer
    config = inputs.config
    if config.method != "acdc":
        return
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
    if path.exists():
        problem = inputs.problem("discovery")
        scores = read_scores(path, problem.graph, problem.spans)
        inputs.scores[_what(inputs.config, method)] = scores
    else:
        scores = computed(inputs, method, out / CHECKPOINT, progress)
        write_scores(path, scores)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return scores


def computed(inputs: Inputs, method: str, checkpoint: Path, progress: Show) -> Scores:
    """A method's scores of all edges, computed once for these inputs; a training method has its state in `checkpoint`.
    Raises UserError if a score is not finite, or the method can't work with these inputs."""
    what = _what(inputs.config, method)
    if what not in inputs.scores:
        inputs.scores[what] = _score(inputs, method, checkpoint, progress)
    return inputs.scores[what]


def _what(c: Config, method: str) -> tuple[object, ...]:
    """What scores of one model and task depend on; threshold and number of edges are not part of it."""
    return method, c.metric, c.ablation, c.examples, c.seed, c.steps, c.updates, c.penalty, c.sparsity


def _score(inputs: Inputs, method: str, checkpoint: Path, progress: Show) -> Scores:
    c = inputs.config
    problem = inputs.problem("discovery")
    stage = "scores" if method == c.method else "filter"

    def show(p: Progress | Plan) -> None:
        progress(p._replace(stage=stage) if isinstance(p, Progress) else p)

    show(Progress(stage, 0, 1))

    def integrated() -> Scores:
        return eap_ig.score(problem, method, c.steps or METHODS[method].repeats, show)

    def trained(module: ModuleType, **own: float | None) -> Scores:
        stated = {key: value for key, value in {**own, "updates": c.updates}.items() if value is not None}
        return module.score(problem, **stated, seed=c.seed, checkpoint=checkpoint, progress=show)

    run: dict[str, Callable[[], Scores]] = {
        "eap": lambda: eap.score(problem, show),
        "eap-ig": integrated,
        "eap-ig-activations": integrated,
        "eap-ig-clean-corrupted": integrated,
        "relp": lambda: relp.score(problem, show),
        "information-flow-routes": lambda: information_flow_routes.score(problem, show),
        "edge-patching": lambda: edge_patching.score(problem, show),
        "hisp": lambda: hisp.score(problem, show),
        "causal-mediation": lambda: causal_mediation.score(problem, show),
        "subnetwork-probing": lambda: trained(subnetwork_probing, penalty=c.penalty),
        "edge-pruning": lambda: trained(edge_pruning, sparsity=c.sparsity),
        "diffmask": lambda: trained(diffmask),
        "random": lambda: Scores.random(problem.graph, c.seed, problem.spans),
    }
    with torch.no_grad():
        scores = run[method]()
    if wrong := scores.non_finite():
        raise UserError(f"--method {method}: the score of {wrong} is not finite; {non_finite_advice(problem.model)}")
    return scores

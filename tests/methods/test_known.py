"""Do the methods find mechanisms that are known? `pytest tests/methods/test_known.py -s -k table` prints how well each
ranks the true edges before the others, as the area under the ROC curve (1: all before all others, 0.5: by chance).

Attribution and exact patching of single edges give everything that isn't connected to the output exactly 0, and are
right wherever no true edge has exactly 0. Where they are not:

ACDC misses what another part makes up for at the time: of the two inputs of an OR gate it keeps one. With a metric that
can fall when an edge is removed, as a difference of logits does, it also drops all that works against the answer.
Leaving out one edge at a time (edge-patching) misses both.
Attribution at the clean run (eap) misses what is flat there: the saturated OR gate, the steps that ReLUs are compiled
to, and everything under KL or L2, which are smallest at the clean run. A path that begins elsewhere (eap-ig) sees it.
Methods that score nodes give an edge the score of its weaker end, and can't tell edges between the same nodes apart.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
import pytest
import torch

from acdc.errors import UserError
from acdc.graph.scores import Scores
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
from acdc.patching.engine import Engine
from acdc.patching.gradients import receiver_gradients
from acdc.patching.offload import Parts
from acdc.patching.patch import patched_rows
from acdc.patching.problem import Problem
from tests.support.known import MATTERS, carrying, compiled, effects, known_model, with_neurons
from tests.support.oracle import forward

SEEDS = range(20)
FEW = range(0, 20, 4)  # for methods that take seconds on each
LEAK = 0.05
TAUS = np.geomspace(1e-6, 1.0, 7)
ZERO = 1e-12  # scores below are rounding


def acdc_score(problem: Problem) -> Scores:
    """For every edge the largest threshold of a grid at which ACDC still keeps it; 0 if it never does."""
    (runs,), out = problem.parts, np.where(problem.graph.edges, 0.0, np.nan)
    for tau in TAUS:
        engine = Engine(problem.model, problem.graph, runs, runs.metric(problem.metric, problem.model))
        out[discover(engine, Options(float(tau))).pruned().kept] = tau
    return Scores(problem.graph, out)


class Row(NamedTuple):
    """A method in the table.

    Args:
        score: of a problem
        linear: whether it is given a difference of logits, rather than a distance from the full model
        paired: whether it needs corrupted prompts
        seeds: the made models that it is tried on
        least: what it has to reach: median and least on these, median on those that leak, least on compiled models
    """

    score: Callable[[Problem], Scores]
    linear: bool = True
    paired: bool = False
    seeds: range = SEEDS
    least: tuple[float, float, float, float] = (1.0, 1.0, 0.85, 0.55)


ROWS = {
    "random": Row(lambda p: Scores.random(p.graph, 0), least=(0.4, 0.2, 0.4, 0.3)),
    "hisp": Row(hisp.score, least=(0.7, 0.5, 0.6, 0.4)),
    "causal-mediation": Row(causal_mediation.score, least=(0.7, 0.5, 0.6, 0.4)),
    "causal-mediation, KL": Row(causal_mediation.score, linear=False, least=(0.7, 0.5, 0.6, 0.4)),
    "eap": Row(eap.score),
    "eap-ig": Row(partial(eap_ig.score, method="eap-ig"), paired=True, least=(1.0, 1.0, 0.85, 1.0)),
    "eap-ig, KL": Row(partial(eap_ig.score, method="eap-ig"), linear=False, paired=True, least=(1.0, 1.0, 0.85, 1.0)),
    "eap-ig-activations": Row(
        partial(eap_ig.score, method="eap-ig-activations", steps=2), seeds=FEW, least=(1.0, 1.0, 0.85, 0.85)
    ),
    "eap-ig-clean-corrupted": Row(partial(eap_ig.score, method="eap-ig-clean-corrupted"), paired=True),
    "relp": Row(relp.score),
    "information-flow-routes": Row(information_flow_routes.score, least=(0.7, 0.6, 0.7, 0.45)),
    "edge-patching": Row(edge_patching.score),
    "edge-patching, KL": Row(edge_patching.score, linear=False),
}
LONG = {
    "eap-ig-activations, KL": Row(partial(eap_ig.score, method="eap-ig-activations"), linear=False),
    "acdc": Row(acdc_score, least=(0.8, 0.55, 0.75, 0.75)),
    "acdc, KL": Row(acdc_score, linear=False, least=(0.95, 0.85, 0.85, 0.75)),
    "subnetwork-probing, KL": Row(
        partial(subnetwork_probing.score, updates=150, penalty=0.1), False, seeds=FEW, least=(0.6, 0.4, 0.5, 0.4)
    ),
    "edge-pruning, KL": Row(
        partial(edge_pruning.score, updates=200, sparsity=0.85), False, seeds=FEW, least=(0.6, 0.4, 0.5, 0.4)
    ),
    "diffmask": Row(partial(diffmask.score, updates=150), False, seeds=FEW, least=(0.6, 0.4, 0.5, 0.4)),
}
COLUMNS = ("method", "median", "least", "leaky", "least", "reverse", "corr.", "xprop.", "corr.", "or-gate")
NOTE = f"""Median and least over {len(SEEDS)} made models ({len(FEW)} for trained masks and eap-ig-activations).
leaky: the same models, but all that should carry nothing carries {LEAK:.0%}. reverse, xprop.: compiled by Tracr,
zero ablation; corr.: corrupted prompts, under which fewer edges carry anything. KL: a distance (L2 for
compiled models); else a difference of logits. –: the method needs corrupted prompts."""


def auroc(scores: Scores, true: np.ndarray) -> float:
    """The share of pairs of a true edge and another one in which the true one has the larger |score|; ties half."""
    size = np.abs(scores.edges)
    size[size < ZERO] = 0
    a, b = size[true][:, None], size[scores.graph.edges & ~true]
    return float((a > b).mean() + 0.5 * (a == b).mean())


def on_made(row: Row, leak: float) -> list[float]:
    out = []
    for seed in row.seeds:
        model, prompts, true = known_model(seed, leak=leak)
        problem = Problem(model, Parts(model, prompts, "corrupted"), "logit-diff" if row.linear else "kl")
        out.append(auroc(row.score(problem), true))
    return out


def on_compiled(row: Row, name: str, ablation: str) -> float:
    """NaN where the method needs corrupted prompts and there are none."""
    if row.paired and ablation != "corrupted":
        return float("nan")
    model, prompts, true = compiled(name)
    if name != "or-gate" and ablation == "corrupted":
        true = carrying(model, prompts, true, name)
    problem = Problem(model, Parts(model, prompts, ablation), "logit-diff" if row.linear else "l2")
    return auroc(row.score(problem), true)


@pytest.fixture(scope="module")
def table():
    """Rows of cells; printed when all methods are done."""
    rows = [list(COLUMNS)]
    yield rows
    width = [max(len(row[i]) for row in rows if i < len(row)) for i in range(len(COLUMNS))]
    print("", *("  ".join(map(str.ljust, row, width)).rstrip() for row in rows), NOTE, sep="\n")


@pytest.mark.parametrize("name", [*ROWS, *(pytest.param(name, marks=pytest.mark.slow) for name in LONG)])
def test_table(table, name):
    row = (ROWS | LONG)[name]
    with torch.no_grad():
        tight, leaky = on_made(row, 0.0), on_made(row, LEAK)
        places = [(p, a) for p in ("tracr-reverse", "tracr-xproportion") for a in ("zero", "corrupted")]
        others = [on_compiled(row, *at) for at in (*places, ("or-gate", "corrupted"))]
    cells = [np.median(tight), min(tight), np.median(leaky), min(leaky), *others]
    table.append([name, *("–" if np.isnan(x) else f"{x:.2f}" for x in cells)])
    assert np.median(tight) >= row.least[0]
    assert min(tight) >= row.least[1]
    assert np.median(leaky) >= row.least[2]
    assert np.nanmin(others) >= row.least[3]


def names(graph, kept: np.ndarray) -> set[str]:
    return {graph.edge_name(s, r) for s, r in np.argwhere(kept)}


@pytest.mark.parametrize("seed", SEEDS)
def test_true_edges_are_enough_and_each_matters(seed):
    model, prompts, true = known_model(seed)
    (runs,), graph = Parts(model, prompts, "corrupted"), model.config.graph()
    assert (graph.n_layers, graph.n_heads) == (2 + seed % 3, 2 + seed // 3 % 3)
    rows = [patched_rows(model, graph, runs, torch.tensor(edges).to(model.dtype)) for edges in (graph.edges, true)]
    clean, circuit = (model.logits(x) for x in rows)
    assert (clean - circuit).abs().max() < 1e-12
    assert effects(model, prompts, true)[true].min() > MATTERS


@pytest.mark.parametrize(
    "seed", [seed if seed in (0, 18) else pytest.param(seed, marks=pytest.mark.slow) for seed in SEEDS]
)
def test_other_edges_carry_exactly_nothing(seed):
    model, prompts, true = known_model(seed)
    graph = model.config.graph()
    assert not effects(model, prompts, graph.edges & ~true).any()


@pytest.mark.parametrize("seed", [0, 3])
def test_the_naive_forward_pass_says_the_same_of_every_edge(seed):
    model, prompts, true = known_model(seed)
    graph, pad = model.config.graph(), torch.as_tensor(prompts.pad)
    clean, corrupted = (torch.as_tensor(x) for x in (prompts.clean, prompts.corrupted))
    ablated, _ = forward(model, graph, corrupted, pad, None, set())
    every, at = names(graph, graph.edges), tuple(torch.as_tensor(prompts.rows).T)

    def logits(kept: set[str]) -> torch.Tensor:
        return model.logits(forward(model, graph, clean, pad, ablated, kept)[1][at])

    whole = logits(every)
    for s, r in np.argwhere(graph.edges):
        change = (logits(every - {graph.edge_name(s, r)}) - whole).abs().max()
        assert change > MATTERS if true[s, r] else change < 1e-12


@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-xproportion", "or-gate"])
@pytest.mark.parametrize("ablation", ["zero", "corrupted"])
def test_true_edges_of_compiled_models_are_enough(name, ablation):
    """And none can be left out: without it, and those that are not true, the output is another one."""
    model, prompts, true = compiled(name)
    if ablation == "corrupted":
        true = carrying(model, prompts, true, name)
    (runs,), graph = Parts(model, prompts, ablation), model.config.graph()

    def change(kept: np.ndarray) -> float:
        rows = patched_rows(model, graph, runs, torch.tensor(kept).to(model.dtype))
        return float((model.logits(rows) - model.logits(runs.targets.clean)).abs().max())

    assert change(true) < 1e-6
    for s, r in np.argwhere(true):
        less = true.copy()
        less[s, r] = False
        redundant = name == "or-gate" and graph.edge_name(s, r) != "m0->logits"
        assert change(less) == 0 if redundant else change(less) > 0.1


@pytest.mark.parametrize("ablation", ["zero", "corrupted"])
@pytest.mark.parametrize("name", ["tracr-reverse", "tracr-xproportion", "or-gate"])
def test_edges_of_neurons_are_those_of_the_program(name, ablation):
    """ACDC keeps no edge of a neuron that the weights rule out, and enough of the others for the same output; in
    xproportion, which needs every one, all that matter."""
    model, prompts, true = with_neurons(name)
    (runs,), graph = Parts(model, prompts, ablation), model.config.graph()

    def change(kept: np.ndarray) -> float:
        rows = patched_rows(model, graph, runs, torch.tensor(kept).to(model.dtype))
        return float((model.logits(rows) - model.logits(runs.targets.clean)).abs().max())

    engine = Engine(model, graph, runs, runs.metric("l2", model))
    found = discover(engine, Options(1e-9, direct=False)).pruned().kept
    neurons = np.array([".n" in s.name for s in graph.senders])
    assert not (found & ~true).any() and (ablation == "corrupted" or found[neurons].any())
    assert change(true) < 1e-9 and change(found) < 1e-5
    if name == "tracr-xproportion":
        for s, r in np.argwhere(true):
            less = true.copy()
            less[s, r] = False
            assert (change(less) > 1e-6) == found[s, r]


def test_auroc():
    model, _, true = compiled("or-gate")
    graph = model.config.graph()
    edges = np.where(graph.edges, 0.0, np.nan)
    at, other = np.argwhere(true), np.argwhere(graph.edges & ~true)
    edges[tuple(at[0])], edges[tuple(at[1])], edges[tuple(other[0])] = -2, 1, 1
    n = len(other)  # 5 true ones: 2, 1 and three 0; n others: 1 and n − 1 times 0
    expected = (n + (n - 1 + 0.5) + 3 * 0.5 * (n - 1)) / (5 * n)
    assert auroc(Scores(graph, edges), true) == pytest.approx(expected)


# --- where methods fail ----------------------------------------------------------------------------------------------


def scored(name: str, score: Callable[[Problem], Scores], ablation: str, metric: str) -> dict[str, float]:
    """|Score| of the true edges of a compiled model."""
    model, prompts, true = compiled(name)
    problem = Problem(model, Parts(model, prompts, ablation), metric)
    scores = score(problem)
    return {problem.graph.edge_name(s, r): abs(float(scores.edges[s, r])) for s, r in np.argwhere(true)}


HALVES = [{f"input->a0.h{h}<v>", f"a0.h{h}->m0"} for h in (0, 1)]


def test_acdc_keeps_one_input_of_an_or_gate():
    kept = {edge for edge, size in scored("or-gate", acdc_score, "zero", "l2").items() if size}
    assert kept == HALVES[0] | {"m0->logits"}


def test_acdc_drops_what_works_against_the_answer():
    """Without a norm, a difference of two logits is a sum over the edges into the logits."""
    against = 0
    for seed in FEW:
        model, prompts, true = known_model(seed)
        for answers in (prompts, replace(prompts, correct=prompts.wrong, wrong=prompts.correct)):
            problem = Problem(model, Parts(model, answers, "corrupted"), "logit-diff")
            (runs,), exact = problem.parts, edge_patching.score(problem).edges[:, -1]
            engine = Engine(model, problem.graph, runs, runs.metric("logit-diff", model))
            assert (discover(engine, Options(ZERO)).kept[:, -1] == (true[:, -1] & (exact > 0))).all()
            against += (exact < -MATTERS).sum()
    assert against >= len(FEW)


@pytest.mark.parametrize("metric", ["logit-diff", "l2"])
def test_patching_single_edges_misses_both_inputs_of_an_or_gate(metric):
    found = {edge for edge, size in scored("or-gate", edge_patching.score, "zero", metric).items() if size > ZERO}
    assert found == {"m0->logits"}


def test_attribution_misses_a_saturated_or_gate_and_a_path_from_elsewhere_does_not():
    found = {
        name: {edge for edge, size in scored("or-gate", score, "corrupted", "logit-diff").items() if size > ZERO}
        for name, score in (
            ("eap", eap.score),
            ("relp", relp.score),
            ("eap-ig", partial(eap_ig.score, method="eap-ig")),
        )
    }
    flat = {"m0->logits"}
    assert found == {"eap": flat, "relp": flat, "eap-ig": HALVES[0] | HALVES[1] | flat}


def test_attribution_misses_steps_of_relu():
    """Tracr compiles a function of a variable to steps, flat on both sides."""
    exact, found = (scored("tracr-reverse", f, "zero", "logit-diff") for f in (edge_patching.score, eap.score))
    assert min(exact.values()) > 1e-3
    assert {edge for edge, size in found.items() if size < ZERO} == {"tok->a0.h0<v>", "a0.h0->m0"}


@pytest.mark.parametrize("metric", ["kl", "l2"])
def test_a_distance_from_the_clean_run_has_no_gradient_there(metric):
    model, prompts, true = known_model(0)
    problem = Problem(model, Parts(model, prompts, "corrupted"), metric)
    (runs,) = problem.parts
    assert edge_patching.score(problem).edges[true].min() > 1e-6
    gradients = receiver_gradients(model, runs, runs.clean, runs.residual, runs.metric(metric, model))
    assert max(float(g.inputs.abs().max()) for g in gradients) < ZERO
    with pytest.raises(UserError, match="gradient at the full model is zero"):
        eap.score(problem)

"""Circuits by span: the decisions, effects and scores of a whole masked pass for each edge-span, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from acdc.graph.circuit import Circuit
from acdc.methods import eap, eap_ig, edge_patching
from acdc.methods.acdc import Options, discover
from acdc.methods.elimination import Goal, smallest
from acdc.methods.log import Journal
from acdc.methods.superset import Ends, superset
from acdc.patching.circuit_engine import CircuitEngine
from acdc.patching.engine import Engine
from acdc.patching.offload import PartedEngine, Parts
from acdc.patching.patch import PatchedModel, circuit_edges, patched_rows
from acdc.patching.problem import Problem
from acdc.task.tokenize import Split
from tests.recipes import compile_tracr
from tests.support.equivalence import compare
from tests.support.known import compiled
from tests.support.oracle import Naive
from tests.support.random_models import JOINT_HEAD_NORM, random_model, random_prompts

FAMILIES = (
    {},
    {"norm": "none", "d_mlp": 0},
    {"parallel": True, "norm": "layer"},
    {"norm": "rms", "gated": True, "activation": "silu", "rotary": 4},
    {"split_position": True, "causal": False},
)


@settings(max_examples=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 2),
    family=st.sampled_from((*FAMILIES, JOINT_HEAD_NORM)),
    metric=st.sampled_from(["kl", "logit-diff", "nll"]),
    ablation=st.sampled_from(["corrupted", "zero", "mean"]),
    threshold=st.sampled_from([1e-4, 1e-3, 1e-2, 0.1]),
    direct=st.booleans(),
    batch=st.sampled_from([1, 7, 64]),
    n_spans=st.integers(1, 4),
    scored=st.sampled_from(["last", "two", "all"]),
    pad=st.booleans(),
    magnitude=st.booleans(),
)
def test_same_edge_spans_as_the_naive_algorithm(
    seed, layers, family, metric, ablation, threshold, direct, batch, n_spans, scored, pad, magnitude
):
    model = random_model(seed, n_layers=layers, **family)
    prompts = random_prompts(seed, model, scored=scored, pad=pad, n_spans=n_spans)
    try:
        compare(model, prompts, metric, ablation, threshold, direct, batch, magnitude)
    except pytest.skip.Exception:  # this model only, not the whole test
        reject()


class Case:
    """A random model and prompts with three spans, as the code and as the oracle have them."""

    spans = ("a", "b", "c")

    def __init__(self, seed, metric="kl", **prompts):
        self.ablation = ("corrupted", "zero", "mean")[seed % 3]
        self.model = random_model(seed, **FAMILIES[seed % len(FAMILIES)])
        self.graph = self.model.config.graph()
        self.prompts = random_prompts(seed, self.model, pad=seed % 2 == 1, n_spans=3, **prompts)
        self.problem = Problem(self.model, Parts(self.model, self.prompts, self.ablation, None, self.spans), metric)
        self.naive = Naive(self.model, self.prompts, metric, self.ablation, self.spans)
        self.draw = np.random.default_rng(seed)

    def names(self, kept):
        return {self.graph.part_name(part, self.spans) for part in np.argwhere(kept)}

    def circuit(self, share):
        """A random one, Bool[sender receiver span], without dead edges."""
        kept = self.problem.candidates & (self.draw.random(self.problem.candidates.shape) < share)
        return self.problem.circuit(kept).live()

    def metric(self, kept):
        return self.naive.metric(self.names(kept))


@pytest.mark.parametrize("seed", range(10))
def test_a_circuit_is_run_by_span(seed):
    case = Case(seed, scored="two")
    cache = case.problem.parts[0]
    for share in (0.3, 0.6, 0.9, 1.0):
        kept = case.circuit(share)
        rows = patched_rows(case.model, case.graph, cache, circuit_edges(case.problem.circuit(kept), case.model))
        assert float(case.problem.parts.metric("kl")(rows).mean()) == pytest.approx(case.metric(kept), abs=1e-10)


def test_a_span_where_nothing_changes_is_as_good_as_kept():
    """Here clean and corrupted prompts are equal in the first span: no engine has values of it."""
    case = Case(0, first=2)
    case.prompts.spans[:] = [0, 0, 1, 2, 2]
    case.problem = Problem(case.model, Parts(case.model, case.prompts, case.ablation, None, case.spans), "kl")
    kept = case.circuit(0.7)
    rows = patched_rows(
        case.model, case.graph, case.problem.parts[0], circuit_edges(case.problem.circuit(kept), case.model)
    )
    assert float(case.problem.parts.metric("kl")(rows).mean()) == pytest.approx(case.metric(kept), abs=1e-10)
    found = discover(
        Engine(case.model, case.graph, case.problem.parts[0], case.problem.parts.metric("kl"), None, case.spans),
        Options(0.01),
    )
    assert found.kept.any() and not found.kept[..., 0].any()
    assert (eap.score(Problem(case.model, case.problem.parts, "logit-diff")).edges[..., 0][case.graph.edges] == 0).all()


@pytest.mark.parametrize("seed", range(6))
def test_gradients_at_edge_spans_are_those_of_the_oracle(seed):
    """At any weights, in a circuit; and EAP's scores are those at the full model, with a minus sign."""
    case = Case(seed, "logit-diff")
    weights = torch.from_numpy(case.problem.candidates * case.draw.random(case.problem.candidates.shape))
    for w in (weights, torch.from_numpy(case.problem.candidates).double()):
        w.requires_grad_()
        (expected,) = torch.autograd.grad(case.naive.weighted(w), w)
        cache = case.problem.parts[0]
        metric = cache.metric("logit-diff", case.model)
        found = PatchedModel(case.model, cache).edge_gradients(case.graph, w.detach(), metric) / len(case.prompts.clean)
        assert found.numpy() == pytest.approx(expected.numpy(), abs=1e-9)
    scores = eap.score(case.problem)
    edges = case.problem.candidates
    assert scores.spans == case.spans
    assert scores.edges[edges] == pytest.approx(-expected.numpy()[edges], abs=1e-9)


@pytest.mark.parametrize("method", ["eap-ig", "eap-ig-activations", "eap-ig-clean-corrupted"])
def test_scores_by_span_add_up_to_those_of_edges(method):
    case = Case(3)  # corrupted ablation
    whole = Problem(case.model, Parts(case.model, case.prompts, case.ablation), "kl")
    by_span = eap_ig.score(case.problem, method).edges
    assert by_span.sum(-1) == pytest.approx(eap_ig.score(whole, method).edges, abs=1e-9, nan_ok=True)
    assert (np.nan_to_num(by_span) != 0).any((0, 1)).all()


@pytest.mark.parametrize("seed", range(5))
def test_edge_patching_by_span_removes_each_edge_span_alone(seed):
    case = Case(seed)
    found = edge_patching.score(case.problem).edges
    everything = case.problem.candidates
    full = case.metric(everything)
    parts = np.argwhere(everything)
    for part in case.draw.permutation(parts)[:60]:
        fewer = everything.copy()
        fewer[tuple(part)] = False
        assert found[tuple(part)] == pytest.approx(case.metric(fewer) - full, abs=1e-10)
    assert np.isfinite(found[everything]).all() and np.isnan(found[~everything]).all()


@pytest.mark.parametrize("seed", range(10))
def test_the_neighbours_of_a_circuit_by_span(seed):
    """Every edge-span alone removed or added, dead ones not counted; and going on to another circuit."""
    case = Case(seed, scored=("last", "two")[seed % 2])
    parts = case.problem.parts
    with torch.inference_mode():
        engine = CircuitEngine(case.model, parts, parts.metric("kl"), case.problem.candidates)
        for share in (0.8, 0.3, 0.5):
            kept = case.circuit(share)
            assert engine.metric(kept) == pytest.approx(case.metric(kept), abs=1e-10)
            nodes = {*case.problem.circuit(kept).nodes(), *case.graph.inputs}
            flips = [
                tuple(part)
                for part in case.draw.permutation(np.argwhere(case.problem.candidates)).tolist()
                if case.graph.senders[part[0]].name in nodes and case.graph.receivers[part[1]].node in nodes
            ][:40]
            expected = []
            for part in flips:
                flipped = kept.copy()
                flipped[part] ^= True
                expected.append(case.metric(case.problem.circuit(flipped).live()))
            assert engine.values(kept, flips) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("seed", range(4))
def test_what_elimination_finds_by_span_is_minimal(tmp_path, seed):
    case = Case(seed)
    ends = Ends.of(case.problem)
    goal = ends.metric(0.85)
    everything = case.problem.candidates
    start = superset(case.problem, everything, 8, ends.metric(0.95), tmp_path / "left", {}, lambda _: None)
    parts = case.problem.parts
    with torch.inference_mode():
        engine = CircuitEngine(case.model, parts, parts.metric("kl"), start)
        journal = Journal()
        found = smallest(engine, case.problem, start, everything, Goal(metric=goal), ends, journal, lambda _: None)
    assert 0 < found.kept.sum() < start.sum()
    assert case.metric(found.kept) == pytest.approx(found.metric, abs=1e-10) and found.metric <= goal
    for part in map(tuple, np.argwhere(found.kept)):
        fewer = found.kept.copy()
        fewer[part] = False
        value = case.metric(case.problem.circuit(fewer).live())
        assert value > goal
        assert found.effects[part] == pytest.approx(value - found.metric, abs=1e-9)
    assert {d.edge for d in journal.decisions} >= case.names(found.kept)


@pytest.mark.parametrize("seed", range(3))
def test_parts_of_the_prompts_take_the_same_decisions(seed):
    case = Case(seed)
    found = []
    for size in (None, 1):
        parts = Parts(case.model, case.prompts, case.ablation, size, case.spans)
        metric = parts.metric("kl")
        if size is None:
            engine = Engine(case.model, case.graph, parts[0], metric, None, case.spans)
        else:
            engine = PartedEngine(case.model, case.graph, parts, metric, None)
        found.append(discover(engine, Options(0.003)))
    assert found[0].size < case.problem.candidates.sum()
    assert case.names(found[0].kept) == case.names(found[1].kept)


def test_one_span_for_everything_changes_nothing():
    model = random_model(1, n_layers=3)
    logs = []
    for n_spans in (0, 1):
        prompts = random_prompts(1, model, n_spans=n_spans)
        parts = Parts(model, prompts, "corrupted", None, ("all",) * n_spans)
        journal = Journal()
        engine = Engine(model, model.config.graph(), parts[0], parts.metric("kl"), None, parts.spans)
        circuit = discover(engine, Options(0.01), journal)
        logs.append((journal.decisions, circuit.edge_names(), circuit.union().scores[circuit.edges].tolist()))
    assert logs[0] == logs[1]


def test_dead_edge_spans():
    """An MLP and a query move nothing between spans; keys and values may."""
    graph = random_model(0, n_layers=1).config.graph()  # input, two heads, an MLP
    spans = ("early", "late")

    def live(*names):
        kept = np.zeros((*graph.edges.shape, 2), dtype=bool)
        for name in names:
            edge, _, span = name.partition(" @ ")
            kept[(*graph.parse_edge(edge), spans.index(span))] = True
        circuit = Circuit(graph, kept, spans=spans)
        return {graph.part_name(part, spans) for part in np.argwhere(circuit.live())}

    moved = {"input->a0.h0<k> @ early", "a0.h0->logits @ late"}
    assert live(*moved) == moved
    stuck = {"input->a0.h0<q> @ early", "a0.h0->logits @ late"}
    assert live(*stuck) == set()
    through = {"input->a0.h1<v> @ early", "a0.h1->m0 @ late", "m0->logits @ late"}
    assert live(*through, "m0->logits @ early") == through
    more = {*through, "m0->logits @ early", "input->m0 @ early"}
    assert live(*more) == more


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_token_that_a_compiled_reversal_reads(at):
    """Position i of the output is the token at position 4 − i, behind BOS: the head that moves it reads its value
    there, and writes where it is scored."""
    circuit, names = compiled_circuit("tracr-reverse", at)
    graph = circuit.graph
    into_logits = {name for name in names if "->logits" in name}
    (mover,) = {name.split("->")[0] for name in into_logits}
    assert into_logits == {f"{mover}->logits @ p{at}"}
    assert {name for name in names if f"->{mover}<v>" in name} == {f"tok->{mover}<v> @ p{4 - at}"}
    assert {name.split(" @ ")[1] for name in names if f"->{mover}<q>" in name} == {f"p{at}"}
    assert graph.n_layers > 1


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_the_tokens_that_a_compiled_share_counts(at):
    """The share of tokens so far that are x: every token up to there is read, and none behind it."""
    _, names = compiled_circuit("tracr-xproportion", at)
    into_logits = {name for name in names if "->logits" in name}
    (mean,) = {name.split("->")[0] for name in into_logits}
    assert into_logits == {f"{mean}->logits @ p{at}"}
    read = {name.split(" @ ")[1] for name in names if f"->{mean}<v>" in name}
    assert read == {f"p{i}" for i in range(1, at + 1)}


def compiled_circuit(name, at):
    """The edge-spans that ACDC finds in a compiled model which is scored at one position."""
    model, _, _ = compiled(name)
    (tokens,) = (program.ids for program in compile_tracr.PROGRAMS if program.name == name)
    n, n_pos = tokens.shape
    rows = np.array([(i, at) for i in range(n)])
    nothing = np.zeros((n, 0), dtype=np.int64)
    spans = np.tile(np.arange(n_pos), (n, 1))
    prompts = Split(tokens, tokens, np.zeros(n, dtype=np.int64), rows, nothing, nothing, spans=spans)
    parts = Parts(model, prompts, "zero", None, tuple(f"p{i}" for i in range(n_pos)))
    engine = Engine(model, model.config.graph(), parts[0], parts.metric("l2"), None, parts.spans)
    circuit = discover(engine, Options(1e-3)).pruned()
    return circuit, set(circuit.labels())

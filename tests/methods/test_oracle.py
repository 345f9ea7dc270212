"""The incremental engine takes the decisions of the naive algorithm: same edges, same metric, in float64."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from acdc.methods.acdc import Options, discover
from acdc.methods.log import Journal
from acdc.model import transformer
from acdc.patching import metrics
from acdc.patching.activations import prepare
from acdc.patching.engine import Engine
from tests.support.equivalence import TOLERANCE, compare
from tests.support.oracle import Naive, naive_acdc
from tests.support.random_models import random_model, random_prompts


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    heads=st.integers(1, 3),
    mlp=st.booleans(),
    norm=st.sampled_from(["layer", "none"]),
    causal=st.booleans(),
    split=st.booleans(),
    metric=st.sampled_from(["kl", "logit-diff", "prob-diff", "nll", "l2"]),
    ablation=st.sampled_from(["corrupted", "zero", "mean"]),
    threshold=st.sampled_from([1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0]),
    direct=st.booleans(),
    batch=st.sampled_from([1, 2, 7, 64]),
    first=st.integers(0, 4),
    scored=st.sampled_from(["last", "two", "all"]),
    pad=st.booleans(),
    magnitude=st.booleans(),
)
def test_same_edges_as_the_naive_algorithm(
    seed,
    layers,
    heads,
    mlp,
    norm,
    causal,
    split,
    metric,
    ablation,
    threshold,
    direct,
    batch,
    first,
    scored,
    pad,
    magnitude,
):
    model = random_model(
        seed,
        n_layers=layers,
        n_heads=heads,
        d_mlp=12 if mlp else 0,
        norm=norm,
        causal=causal,
        split_position=split,
        activation=["relu", "gelu", "gelu_new"][seed % 3],
    )
    prompts = random_prompts(seed, model, batch=2, first=first, scored=scored, pad=pad)
    try:
        compare(model, prompts, metric, ablation, threshold, direct, batch, magnitude)
    except pytest.skip.Exception:  # this model only, not the whole test
        reject()


@pytest.mark.parametrize("seed", range(4))
def test_operations_as_on_a_gpu_take_the_same_decisions(seed):
    model = random_model(seed, n_layers=3, n_heads=3)
    model.few_launches = True
    compare(model, random_prompts(seed, model, n_pos=6), "kl", "corrupted", 0.02, True, 32)


class Forgetful(Engine):
    """A broken engine: the change of a node is not passed on to the nodes above it."""

    def _downstream(self, changes):
        return []


class Stale(Engine):
    """A broken engine: decisions do not reach the values of the nodes above."""

    def _settle(self):
        super()._settle()
        self.state.deviation.clear()


class Alone(Engine):
    """A broken engine: candidates do not see what their stage has removed before."""

    def _changes(self, removals, every):
        moved, self.state.moved = self.state.moved, {}
        changes = super()._changes(removals, every)
        self.state.moved = moved
        return changes


class Early(Engine):
    """A broken engine: it believes that one more position is the same in both runs."""

    def __init__(self, model, graph, runs, *rest):
        super().__init__(model, graph, dataclasses.replace(runs, start=runs.start + 1), *rest)


@pytest.mark.parametrize("broken", [Forgetful, Stale, Alone, Early])
def test_a_broken_engine_is_caught(broken):
    """The comparison above can fail: each of these engines is told from the right one within a few models."""
    for seed in range(12):
        model = random_model(seed, n_layers=3)
        prompts = random_prompts(seed, model, n_pos=6)
        compare(model, prompts, "kl", "corrupted", 0.02, True, 7)
        try:
            compare(model, prompts, "kl", "corrupted", 0.02, True, 7, engine=broken)
        except AssertionError:
            return
    pytest.fail("not caught")


@pytest.mark.parametrize("order", ["heads-ascending", "parents-ascending", "random"])
@pytest.mark.parametrize("seed", range(4))
def test_batches_do_not_change_decisions_in_any_order(order, seed):
    model = random_model(seed, n_layers=3, n_heads=3)
    prompts = random_prompts(seed, model)
    runs = prepare(model, prompts, "corrupted")
    found = []
    for batch in (1, 3, 64):
        engine = Engine(model, model.config.graph(), runs, runs.metric("kl", model))
        circuit = discover(engine, Options(0.01, order=order, seed=seed, batch=batch))
        found.append((circuit.edge_names(), circuit.direct_names()))
    assert found[0][0]
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("metric", ["kl", "nll", "prob-diff"])
@pytest.mark.parametrize("seed", range(6))
def test_guesses_change_the_work_and_not_the_decisions(monkeypatch, metric, seed):
    """With no guess, the real one, and one that is always wrong: the same decisions, to the last edge."""
    monkeypatch.setattr(metrics, "SAMPLE_VOCABULARY", 0)
    model = random_model(seed, n_layers=3, n_heads=3)
    prompts = random_prompts(seed, model)
    runs = prepare(model, prompts, "corrupted")
    real = metrics.make_guess(metric, model, runs.targets)
    found = []
    for guess in (None, real, lambda rows: -100 * real(rows), lambda rows: 100 * rows.sum((-1, -2))[:, None]):
        engine = Engine(model, model.config.graph(), runs, runs.metric(metric, model), guess)
        journal = Journal()
        discover(engine, Options(0.01), journal)
        found.append([(d.edge, d.kept) for d in journal.decisions])
    assert len(found[0]) > 20
    assert all(f == found[0] for f in found)


@pytest.mark.parametrize("block", [1, 7, 10**6])
@pytest.mark.parametrize("metric", ["kl", "nll", "prob-diff"])
def test_blocks_of_the_vocabulary_do_not_change_decisions(monkeypatch, metric, block):
    model = random_model(1, n_layers=3, vocab_size=23, vocab_out=23)
    prompts = random_prompts(1, model)
    monkeypatch.setattr(transformer, "VOCAB_BLOCK", block)
    compare(model, prompts, metric, "corrupted", 0.01, True, 7)


def test_the_log_carries_the_margin_of_each_decision():
    model = random_model(2, n_layers=3)
    prompts = random_prompts(2, model)
    runs, journal = prepare(model, prompts, "corrupted"), Journal()
    discover(Engine(model, model.config.graph(), runs, runs.metric("kl", model)), Options(0.01), journal)
    *_, margin = naive_acdc(Naive(model, prompts, "kl", "corrupted"), 0.01, True, False)
    assert all(d.kept == (d.margin <= 0) and d.margin == pytest.approx(0.01 - d.change) for d in journal.decisions)
    assert min(abs(d.margin) for d in journal.decisions) == pytest.approx(margin, abs=TOLERANCE)


@pytest.mark.parametrize("direct", [True, False])
@pytest.mark.parametrize("restricted", [True, False])
def test_the_bar_ends_with_every_edge_decided(direct, restricted):
    """Of heads and MLPs, some are read by nothing in the end, and their edges go without a test."""
    model = random_model(1, n_layers=3)
    graph, runs, told = model.config.graph(), prepare(model, random_prompts(1, model), "corrupted"), []
    draw = np.random.default_rng(0)
    allowed = graph.edges & (draw.random(graph.edges.shape) < 0.9) if restricted else None
    engine, journal = Engine(model, graph, runs, runs.metric("kl", model)), Journal()
    circuit = discover(engine, Options(0.05, direct=direct), journal, told.append, allowed)
    total = graph.n_edges_direct if direct else graph.n_edges
    done = [p.done for p in told]
    assert done == sorted(done) and all(p.done <= p.total for p in told)
    assert told[-1].done == pytest.approx(told[-1].total)
    kept = circuit.n_edges + circuit.n_direct
    assert told[-1].note.endswith(f", kept {kept}, left 0, removed {total - kept}")
    last = {d.batch: d for d in journal.decisions}
    first = {d.batch: d for d in reversed(journal.decisions)}
    for p, (batch, d) in zip(told, last.items(), strict=True):
        sender, receiver = first[batch].edge.split("->")
        assert p.note.startswith(f"metric {d.metric:.4g}, {sender if '<' in sender else receiver}, ")


def decided(order, seed=0):
    """All edges of a small model in the order in which they are tested."""
    model = random_model(0, n_heads=4)
    runs, journal = prepare(model, random_prompts(0, model), "corrupted"), Journal()
    engine = Engine(model, model.config.graph(), runs, runs.metric("kl", model))
    discover(engine, Options(-1e9, order=order, seed=seed, direct=False), journal)  # every edge stays
    return [d.edge for d in journal.decisions]


def test_orders_are_what_they_say():
    heads = {1: [f"a1.h{h}" for h in range(4)], 0: [f"a0.h{h}" for h in range(4)]}
    down = [*heads[1][::-1], "m0", *heads[0][::-1], "input"]
    parents = {
        "paper": ["m1", *down],
        "heads-ascending": ["m1", *heads[1], "m0", *heads[0], "input"],
        "parents-ascending": ["input", "m0", *heads[0][::-1], "m1", *heads[1][::-1]],
    }
    for order, senders in parents.items():
        edges = decided(order)
        assert edges[:11] == [f"{s}->logits" for s in senders]
        receivers = list(dict.fromkeys(e.split("->")[1] for e in edges))
        own = (lambda h: h) if order == "heads-ascending" else (lambda h: h[::-1])
        inputs = {layer: [f"{h}<{c}>" for c in "vkq" for h in own(heads[layer])] for layer in heads}
        assert receivers == ["logits", "m1", *inputs[1], "m0", *inputs[0]]


def test_a_random_order_is_drawn_with_the_seed():
    paper, drawn, other = decided("paper"), decided("random", 1), decided("random", 2)
    assert sorted(drawn) == sorted(paper)
    assert drawn == decided("random", 1)
    for which in (slice(0, 11), slice(11, None)):  # parents of the logits; the rest
        assert len({tuple(edges[which]) for edges in (paper, drawn, other)}) == 3
    visited = [tuple(dict.fromkeys(e.split("->")[1] for e in edges)) for edges in (paper, drawn, other)]
    assert len(set(visited)) == 3


def test_the_guess_is_near_the_metric(monkeypatch):
    monkeypatch.setattr(metrics, "SAMPLE_VOCABULARY", 0)
    model = random_model(0, vocab_size=300, vocab_out=300)
    prompts = random_prompts(0, model, batch=40)
    runs = prepare(model, prompts, "corrupted")
    h = runs.targets.clean + 0.1 * torch.randn(5, *runs.targets.clean.shape, dtype=torch.float64)
    exact, guess = (f(h).mean(1) for f in (runs.metric("kl", model), metrics.make_guess("kl", model, runs.targets)))
    assert (exact - guess).abs().max() < 0.35 * exact.mean()
    assert metrics.make_guess("l2", model, runs.targets) is None

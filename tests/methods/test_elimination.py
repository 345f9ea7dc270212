"""Exact elimination: the stated algorithm, the smallest circuits of all, and runs that are cut off."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch

from acdc.graph.circuit import Circuit
from acdc.methods import elimination
from acdc.methods.elimination import SMALL, SMALLEST, Goal, smallest
from acdc.methods.log import Journal
from acdc.methods.superset import Ends, superset
from acdc.patching.circuit_engine import CircuitEngine
from acdc.patching.offload import Parts
from acdc.patching.problem import Problem
from tests.support.known import carrying, compiled
from tests.support.oracle import Naive
from tests.support.random_models import random_model, random_prompts

TOLERANCE = 1e-9


def ignored(_):
    """A progress callback."""


class Search:
    """A model, prompts, and the search for its smallest circuit."""

    def __init__(self, model, prompts, metric="kl", ablation="corrupted"):
        self.graph = model.config.graph()
        self.problem = Problem(model, Parts(model, prompts, ablation), metric)
        self.naive = Naive(model, prompts, metric, ablation)
        self.full, self.ablated = self.naive.metrics(np.stack([self.graph.edges, np.zeros_like(self.graph.edges)]))

    def goal(self, faithfulness, reached=None):
        """The metric of a circuit that is so faithful, relative to one that reaches a metric instead of the full
        model."""
        best = self.full if reached is None else reached
        return self.ablated - faithfulness * (self.ablated - best)

    def smallest(self, goal, allowed=None):
        allowed = self.graph.edges if allowed is None else allowed
        start = Circuit(self.graph, allowed).live()
        parts = self.problem.parts
        self.journal = Journal()
        with torch.inference_mode():
            engine = CircuitEngine(self.problem.model, parts, parts.metric(self.problem.metric), start)
            ends = Ends.of(self.problem)
            assert (ends.full, ends.ablated) == pytest.approx((self.full, self.ablated), abs=TOLERANCE)
            return smallest(engine, self.problem, start, allowed, goal, ends, self.journal, ignored)


# ---------------------------------------------------------------- the stated algorithm


class Twin:
    """The elimination that the module describes, without exchange: plain dicts, and whole passes of the oracle."""

    def __init__(self, search):
        self.search = search
        self.kept, self.metric = search.graph.edges, search.full
        self.effects, self.fresh, self.left_at = {}, set(), {}

    def smallest(self, goal):
        """The circuit at the goal, its metric and the effects of its edges; `left_at` has the way to the empty one."""
        better = self.copy()
        while better is not None:
            self.kept, self.metric, self.effects, self.fresh, self.left_at = better
            minimal = False
            while not minimal:
                before = self.kept
                for _ in self.steps(goal):
                    pass
                self.take([edge for edge in self.edges() if edge not in self.fresh])
                minimal = self.kept is before
            found = self.kept, self.metric, {edge: self.effects[edge] for edge in self.edges()}
            better = None
            for _ in self.steps(np.inf):
                better = self.copy() if self.metric <= goal else better
        return found

    def copy(self):
        return self.kept, self.metric, self.effects.copy(), self.fresh.copy(), self.left_at.copy()

    def edges(self):
        """The edges that are left, the smallest effects first."""
        return sorted(map(tuple, np.argwhere(self.kept).tolist()), key=lambda e: (self.effects.get(e, 0), e))

    def without(self, *edges):
        kept = self.kept.copy()
        for edge in edges:
            kept[edge] = False
        return Circuit(self.search.graph, kept).live()

    def take(self, edges):
        if edges:
            values = self.search.naive.metrics(np.stack([self.without(edge) for edge in edges]))
            self.effects.update(zip(edges, values - self.metric, strict=True))
            self.fresh.update(edges)

    def steps(self, goal):
        """Remove edges while the goal allows, a pause after each time."""
        while self.kept.any():
            self.take([edge for edge in self.edges() if edge not in self.effects])
            while self.edges()[0] not in self.fresh:
                self.take([edge for edge in self.edges()[: elimination.RETAKEN] if edge not in self.fresh])
            if self.metric + self.effects[self.edges()[0]] > goal:
                return
            self.remove(self.block(goal), goal)
            yield

    def small(self):
        return max(SMALL * (self.metric - self.search.full), SMALLEST * (self.search.ablated - self.search.full))

    def block(self, goal):
        """Edges whose effects, all of them fresh, are small together. It must be clear that the goal allows them."""
        edges = self.edges()
        rises = np.cumsum([max(0, self.effects[edge]) for edge in edges])
        n = 1
        while n < len(edges) and edges[n] in self.fresh and rises[n] <= self.small():
            n += 1
        return edges[:n] if self.metric + rises[min(n, len(edges) - 1)] <= goal else edges[:1]

    def remove(self, block, goal):
        """Remove a block, or the first half of it, and so on, if that together is too much."""
        limit = min(goal, self.metric + self.small())
        kept = self.without(*block)
        (metric,) = self.search.naive.metrics(kept[None])
        if len(block) > 1 and metric > limit:
            return self.remove(block[: len(block) // 2], goal)
        for edge in map(tuple, np.argwhere(self.kept & ~kept).tolist()):
            self.left_at[edge] = int(self.kept.sum())
        self.kept, self.metric = kept, metric
        self.fresh.clear()


def sizes_of(scores):
    """Edge → size of the smallest nested circuit that has it."""
    return {edge: round(1 / scores[edge]) for edge in map(tuple, np.argwhere(scores > 0).tolist())}


@pytest.mark.parametrize("seed", range(10))
def test_edges_go_in_the_order_of_the_stated_algorithm(monkeypatch, seed):
    """With few effects taken again, some that are too large to be are found out in the end only."""
    monkeypatch.setattr(elimination, "SCREENED", 0)  # no exchange
    monkeypatch.setattr(elimination, "RETAKEN", (8, 1)[seed % 2])
    sizes = ({}, {"parallel": True}, {"d_mlp": 0, "n_layers": 3}, {"split_position": True}, {"norm": "none"})[seed % 5]
    model = random_model(seed, **sizes)
    search = Search(model, random_prompts(seed, model), "kl", ("corrupted", "mean", "zero")[seed % 3])
    goal = search.goal((0.9, 0.8, 0.6)[seed % 3])
    found = search.smallest(Goal(metric=goal))
    twin = Twin(search)
    kept, metric, effects = twin.smallest(goal)
    assert found.kept.tolist() == kept.tolist()
    assert found.metric == pytest.approx(metric, abs=TOLERANCE)
    assert {edge: float(found.effects[edge]) for edge in effects} == pytest.approx(effects, abs=TOLERANCE)
    assert sizes_of(found.scores) == twin.left_at


# ---------------------------------------------------------------- before it


@pytest.mark.parametrize("seed", range(6))
def test_gradients_rule_out_edges_as_long_as_the_circuit_is_good_enough(tmp_path, seed):
    model = random_model(seed, n_layers=3, parallel=seed % 2 == 1)
    search = Search(model, random_prompts(seed, model, batch=2), "kl", ("corrupted", "zero", "mean")[seed % 3])
    sizes = []
    for worst, fewest in ((search.goal(0.95), 4), (search.goal(0.5), 4), (search.goal(0.5), 40)):
        path = tmp_path / f"{len(sizes)}.safetensors"
        left = superset(search.problem, search.graph.edges, fewest, worst, path, {}, ignored)
        assert (Circuit(search.graph, left).live() == left).all()
        assert search.naive.metrics(left[None]) <= worst + TOLERANCE
        assert superset(search.problem, search.graph.edges, fewest, worst, path, {}, ignored).tolist() == left.tolist()
        sizes.append(int(left.sum()))
    assert sizes[1] <= sizes[0] and sizes[1] < search.graph.n_edges


# ---------------------------------------------------------------- with exchange


@pytest.mark.parametrize("seed", range(6))
def test_what_is_found_is_minimal_and_its_path_nested(monkeypatch, seed):
    model = random_model(seed, n_layers=2 + seed % 2, parallel=seed % 2 == 1, d_mlp=0 if seed == 4 else 12)
    metric = ("kl", "l2")[seed // 2 % 2]
    search = Search(model, random_prompts(seed, model, batch=2), metric, ("corrupted", "zero")[seed % 2])
    goal = search.goal((0.95, 0.8)[seed % 2])
    found = search.smallest(Goal(metric=goal))
    log = np.array([d.metric for d in search.journal.decisions])

    kept = found.kept
    assert search.naive.metrics(kept[None]) == pytest.approx(found.metric, abs=TOLERANCE)
    assert found.metric <= goal
    edges = list(map(tuple, np.argwhere(kept).tolist()))
    fewer = []
    for edge in edges:
        without = kept.copy()
        without[edge] = False
        fewer.append(Circuit(search.graph, without).live())
    values = search.naive.metrics(np.stack(fewer))
    assert min(values) > goal
    assert [found.effects[edge] for edge in edges] == pytest.approx((values - found.metric).tolist(), abs=TOLERANCE)
    assert np.isnan(found.effects[~kept]).all()

    size_of = sizes_of(found.scores)
    assert {edge for edge, size in size_of.items() if size <= kept.sum()} == set(edges)
    for size in set(size_of.values()):
        nested = (found.scores > 0) & (found.scores >= 1 / size)
        assert nested.sum() == size and (Circuit(search.graph, nested).live() == nested).all()
        if size <= len(edges):  # larger ones an exchange may have changed since
            assert np.abs(log - search.naive.metrics(nested[None])).min() < TOLERANCE
    assert search.journal.decisions[-1].metric == pytest.approx(search.ablated, abs=TOLERANCE)

    monkeypatch.setattr(elimination, "SCREENED", 0)
    assert search.smallest(Goal(metric=goal)).kept.sum() >= kept.sum()


def test_nothing_is_the_smallest_circuit_that_is_good_enough():
    """Where everything ablated does better than the model, no edge is needed."""
    model = random_model(5, n_layers=3, parallel=True)
    search = Search(model, random_prompts(5, model, batch=2), "nll", "zero")
    assert search.ablated < search.full
    found = search.smallest(Goal(metric=search.full))
    assert not found.kept.any() and found.metric == pytest.approx(search.ablated, abs=TOLERANCE)
    assert np.isnan(found.effects).all()


# ---------------------------------------------------------------- the smallest circuits of all


def live_ones(graph, edges, below):
    """All subsets of some edges that are smaller than `below` and have no dead edges, from small to large: Bool[subset
    edge]."""
    subsets = np.zeros((1, len(edges)), dtype=bool)
    for size in range(1, min(below, len(edges) + 1)):
        chosen = np.array(list(combinations(range(len(edges)), size)))
        more = np.zeros((len(chosen), len(edges)), dtype=bool)
        np.put_along_axis(more, chosen, True, axis=1)
        subsets = np.concatenate([subsets, more])
    nothing = np.zeros(len(subsets), dtype=bool)
    node = {r: s for s, own in enumerate(graph.own_receivers) for r in own} | {graph.receiver_index["logits"]: "logits"}
    fed = {s: ~nothing for s, sender in enumerate(graph.senders) if sender.kind == "input"}
    used = {"logits": ~nothing}
    for i, (s, r) in sorted(enumerate(edges), key=lambda e: e[1][0]):
        fed[node[r]] = fed.get(node[r], nothing) | (subsets[:, i] & fed.get(s, nothing))
    for i, (s, r) in sorted(enumerate(edges), key=lambda e: -e[1][0]):
        used[s] = used.get(s, nothing) | (subsets[:, i] & used.get(node[r], nothing))
    dead = nothing.copy()
    for i, (s, r) in enumerate(edges):
        dead |= subsets[:, i] & ~(fed.get(s, nothing) & used.get(node[r], nothing))
    return subsets[~dead]


def every(search, allowed, below):
    """The sizes and metrics of all circuits of some edges that are smaller than `below`, in parts from small to
    large."""
    edges = list(map(tuple, np.argwhere(allowed).tolist()))
    subsets = live_ones(search.graph, edges, below)
    for some in np.array_split(subsets, max(1, len(subsets) // 500)):
        circuits = np.zeros((len(some), *allowed.shape), dtype=bool)
        for i, edge in enumerate(edges):
            circuits[(slice(None), *edge)] = some[:, i]
        yield some.sum(1), search.naive.metrics(circuits)


def smallest_of_all(search, allowed, goal, below):
    """The size of the smallest circuit that meets a goal, of all that are smaller than `below`; or that."""
    for sizes, metrics in every(search, allowed, below):
        if (metrics <= goal).any():
            return int(sizes[metrics <= goal].min())
    return below


def strongest(search, n):
    """The edges whose removal alone from the full model does most, without dead ones."""
    edges = np.argwhere(search.graph.edges)
    single = np.repeat(search.graph.edges[None], len(edges), axis=0)
    single[np.arange(len(edges)), edges[:, 0], edges[:, 1]] = False
    harm = search.naive.metrics(single)
    allowed = np.zeros_like(search.graph.edges)
    allowed[tuple(edges[np.argsort(-harm, kind="stable")[:n]].T)] = True
    return Circuit(search.graph, allowed).live()


SMALL_GRAPHS = (
    {"n_layers": 1, "n_heads": 2},
    {"n_layers": 2, "n_heads": 1, "d_mlp": 0},
    {"n_layers": 1, "n_heads": 1, "split_position": True},
    {"n_layers": 1, "n_heads": 3, "d_mlp": 0},
)
LARGER_GRAPHS = (
    {"n_layers": 1, "n_heads": 3},
    {"n_layers": 2, "n_heads": 1},
    {"n_layers": 2, "n_heads": 1, "parallel": True},
    {"n_layers": 1, "n_heads": 2, "split_position": True},
    {"n_layers": 2, "n_heads": 2, "d_mlp": 0},
)


def small(seed, graphs, n):
    """A search, and the edges that it may use."""
    model = random_model(seed, **graphs[seed % len(graphs)])
    search = Search(model, random_prompts(seed, model, batch=2, n_pos=4), "kl", ("corrupted", "mean")[seed % 2])
    return search, strongest(search, n)


def gaps(seeds, graphs, n):
    """How many edges more than the smallest circuit of all has the one that is found."""
    out = []
    for seed in seeds:
        search, allowed = small(seed, graphs, n)
        goal = search.goal(0.8, float(search.naive.metrics(allowed[None])[0]))
        found = int(search.smallest(Goal(metric=goal), allowed).kept.sum())
        best = smallest_of_all(search, allowed, goal, found)
        print(f"seed {seed}: of {allowed.sum()} edges {found} are found, {best} are enough")
        out.append(found - best)
    print(f"{out.count(0)} of {len(out)} are the smallest, the largest has {max(out)} edges more")
    return out


def losses(seeds, graphs, n, most):
    """How much less faithful than the best circuit of so many edges is the one that is found."""
    out = []
    for seed in seeds:
        search, allowed = small(seed, graphs, n)
        found = search.smallest(Goal(edges=most), allowed)
        best = min(metrics.min() for _, metrics in every(search, allowed, most + 1))
        out.append(float(found.metric - best) / (search.ablated - search.full))
        print(f"seed {seed}: {found.kept.sum()} edges of at most {most}, less faithful by {out[-1]:.3f}")
        assert found.kept.sum() <= most
    best = sum(loss < 1e-6 for loss in out)
    print(f"{best} of {len(out)} are the best; the mean loss of faithfulness is {np.mean(out):.3f}")
    return out, best


def test_most_circuits_found_are_the_smallest_of_all():
    gap = gaps(range(16), SMALL_GRAPHS, 13)
    assert max(gap) <= 1 and gap.count(0) >= 12, gap


def test_most_circuits_of_so_many_edges_are_the_best_of_all():
    losses([37], LARGER_GRAPHS, 18, 6)  # nothing at all is better than the first answer here
    loss, best = losses(range(16), SMALL_GRAPHS, 13, 5)
    assert best >= 8 and np.mean(loss) < 0.05, loss


@pytest.mark.slow
def test_most_circuits_found_are_the_smallest_of_all_in_larger_graphs():
    gap = gaps(range(120), LARGER_GRAPHS, 18)
    assert max(gap) <= 4 and gap.count(0) >= 92, gap


@pytest.mark.slow
def test_most_circuits_of_so_many_edges_are_the_best_of_all_in_larger_graphs():
    loss, best = losses(range(60), LARGER_GRAPHS, 18, 6)
    assert best >= 36 and np.mean(loss) < 0.05, loss


@pytest.mark.parametrize("faithfulness", [0.5, 0.9, 1.0])
@pytest.mark.parametrize("name", ["or-gate", "tracr-reverse", "tracr-xproportion"])
def test_circuits_of_compiled_models_are_of_true_edges(name, faithfulness):
    model, prompts, true = compiled(name)
    search = Search(model, prompts, "l2")
    goal = max(search.goal(faithfulness), search.full + 1e-9)  # the true edges are as good but for rounding
    found = search.smallest(Goal(metric=goal))
    size = int(found.kept.sum())
    assert not (found.kept & ~carrying(model, prompts, true, name)).any()
    assert 0 < size <= true.sum() and search.naive.metrics(found.kept[None]) <= goal
    if search.graph.n_edges < 50:
        assert smallest_of_all(search, search.graph.edges, goal, size) == size

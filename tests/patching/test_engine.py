"""The engine keeps only what can still change; letting go of the rest changes no bit of any decision."""

from __future__ import annotations

import dataclasses
import json

import networkx as nx
import numpy as np
import pytest
import torch

from acdc.methods.acdc import Options, discover
from acdc.methods.log import Journal
from acdc.patching.activations import prepare
from acdc.patching.engine import BATCH_BYTES, Engine
from acdc.patching.offload import PartedEngine, Parts
from tests.support.random_models import POST_NORM, random_model, random_prompts

METRICS = ("kl", "logit-diff", "prob-diff", "nll", "l2")


class Hoarder(Engine):
    """An engine that keeps everything."""

    def _forget(self, stage):
        pass

    def _open(self, senders):
        super()._open(senders)
        self.last_reader = dict.fromkeys(self.last_reader, len(self.graph.senders))


class Watched(Engine):
    """An engine that is looked at whenever a stage begins, and whenever changes are summed up."""

    opened, moved, dropped = frozenset(), frozenset(), 0

    def open(self, receivers):
        super().open(receivers)
        own = {
            self.graph.node_of[r]: self.graph.own_receivers[self.graph.node_of[r]]
            for r in receivers
            if r != self.logits
        }
        self.opened = self.opened | set(receivers) | {r for of in own.values() for r in of}
        changing = _changing(self, set(own))
        assert set(self.state.base) == set(self.state.input) == self.opened & changing
        assert all(changing & set(self.graph.own_receivers[s]) for s in self.state.nodes)
        for sender in self.state.deviation:
            assert changing & set(np.flatnonzero(self.kept[sender]).tolist())
        self.dropped += len(self.opened - changing)

    def commit(self, removals):
        super().commit(removals)
        self.moved = self.moved | self.state.moved.keys()
        assert all(self.state.input[r.receiver] is self.state.base[r.receiver] for r in removals)

    def _received(self, receiver, changes, *rest):
        if receiver != self.logits:
            (block,) = (
                b for b in self.nodes.blocks(range(len(self.graph.senders))) if self.graph.node_of[receiver] in b
            )
            for sender in changes:
                readers = set(np.flatnonzero(self.kept[sender]).tolist()) - {self.logits}
                assert any(self.graph.node_of[r] >= block[0] for r in readers)
        return super()._received(receiver, changes, *rest)


def _changing(engine, stage):
    """Receivers to which a kept path leads from a node of this stage or of one to come, and those nodes' own."""
    graph, paths = engine.graph, nx.DiGraph()
    for s, r in np.argwhere(engine.kept).tolist():
        paths.add_edge(("written", s), ("read", r))
    for s, own in enumerate(graph.own_receivers):
        paths.add_edges_from((("read", r), ("written", s)) for r in own)
    paths.add_nodes_from(("read", r) for r in range(len(graph.receivers)))
    undecided = [s for s, own in enumerate(graph.own_receivers) if own and (s in stage or s not in engine.scored_at)]
    roots = [("read", r) for s in undecided for r in graph.own_receivers[s]]
    roots += [("read", engine.logits)] * (not stage)
    found = set(roots).union(*(nx.descendants(paths, root) for root in roots))
    return {i for kind, i in found if kind == "read"}


def setting(seed, metric, ablation, size=None):
    sizes = {"parallel": seed == 1, "d_mlp": 0 if seed == 2 else 12, "rotary": 4 * (seed == 1)}
    if seed == 3:
        sizes = {**POST_NORM, "windows": (3, 0, 2)}
    model = random_model(seed, torch.float32 if seed == 1 else torch.float64, n_layers=3, n_heads=3, **sizes)
    prompts = random_prompts(seed, model, batch=5, scored=("last", "two", "all", "two")[seed], pad=seed == 0)
    parts = Parts(model, prompts, ablation, size)
    return model, model.config.graph(), parts, parts.metric(metric)


def decisions(engine, threshold):
    journal = Journal()
    circuit = discover(engine, Options(threshold), journal)
    return journal.decisions, circuit.kept.tolist(), circuit.direct.tolist()


@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("seed", range(3))
def test_letting_go_changes_no_bit(seed, metric, ablation):
    model, graph, parts, measure = setting(seed, metric, ablation)
    found = [decisions(kind(model, graph, parts[0], measure), 0.01) for kind in (Engine, Hoarder)]
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", [0, 3])
def test_letting_go_changes_no_bit_of_prompts_in_parts(monkeypatch, seed):
    found = []
    for kind in (Engine, Hoarder):
        monkeypatch.setattr("acdc.patching.offload.Engine", kind)
        model, graph, parts, measure = setting(seed, "kl", "corrupted", 2)
        found.append(decisions(PartedEngine(model, graph, parts, measure, None), 0.01))
    assert found[0] == found[1]


@pytest.mark.parametrize("seed", range(3))
def test_only_what_can_still_change_is_kept(seed):
    model, graph, parts, measure = setting(seed, "kl", "corrupted")
    engine = Watched(model, graph, parts[0], measure)
    kept = np.array(decisions(engine, 0.01)[1]).sum()
    assert kept > 10 and engine.dropped > 3


def test_what_a_node_has_moved_by_goes_with_its_last_reader():
    model = random_model(0, n_layers=6, n_heads=3, scale=0.5)
    parts = Parts(model, random_prompts(0, model), "corrupted")
    engine = Watched(model, model.config.graph(), parts[0], parts.metric("kl"))
    decisions(engine, 0.01)
    assert engine.moved - engine.state.deviation.keys()


@pytest.mark.parametrize("seed", range(4))
def test_decided_again_from_the_log_it_ends_in_the_same_state(seed, tmp_path):
    model, graph, parts, measure = setting(seed, "kl", "corrupted")
    whole, journal = Engine(model, graph, parts[0], measure), Journal()
    circuit = discover(whole, Options(0.01), journal)
    half = journal.decisions[: len(journal.decisions) // 2]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(dataclasses.asdict(d)) + "\n" for d in half))
    again, replayed = Engine(model, graph, parts[0], measure), Journal(tmp_path / "log.jsonl")
    assert replayed.decisions == [d for d in half if d.batch != half[-1].batch]
    assert (discover(again, Options(0.01), replayed).kept == circuit.kept).all()
    assert replayed.decisions == journal.decisions
    ends = [engine.state.tensors() for engine in (whole, again)]
    assert ends[0].keys() == ends[1].keys() and all(torch.equal(x, ends[1][name]) for name, x in ends[0].items())


def test_candidates_at_once_are_bounded_in_bytes():
    at_once = {}
    for dtype in (torch.float32, torch.float64):
        model = random_model(0, dtype=dtype)
        runs = prepare(model, random_prompts(0, model), "corrupted")
        engine = Engine(model, model.config.graph(), runs, runs.metric("kl", model))
        at_once[dtype] = engine.capacity([engine.logits])
        assert at_once[dtype] * engine.state.input[engine.logits].nbytes <= BATCH_BYTES
    assert at_once[torch.float32] == pytest.approx(2 * at_once[torch.float64], abs=1)

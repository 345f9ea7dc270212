"""Why a head attends: what edges add to scores and what patching says of it, against the oracle and brute force."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from acdc.evaluation.faithfulness import prompt_values, values_without
from acdc.evaluation.signals import into_scores, signals
from acdc.files.circuit import read_circuit
from acdc.graph.circuit import Circuit
from acdc.model.checkpoint import open_checkpoint
from acdc.model.load import Model
from acdc.patching.patch import circuit_edges, patched_rows
from acdc.patching.problem import Problem
from acdc.setup.config import resolve
from acdc.setup.inputs import Inputs, load
from acdc.task.tokenize import Data
from tests.support.golden import LIST
from tests.support.oracle import Naive, forward, norm, place
from tests.support.random_models import random_model, random_prompts

FAMILIES = {
    "gpt2": {"norm": "layer"},
    "partly rotated, parallel": {"norm": "layer", "rotary": 2, "parallel": True},
    "qwen": {"norm": "rms", "rotary": 4, "head_norm": True, "gated": True, "activation": "silu"},
    "not causal": {"norm": "none", "causal": False, "split_position": True},
}


def random_inputs(family: str, metric: str = "kl", ablation: str = "corrupted", n_spans: int = 0, **prompts) -> Inputs:
    """A random model and prompts for it, in the place of a task's."""
    model = random_model(3, **FAMILIES[family])
    split = random_prompts(3, model, batch=4, pad=True, n_spans=n_spans, **prompts)
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "ablation": ablation, "dtype": "float64"}, None, None)
    config = config.model_copy(update={"metric": metric})
    spans = tuple(f"s{i}" for i in range(n_spans))
    return Inputs(config, task, Model(open_checkpoint("tiny"), "", model, None), Data(split, split, "", spans))


def random_circuit(inputs: Inputs, share: float = 0.8) -> Circuit:
    """Some edges, among them many into queries and keys."""
    graph = inputs.problem("held_out").graph
    every = graph.edges_at(inputs.data.spans)
    kept = every & (np.random.default_rng(0).random(every.shape) < share)
    return Circuit(graph, kept, spans=inputs.data.spans).pruned()


class Oracle:
    """The terms of one edge and prompt by dense linear algebra: all of Ω, its singular vectors, and autograd."""

    def __init__(self, inputs: Inputs, circuit: Circuit, edge: str) -> None:
        self.model = inputs.model.transformer
        self.naive = Naive(self.model, inputs.data.held_out, inputs.config.metric, inputs.config.ablation)
        self.kept = set(circuit.edge_names())
        self.out, _ = forward(
            self.model, circuit.graph, self.naive.tokens, self.naive.pad, self.naive.ablated, self.kept
        )
        self.edge = edge
        self.sender, to = edge.split("->")
        self.receiver = circuit.graph.receivers[circuit.graph.receiver_index[to]]
        self.x = {c: self.read(f"{self.receiver.node}<{c}>") for c in "qk"}
        self.carried = self.out[self.sender] - self.naive.ablated[self.sender]

    def read(self, receiver: str) -> torch.Tensor:
        """What a receiver reads in the circuit, Float[batch pos d_model]."""
        graph = self.naive.graph
        layer = self.receiver.layer
        parents = graph.senders[: graph.n_parents(self.receiver)]
        x = sum((self.out if f"{s.name}->{receiver}" in self.kept else self.naive.ablated)[s.name] for s in parents)
        return x + sum(self.model.weights[f"layers.{i}.o.bias"] for i in range(layer))

    def weights(self, c: str) -> torch.Tensor:
        """[W; b], Float[d_model+1 d_head]; the mean that a layer norm takes away is read from no direction."""
        at = f"layers.{self.receiver.layer}.{c}."
        w, b = (self.model.weights[at + name][self.receiver.head] for name in ("weight", "bias"))
        if self.model.config.norm == "layer":
            w = w - w.mean(0)
        return torch.cat([w, b[None]])

    def placing(self, c: str, prompt: int) -> torch.Tensor:
        """What `place` does at each position, its norm taken as linear: Float[pos d_head d_head]."""
        h = torch.nn.functional.pad(norm(self.model, self.x[c][prompt]), (0, 1), value=1.0)
        y = h @ self.weights(c)
        eye = torch.eye(y.shape[1], dtype=torch.float64).expand(len(y), -1, -1)
        if self.model.config.head_norm:
            scale = self.model.weights[f"layers.{self.receiver.layer}.{c}.norm"]
            eye = eye * scale / torch.sqrt((y**2).mean(-1) + self.model.config.norm_eps)[:, None, None]
        at = (torch.arange(len(y)) - self.naive.pad[prompt]).clamp(min=0)
        plain = SimpleNamespace(config=replace(self.model.config, head_norm=False), weights=self.model.weights)
        return torch.stack([place(plain, c, 0, rows, t.expand(len(rows))) for rows, t in zip(eye, at, strict=True)])

    def terms(self, prompt: int, i: int, j: int) -> tuple[float, torch.Tensor, torch.Tensor]:
        """The score of query i and key j, what the edge adds by term, and the directions, Float[d_model term]."""
        c = self.receiver.kind
        h = {k: torch.nn.functional.pad(norm(self.model, x[prompt]), (0, 1), value=1.0) for k, x in self.x.items()}
        f = {k: self.placing(k, prompt) for k in "qk"}
        omega = self.weights("q") @ f["q"][i] @ f["k"][j].T @ self.weights("k").T
        u, _, v = torch.linalg.svd(omega)
        side = (u if c == "q" else v.T)[:, : self.model.config.d_head]
        y = {k: (h[k] @ self.weights(k)).requires_grad_() for k in "qk"}
        q, key = (torch.einsum("td,tde->te", y[k], f[k]) for k in "qk")
        scores = q[i] @ key.T
        seen = torch.arange(len(key)) >= self.naive.pad[prompt]
        seen[i + 1 :] &= not self.model.config.causal
        others = scores[seen & (torch.arange(len(key)) != j)]
        (scores[j] - others.logsumexp(0)).backward()
        x = self.x[c][prompt]
        part = self.carried[prompt]
        if self.model.config.norm == "layer":
            part = part - part.mean(-1, keepdim=True)
            x = x - x.mean(-1, keepdim=True)
        if self.model.config.norm != "none":
            part = part / torch.sqrt((x**2).mean(-1, keepdim=True) + self.model.config.norm_eps)
        added = ((part @ side[:-1]) * (y[c].grad @ self.weights(c).T @ side)).sum(0)
        return float(h["q"][i] @ omega @ h["k"][j]), added, side[:-1]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", "qk")
def test_terms_and_patching_are_those_of_dense_algebra(family, kind):
    inputs = random_inputs(family, "logit-diff")
    circuit = random_circuit(inputs)
    part = [part for part in into_scores(circuit) if circuit.graph.receivers[part[1]].kind == kind][-1]
    (found,) = signals(inputs, circuit, [part])
    oracle = Oracle(inputs, circuit, found.edge)
    kept = []
    for prompt, pair in enumerate(found.pairs):
        pad = int(oracle.naive.pad[prompt])
        score, added, directions = oracle.terms(prompt, pair.query + pad, pair.key + pad)
        assert pair.score == pytest.approx(score, abs=1e-9)
        assert sum(pair.terms) == pytest.approx(pair.added, abs=1e-9)
        assert torch.allclose(torch.tensor(pair.terms, dtype=torch.float64), added, rtol=0, atol=1e-9)
        chosen = torch.zeros(len(added), dtype=torch.float64)
        chosen[list(pair.fewest)] = 1
        assert abs(float(added @ chosen)) >= 0.9 * abs(pair.added) - 1e-9
        kept.append(directions * chosen @ torch.linalg.pinv(directions))
    only = torch.stack(kept)
    whole = torch.eye(8, dtype=torch.float64).expand_as(only)
    every = [circuit.graph.edge_name(s, r) for s, r in np.argwhere(circuit.graph.edges)]
    carried = {name: torch.full((1, 1, 1), float(name in oracle.kept)) for name in every}
    circuit_metric, without, by_these, by_others = (
        float(oracle.naive.metric(carried | {found.edge: some})) for some in (whole, 0 * whole, only, whole - only)
    )
    assert found.effect.value == pytest.approx(without - circuit_metric, abs=1e-9)
    assert found.kept.value == pytest.approx((without - by_these) / (without - circuit_metric), abs=1e-6)
    assert found.left.value == pytest.approx((without - by_others) / (without - circuit_metric), abs=1e-6)


@pytest.mark.parametrize("kind", "qk")
def test_the_pair_is_the_one_through_which_the_edge_acts_most(kind, monkeypatch):
    """By brute force: the change of each score, times the change of the metric by a small change of it alone."""
    inputs = random_inputs("gpt2", "nll")
    circuit = Circuit.full(inputs.problem("held_out").graph)
    edge = f"m0->a1.h1<{kind}>"
    (found,) = signals(inputs, circuit, [circuit.graph.parse_edge(edge)])
    model = inputs.model.transformer
    cache = inputs.parts("held_out")[0]
    oracle = Oracle(inputs, circuit, edge)
    scores = []
    for carried in (0, oracle.carried):
        x = {**oracle.x, kind: oracle.x[kind] - carried}
        q, k = (model.project(c, 1, [1], x[c][None], torch.zeros(1))[0] for c in "qk")
        scores.append(q @ k.mT)
    moved = scores[0] - scores[1]
    acts = torch.zeros_like(moved)
    n_pos = moved.shape[1]
    for i, j in np.argwhere(np.tril(np.ones((n_pos, n_pos)))):
        values = []
        for step in (1e-5, -1e-5):
            calls = []

            def attend(q, k, v, mask, calls=calls, step=step, i=i, j=j):
                calls.append(q.shape)
                scores = (q @ k.mT).masked_fill(~mask, -torch.inf)
                if len(calls) == 2 and i >= n_pos - q.shape[-2]:  # layer 1; of a query that is computed
                    scores[1, :, i - n_pos + q.shape[-2], j] += step
                return scores.softmax(-1) @ v

            monkeypatch.setattr(model, "attend", attend)
            rows = patched_rows(model, circuit.graph, cache, circuit_edges(circuit, model))
            values.append(cache.metric("nll", model)(rows))
        acts[:, i, j] = (values[0] - values[1]) / 2e-5 * moved[:, i, j]
    best = acts.abs().flatten(1).argmax(1)
    expected = [(int(b) // n_pos - int(p), int(b) % n_pos - int(p)) for b, p in zip(best, cache.pad, strict=True)]
    assert [(pair.query, pair.key) for pair in found.pairs] == expected
    assert len(set(expected)) > 1


def test_edge_spans_act_at_their_span():
    inputs = random_inputs("gpt2", n_spans=2, n_pos=7)
    circuit = random_circuit(inputs)
    parts = [part for part in into_scores(circuit) if circuit.graph.senders[part[0]].name == "m0"]
    whole = prompt_values(inputs, "held_out", circuit, "kl")
    without = values_without(inputs, "held_out", circuit, parts, "kl")
    split = inputs.data.held_out
    assert {part[2] for part in parts} == {0, 1}
    for part, found, values in zip(parts, signals(inputs, circuit, parts), without, strict=True):
        assert found.edge.endswith(f" @ s{part[2]}")
        assert found.effect.value == pytest.approx((values - whole).mean(), abs=1e-9)
        acts = np.abs(values - whole) > 1e-9  # some prompts lack a span
        assert acts.any()
        for i in np.flatnonzero(acts):
            pair = found.pairs[i]
            at = pair.query if circuit.graph.receivers[part[1]].kind == "q" else pair.key
            assert split.spans[i, split.pad[i] + at] == part[2]


def test_prompts_in_parts_are_the_same_prompts(monkeypatch):
    inputs = random_inputs("qwen")
    circuit = random_circuit(inputs)
    parts = into_scores(circuit)[:2]
    together = signals(inputs, circuit, parts)
    monkeypatch.setattr(Problem, "max_batch", lambda *_: 3)
    for a, b in zip(together, signals(inputs, circuit, parts), strict=True):
        assert a.effect == pytest.approx(b.effect, abs=1e-9)
        assert a.kept.value == pytest.approx(b.kept.value, abs=1e-9)
        for one, other in zip(a.pairs, b.pairs, strict=True):
            assert one.terms == pytest.approx(other.terms, abs=1e-9)


def test_in_tiny_the_second_name_doesnt_attend_to_the_first(tmp_path):
    """By the duplicate-token heads' edges; a handful of directions does it, and as many random ones don't."""
    file = read_circuit(LIST.parent / "golden" / "ioi.json")
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 30}, None, None)
    inputs = load(config, task)
    circuit = file.circuit().pruned()
    for found in signals(inputs, circuit, into_scores(circuit)):
        assert np.mean([len(pair.fewest) for pair in found.pairs]) < 8
        assert found.kept.value > 0.75
        assert max(found.left.value, found.random.value) < 0.35
        assert np.mean([pair.attention for pair in found.pairs]) < np.mean([pair.without for pair in found.pairs]) - 0.3

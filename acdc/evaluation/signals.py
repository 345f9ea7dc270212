"""Why a head attends: what an edge into a query or key adds to the head's scores, and in how few directions.

A softmax ignores what all keys of a query have in common. So what counts is what the edge adds to the score of a pair
less the mean score of the query's other keys, weighted by attention: to first order, to the log-odds of attention. What
it carries over its removal adds to that along the directions of the pair's score (`acdc.model.bilinear`).

All is said of the circuit: what its heads read, and what its metric is when one edge carries some directions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.faithfulness import Array, faithfulness, finite, prompt_values
from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV, Receiver
from acdc.io.progress import Progress, Show, silent
from acdc.model.bilinear import Sides, Terms, fewest, score_terms
from acdc.patching.activations import ActivationCache
from acdc.patching.patch import PatchedModel, circuit_edges
from acdc.patching.problem import Problem
from acdc.setup.inputs import Inputs

DRAWS = 3  # random sets of terms
STAGE = "signals"

LEGEND = {
    "effect": "how much worse the circuit's metric is without the edge, by an exact pass",
    "acts at": "query → key: in each prompt the pair through which the edge acts most, by the change of its score "
    "times the slope of the metric in it; the most frequent pair, and in how many prompts",
    "attention": "of this query to this key in the circuit, and in brackets without the edge; means over prompts",
    "adds": "what the edge adds to the pair's score less the mean score of the query's other keys, weighted by "
    "attention: to first order, to the log-odds of attention",
    "terms": "how few of the score's terms, each of which reads one direction of the stream, make 90 % of that (Franco "
    "and Crovella 2024); mean over prompts, and range. Rotations stand inside the terms, and so does a norm of queries "
    "and keys, by its current scale",
    "kept, left, random": "the share of the effect that is there when the edge carries only the directions of these "
    f"terms, all but these, or as many random ones of the head's (the mean of {DRAWS} draws): 1 is the whole edge",
}

Part = tuple[int, ...]  # an edge, (sender, receiver), or an edge-span, (sender, receiver, span)


@dataclass(frozen=True)
class Pair:
    """The query and the key of one prompt through which an edge acts, and what it adds to their score."""

    query: int  # positions, without padding
    key: int
    attention: float  # of the query to the key
    without: float  # the same without the edge
    score: float  # before the softmax
    added: float  # by the edge, to the score less the mean of the query's other keys
    terms: tuple[float, ...]  # which add up to it, in falling order of σ
    fewest: tuple[int, ...]  # those that make 90 % of it, the largest first


@dataclass(frozen=True)
class Signal:
    """An edge of a circuit into a query or key. A share of its effect is 1 where the metric is the circuit's, 0 where
    it is that without the edge."""

    edge: str
    pairs: tuple[Pair, ...]  # by prompt
    effect: Estimate  # how much worse the metric is without the edge
    kept: Estimate  # the share of the effect if the edge carries only the directions of the fewest terms
    left: Estimate  # if it carries all but these
    random: Estimate  # if it carries as many random ones among the head's, the mean over draws


@dataclass(frozen=True)
class Prompt:
    """A prompt in tokens, without padding."""

    tokens: tuple[str, ...]
    spans: tuple[str, ...]  # the name of each token's span, or its position


@dataclass(frozen=True)
class Signals:
    """Why the heads of a circuit attend where they do."""

    task: str
    model: str
    model_hash: str
    data_hash: str
    metric: str
    ablation: str
    dtype: str
    examples: int
    seed: int
    half: str  # the prompts: held_out, or discovery for a task without held-out prompts
    head_norm: bool  # whether queries and keys have a norm, which is taken by its current scale
    edges: tuple[Signal, ...]  # the largest effect first
    prompts: tuple[Prompt, ...]
    notes: tuple[str, ...]
    legend: dict[str, str] = field(default_factory=LEGEND.copy)


def into_scores(circuit: Circuit) -> list[Part]:
    """The edges of a circuit into queries and keys, those with the highest scores first, if they have any."""
    receivers = circuit.graph.receivers
    parts = [tuple(part) for part in np.argwhere(circuit.kept).tolist() if receivers[part[1]].kind in ("q", "k")]
    scores = np.zeros(circuit.kept.shape) if circuit.scores is None else np.nan_to_num(circuit.scores)
    return sorted(parts, key=lambda part: -abs(scores[part]))


@torch.no_grad()
def signals(inputs: Inputs, circuit: Circuit, parts: Sequence[Part], progress: Show = silent) -> list[Signal]:
    """Explain some of a circuit's edges into queries and keys on the evaluation split. Raises UserError if a value of
    the metric is not finite."""
    problem = inputs.problem(inputs.evaluation_split)
    whole = prompt_values(inputs, inputs.evaluation_split, circuit, inputs.config.metric)
    edges = circuit_edges(circuit, problem.model)
    names = [circuit.graph.part_name(part, circuit.spans) for part in parts]
    pairs: list[list[Pair]] = [[] for _ in parts]
    values: list[list[Tensor]] = [[] for _ in parts]
    done = 0
    for cache in problem.chunks(problem.max_batch(6 * len(circuit.nodes()))):  # three inputs of each, and gradients
        run = _Run(problem, cache, edges)
        for i, part in enumerate(parts):
            found = run.explain(part)
            pairs[i] += found.pairs
            values[i].append(run.check(part, found, np.random.default_rng([inputs.config.seed, done])))
            progress(Progress(STAGE, done + (i + 1) / len(parts) * len(cache.pad), problem.n_prompts, names[i]))
        done += len(cache.pad)
    return [_signal(inputs, *of_edge, whole) for of_edge in zip(names, pairs, values, strict=True)]


def _signal(inputs: Inputs, edge: str, pairs: list[Pair], values: list[Tensor], whole: Array) -> Signal:
    """The results of an edge as estimates; `values` are those of `_Run.check`, some prompts each."""
    half = inputs.evaluation_split
    seed = inputs.config.seed
    what = f"{inputs.config.metric} without some of {edge}"
    without, kept, left, *random = (finite(inputs, half, what, x) for x in torch.cat(values, 1))
    effect = estimate(without - whole, seed=seed)
    shares = (faithfulness(x, whole, without, seed) for x in (kept, left, np.mean(random, 0)))
    return Signal(edge, tuple(pairs), effect, *shares)


@torch.inference_mode(False)
@torch.no_grad()
def pairs_of(problem: Problem, circuit: Circuit, parts: Sequence[Part], n: int) -> dict[str, tuple[Pair, ...]]:
    """What edges into queries and keys add on the first n prompts, without patching: name → pairs."""
    run = _Run(problem, problem.parts[0].examples(slice(0, n)), circuit_edges(circuit, problem.model))
    return {circuit.graph.part_name(part, circuit.spans): tuple(run.explain(part).pairs) for part in parts}


class _Found(NamedTuple):
    """What an edge adds on some prompts."""

    pairs: list[Pair]
    terms: Terms
    chosen: Tensor  # the fewest terms, Bool[batch term]


class _Act(NamedTuple):
    """Where an edge into a head's query or key acts: a pair of positions in each prompt."""

    at: Sides  # the positions, without padding, Int[batch]
    x: Sides  # what is read there, Float[batch d_model]
    added: Tensor  # what the edge adds to its side after the norm, Float[batch pos d_model]
    slope: Tensor  # of the pair's log-odds in its side before it is placed, Float[batch pos d_head]
    attention: Tensor  # Float[batch]
    without: Tensor  # the same without the edge


class _Run:
    """A circuit on some prompts: what its receivers read, what its senders add, and the metric's gradients."""

    def __init__(self, problem: Problem, cache: ActivationCache, edges: Tensor) -> None:
        self.model = problem.model
        self.graph = problem.graph
        self.cache = cache
        self.edges = edges
        self.metric = cache.metric(problem.metric, self.model)
        self.patched = PatchedModel(self.model, cache)
        self.read: dict[int, Tensor] = {}  # receiver → Float[batch live d_model]
        offsets: list[Tensor] = []

        def received(to: Sequence[int], x: Tensor) -> Tensor:
            self.read.update(zip(to, x.detach(), strict=True))
            offsets.append(torch.zeros_like(x, requires_grad=True))
            return x + offsets[-1]

        with torch.enable_grad():
            rows, senders, added = self.patched.run_edges(self.graph, edges, received)
            gradients = torch.autograd.grad(self.metric(rows).sum(), offsets)
        written = torch.cat(added[None]).detach()  # of all senders: norms of a layer's heads are refused
        self.added = dict(zip(senders[None], written, strict=True))  # sender → Float[batch live d_model]
        self.gradients = dict(zip(self.read, torch.cat(gradients), strict=True))  # of the metric at what is read

    def explain(self, part: Part) -> _Found:
        """Take what an edge adds apart, at the pair of each prompt through which it acts most."""
        to = self.graph.receivers[part[1]]
        act = self._act(to, self._carried(part))
        terms = score_terms(self.model, to.layer, to.head, act.x, act.at)
        read = act.added.cpu().double() @ terms.directions[to.kind]
        added = (read * (act.slope.cpu().double() @ terms.heads[to.kind].mT)).sum(1)
        chosen = fewest(added)
        scores = terms.scores.sum(-1).tolist()
        pairs = []
        for i, of in enumerate(added):
            largest = [k for k in of.abs().argsort(descending=True).tolist() if chosen[i, k]]
            place = int(act.at["q"][i]), int(act.at["k"][i])
            attention = float(act.attention[i]), float(act.without[i])
            pairs.append(Pair(*place, *attention, scores[i], float(of.sum()), tuple(of.tolist()), tuple(largest)))
        return _Found(pairs, terms, chosen)

    def check(self, part: Part, found: _Found, draw: np.random.Generator) -> Tensor:
        """The metric without an edge, and when it carries only the fewest directions, all but these, and each of some
        random sets of as many: Float[carried batch]."""
        kind = self.graph.receivers[part[1]].kind
        whole = self._carried(part)
        kept = found.terms.only(kind, found.chosen, whole)
        carried = [torch.zeros_like(whole), kept, whole - kept]
        for _ in range(DRAWS):
            order = torch.as_tensor(draw.random(found.chosen.shape)).argsort(1)
            carried.append(found.terms.only(kind, order < found.chosen.sum(1, keepdim=True), whole))
        return torch.stack([self._without(part[1], whole - some) for some in carried])

    def _carried(self, part: Part) -> Tensor:
        """What an edge adds to what its receiver reads, over its removal: Float[batch live d_model]."""
        sender, _, *span = part
        return self.added[sender] * self._places(*span)

    def _places(self, span: int = 0) -> Tensor:
        """The live positions of a span, or all without spans, as 1 and 0: Float[batch live 1]."""
        if self.edges.ndim == 2 or self.cache.spans is None:
            return self.edges.new_ones(1, 1, 1)
        return self.cache.spans[span, :, self.patched.start :, None].to(self.edges)

    def _without(self, receiver: int, removed: Tensor) -> Tensor:
        """The metric, Float[batch], if something is taken from what a receiver reads, Float[batch live d_model]."""

        def received(to: Sequence[int], x: Tensor) -> Tensor:
            if receiver in to:
                x[list(to).index(receiver)] -= removed
            return x

        return self.metric(self.patched.run_edges(self.graph, self.edges, received)[0])

    def _act(self, receiver: Receiver, carried: Tensor) -> _Act:
        """Find the pair of each prompt through which an edge acts most, by what it carries, Float[batch live d_model]:
        that with the largest product of the change of the score and the metric's slope in it; where it does nothing,
        the last query and the key that it attends to most."""
        model = self.model
        kind = receiver.kind
        layer = receiver.layer
        head = receiver.head
        positions = self.patched.positions
        clean = self.cache.residual[layer][:, : self.patched.start]  # read before the live positions
        none = torch.zeros_like(clean)
        x = {c: torch.cat([clean, self.read[self.graph.receiver_index[f"{receiver.node}<{c}>"]]], 1) for c in QKV}
        added = torch.cat([none, carried], 1)
        q, k, v = (model.project(c, layer, [head], x[c][None], positions)[0] for c in QKV)
        scores, pattern = self._attention(layer, q, k)
        (other,) = model.project(kind, layer, [head], (x[kind] - added)[None], positions)
        changed, without = self._attention(layer, *((other, k) if kind == "q" else (q, other)))
        gradient = torch.cat([none, self._gradient(receiver.node)], 1)
        slope = gradient @ model.weights[f"layers.{layer}.o.weight"][head].T @ v.mT
        slope = pattern * (slope - (pattern * slope).sum(-1, keepdim=True))
        acts = (slope * (scores - changed)).abs()
        n = acts.shape[-1]
        last = n * (n - 1) + pattern[:, -1].argmax(-1)  # in a prompt where the edge does nothing
        best = torch.where(acts.amax((1, 2)) > 0, acts.flatten(1).argmax(1), last)
        prompt = torch.arange(len(best), device=best.device)
        place = {"q": best // n, "k": best % n}
        row = pattern[prompt, place["q"]]
        attention = row[prompt, place["k"]]
        # The log-odds are the pair's score − logsumexp of the others; so much of each is in their derivative.
        row[prompt, place["k"]] = 0
        weights = -row / row.sum(-1, keepdim=True).clamp(min=torch.finfo(row.dtype).tiny)
        weights[prompt, place["k"]] = 1
        odds = torch.zeros_like(q)
        if kind == "q":
            odds[prompt, place["q"]] = (weights[:, None] @ k)[:, 0]
        else:
            odds = weights[:, :, None] * q[prompt, place["q"]][:, None]
        at = f"layers.{layer}.{kind}."
        y = model.normalise(x[kind]) @ model.weights[at + "weight"][head] + model.weights[at + "bias"][head]
        return _Act(
            at={c: positions[prompt, place[c]] for c in "qk"},
            x={c: x[c][prompt, place[c]] for c in "qk"},
            added=model.normalise_part(added, x[kind]),
            slope=model.unplace(kind, layer, odds, y, positions),
            attention=attention,
            without=without.flatten(1)[prompt, best],
        )

    def _attention(self, layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """A head's scores and pattern, Float[batch query key]."""
        return q @ k.mT, self.model.pattern(q, k, self.model.window(layer, self.cache.mask))

    def _gradient(self, node: str) -> Tensor:
        """The metric's gradient at what a node writes, through its edges: Float[batch live d_model]."""
        total = torch.zeros_like(next(iter(self.gradients.values())))
        for receiver, gradient in self.gradients.items():
            weights = self.edges[self.graph.sender_index[node], receiver].reshape(-1)
            for span in weights.nonzero()[:, 0].tolist():
                total += gradient * self._places(span)
        return total

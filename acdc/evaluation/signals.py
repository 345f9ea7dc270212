"""Why a head attends: what an edge into a query or key adds to the head's scores, in few directions.

The score of a head between query i and key j is bilinear in what it reads there, x after its norm: [x_i; 1] Ω [x_j; 1]
with Ω = [W_Q; b_Q] [W_K; b_K]ᵀ of rank d_head, so it has as many terms, Σ_k σ_k ([x_i; 1]·u_k) ([x_j; 1]·v_k) (Franco and
Crovella 2024, arXiv 2410.00340). Rotations stand inside Ω, which depends on i − j then; so does a norm of queries and
keys, by its current scale. An edge adds to a term of its query what it carries over its removal, w, times the rest:
(w·u_k) σ_k ([x_j; 1]·v_k), with w divided by what the norm divides by.

All of it is said of the circuit: what its heads read, and its metric when one edge carries some directions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.faithfulness import faithfulness
from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV, Receiver
from acdc.io.progress import Progress, Show, silent
from acdc.model.transformer import Transformer
from acdc.patching.activations import ActivationCache
from acdc.patching.patch import PatchedModel, circuit_edges
from acdc.patching.problem import Problem

SHARE = 0.9  # of what an edge adds to a score, which the fewest terms make
DRAWS = 3  # random sets of terms
STAGE = "signals"

Sides = dict[str, Tensor]  # of the query, "q", and of the key, "k"


@dataclass(frozen=True)
class Pair:
    """The query and the key of one prompt through which an edge acts, and what it adds to their score."""

    query: int  # positions, without padding
    key: int
    attention: float  # of the query to the key
    without: float  # the same without the edge
    score: float  # before the softmax
    added: float  # by the edge
    terms: tuple[float, ...]  # the same by term, in falling order of σ
    fewest: tuple[int, ...]  # the terms that make `SHARE` of it, the largest first


@dataclass(frozen=True)
class Signal:
    """An edge of a circuit into a query or key. Shares of its effect are 1 where the metric is the circuit's, and 0 where
    it is that without the edge."""

    edge: str
    effect: Estimate  # how much worse the metric is without the edge
    kept: Estimate  # the share of the effect if the edge carries only the directions of the fewest terms
    left: Estimate  # if it carries all but these
    random: Estimate  # if it carries as many random ones among the head's, the mean over draws
    pairs: tuple[Pair, ...]  # by prompt


# ---------------------------------------------------------------- the terms of a score


@dataclass(frozen=True)
class Terms:
    """The scores of pairs of a query and a key by term."""

    directions: Sides  # u and v in the residual stream, without the bias, Float[pair d_model term]
    heads: Sides  # what they are in queries and keys, before these are placed, Float[pair term d_head]
    read: Sides  # [x; 1]·u and [x; 1]·v, Float[pair term]
    sigma: Tensor  # Float[pair term], falling

    @property
    def scores(self) -> Tensor:
        """The terms, Float[pair term], which add up to the scores."""
        return self.sigma * self.read["q"] * self.read["k"]

    def only(self, kind: str, chosen: Tensor, x: Tensor) -> Tensor:
        """The part of vectors Float[pair pos d_model] that the chosen terms, Bool[pair term], read: the others read
        nothing of it, and the chosen ones nothing of the rest."""
        read = x.cpu().double() @ self.directions[kind] * chosen[:, None]
        return (read @ self._duals[kind]).to(x)

    @cached_property
    def _duals(self) -> Sides:
        """For each direction what it alone reads, and by 1: Float[pair term d_model]."""
        return {kind: torch.linalg.pinv(u) for kind, u in self.directions.items()}


def score_terms(model: Transformer, layer: int, head: int, x: Sides, at: Sides) -> Terms:
    """Take a head's scores apart, in float64: `x` are the inputs of the queries and the keys, Float[pair d_model], and
    `at` their positions, Int[pair]."""
    bases = {}
    factors = {}
    placed = {}
    inputs = {}
    for c in "qk":
        w, b = (model.weights[f"layers.{layer}.{c}.{name}"][head].cpu().double() for name in ("weight", "bias"))
        if model.config.norm == "layer":
            w = w - w.mean(0)  # what is read has the mean 0
        bases[c], factor = torch.linalg.qr(torch.cat([w, b[None]]))
        inputs[c] = F.pad(model.normalise(x[c].cpu().double()), (0, 1), value=1.0)
        y = (inputs[c] @ bases[c] @ factor).to(x[c])
        one = torch.eye(y.shape[1]).to(y).expand(len(y), -1, -1)
        placed[c] = factor @ model.unplace(c, layer, one, y[:, None], at[c][:, None]).mT.cpu().double()
        factors[c] = factor
    u, sigma, v = torch.linalg.svd(placed["q"] @ placed["k"].mT)
    turns = {"q": u, "k": v.mT}
    sides = {c: bases[c] @ turn for c, turn in turns.items()}
    read = {c: torch.einsum("pd,pdk->pk", inputs[c], side) for c, side in sides.items()}
    return Terms({c: side[:, :-1] for c, side in sides.items()}, {c: turn.mT @ factors[c] for c, turn in turns.items()}, read, sigma)


def fewest(terms: Tensor, share: float = SHARE) -> Tensor:
    """The fewest terms that make a share of their sum: Float[pair term] to Bool[pair term]."""
    total = terms.sum(-1, keepdim=True)
    order = (terms * total.sign()).argsort(dim=-1, descending=True, stable=True)
    largest = terms.gather(-1, order) * total.sign()
    before = largest.cumsum(-1) - largest
    return torch.zeros_like(terms, dtype=torch.bool).scatter(-1, order, before < share * total.abs())


# ---------------------------------------------------------------- the edges of a circuit


@torch.no_grad()
def signals(
    problem: Problem, circuit: Circuit, parts: Sequence[tuple[int, ...]], seed: int = 0, progress: Show = silent
) -> list[Signal]:
    """Explain some of a circuit's edges into queries and keys, (sender, receiver) or (sender, receiver, span)."""
    kept = circuit_edges(circuit, problem.model)
    graph = circuit.graph
    found: list[list[tuple[list[Pair], Tensor]]] = [[] for _ in parts]
    size = problem.max_batch(6 * len(circuit.nodes()))  # what up to three receivers of a node read, and gradients
    for n, cache in enumerate(problem.chunks(size)):
        run = _Run(problem, cache, kept)
        for i, part in enumerate(parts):
            name = graph.part_name(part, circuit.spans)
            found[i].append(_explained(run, part, np.random.default_rng(seed)))
            progress(Progress(STAGE, n * size + (i + 1) / len(parts) * len(cache.pad), problem.n_prompts, name))
    return [_signal(graph.part_name(part, circuit.spans), of, seed) for part, of in zip(parts, found, strict=True)]


def _signal(edge: str, found: list[tuple[list[Pair], Tensor]], seed: int) -> Signal:
    """The results on some prompts after the other, as estimates."""
    values = torch.cat([of_some for _, of_some in found], 1).cpu().double().numpy()
    whole, without, *rest = values
    pairs = tuple(pair for of_some, _ in found for pair in of_some)
    shares = (faithfulness(x, whole, without, seed) for x in (*rest[:2], np.mean(rest[2:], 0)))
    return Signal(edge, estimate(without - whole, seed=seed), *shares, pairs)


def _explained(run: "_Run", part: tuple[int, ...], draw: np.random.Generator) -> tuple[list[Pair], Tensor]:
    """The pairs of an edge, and the metric with it, without it, with its fewest directions, with all but these, and with
    each random set: Float[value batch]."""
    sender, receiver, *span = part
    to = run.graph.receivers[receiver]
    kind = to.kind
    added = run.added[sender] * run.places(*span)
    act = run.act(to, added)
    terms = score_terms(run.model, to.layer, to.head, act.x, act.at)
    by_term = torch.einsum(
        "bpk,bpk->bk",
        act.added.cpu().double() @ terms.directions[kind],
        act.slope.cpu().double() @ terms.heads[kind].mT,
    )
    chosen = fewest(by_term)
    sizes = chosen.sum(1)
    carried = [terms.only(kind, chosen, added)]
    carried.append(added - carried[0])
    for _ in range(DRAWS):
        order = torch.as_tensor(draw.random(chosen.shape)).argsort(1)
        carried.append(terms.only(kind, order < sizes[:, None], added))
    values = [run.values, run.without(receiver, added), *(run.without(receiver, added - some) for some in carried)]
    pairs = []
    for i, of in enumerate(by_term):
        largest = of.abs().argsort(descending=True)
        pairs.append(
            Pair(
                query=int(act.at["q"][i]),
                key=int(act.at["k"][i]),
                attention=float(act.attention[i]),
                without=float(act.without[i]),
                score=float(terms.scores[i].sum()),
                added=float(of.sum()),
                terms=tuple(of.tolist()),
                fewest=tuple(k for k in largest.tolist() if chosen[i, k]),
            )
        )
    return pairs, torch.stack(values)


@dataclass(frozen=True)
class _Act:
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
            values = self.metric(rows)
            gradients = torch.autograd.grad(values.sum(), offsets)
        self.values = values.detach()  # of the metric, Float[batch]
        self.added = dict(zip(senders, added.detach(), strict=True))  # sender → Float[batch live d_model]
        self.gradients = dict(zip(self.read, torch.cat(gradients), strict=True))  # of the metric at what is read

    def places(self, span: int = 0) -> Tensor:
        """The live positions of a span, or all without spans, as 1 and 0: Float[batch live 1]."""
        if self.edges.ndim == 2 or self.cache.spans is None:
            return self.edges.new_ones(1, 1, 1)
        return self.cache.spans[span, :, self.patched.start :, None].to(self.edges)

    def without(self, receiver: int, removed: Tensor) -> Tensor:
        """The metric, Float[batch], if something is taken from what a receiver reads, Float[batch live d_model]."""

        def received(to: Sequence[int], x: Tensor) -> Tensor:
            if receiver in to:
                x[list(to).index(receiver)] -= removed
            return x

        return self.metric(self.patched.run_edges(self.graph, self.edges, received)[0])

    def act(self, receiver: Receiver, added: Tensor) -> _Act:
        """Find the pair of each prompt by which an edge acts most, from what it adds, Float[batch live d_model]: that
        with the largest product of the change of the score and the metric's slope in it."""
        model = self.model
        kind = receiver.kind
        layer = receiver.layer
        head = receiver.head
        positions = self.patched.positions
        clean = self.cache.residual[layer][:, : self.patched.start]  # read before the live positions
        none = torch.zeros_like(clean)
        x = {c: torch.cat([clean, self.read[self.graph.receiver_index[f"{receiver.node}<{c}>"]]], 1) for c in QKV}
        added = torch.cat([none, added], 1)
        scores, pattern = self._attention(receiver, x)
        changed, without = self._attention(receiver, {**x, kind: x[kind] - added})
        v = model.project("v", layer, head, x["v"], positions)
        gradient = torch.cat([none, self._gradient(receiver.node)], 1)
        slope = gradient @ model.weights[f"layers.{layer}.o.weight"][head].T @ v.mT
        slope = pattern * (slope - (pattern * slope).sum(-1, keepdim=True))
        best = (slope * (scores - changed)).abs().flatten(1).argmax(1)
        prompt = torch.arange(len(best), device=best.device)
        place = {"q": best // scores.shape[-1], "k": best % scores.shape[-1]}
        others = scores[prompt, place["q"]].masked_fill(pattern[prompt, place["q"]] == 0, -torch.inf)
        others[prompt, place["k"]] = -torch.inf
        weights = -others.softmax(-1).nan_to_num()  # NaN where there are none
        weights[prompt, place["k"]] = 1
        q, k = (model.project(c, layer, head, x[c], positions) for c in "qk")
        slope = torch.zeros_like(q)
        if kind == "q":
            slope[prompt, place["q"]] = torch.einsum("bp,bpd->bd", weights, k)
        else:
            slope = torch.einsum("bp,bd->bpd", weights, q[prompt, place["q"]])
        at = f"layers.{layer}.{kind}."
        y = model.normalise(x[kind]) @ model.weights[at + "weight"][head] + model.weights[at + "bias"][head]
        return _Act(
            at={c: positions[prompt, place[c]] for c in "qk"},
            x={c: x[c][prompt, place[c]] for c in "qk"},
            added=model.normalise_part(added, x[kind]),
            slope=model.unplace(kind, layer, slope, y, positions),
            attention=pattern.flatten(1)[prompt, best],
            without=without.flatten(1)[prompt, best],
        )

    def _attention(self, receiver: Receiver, x: Sides) -> tuple[Tensor, Tensor]:
        """A head's scores and pattern, Float[batch query key]."""
        q, k = (self.model.project(c, receiver.layer, receiver.head, x[c], self.patched.positions) for c in "qk")
        scores = q @ k.mT
        mask = self.model.window(receiver.layer, self.cache.mask)
        return scores, scores.masked_fill(~mask, -torch.inf).softmax(-1)

    def _gradient(self, node: str) -> Tensor:
        """The metric's gradient at what a node writes, through its edges: Float[batch live d_model]."""
        total = torch.zeros_like(next(iter(self.gradients.values())))
        for receiver, gradient in self.gradients.items():
            weights = self.edges[self.graph.sender_index[node], receiver].reshape(-1)
            for span in weights.nonzero()[:, 0].tolist():
                total += gradient * self.places(span)
        return total

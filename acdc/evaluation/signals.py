"""Why a head attends: what an edge into a query or key adds to the head's scores, and in how few directions.

A softmax ignores what all keys of a query have in common. So what counts is what the edge adds to the score of a pair
less the mean score of the query's other keys, weighted by attention: to first order, to the log-odds of attention. What
it carries over its removal adds to that along the directions of the pair's score (`acdc.model.bilinear`).

All is said of the circuit: what its heads read, and what its metric is when one edge carries some directions only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.faithfulness import faithfulness, finite, prompt_values
from acdc.graph.circuit import Circuit
from acdc.graph.graph import QKV
from acdc.io.progress import Progress, Show, silent
from acdc.model.bilinear import Terms, fewest, score_terms
from acdc.patching.activations import ActivationCache
from acdc.patching.patch import PatchedModel, circuit_edges
from acdc.patching.problem import Problem
from acdc.setup.inputs import Inputs

DRAWS = 3  # random sets of terms

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
    half = inputs.evaluation_split
    metric = inputs.config.metric
    seed = inputs.config.seed
    problem = inputs.problem(half)
    whole = prompt_values(inputs, half, circuit, metric)
    names = [circuit.graph.part_name(part, circuit.spans) for part in parts]
    pairs: list[list[Pair]] = [[] for _ in parts]
    values: list[list[Tensor]] = [[] for _ in parts]
    done = 0
    for cache in problem.chunks(problem.max_batch(6 * len(circuit.nodes()))):  # three inputs of each, and gradients
        run = _Run(problem, cache, circuit)
        for i, part in enumerate(parts):
            found, terms, chosen = run.explain(part)
            pairs[i] += found
            values[i].append(run.check(part, terms, chosen, np.random.default_rng([seed, done])))
            progress(Progress("signals", done + (i + 1) / len(parts) * len(cache.pad), problem.n_prompts, names[i]))
        done += len(cache.pad)
    out = []
    for name, of_edge, carried in zip(names, pairs, values, strict=True):
        what = f"{metric} without some of {name}"
        without, kept, left, *random = (finite(inputs, half, what, x) for x in torch.cat(carried, 1))
        shares = (faithfulness(x, whole, without, seed) for x in (kept, left, np.mean(random, 0)))
        out.append(Signal(name, tuple(of_edge), estimate(without - whole, seed=seed), *shares))
    return out


@torch.inference_mode(False)
@torch.no_grad()
def pairs_of(problem: Problem, circuit: Circuit, parts: Sequence[Part], n: int) -> dict[str, tuple[Pair, ...]]:
    """What edges into queries and keys add on the first n prompts, without patching: name → pairs."""
    run = _Run(problem, problem.parts[0].examples(slice(0, n)), circuit)
    return {circuit.graph.part_name(part, circuit.spans): tuple(run.explain(part)[0]) for part in parts}


class _Run:
    """A circuit on some prompts: what its receivers read, what its senders add, and the metric's gradients at that."""

    def __init__(self, problem: Problem, cache: ActivationCache, circuit: Circuit) -> None:
        self.model = problem.model
        self.graph = problem.graph
        self.cache = cache
        self.edges = circuit_edges(circuit, self.model)
        self.metric = cache.metric(problem.metric, self.model)
        self.patched = PatchedModel(self.model, cache)
        self.read: dict[int, Tensor] = {}  # receiver → Float[batch live d_model]

        def received(to: Sequence[int], x: Tensor) -> Tensor:
            self.read.update(zip(to, x.detach(), strict=True))
            return x.requires_grad_()

        with torch.enable_grad():
            rows, senders, added = self.patched.run_edges(self.graph, self.edges, received)
            blocks = added[None]  # of all senders: norms of a layer's heads are refused
            gradients = torch.autograd.grad(self.metric(rows).sum(), blocks[1:])
        # Sender → Float[batch live d_model]: what it adds, and the gradient at that (inputs have none).
        self.added = dict(zip(senders[None], torch.cat(blocks).detach(), strict=True))
        self.gradients = dict(zip(senders[None][len(blocks[0]) :], torch.cat(gradients), strict=True))

    def explain(self, part: Part) -> tuple[list[Pair], Terms, Tensor]:
        """Take what an edge adds apart, at the pair of each prompt through which it acts most: that with the largest
        product of the change of the score and the metric's slope in it; where the edge does nothing, the last query and
        the key that it attends to most. Returns the pairs, the terms of their scores, and which are the fewest,
        Bool[batch term]."""
        model = self.model
        positions = self.patched.positions
        start = self.patched.start
        _, kind, layer, head, node = self.graph.receivers[part[1]]
        clean = self.cache.residual[layer][:, :start]  # read before the live positions
        x = {c: torch.cat([clean, self.read[self.graph.receiver_index[f"{node}<{c}>"]]], 1) for c in QKV}
        part_of_x = F.pad(self._carried(part), (0, 0, start, 0))
        gradient = F.pad(self.gradients[self.graph.sender_index[node]], (0, 0, start, 0))
        q, k, v = (model.project(c, layer, [head], x[c][None], positions)[0] for c in QKV)
        (other,) = model.project(kind, layer, [head], (x[kind] - part_of_x)[None], positions)
        scores, pattern = self._attention(layer, q, k)
        changed, without = self._attention(layer, *((other, k) if kind == "q" else (q, other)))

        slope = gradient @ model.weights[f"layers.{layer}.o.weight"][head].T @ v.mT
        slope = pattern * (slope - (pattern * slope).sum(-1, keepdim=True))
        acts = (slope * (scores - changed)).abs()
        n = acts.shape[-1]
        last = n * (n - 1) + pattern[:, -1].argmax(-1)
        best = torch.where(acts.amax((1, 2)) > 0, acts.flatten(1).argmax(1), last)
        prompt = torch.arange(len(best), device=best.device)
        query = prompt, best // n
        key = prompt, best % n
        pair = *query, best % n

        weights = _log_odds(pattern, *pair)
        odds = weights @ k if kind == "q" else weights.mT @ q
        y = model.project_heads(kind, layer, model.read(x[kind]))[:, head]
        odds = model.unplace(kind, layer, odds, y, positions)
        at = {"q": positions[query], "k": positions[key]}
        terms = score_terms(model, layer, head, {"q": x["q"][query], "k": x["k"][key]}, at)
        added = terms.split(kind, model.normalise_part(part_of_x, x[kind]), odds)
        chosen = fewest(added)
        score = terms.scores.sum(1)
        pairs = []
        for i, of in enumerate(added):
            largest = [j for j in of.abs().argsort(descending=True).tolist() if chosen[i, j]]
            place = int(at["q"][i]), int(at["k"][i])
            attention = float(pattern[pair][i]), float(without[pair][i])
            pairs.append(Pair(*place, *attention, float(score[i]), float(of.sum()), tuple(of.tolist()), tuple(largest)))
        return pairs, terms, chosen

    def check(self, part: Part, terms: Terms, chosen: Tensor, draw: np.random.Generator) -> Tensor:
        """The metric without an edge, and when it carries only the chosen terms' directions, all but these, and each of
        some random sets of as many: Float[carried batch]."""
        kind = self.graph.receivers[part[1]].kind
        whole = self._carried(part)
        order = torch.as_tensor(draw.random((DRAWS, *chosen.shape))).argsort(-1)
        sets = (chosen, *(order < chosen.sum(1, keepdim=True)))
        kept, *random = (terms.only(kind, some, whole) for some in sets)
        carried = [torch.zeros_like(whole), kept, whole - kept, *random]
        return torch.stack([self._without(part[1], whole - some) for some in carried])

    def _without(self, receiver: int, removed: Tensor) -> Tensor:
        """The metric, Float[batch], if something is taken from what a receiver reads, Float[batch live d_model]."""

        def received(to: Sequence[int], x: Tensor) -> Tensor:
            if receiver in to:
                x[list(to).index(receiver)] -= removed
            return x

        return self.metric(self.patched.run_edges(self.graph, self.edges, received)[0])

    def _carried(self, part: Part) -> Tensor:
        """What an edge adds to what its receiver reads, over its removal: Float[batch live d_model]."""
        sender, _, *span = part
        if self.cache.spans is None or not span:
            return self.added[sender]
        return self.added[sender] * self.cache.spans[span[0], :, self.patched.start :, None]

    def _attention(self, layer: int, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """A head's scores and pattern, Float[batch query key]."""
        return q @ k.mT, self.model.pattern(q, k, self.model.window(layer, self.cache.mask))


def _log_odds(pattern: Tensor, prompt: Tensor, query: Tensor, key: Tensor) -> Tensor:
    """How the log-odds of attention at a pair of each prompt, Int[batch], rise with the scores, of a pattern and in the
    shape Float[batch query key]: they are the pair's own score − logsumexp of those of the query's other keys."""
    others = pattern[prompt, query]
    others[prompt, key] = 0
    out = torch.zeros_like(pattern)
    out[prompt, query] = -others / others.sum(-1, keepdim=True).clamp(min=torch.finfo(others.dtype).tiny)
    out[prompt, query, key] = 1
    return out

"""What a person wants to see beside a circuit: example prompts and what is predicted, where heads look, what each node
writes to the answer, and how much of the behaviour the strongest edges alone carry."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from acdc.evaluation.bootstrap import Estimate, estimate
from acdc.evaluation.faithfulness import circuit_rows, faithfulness, prompt_values
from acdc.graph.circuit import Circuit
from acdc.model.transformer import Activations, Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.setup.inputs import Inputs

EXAMPLES = 4  # prompts that are shown
TOP = 5  # tokens that are shown of a prediction
POINTS = 10  # sizes of the circuit that are measured
PATTERN_NUMBERS = 600_000  # of attention, over all heads and prompts


@dataclass(frozen=True)
class Example:
    """A prompt of those that the circuit is judged on.

    Args:
        clean, corrupted: tokens as texts, without padding
        scored: position in `clean` whose next token is predicted: the last one that is scored
        correct, wrong: answers there; of many, the first ones
        predictions: by `model`, `circuit` and `ablated`, the likeliest next tokens with their probabilities
    """

    clean: tuple[str, ...]
    corrupted: tuple[str, ...]
    scored: int
    correct: tuple[str, ...]
    wrong: tuple[str, ...]
    predictions: dict[str, tuple[tuple[str, float], ...]]


@dataclass(frozen=True)
class Point:
    """The strongest edges alone.

    Args:
        score: the magnitude of the score of the weakest of them
        edges: how many residual edges they are, without dead ones
        metric, faithfulness: as of the whole circuit (`acdc.evaluation.faithfulness`)
    """

    score: float
    edges: int
    metric: Estimate
    faithfulness: Estimate


@dataclass(frozen=True)
class Explanation:
    """What is shown beside a circuit.

    Args:
        half: the prompts that it is of, `held_out` or `discovery`
        examples: some prompts
        attention: by head of the circuit, one pattern per example, Float[query key], on the clean prompt in the full
            model; none for prompts that are too long to be shown
        direct: by sender of the circuit, what it adds directly to the logit difference (`acdc.patching.metrics`), in
            logits; above 0 is for the correct answer; empty for a task without answers
        curve: the circuit's strongest edges, few to all
    """

    half: str
    examples: tuple[Example, ...]
    attention: dict[str, tuple[np.ndarray, ...]]
    direct: dict[str, float]
    curve: tuple[Point, ...]


@torch.inference_mode()
def explain(inputs: Inputs, circuit: Circuit, rows: dict[str, Tensor]) -> Explanation:
    """Look at a circuit on the prompts that it is judged on.

    Args:
        circuit: without dead edges
        rows: normalised final stream of that half, Float[row d_model], by `model`, `circuit` and `ablated`
    """
    half = inputs.evaluation_split
    first = next(iter(inputs.parts(half)))
    return Explanation(
        half,
        _examples(inputs, half, rows),
        attention(inputs.model.transformer, circuit, first),
        direct_effects(inputs.model.transformer, inputs.parts(half), circuit.nodes()),
        _curve(inputs, half, circuit, rows),
    )


def _examples(inputs: Inputs, half: str, rows: dict[str, Tensor]) -> tuple[Example, ...]:
    split, tokenizer, model = getattr(inputs.data, half), inputs.model.tokenizer, inputs.model.transformer

    def texts(ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(tokenizer.pieces([int(i) for i in ids if i >= 0]))

    out = []
    for i in range(min(EXAMPLES, len(split.clean))):
        row, pad = int(np.flatnonzero(split.rows[:, 0] == i)[-1]), int(split.pad[i])
        predictions = {}
        for what, h in rows.items():
            p, ids = model.logits(h[row]).double().softmax(-1).topk(min(TOP, model.config.vocab_out))
            predictions[what] = tuple(zip(texts(ids.tolist()), p.tolist(), strict=True))
        out.append(
            Example(
                texts(split.clean[i, pad:]),
                texts(split.corrupted[i, pad:]),
                int(split.rows[row, 1]) - pad,
                texts(split.correct[row][:TOP]),
                texts(split.wrong[row][:TOP]),
                predictions,
            )
        )
    return tuple(out)


def attention(model: Transformer, circuit: Circuit, runs: ActivationCache) -> dict[str, tuple[np.ndarray, ...]]:
    """Patterns of the circuit's heads on the first prompts, as many as there is room for: Float[query key], without
    padding."""
    nodes = set(circuit.nodes())
    heads = [s for s in circuit.graph.senders if s.kind == "head" and s.name in nodes]
    n_pos = runs.mask.shape[1]
    n = min(EXAMPLES, len(runs.pad), PATTERN_NUMBERS // max(1, len(heads) * n_pos**2))
    if n == 0:
        return {}
    few = runs.examples(slice(0, n))
    positions, pads = positions_of(few.pad, n_pos), few.pad.tolist()
    out = {}
    for s in heads:
        q, k = (model.project(c, s.layer, s.head, few.residual[s.layer], positions) for c in "qk")
        scores = (q @ k.transpose(-1, -2)).masked_fill(~model.window(s.layer, few.mask), -torch.inf)
        patterns = scores.softmax(-1).float().cpu().numpy()
        out[s.name] = tuple(pattern[pad:, pad:] for pattern, pad in zip(patterns, pads, strict=True))
    return out


def direct_effects(model: Transformer, parts: Iterable[ActivationCache], nodes: Sequence[str]) -> dict[str, float]:
    """What senders add directly to the logit difference on the clean prompts, in logits, as a mean over the scored
    rows: their output at the row, through the final norm as it is in the full model, on the unembedding of the correct
    answers (their mean) minus that of the wrong one with the largest logit (Wang et al. 2022, section 3.1). Over all
    senders and biases they add up to the logit difference. Empty for a task without answers.
    """
    total, n, wanted = dict[str, float](), 0, set(nodes)
    senders = [s for s in model.config.graph().senders if s.name in wanted]
    for runs in parts:
        if not runs.targets.correct.shape[1]:
            return {}
        b, p = runs.rows.T
        direction = _answer_direction(model, runs)
        scale = _norm_scale(model, runs.residual[-1][b, p])
        at_rows = Activations(
            runs.clean.inputs[:, b, p][:, :, None],
            runs.clean.z[:, b, :, p].transpose(0, 1)[:, :, :, None],
            runs.clean.mlp[:, b, p][:, :, None],
        )
        for s in senders:
            written = model.written(at_rows, s)[:, 0] / scale
            if model.config.norm == "layer":
                written = written - written.mean(-1, keepdim=True)
            effect = (written * direction).sum(-1).sum()  # by rows: the order of one long sum depends on the threads
            total[s.name] = total.get(s.name, 0.0) + float(effect)
        n += len(b)
    return {name: value / n for name, value in total.items()}


def _answer_direction(model: Transformer, runs: ActivationCache) -> Tensor:
    """Float[row d_model]: the unembedding of the correct answers minus that of the strongest wrong one."""
    weight, correct, wrong = model.weights["unembed.weight"], runs.targets.correct, runs.targets.wrong
    known = (correct >= 0).to(weight.dtype)[..., None]
    direction = (weight[correct.clamp(min=0)] * known).sum(1) / known.sum(1)
    if wrong.shape[1]:
        logits = model.centred_logits(runs.targets.clean, wrong.clamp(min=0)).masked_fill(wrong < 0, -torch.inf)
        direction = direction - weight[wrong.gather(1, logits.argmax(1, keepdim=True))[:, 0]]
    return direction


def _norm_scale(model: Transformer, x: Tensor) -> Tensor:
    """Float[row 1]: by what the final norm divides."""
    if model.config.norm == "none":
        return torch.ones_like(x[:, :1])
    centred = x - x.mean(-1, keepdim=True) if model.config.norm == "layer" else x
    return (centred.square().mean(-1, keepdim=True) + model.config.norm_eps).sqrt()


def _curve(inputs: Inputs, half: str, circuit: Circuit, rows: dict[str, Tensor]) -> tuple[Point, ...]:
    """The strongest edges of the circuit, from few to all; nothing for edges without scores."""
    if circuit.scores is None or not np.isfinite(circuit.scores[circuit.kept]).all():
        return ()
    config, sizes = inputs.config, np.where(circuit.kept, np.abs(circuit.scores), -np.inf)
    ranked = np.sort(sizes[circuit.kept])[::-1]
    full, whole, ablated = (
        prompt_values(inputs, half, rows[k], config.metric) for k in ("model", "circuit", "ablated")
    )

    def strongest(n: int) -> Circuit:
        return Circuit(circuit.graph, sizes >= ranked[n - 1], circuit.direct, circuit.scores).pruned()

    points: dict[int, Point] = {}
    for size in np.geomspace(1, max(1, len(ranked)), POINTS) if len(ranked) else ():
        # Alone the strongest edges may be on no path; so many more are needed that this many are on one.
        n = 1 + bisect_left(range(1, len(ranked)), size, key=lambda n: strongest(n).n_edges)
        some = strongest(n)
        if some.n_edges in points:
            continue
        values = whole
        if some.n_edges < circuit.n_edges:
            values = prompt_values(inputs, half, circuit_rows(inputs, half, some), config.metric)
        measures = estimate(values, seed=config.seed), faithfulness(values, full, ablated, config.seed)
        points[some.n_edges] = Point(float(ranked[n - 1]), some.n_edges, *measures)
    return tuple(points[n] for n in sorted(points))

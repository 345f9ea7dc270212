"""What helps a person to understand a circuit: example prompts with predictions, attention patterns, what each node
adds to the answer directly, and how faithful the strongest edges are alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from acdc.evaluation.faithfulness import Rows
from acdc.evaluation.features import ShownFeature, shown_features
from acdc.evaluation.frontier import CurvePoint
from acdc.evaluation.signals import Pair, into_scores, pairs_of
from acdc.graph.circuit import Circuit
from acdc.model.activations import Activations
from acdc.model.transformer import Transformer, positions_of
from acdc.patching.activations import ActivationCache
from acdc.setup.inputs import Inputs

EXAMPLES = 4  # prompts to show
TOP = 5  # tokens to show of each prediction
SIGNALS = 100  # edges into queries and keys, those with the highest scores
PATTERN_NUMBERS = 600_000  # bounds the attention patterns, over all heads and prompts


@dataclass(frozen=True)
class ShownPrompt:
    """A prompt of the evaluation split."""

    clean: tuple[str, ...]  # tokens as texts, without padding
    corrupted: tuple[str, ...]
    scored: int  # the last scored position in `clean`, whose next token is predicted
    correct: tuple[str, ...]  # the answers there
    wrong: tuple[str, ...]
    predictions: dict[str, tuple[tuple[str, float], ...]]  # by what was run: likeliest next tokens, their probabilities
    spans: tuple[int, ...] = ()  # of the tokens in `clean`, if the circuit has spans


@dataclass(frozen=True)
class Explanation:
    """What helps to understand a circuit."""

    half: str  # the evaluation split, `held_out` or `discovery`
    examples: tuple[ShownPrompt, ...]
    # Head of the circuit → its pattern for each example, Float[query key], on the clean prompt in the full model; no
    # patterns for prompts that are too long to show.
    attention: dict[str, tuple[np.ndarray, ...]]
    # Sender of the circuit → what it adds directly to the logit difference (`acdc.patching.metrics`), in logits;
    # positive favours the correct answer; empty for a task without answers.
    direct: dict[str, float]
    curves: dict[str, tuple[CurvePoint, ...]]  # by half, of the circuit or of the path to a target
    # Edge into a query or key → what it adds to its head's scores in each example, in the circuit; as many as patterns.
    signals: dict[str, tuple[Pair, ...]] = field(default_factory=dict)
    features: dict[str, ShownFeature] = field(default_factory=dict)  # those that are nodes of the circuit


@torch.inference_mode()
def explain(inputs: Inputs, circuit: Circuit, rows: Rows, curves: dict[str, tuple[CurvePoint, ...]]) -> Explanation:
    """Explain a circuit without dead edges on the evaluation split, from its final rows by `model`, `circuit` and
    `ablated`, and how faithful its strongest edges are alone."""
    half = inputs.evaluation_split
    model = inputs.model.transformer
    parts = inputs.parts(half)
    patterns = attention(model, circuit, parts[0])
    n = min(map(len, patterns.values()), default=0)
    # Scores are no sums over edges where the heads of a layer are normalised together.
    strongest = [] if model.config.post_norm else into_scores(circuit)[:SIGNALS]
    return Explanation(
        half=half,
        examples=_examples(inputs, rows),
        attention=patterns,
        direct=direct_effects(model, parts, circuit.nodes()),
        curves=curves,
        signals=pairs_of(inputs.problem(half), circuit, strongest, n) if n and strongest else {},
        features=shown_features(inputs, circuit),
    )


def _examples(inputs: Inputs, rows: Rows) -> tuple[ShownPrompt, ...]:
    split = getattr(inputs.data, inputs.evaluation_split)
    tokenizer = inputs.model.tokenizer
    model = inputs.model.transformer

    def texts(ids: Sequence[int]) -> tuple[str, ...]:
        return tuple(tokenizer.pieces([int(i) for i in ids if i >= 0]))

    out = []
    for i in range(min(EXAMPLES, len(split.clean))):
        row = int(np.flatnonzero(split.rows[:, 0] == i)[-1])
        pad = int(split.pad[i])
        predictions = {}
        for what, h in rows.items():
            p, ids = model.logits(h[row]).cpu().double().softmax(-1).topk(min(TOP, model.config.vocab_out))
            predictions[what] = tuple(zip(texts(ids.tolist()), p.tolist(), strict=True))
        out.append(
            ShownPrompt(
                clean=texts(split.clean[i, pad:]),
                corrupted=texts(split.corrupted[i, pad:]),
                scored=int(split.rows[row, 1]) - pad,
                correct=texts(split.correct[row]),
                wrong=texts(split.wrong[row]),
                predictions=predictions,
                spans=() if split.spans is None else tuple(split.spans[i, pad:].tolist()),
            )
        )
    return tuple(out)


def attention(model: Transformer, circuit: Circuit, runs: ActivationCache) -> dict[str, tuple[np.ndarray, ...]]:
    """Attention patterns of the circuit's heads, Float[query key] without padding, on the first few prompts: at most
    EXAMPLES, fewer if the patterns are large."""
    nodes = set(circuit.nodes())
    heads = [s for s in circuit.graph.senders if s.kind == "head" and s.name in nodes]
    n_pos = runs.mask.shape[1]
    n = min(EXAMPLES, len(runs.pad), PATTERN_NUMBERS // max(1, len(heads) * n_pos**2))
    if n == 0:
        return {}
    few = runs.examples(slice(0, n))
    positions = positions_of(few.pad, n_pos)
    pads = few.pad.tolist()
    out = {}
    for s in heads:
        q, k = (model.project(c, s.layer, [s.head], few.residual[s.layer][None], positions)[0] for c in "qk")
        patterns = model.pattern(q, k, model.window(s.layer, few.mask)).float().cpu().numpy()
        out[s.name] = tuple(pattern[pad:, pad:] for pattern, pad in zip(patterns, pads, strict=True))
    return out


def direct_effects(model: Transformer, parts: Iterable[ActivationCache], nodes: Sequence[str]) -> dict[str, float]:
    """Direct effects of senders on the logit difference on the clean prompts, in logits, as means over the scored rows
    (Wang et al. 2022, section 3.1). Empty for a task without answers.

    A sender's output at the row, divided by the full model's final norm there, is projected on the mean unembedding of
    the correct answers minus the unembedding of the wrong answer with the largest logit. Where a layer's heads are
    normalised together, a head's output is divided by what that norm divides by. The effects of all senders and biases
    add up to the logit difference, before a soft cap.
    """
    total = dict[str, float]()
    n = 0
    wanted = set(nodes)
    senders = [s for s in model.config.graph().senders if s.name in wanted]
    for runs in parts:
        if not runs.targets.correct.shape[1]:
            return {}
        b, p = runs.rows.T
        direction = _answer_direction(model, runs)
        final = runs.residual[-1][b, p]
        at_rows = Activations(
            runs.clean.inputs[:, b, p][:, :, None],
            runs.clean.z[:, b, :, p].transpose(0, 1)[:, :, :, None],
            runs.clean.mlp[:, b, p][:, :, None],
        )
        for s in senders:
            written = model.normalise_part(model.written(at_rows, s)[:, 0], final)
            # Row by row: the order of one long sum would depend on the number of threads.
            effect = (written * direction).sum(-1).sum()
            total[s.name] = total.get(s.name, 0.0) + float(effect)
        n += len(b)
    return {name: value / n for name, value in total.items()}


def _answer_direction(model: Transformer, runs: ActivationCache) -> Tensor:
    """Mean unembedding of the correct answers minus that of the strongest wrong one, Float[row d_model]."""
    weight = model.weights["unembed.weight"]
    correct = runs.targets.correct
    wrong = runs.targets.wrong
    known = (correct >= 0).to(weight.dtype)[..., None]
    direction = (weight[correct.clamp(min=0)] * known).sum(1) / known.sum(1)
    if wrong.shape[1]:
        logits = model.centred_logits(runs.targets.clean, wrong.clamp(min=0)).masked_fill(wrong < 0, -torch.inf)
        direction = direction - weight[wrong.gather(1, logits.argmax(1, keepdim=True))[:, 0]]
    return direction

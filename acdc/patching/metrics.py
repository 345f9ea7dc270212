"""Metrics, which discovery minimises, and their targets.

Every metric maps the normalised final residual stream at the scored rows, h Float[... row d_model], to one value per
prompt, Float[... batch]; lower is better. A prompt with several scored positions gets their mean. Metrics use only the
part of the output layer (`Output`) that they need: selected logits, a log-sum-exp, or all logits.

kl          KL(P ‖ Q) in nats; P the full model on the clean prompt, Q the patched model
logit-diff  −(mean logit of the correct answers − largest logit of the wrong ones)
prob-diff   −(probability of the correct answers − probability of the wrong ones)
nll         −log probability of the correct answers, in nats
l2          squared distance of the logits to the full model's, mean over the columns
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from acdc.registry import METRICS

SAMPLE_NUMBERS = 20_000_000  # bound on the table of `Sampled`: 80 MB in float32
SAMPLE_VOCABULARY = 4096  # with fewer output columns the exact log-sum-exp is as cheap as a guess


class Output(Protocol):
    """The output layer, on normalised rows: see `acdc.model.transformer.Transformer`."""

    def logits(self, h: Tensor) -> Tensor:
        """Float[... d_model] to Float[... vocab]."""

    def centred_logits(self, h: Tensor, ids: Tensor) -> Tensor:
        """Of some tokens, less the mean over the vocabulary: ids Int[row k], to Float[... row k]."""

    def logsumexp(self, h: Tensor) -> Tensor:
        """Of the centred logits: Float[... d_model] to Float[...]."""

    def expected_unembedding(self, h: Tensor) -> Tensor:
        """The mean of W_U over the prediction at each row: Float[row d_model] to the same."""

    def sampled_unembedding(self, h: Tensor, n: int) -> Tensor:
        """W_U of n tokens drawn from it: Float[row d_model] to Float[row n d_model]."""


class Sampled:
    """An output layer that estimates the log-sum-exp from a few tokens, drawn from the full model's prediction.

    Σ_v exp(h·W_v) / Σ_v exp(c·W_v) is the mean of exp((h − c)·W_v) over tokens v drawn from the prediction at c. It
    costs a hundredth of the exact value and tells which candidates to evaluate; no decision depends on it.
    """

    def __init__(self, output: Output, clean: Tensor) -> None:
        self._clean = clean
        self._at_clean = output.logsumexp(clean)
        n = SAMPLE_NUMBERS // clean.numel()
        self._tokens = output.sampled_unembedding(clean, max(16, min(256, n)))
        self.centred_logits = output.centred_logits
        self.expected_unembedding = output.expected_unembedding
        self.sampled_unembedding = output.sampled_unembedding
        self.logits = output.logits

    def logsumexp(self, h: Tensor) -> Tensor:
        """A guess at the log-sum-exp of the centred logits: Float[... row d_model] to Float[... row]."""
        moved = torch.einsum("...rd,rnd->...rn", h - self._clean, self._tokens)
        return self._at_clean + moved.logsumexp(-1) - math.log(moved.shape[-1])


@dataclass(frozen=True)
class Targets:
    """The answers and the clean stream of the scored rows.

    Args:
        example: Int[row], the prompt that a row belongs to
        n_examples: number of prompts
        correct, wrong: Int[row k], token ids, −1 where a row has fewer
        clean: Float[row d_model], the full model's normalised final residual stream
    """

    example: Tensor
    n_examples: int
    correct: Tensor
    wrong: Tensor
    clean: Tensor


Metric = Callable[[Tensor], Tensor]


def make_metric(name: str, output: Output, targets: Targets) -> Metric:
    """The metric `name` as a function Float[... row d_model] → Float[... batch]."""
    per_row = {"kl": _kl, "logit-diff": _logit_diff, "prob-diff": _prob_diff, "nll": _nll, "l2": _l2}[name](
        output, targets
    )
    counts = torch.bincount(targets.example, minlength=targets.n_examples)

    def metric(h: Tensor) -> Tensor:
        rows = per_row(h)
        sums = rows.new_zeros(*rows.shape[:-1], targets.n_examples).index_add_(-1, targets.example, rows)
        return sums / counts

    return metric


def make_guess(name: str, output: Output, targets: Targets, vocabulary: int) -> Metric | None:
    """A cheap guess at the metric, Float[candidate row d_model] → Float[candidate batch].

    None if the metric itself is cheap (few output columns, or only those of the answers) or has no guess (l2).
    """
    if vocabulary < SAMPLE_VOCABULARY or METRICS[name].output != "logsumexp":
        return None
    return make_metric(name, Sampled(output, targets.clean), targets)


def resolution(output: Output, targets: Targets) -> float:
    """The smallest difference of a metric that is more than rounding, roughly: the dtype's precision times the largest
    log-sum-exp of the full model, which has the size of the logits whose differences metrics take.
    """
    largest = float(output.logsumexp(targets.clean).abs().max())
    return torch.finfo(targets.clean.dtype).eps * max(1.0, largest)


def accuracy(output: Output, targets: Targets, h: Tensor) -> Tensor:
    """Whether the best correct answer has a higher logit than every wrong one, or than every other token if there are
    no wrong ones: h Float[row d_model] to Bool[row]."""
    right = _masked(output, targets.correct, h, -torch.inf).amax(-1)
    if targets.wrong.shape[1]:
        return right > _masked(output, targets.wrong, h, -torch.inf).amax(-1)
    best = output.logits(h).argmax(-1, keepdim=True)
    return (best == targets.correct).any(-1)


def _masked(output: Output, ids: Tensor, h: Tensor, fill: float) -> Tensor:
    return output.centred_logits(h, ids.clamp(min=0)).masked_fill(ids < 0, fill)


def _kl(output: Output, t: Targets) -> Metric:
    # KL(P‖Q) = Σ p (log p − log q) = logsumexp(q's logits) − logsumexp(p's) − (h − clean) · Σ p W: one product with the
    # vocabulary, and as a difference exactly 0 for the clean run.
    vector = output.expected_unembedding(t.clean)
    clean = output.logsumexp(t.clean)
    return lambda h: output.logsumexp(h) - clean - ((h - t.clean) * vector).sum(-1)


def _logit_diff(output: Output, t: Targets) -> Metric:
    n = (t.correct >= 0).sum(-1)

    def metric(h: Tensor) -> Tensor:
        right = _masked(output, t.correct, h, 0.0).sum(-1) / n
        return _masked(output, t.wrong, h, -torch.inf).amax(-1) - right

    return metric


def _prob_diff(output: Output, t: Targets) -> Metric:
    ids = torch.cat([t.correct, t.wrong], 1)
    sign = torch.cat([torch.ones_like(t.correct), -torch.ones_like(t.wrong)], 1)
    sign = sign.to(t.clean.dtype)

    def metric(h: Tensor) -> Tensor:
        log_p = _masked(output, ids, h, -torch.inf) - output.logsumexp(h)[..., None]
        return -(log_p.exp() * sign).sum(-1)

    return metric


def _nll(output: Output, t: Targets) -> Metric:
    return lambda h: output.logsumexp(h) - _masked(output, t.correct, h, -torch.inf).logsumexp(-1)


def _l2(output: Output, t: Targets) -> Metric:
    clean = output.logits(t.clean)
    return lambda h: (output.logits(h) - clean).square().mean(-1)

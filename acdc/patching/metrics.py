"""Metrics, which discovery minimises, and their targets.

Every metric maps the normalised final residual stream at the scored rows, h Float[... row d_model], to one value per
prompt, Float[... batch]; lower is better. A prompt with several scored positions gets their mean. Metrics use only the
part of the output layer that they need: selected logits, a log-sum-exp, or all logits.

kl          KL(P ‖ Q) in nats; P the full model on the clean prompt, Q the patched model
logit-diff  −(mean logit of the correct answers − largest logit of the wrong ones)
prob-diff   −(probability of the correct answers − probability of the wrong ones)
nll         −log probability of the correct answers, in nats
l2          squared distance of the logits to the full model's, mean over the columns
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from acdc.model.transformer import Transformer
from acdc.registry import METRICS

Metric = Callable[[Tensor], Tensor]
LogSumExp = Callable[[Tensor], Tensor]  # of the centred logits: Float[... row d_model] to Float[... row]

SAMPLE_NUMBERS = 20_000_000  # bound on the table of `sampled_logsumexp`: 80 MB in float32
SAMPLE_VOCABULARY = 4096  # with fewer output columns the exact log-sum-exp is as cheap as a guess
LAUNCHES_PRODUCTS = 4e9  # with fewer multiplications a GPU, by estimate, has the exact one sooner than a guess


@dataclass(frozen=True)
class Targets:
    """The answers and the clean stream of the scored rows."""

    example: Tensor  # Int[row], the prompt that a row belongs to, rising; each prompt has a row
    correct: Tensor  # Int[row k], token ids, −1 where a row has fewer
    wrong: Tensor  # Int[row k], likewise
    clean: Tensor  # Float[row d_model], the full model's normalised final residual stream


def make_metric(name: str, model: Transformer, targets: Targets, logsumexp: LogSumExp | None = None) -> Metric:
    """The metric `name`, Float[... row d_model] → Float[... batch], by default with the exact log-sum-exp."""
    make = {"kl": _kl, "logit-diff": _logit_diff, "prob-diff": _prob_diff, "nll": _nll, "l2": _l2}[name]
    per_row = make(model, targets, logsumexp or model.logsumexp)
    counts = torch.bincount(targets.example)
    # A prompt's rows are put below each other and added up one after the other: CUDA's `index_add_` has no fixed order.
    n = len(counts)
    below = torch.arange(len(targets.example), device=counts.device) - (counts.cumsum(0) - counts)[targets.example]
    place = below * n + targets.example
    most = int(counts.max())
    if most == 1:
        return per_row

    def metric(h: Tensor) -> Tensor:
        rows = per_row(h)
        table = rows.new_zeros(*rows.shape[:-1], most * n).scatter_(-1, place.expand_as(rows), rows)
        return sum(table.unflatten(-1, (most, n)).unbind(-2), rows.new_zeros(())) / counts

    return metric


def make_guess(name: str, model: Transformer, targets: Targets) -> Metric | None:
    """A cheap guess at the metric, Float[candidate row d_model] → Float[candidate batch].

    None if the metric itself is cheap (few output columns, or only those of the answers) or has no guess (l2, or logits
    with a soft cap).
    """
    c = model.config
    products = len(targets.example) * c.vocab_out * c.d_model
    cheap = products < LAUNCHES_PRODUCTS if model.few_launches else c.vocab_out < SAMPLE_VOCABULARY
    if cheap or c.logit_cap or METRICS[name].output != "logsumexp":
        return None
    return make_metric(name, model, targets, sampled_logsumexp(model, targets.clean))


def sampled_logsumexp(model: Transformer, clean: Tensor) -> LogSumExp:
    """An estimate of the log-sum-exp from a few tokens, drawn from the prediction at `clean`, Float[row d_model].

    Σ_v exp(h·W_v) / Σ_v exp(c·W_v) is the mean of exp((h − c)·W_v) over tokens v drawn from the prediction at c. It
    costs a hundredth of the exact value and tells which candidates to evaluate; no decision depends on it.
    """
    at_clean = model.logsumexp(clean)
    n = max(16, min(256, SAMPLE_NUMBERS // clean.numel()))
    tokens = model.sampled_unembedding(clean, n)

    def logsumexp(h: Tensor) -> Tensor:
        moved = torch.einsum("...rd,rnd->...rn", h - clean, tokens)
        return at_clean + moved.logsumexp(-1) - math.log(n)

    return logsumexp


def resolution(model: Transformer, targets: Targets) -> float:
    """The smallest difference of a metric that is more than rounding, roughly: the dtype's precision times the largest
    log-sum-exp of the full model, which has the size of the logits whose differences metrics take.
    """
    largest = float(model.logsumexp(targets.clean).abs().max())
    return torch.finfo(targets.clean.dtype).eps * max(1.0, largest)


def accuracy(model: Transformer, targets: Targets, h: Tensor) -> Tensor:
    """Whether the best correct answer has a higher logit than every wrong one, or than every other token if there are
    no wrong ones: h Float[row d_model] to Bool[row]."""
    right = _masked(model, targets.correct, h, -torch.inf).amax(-1)
    if targets.wrong.shape[1]:
        return right > _masked(model, targets.wrong, h, -torch.inf).amax(-1)
    best = torch.cat([model.logits(rows).argmax(-1, keepdim=True) for rows in h.split(256)])  # bounds rows × vocabulary
    return (best == targets.correct).any(-1)


def _masked(model: Transformer, ids: Tensor, h: Tensor, fill: float) -> Tensor:
    return model.centred_logits(h, ids.clamp(min=0)).masked_fill(ids < 0, fill)


def _kl(model: Transformer, t: Targets, logsumexp: LogSumExp) -> Metric:
    if model.config.logit_cap:
        return _capped_kl(model, t)
    # KL(P‖Q) = Σ p (log p − log q) = logsumexp(q's logits) − logsumexp(p's) − (h − clean) · Σ p W: one product with the
    # vocabulary, and as a difference exactly 0 for the clean run.
    vector = model.expected_unembedding(t.clean)
    clean = logsumexp(t.clean)
    return lambda h: logsumexp(h) - clean - ((h - t.clean) * vector).sum(-1)


def _capped_kl(model: Transformer, t: Targets) -> Metric:
    """KL where logits have a soft cap, so that they are not linear in h: Σ p (q's logits − p's) needs all of them."""
    clean = model.logsumexp(t.clean)

    def metric(h: Tensor) -> Tensor:
        parts = []
        expected = h.new_zeros(h.shape[:-1])
        for mine, full in _blocks(model, t, h):
            parts.append(mine.logsumexp(-1))
            expected = expected + ((mine - full) * (full - clean[:, None]).exp()).sum(-1)
        return torch.stack(parts).logsumexp(0) - clean - expected

    return metric


def _logit_diff(model: Transformer, t: Targets, _: LogSumExp) -> Metric:
    n = (t.correct >= 0).sum(-1)

    def metric(h: Tensor) -> Tensor:
        right = _masked(model, t.correct, h, 0.0).sum(-1) / n
        return _masked(model, t.wrong, h, -torch.inf).amax(-1) - right

    return metric


def _prob_diff(model: Transformer, t: Targets, logsumexp: LogSumExp) -> Metric:
    ids = torch.cat([t.correct, t.wrong], 1)
    sign = torch.cat([torch.ones_like(t.correct), -torch.ones_like(t.wrong)], 1)
    sign = sign.to(t.clean.dtype)

    def metric(h: Tensor) -> Tensor:
        log_p = _masked(model, ids, h, -torch.inf) - logsumexp(h)[..., None]
        return -(log_p.exp() * sign).sum(-1)

    return metric


def _nll(model: Transformer, t: Targets, logsumexp: LogSumExp) -> Metric:
    return lambda h: logsumexp(h) - _masked(model, t.correct, h, -torch.inf).logsumexp(-1)


def _l2(model: Transformer, t: Targets, _: LogSumExp) -> Metric:
    def metric(h: Tensor) -> Tensor:
        # The means over the vocabulary, which the blocks lack.
        mean, clean = ((x @ model.unembed_mean + model.unembed_bias_mean)[..., None] for x in (h, t.clean))
        parts = [(mine + mean - (full + clean)).square().sum(-1) for mine, full in _blocks(model, t, h)]
        return sum(parts, h.new_zeros(())) / model.config.vocab_out

    return metric


def _blocks(model: Transformer, t: Targets, h: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the centred logits at h Float[... row d_model] and at the clean rows in blocks of the vocabulary, so that
    not all are in memory: Float[... row block] and Float[row block]."""
    flat = h.reshape(-1, h.shape[-1])
    for mine, full in zip(model.logit_blocks(flat), model.logit_blocks(t.clean, len(flat)), strict=True):
        yield mine.view(*h.shape[:-1], -1), full

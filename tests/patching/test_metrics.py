"""Metrics: the mean over a prompt's rows, and their memory with a large vocabulary."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acdc.model.transformer import VOCAB_BLOCK
from acdc.patching.activations import prepare
from acdc.patching.metrics import Targets, accuracy, make_metric
from tests.support.random_models import random_model, random_prompts

LARGE = 20 * VOCAB_BLOCK + 17


def stream(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@contextmanager
def largest():
    """A list whose only element is the number of elements of the largest tensor that is made."""
    seen = [0]

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                seen[0] = max(seen[0], out.numel())
            return out

    with Watch():
        yield seen


def test_a_metric_is_the_mean_over_the_rows_of_each_prompt():
    model = random_model(0)
    example = torch.tensor([0, 1, 1, 1, 2, 2])
    tokens = torch.arange(6)[:, None]
    h = stream(4, 6, 8)
    values = make_metric("nll", model, Targets(example, tokens, tokens[:, :0], h[0]))(h)
    rows = -model.logits(h).log_softmax(-1)[:, torch.arange(6), torch.arange(6)]
    expected = torch.stack([rows[:, example == prompt].mean(1) for prompt in range(3)], 1)
    assert torch.allclose(values, expected, atol=1e-12)


@pytest.mark.parametrize("vocabulary", [11, VOCAB_BLOCK, LARGE])
def test_l2_is_the_mean_square_of_logits_in_blocks_of_the_vocabulary(vocabulary):
    model = random_model(0, vocab_size=11, vocab_out=vocabulary)
    targets = prepare(model, random_prompts(0, model, batch=3), "corrupted").targets
    h = stream(6, 3, 8)
    expected = (model.logits(h) - model.logits(targets.clean)).square().mean(-1)
    with largest() as seen:
        values = make_metric("l2", model, targets)(h)
        clean = make_metric("l2", model, targets)(targets.clean)
    assert torch.allclose(values, expected, rtol=1e-12)
    assert torch.equal(clean, torch.zeros(3, dtype=torch.float64))
    assert seen[0] <= 6 * 3 * VOCAB_BLOCK


def test_accuracy_without_wrong_answers_holds_few_rows_of_logits():
    model = random_model(0, vocab_size=11, vocab_out=LARGE)
    h = stream(600, 8)
    best = model.logits(h).argmax(-1)
    correct = torch.where(torch.arange(600) % 3 > 0, best, best - 1)[:, None]
    targets = Targets(torch.arange(600), correct, correct[:, :0], h)
    with largest() as seen:
        right = accuracy(model, targets, h)
    assert right.tolist() == [i % 3 > 0 for i in range(600)]
    assert seen[0] <= 256 * LARGE

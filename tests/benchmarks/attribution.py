"""eap and eap-ig: time against Hugging Face's passes over the same prompts, and memory against EAP-IG's formula.

The bound is two forward passes and one backward pass of GPT2LMHeadModel as one writes them (logits of all positions),
once with frozen weights (only the gradient that attribution needs) and once with the gradients of the weights, too.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from acdc.methods import eap, eap_ig
from acdc.model.config import ModelConfig
from acdc.model.transformer import Transformer
from acdc.patching.offload import Parts
from acdc.patching.problem import Problem
from acdc.task.tokenize import Split
from tests.benchmarks.hf import to_hugging_face
from tests.benchmarks.models import GREATER_THAN, IOI, VOCAB, Shape, config, prompts, raw_weights

METRIC = "logit-diff"


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def problem(model: Transformer, data: Any) -> Problem:
    with torch.no_grad():
        return Problem(model, Parts(model, data, "corrupted"), METRIC)


def measure_time(repeats: int) -> dict[str, Any]:
    """Medians and ranges of the ratios at GPT-2 small's size, 25 prompts, both sides in turn."""
    c = config(12, 12, 768, VOCAB)
    model = Transformer(c, raw_weights(c))
    theirs: Any = to_hugging_face(model)
    return {
        name: compare(model, theirs, prompts(shape, 25, c.vocab_size), repeats)
        for name, shape in (("greater-than", GREATER_THAN), ("ioi", IOI))
    }


def compare(model: Transformer, theirs: Any, data: Split, repeats: int) -> dict[str, Any]:
    clean, corrupted, wrong, correct = (
        torch.as_tensor(x) for x in (data.clean, data.corrupted, data.wrong, data.correct)
    )
    ready = problem(model, data)

    def passes(frozen: bool) -> None:
        theirs.requires_grad_(False)
        with torch.no_grad():
            theirs(corrupted)
        theirs.requires_grad_(not frozen)
        last = theirs(inputs_embeds=theirs.transformer.wte(clean).detach().requires_grad_()).logits[:, -1]
        (last.gather(1, wrong) - last.gather(1, correct)).mean().backward()
        theirs.zero_grad()

    def ours() -> None:
        with torch.no_grad():
            eap.score(problem(model, data))

    def steps() -> None:
        with torch.no_grad():
            eap_ig.score(ready, steps=2)

    rows = []
    for _ in range(repeats + 1):  # the first warms up
        rows.append((seconds(lambda: passes(True)), seconds(lambda: passes(False)), seconds(ours), seconds(steps) / 2))
    frozen, full, mine, step = zip(*rows[1:], strict=True)
    ratios = {
        "eap over frozen passes": [x / y for x, y in zip(mine, frozen, strict=True)],
        "eap over passes": [x / y for x, y in zip(mine, full, strict=True)],
        "eap-ig per step over frozen passes": [x / y for x, y in zip(step, frozen, strict=True)],
    }
    spread = {name: [min(r), statistics.median(r), max(r)] for name, r in ratios.items()}
    return {"seconds of eap": statistics.median(mine)} | spread


def measure_memory() -> dict[str, Any]:
    """At the size of Llama 3.2 1B (16 layers, 32 heads, width 2,048, 128,256 tokens), 16 prompts of 64 tokens."""
    c = ModelConfig(16, 32, 2048, 64, 8192, 64, 128256, 128256, "rms", 1e-5, "silu", rotary=64, gated=True)
    g = torch.Generator().manual_seed(0)
    weights = {name: torch.empty(shape).normal_(0, 0.02, generator=g) for name, shape in c.shapes().items()}
    model = Transformer(c, weights)
    del weights
    n, n_pos = 16, 64
    data = prompts(Shape(n_pos, tuple(range(1, n_pos))), n, c.vocab_size)
    before = peak()
    with torch.no_grad():
        eap.score(problem(model, data))
    senders = len(c.graph().senders)
    return {
        "weights, with what loading takes, GB": before,
        "added by eap, GB": peak() - before,
        "EAP-IG's difference of activations alone, GB": n * n_pos * senders * c.d_model * 4 / 1e9,
    }


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=("time", "memory"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    a = parser.parse_args()
    found = measure_time(a.repeats) if a.what == "time" else measure_memory()
    a.out.write_text(json.dumps(found))


if __name__ == "__main__":
    main()

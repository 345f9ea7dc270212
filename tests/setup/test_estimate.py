"""The stages of a run, and how long each is expected to take."""

from __future__ import annotations

import pytest

from acdc.model.checkpoint import open_checkpoint
from acdc.model.config import ModelConfig
from acdc.setup import estimate
from acdc.setup.config import resolve
from acdc.task.tokenize import make_data

GPT2 = ModelConfig(12, 12, 768, 64, 3072, 1024, 50257, 50257)


def stages(sizes: ModelConfig | None = None, **given) -> dict[str, float]:
    """Of a run on tiny, or on a model of other sizes."""
    config, task, _ = resolve({"task": "ioi", "model": "tiny", "examples": 10} | given, None, None)
    tiny = open_checkpoint("tiny")
    prompts = make_data(task, tiny.tokenizer, config.examples, 0).discovery
    return estimate.stages(config, sizes or tiny.sizes, prompts, "cpu", 1)


@pytest.mark.parametrize(
    ("sizes", "given", "own"),
    [
        (None, {}, ["search"]),
        (None, {"prefilter": "eap-ig:0.1"}, ["filter", "search"]),
        (None, {"method": "eap-ig", "edges": 5}, ["scores"]),
        (None, {"faithfulness": 0.9}, ["gradients", "elimination"]),
        (GPT2, {"faithfulness": 0.9}, ["gradients", "search", "elimination"]),
    ],
)
def test_the_stages_of_a_run_in_order(sizes, given, own):
    """ACDC comes before elimination where gradients leave many edges: in graphs of real models."""
    assert list(stages(sizes, **given)) == ["loading", "activations", *own, "evaluation", "curve", "report"]

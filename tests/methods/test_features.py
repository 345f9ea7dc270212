"""MLPs split into features: the decisions and scores of a whole masked pass for each edge, in float64."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from acdc.methods import edge_patching
from acdc.model.features import neurons, split, transcoder_features
from acdc.patching.offload import Parts
from acdc.patching.problem import Problem
from tests.support.equivalence import compare
from tests.support.oracle import Naive
from tests.support.random_models import FEATURES, POST_NORM, random_model, random_prompts, random_transcoder

FAMILIES = (
    {},
    {"parallel": True, "norm": "layer", "rotary": 4},
    {"norm": "rms", "gated": True, "activation": "silu", "rotary": 4},
    {"split_position": True, "causal": False, "norm": "none"},
)


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    seed=st.integers(0, 10_000),
    layers=st.integers(1, 3),
    family=st.sampled_from(FAMILIES),
    features=st.sampled_from(FEATURES),
    metric=st.sampled_from(["kl", "logit-diff", "nll"]),
    ablation=st.sampled_from(["corrupted", "zero", "mean"]),
    threshold=st.sampled_from([1e-4, 1e-3, 1e-2, 0.1]),
    direct=st.booleans(),
    batch=st.sampled_from([1, 7, 64]),
    n_spans=st.sampled_from([0, 0, 3]),
    scored=st.sampled_from(["last", "two", "all"]),
)
def test_same_edges_as_the_naive_algorithm(
    seed, layers, family, features, metric, ablation, threshold, direct, batch, n_spans, scored
):
    model = random_model(seed, features=features, n_layers=layers, **family)
    prompts = random_prompts(seed, model, scored=scored, pad=seed % 2 == 0, n_spans=n_spans)
    try:
        compare(model, prompts, metric, ablation, threshold, direct, batch)
    except pytest.skip.Exception:  # this model only, not the whole test
        reject()


@pytest.mark.parametrize(
    ("sizes", "kind", "reads"),
    [
        *((sizes, "neurons", "") for sizes in FAMILIES),
        *itertools.product((*FAMILIES, POST_NORM), FEATURES[1:], ("normalised", "stream")),
    ],
)
def test_all_features_together_are_the_model(sizes, kind, reads):
    model = random_model(3, n_layers=2, **sizes)
    rng = np.random.default_rng(0)
    every = {
        layer: neurons(model, layer)
        if kind == "neurons"
        else transcoder_features(random_transcoder(rng, model, kind, reads))
        for layer in range(2)
    }
    prompts = random_prompts(3, model)
    tokens, pad = torch.as_tensor(prompts.clean), torch.as_tensor(prompts.pad)
    parts = split(model, every)
    outputs, stream = parts.run(tokens, pad)
    assert len(outputs.mlp) == 2 * (1 + len(every[0].names)) and outputs.mlp[0].abs().max() > 0.1
    assert torch.allclose(stream, model.run(tokens, pad)[1], rtol=0, atol=1e-9)


def test_without_features_the_model_is_what_it_was():
    model = random_model(0)
    same = split(model, {0: neurons(model, 0).take([])})
    assert same is model


@pytest.mark.parametrize("features", FEATURES)
def test_edge_patching_is_a_pass_of_the_oracle_for_each_edge(features):
    model = random_model(1, features=features)
    prompts = random_prompts(1, model)
    graph = model.config.graph()
    naive = Naive(model, prompts, "kl", "corrupted")
    every = {graph.edge_name(s, r) for s, r in np.argwhere(graph.edges)}
    scores = edge_patching.score(Problem(model, Parts(model, prompts, "corrupted", None), "kl")).edges
    full = naive.metric(every)
    for s, r in np.argwhere(graph.edges):
        assert scores[s, r] == pytest.approx(naive.metric(every - {graph.edge_name(s, r)}) - full, abs=1e-10)

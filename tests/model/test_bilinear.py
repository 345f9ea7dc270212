"""The terms of a head's score add up to it, for every family; the score's arithmetic is the oracle's."""

from __future__ import annotations

import pytest
import torch

from acdc.model.bilinear import fewest, score_terms
from acdc.model.transformer import Transformer
from tests.support.oracle import norm, place
from tests.support.random_models import random_model

FAMILIES = {
    "gpt2": {"norm": "layer"},
    "no norm": {"norm": "none"},
    "llama": {"norm": "rms", "rotary": 4, "gated": True, "activation": "silu"},
    "gpt-neox, partly rotated": {"norm": "layer", "rotary": 2, "parallel": True},
    "qwen, with a norm of queries and keys": {"norm": "rms", "rotary": 4, "head_norm": True},
    "wide heads": {"norm": "layer", "d_head": 12},
}


def of_family(family: str, seed: int = 0) -> Transformer:
    """A random model; both heads of a layer share keys, as grouped-query attention makes them, if it rotates."""
    model = random_model(seed, **FAMILIES[family])
    if model.config.rotary:
        for layer in range(2):
            for name in ("k.weight", "k.bias"):
                w = model.weights[f"layers.{layer}.{name}"]
                w[1] = w[0]
    return model


def random_pairs(model: Transformer, n: int = 6):
    """Inputs of queries and keys with a large mean, as real streams have, and their positions."""
    x = {c: torch.randn(n, model.config.d_model, dtype=torch.float64) * 3 + 1 for c in "qk"}
    at = {"q": torch.arange(n) + 2, "k": torch.arange(n) // 2}
    return x, at


@pytest.mark.parametrize("family", FAMILIES)
def test_terms_add_up_to_the_score(family):
    model = of_family(family)
    x, at = random_pairs(model)
    for layer, head in ((0, 1), (1, 0)):
        q, k = (
            place(
                model,
                c,
                layer,
                norm(model, x[c]) @ model.weights[f"layers.{layer}.{c}.weight"][head]
                + model.weights[f"layers.{layer}.{c}.bias"][head],
                at[c],
            )
            for c in "qk"
        )
        terms = score_terms(model, layer, head, x, at)
        assert terms.scores.shape == (6, min(model.config.d_head, model.config.d_model + 1))
        assert (terms.sigma >= 0).all()
        assert (terms.sigma.diff(dim=-1) <= 0).all()
        assert torch.allclose(terms.scores.sum(-1), (q * k).sum(-1), rtol=0, atol=1e-9)
        assert (q * k).sum(-1).abs().min() > 1e-3


def test_rotated_terms_depend_on_the_distance_alone():
    model = of_family("llama")
    x, at = random_pairs(model)
    here, there, elsewhere = (
        score_terms(model, 1, 0, x, {"q": at["q"] + a, "k": at["k"] + b}).scores for a, b in ((0, 0), (5, 5), (1, 0))
    )
    assert torch.allclose(here, there, atol=1e-6)  # angles are in float32, as in Hugging Face's code
    assert not torch.allclose(here, elsewhere, atol=1e-3)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", "qk")
def test_a_part_is_read_by_the_chosen_terms_and_no_other(family, kind):
    model = of_family(family)
    x, at = random_pairs(model)
    terms = score_terms(model, 0, 0, x, at)
    chosen = torch.rand(terms.sigma.shape) < 0.4
    written = torch.randn(6, 3, 8, dtype=torch.float64)
    if model.config.norm == "layer":
        written = written - written.mean(-1, keepdim=True)
    read, some = (of @ terms.directions[kind] for of in (written, terms.only(kind, chosen, written)))
    if family == "wide heads":  # more directions than dimensions: they overlap
        whole = terms.only(kind, torch.ones_like(chosen), written)
        assert torch.allclose(whole @ terms.directions[kind], read, atol=1e-9)
    else:
        assert torch.allclose(some, torch.where(chosen[:, None], read, 0), atol=1e-9)


def test_float32_models_are_taken_apart_in_float64():
    model = random_model(0, dtype=torch.float32, norm="rms", rotary=4)
    x, at = random_pairs(model)
    terms = score_terms(model, 0, 0, {c: of.float() for c, of in x.items()}, at)
    assert terms.scores.dtype == torch.float64


def test_the_fewest_terms():
    terms = torch.tensor([[4.0, -3.0, 5.0, 1.0, 3.0], [-1, -8, 0, -0.5, 0], [0, 0, 0, 0, 0], [1, -1, 2, -2, 0.5]])
    expected = [[2, 0], [1, 0], [], [2]]  # 9 of 10; 9 of 9.5; nothing; 2 of 0.5
    assert [row.nonzero()[:, 0].tolist() for row in fewest(terms)] == [sorted(row) for row in expected]
    assert fewest(terms, 0.5)[1].tolist() == [False, True, False, False, False]


def test_weights_of_a_lower_rank():
    """Compiled models have heads that use few of their dimensions."""
    model = random_model(0)
    for name in ("weight", "bias"):
        model.weights[f"layers.0.q.{name}"][0, ..., 1:] = 0
    x, at = random_pairs(model)
    terms = score_terms(model, 0, 0, x, at)
    assert (terms.sigma[:, 1:] < 1e-12).all()
    assert torch.isfinite(terms.only("q", torch.ones_like(terms.sigma, dtype=torch.bool), torch.randn(6, 2, 8))).all()

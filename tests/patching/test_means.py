"""Mean ablation: whose mean a removed edge carries."""

from __future__ import annotations

import torch

from tests.support.runs import inputs


def test_each_half_is_ablated_with_the_mean_over_its_own_clean_prompts():
    loaded = inputs(task="ioi", model="tiny", ablation="mean", examples=6, batch=None)
    means = []
    for half in ("discovery", "held_out"):
        (cache,) = loaded.parts(half)
        assert not cache.pad.any()  # IOI's prompts have one length here, so the mean is a plain one
        means.append(cache.clean.mlp.mean(1, keepdim=True))
        torch.testing.assert_close(cache.ablated.mlp, means[-1].expand_as(cache.clean.mlp))
    assert (means[0] - means[1]).abs().max() > 0.01

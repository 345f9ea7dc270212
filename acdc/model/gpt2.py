"""GPT-2 checkpoints of any size, also those whose layer norm was removed by fine-tuning (Heimersheim 2024).

The latter are ordinary GPT-2: an epsilon of 1e12 drowns the variance, and scales of about 1e6 undo the division.
"""

from typing import Any

from acdc.model.config import ModelConfig, sizes_of
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `GPT2Config`."""
    return sizes_of(config, d_mlp=config.n_inner or 4 * config.n_embd)


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: norms and the attention scale are folded in."""
    c = t.sizes
    t.out["token.weight"] = t.take("transformer.wte.weight")
    t.out["position.weight"] = t.take("transformer.wpe.weight")
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"transformer.h.{i}."
        w, b = t.fold(at + "ln_1", *t.linear(at + "attn.c_attn", transposed=False))
        for x, w_x, b_x in zip("qkv", w.split(c.d_model, 1), b.split(c.d_model), strict=True):
            t.put_heads(to + x, w_x, b_x, c.n_heads)
        scale = c.d_head**-0.5 if config.scale_attn_weights else 1.0
        t.scale(to + "q", scale / (i + 1) if config.scale_attn_by_inverse_layer_idx else scale)
        t.put_output(to + "o", *t.linear(at + "attn.c_proj", transposed=False))
        t.put(to + "mlp_in", *t.fold(at + "ln_2", *t.linear(at + "mlp.c_fc", transposed=False), mlp=i))
        t.put(to + "mlp_out", *t.linear(at + "mlp.c_proj", transposed=False))
    t.put_unembedding("transformer.ln_f")

"""GPT-Neo checkpoints (TinyStories among them): separate query, key and value, no attention scale, local attention."""

from typing import Any

from acdc.model.config import ModelConfig, sizes_of
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `GPTNeoConfig`."""
    windows = tuple(config.window_size if kind == "local" else 0 for kind in config.attention_layers)
    return sizes_of(config, d_mlp=config.intermediate_size or 4 * config.hidden_size, windows=windows)


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: norms are folded in."""
    c = t.sizes
    t.out["token.weight"] = t.take("transformer.wte.weight")
    t.out["position.weight"] = t.take("transformer.wpe.weight")
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"transformer.h.{i}."
        for x in "qkv":
            t.put_heads(to + x, *t.fold(at + "ln_1", *t.linear(f"{at}attn.attention.{x}_proj")), c.n_heads)
        t.put_output(to + "o", *t.linear(at + "attn.attention.out_proj"))
        t.put(to + "mlp_in", *t.fold(at + "ln_2", *t.linear(at + "mlp.c_fc"), mlp=i))
        t.put(to + "mlp_out", *t.linear(at + "mlp.c_proj"))
    t.put_unembedding("transformer.ln_f")

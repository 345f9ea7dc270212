"""GPT-NeoX checkpoints (Pythia among them): parallel blocks, partly rotated heads, interleaved q, k and v."""

from dataclasses import replace
from typing import Any

from acdc.model.config import ModelConfig, sizes_of
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `GPTNeoXConfig`."""
    c = sizes_of(config, d_mlp=config.intermediate_size, parallel=config.use_parallel_residual)
    return replace(c, rotary=int(c.d_head * config.rope_parameters.get("partial_rotary_factor", 1.0)))


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: norms and the attention scale are folded in."""
    c = t.sizes
    t.out["token.weight"] = t.take("gpt_neox.embed_in.weight")
    scale = t.rotary("gpt_neox.rotary_emb.")
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"gpt_neox.layers.{i}."
        w, b = t.fold(at + "input_layernorm", *t.linear(at + "attention.query_key_value"))
        w = w.view(len(w), c.n_heads, 3, -1)
        b = b.view(c.n_heads, 3, -1)
        for n, x in enumerate("qkv"):
            t.put_heads(to + x, w[:, :, n].flatten(1), b[:, n].flatten(), c.n_heads)
        t.scale(to + "q", scale)
        t.put_output(to + "o", *t.linear(at + "attention.dense"))
        mlp = t.linear(at + "mlp.dense_h_to_4h")
        t.put(to + "mlp_in", *t.fold(at + "post_attention_layernorm", *mlp, mlp=i))
        t.put(to + "mlp_out", *t.linear(at + "mlp.dense_4h_to_h"))
    t.put_unembedding("gpt_neox.final_layer_norm")

"""GPT-NeoX checkpoints (Pythia among them): parallel blocks, partly rotated heads, interleaved q, k and v."""

from typing import Any

from acdc.model.config import ModelConfig, head_size
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `GPTNeoXConfig`."""
    d_head = head_size(config.hidden_size, config.num_attention_heads)
    return ModelConfig(
        n_layers=config.num_hidden_layers,
        n_heads=config.num_attention_heads,
        d_model=config.hidden_size,
        d_head=d_head,
        d_mlp=config.intermediate_size,
        n_positions=config.max_position_embeddings,
        vocab_size=config.vocab_size,
        vocab_out=config.vocab_size,
        norm_eps=config.layer_norm_eps,
        activation=config.hidden_act,
        rotary=int(d_head * config.rope_parameters.get("partial_rotary_factor", 1.0)),
        parallel=config.use_parallel_residual,
    )


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: norms and the attention scale are folded in."""
    c = t.sizes
    t.out["token.weight"] = t.take("gpt_neox.embed_in.weight")
    scale = t.rotary("gpt_neox.rotary_emb")
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"gpt_neox.layers.{i}."
        w, b = t.fold(at + "input_layernorm", *t.linear(at + "attention.query_key_value"))
        w = w.view(c.d_model, c.n_heads, 3, -1)
        b = b.view(c.n_heads, 3, -1)
        for n, x in enumerate("qkv"):
            t.put_heads(to + x, w[:, :, n].flatten(1), b[:, n].flatten(), c.n_heads)
        t.scale(to + "q", scale)
        t.put_output(to + "o", *t.linear(at + "attention.dense"))
        mlp = t.linear(at + "mlp.dense_h_to_4h")
        t.put(to + "mlp_in", *t.fold(at + "post_attention_layernorm", *mlp))
        t.put(to + "mlp_out", *t.linear(at + "mlp.dense_4h_to_h"))
    t.put_unembedding("gpt_neox.final_layer_norm")

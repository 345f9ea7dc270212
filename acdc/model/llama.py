"""Checkpoints of Llama and its relatives: Llama 2 and 3, SmolLM2, Mistral and Ministral, Qwen 2, 2.5 and 3.

They have RMS norms, rotated heads, gated MLPs, and key and value heads shared by several query heads. Each query head
gets its own copy of these, as in EAP-IG and TransformerLens with ungrouped attention.
"""

from dataclasses import replace
from typing import Any

from acdc.model.config import ModelConfig, sizes_of
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `LlamaConfig` or a relative's."""
    window = config.sliding_window if config.model_type != "llama" else None
    kinds = ["sliding_attention"] * config.num_hidden_layers if config.model_type == "mistral" else None
    # longrope has other frequencies for prompts that are longer than this
    shorter = config.rope_parameters.get("original_max_position_embeddings")
    longrope = config.rope_parameters["rope_type"] == "longrope"
    c = sizes_of(
        config,
        getattr(config, "head_dim", None),
        d_mlp=config.intermediate_size,
        n_positions=shorter if longrope and shorter else config.max_position_embeddings,
        norm="rms",
        gated=True,
        head_norm=config.model_type == "qwen3",
        windows=tuple(window if k == "sliding_attention" else 0 for k in kinds or config.layer_types) if window else (),
    )
    return replace(c, rotary=c.d_head)


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: norms and the attention scale are folded in."""
    c = t.sizes
    n_shared = config.num_key_value_heads
    t.out["token.weight"] = t.take("model.embed_tokens.weight")
    scale = t.rotary("model.rotary_emb")
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"model.layers.{i}."
        for x, n in (("q", c.n_heads), ("k", n_shared), ("v", n_shared)):
            w, b = t.fold(at + "input_layernorm", *t.linear(f"{at}self_attn.{x}_proj"))
            t.put_heads(to + x, w, b, n, c.n_heads // n)
        if c.head_norm:  # it would undo a scale before it
            t.out[to + "q.norm"] = t.take(at + "self_attn.q_norm.weight") * scale
            t.out[to + "k.norm"] = t.take(at + "self_attn.k_norm.weight")
        else:
            t.scale(to + "q", scale)
        t.put_output(to + "o", *t.linear(at + "self_attn.o_proj"))
        for x, name in (("mlp_in", "up_proj"), ("mlp_gate", "gate_proj")):
            t.put(to + x, *t.fold(at + "post_attention_layernorm", *t.linear(f"{at}mlp.{name}")))
        t.put(to + "mlp_out", *t.linear(f"{at}mlp.down_proj"))
    t.put_unembedding("model.norm")

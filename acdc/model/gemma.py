"""Checkpoints of Gemma 2 and Gemma 3 (text).

They are Llama's (`acdc.model.llama`), with norms after attention and MLPs as well, embeddings times √d_model, and norms
that multiply by 1 + weight. Gemma 2 has soft caps; Gemma 3 normalises queries and keys, and its layers with a window
rotate by frequencies of their own.
"""

from typing import Any

from acdc.model import llama
from acdc.model.config import ModelConfig, sizes_of
from acdc.model.weights import Weights


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `Gemma2Config` or `Gemma3TextConfig`."""
    third = config.model_type == "gemma3_text"
    return sizes_of(
        config,
        config.head_dim,
        d_mlp=config.intermediate_size,
        norm="rms",
        gated=True,
        rotary=config.head_dim,
        head_norm=third,
        windows=tuple(config.sliding_window if kind == "sliding_attention" else 0 for kind in config.layer_types),
        local_rotary=third and len(set(config.layer_types)) > 1,
        post_norm=True,
        score_cap=0.0 if third else config.attn_logit_softcapping or 0.0,
        logit_cap=config.final_logit_softcapping or 0.0,
    )


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: all norms that are read, and the attention scale, are folded in."""
    t.shift_norms()
    t.out["token.weight"] = t.take("model.embed_tokens.weight")
    t.scale("token", t.get("model.embed_tokens.embed_scale"))
    llama.read_layers(config, t, llama.rotations(config, t, config.query_pre_attn_scalar**-0.5))
    t.put_unembedding("model.norm")

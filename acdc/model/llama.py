"""Checkpoints of Llama and its relatives: Llama 2 and 3, SmolLM2, Mistral, Qwen 2, 2.5 and 3.

They have RMS norms, rotated heads, gated MLPs, and key and value heads shared by several query heads. Each query head
gets its own copy of these, as in EAP-IG and TransformerLens with ungrouped attention.
"""

from typing import Any

from torch import Tensor

from acdc.errors import ModelError
from acdc.model.checkpoint import Checkpoint, frequencies, read_sizes, refuse, rope
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json; ModelError for a model that it can't represent."""
    refuse(raw, where, pretraining_tp=1)
    refuse(rope(raw), where, partial_rotary_factor=1.0)
    sizes = read_sizes(raw, where, raw.get("head_dim"), d_mlp="intermediate_size")
    n_heads = sizes["n_heads"]
    if n_heads % (raw.get("num_key_value_heads") or n_heads):
        raise ModelError(f"{where}: num_attention_heads {n_heads} is not a multiple of num_key_value_heads")
    return ModelConfig(
        **sizes,
        norm="rms",
        norm_eps=raw.get("rms_norm_eps", 1e-6),
        activation=raw.get("hidden_act", "silu"),
        rotary=sizes["d_head"],
        gated=True,
        head_norm=raw.get("model_type") == "qwen3",
        windows=_windows(raw, sizes["n_layers"]),
    )


def _windows(raw: dict[str, Any], n_layers: int) -> tuple[int, ...]:
    window = raw.get("sliding_window") or 0
    if raw.get("model_type") == "mistral":
        return (window,) * n_layers
    if not raw.get("use_sliding_window"):
        return ()
    kinds = raw.get("layer_types") or [
        "sliding_attention" if i >= raw.get("max_window_layers", n_layers) else "full_attention"
        for i in range(n_layers)
    ]
    return tuple(window if kind == "sliding_attention" else 0 for kind in kinds)


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms and the attention scale are folded in."""
    t = Checkpoint(tensors, "model.", where)
    d = c.d_model
    n_shared = raw.get("num_key_value_heads") or c.n_heads
    scale = c.d_head**-0.5
    t.out["token.weight"] = t.get("embed_tokens.weight", c.vocab_size, d)
    t.out["rotary.frequencies"] = frequencies(raw, c.rotary, where)
    for i in range(c.n_layers):
        at = f"layers.{i}."
        for x, n in (("q", c.n_heads), ("k", n_shared), ("v", n_shared)):
            w, b = t.fold(at + "input_layernorm", *t.linear(f"{at}self_attn.{x}_proj", d, n * c.d_head))
            t.put_heads(at + x, w, b, n, c.n_heads // n)
        if c.head_norm:  # it would undo a scale before it
            t.out[at + "q.norm"] = t.get(at + "self_attn.q_norm.weight", c.d_head) * scale
            t.out[at + "k.norm"] = t.get(at + "self_attn.k_norm.weight", c.d_head)
        else:
            t.scale(at + "q", scale)
        t.put_output(at + "o", *t.linear(at + "self_attn.o_proj", c.n_heads * c.d_head, d), c.n_heads)
        for x, name in (("mlp_in", "up_proj"), ("mlp_gate", "gate_proj")):
            t.put(at + x, *t.fold(at + "post_attention_layernorm", *t.linear(f"{at}mlp.{name}", d, c.d_mlp)))
        t.put(at + "mlp_out", *t.linear(f"{at}mlp.down_proj", c.d_mlp, d))
    return t.finish("norm", tied=bool(raw.get("tie_word_embeddings")))

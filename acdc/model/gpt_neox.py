"""GPT-NeoX checkpoints (Pythia among them): parallel blocks, partly rotated heads, interleaved q, k and v."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from acdc.model.checkpoint import Checkpoint, frequencies, head_size, rope, sizes
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json."""
    n_layers, n_heads, width, hidden, n_positions, vocab = sizes(
        raw,
        where,
        "num_hidden_layers",
        "num_attention_heads",
        "hidden_size",
        "intermediate_size",
        "max_position_embeddings",
        "vocab_size",
    )
    d_head = head_size(width, n_heads, where)
    rotated = {"rotary_pct": 0.25, "rope_parameters": {}, **raw}
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=width,
        d_head=d_head,
        d_mlp=hidden,
        n_positions=n_positions,
        vocab_size=vocab,
        vocab_out=vocab,
        norm_eps=raw.get("layer_norm_eps", 1e-5),
        activation=raw.get("hidden_act", "gelu"),
        rotary=int(d_head * rope(rotated)["partial_rotary_factor"]),
        parallel=raw.get("use_parallel_residual", True),
    )


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms and the attention scale are folded in."""
    t = Checkpoint({name.removeprefix("gpt_neox."): x for name, x in tensors.items()}, where)
    d = c.d_model
    hidden = c.d_mlp
    embedding = t.get("embed_in.weight", c.vocab_size, d)
    out = {"token.weight": embedding, "rotary.frequencies": frequencies(raw, c.rotary, where)}
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"layers.{i}."
        w, b = t.fold(at + "input_layernorm", *t.linear(at + "attention.query_key_value", d, 3 * d))
        w = w.view(d, c.n_heads, 3, c.d_head)
        b = b.view(c.n_heads, 3, c.d_head)
        for n, x in enumerate("qkv"):
            scale = c.d_head**-0.5 if x == "q" else 1.0
            out[f"{to}{x}.weight"] = (w[:, :, n].transpose(0, 1) * scale).contiguous()
            out[f"{to}{x}.bias"] = b[:, n] * scale
        w, out[to + "o.bias"] = t.linear(at + "attention.dense", d, d)
        out[to + "o.weight"] = w.reshape(c.n_heads, c.d_head, d)
        out[to + "mlp_in.weight"], out[to + "mlp_in.bias"] = t.fold(
            at + "post_attention_layernorm", *t.linear(at + "mlp.dense_h_to_4h", d, hidden)
        )
        out[to + "mlp_out.weight"], out[to + "mlp_out.bias"] = t.linear(at + "mlp.dense_4h_to_h", hidden, d)
    name = "lm_head" if t.has("lm_head.weight") else "embed_out"
    head = embedding if raw.get("tie_word_embeddings") else t.get(f"{name}.weight", c.vocab_out, d)
    out["unembed.weight"], out["unembed.bias"] = t.fold("final_layer_norm", head.T, head.new_zeros(c.vocab_out))
    t.finish()
    return out

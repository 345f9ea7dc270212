"""GPT-2 checkpoints (any size, vocabulary and fine-tuning) onto the transformer.

This includes models whose layer norm was removed by fine-tuning (Heimersheim 2024, Baroni et al. 2025). They are stored
as ordinary GPT-2: an epsilon of 1e12 drowns the variance, and scales of about 1e6 undo the division by its root, which
leaves x − mean(x). They need no special treatment.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acdc.model.checkpoint import Checkpoint, head_size, heads, refuse, sizes
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json; ModelError for a model that it can't represent."""
    refuse(raw, where, add_cross_attention=False)
    n_layers, n_heads, width, n_positions, vocab = sizes(
        raw, where, "n_layer", "n_head", "n_embd", "n_positions", "vocab_size"
    )
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=width,
        d_head=head_size(width, n_heads, where),
        d_mlp=raw.get("n_inner") or 4 * width,
        n_positions=n_positions,
        vocab_size=vocab,
        vocab_out=vocab,
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=raw.get("activation_function", "gelu_new"),
    )


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms and the attention scale are folded in."""
    t = Checkpoint({name.removeprefix("transformer."): x for name, x in tensors.items()}, where)
    d = c.d_model
    hidden = c.d_mlp
    embedding = t.get("wte.weight", c.vocab_size, d)
    out = {"token.weight": embedding, "position.weight": t.get("wpe.weight", c.n_positions, d)}
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"h.{i}."
        w, b = t.fold(at + "ln_1", t.get(at + "attn.c_attn.weight", d, 3 * d), t.get(at + "attn.c_attn.bias", 3 * d))
        for x, w_x, b_x in zip("qkv", w.split(d, 1), b.split(d), strict=True):
            out[f"{to}{x}.weight"], out[f"{to}{x}.bias"] = heads(w_x, b_x, c.n_heads)
        scale = c.d_head**-0.5 if raw.get("scale_attn_weights", True) else 1.0
        scale /= i + 1 if raw.get("scale_attn_by_inverse_layer_idx") else 1
        out[to + "q.weight"] = out[to + "q.weight"] * scale
        out[to + "q.bias"] = out[to + "q.bias"] * scale
        out[to + "o.weight"] = t.get(at + "attn.c_proj.weight", d, d).view(c.n_heads, c.d_head, d)
        out[to + "o.bias"] = t.get(at + "attn.c_proj.bias", d)
        w = t.get(at + "mlp.c_fc.weight", d, hidden)
        b = t.get(at + "mlp.c_fc.bias", hidden)
        out[to + "mlp_in.weight"], out[to + "mlp_in.bias"] = t.fold(at + "ln_2", w, b)
        out[to + "mlp_out.weight"] = t.get(at + "mlp.c_proj.weight", hidden, d)
        out[to + "mlp_out.bias"] = t.get(at + "mlp.c_proj.bias", d)
    head = t.get("lm_head.weight", c.vocab_out, d) if raw.get("tie_word_embeddings") is False else embedding
    out["unembed.weight"], out["unembed.bias"] = t.fold("ln_f", head.T, torch.zeros(c.vocab_out, dtype=head.dtype))
    t.finish()
    return out

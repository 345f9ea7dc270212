"""GPT-Neo checkpoints (TinyStories among them): separate query, key and value, no attention scale, local attention."""

from __future__ import annotations

from itertools import islice
from typing import Any

import torch
from torch import Tensor

from acdc.model.checkpoint import Checkpoint, head_size, heads, sizes
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json."""
    n_layers, n_heads, width, n_positions, vocab = sizes(
        raw, where, "num_layers", "num_heads", "hidden_size", "max_position_embeddings", "vocab_size"
    )
    types = raw.get("attention_types", [])
    repeated = (kind for kinds, times in types if kinds for _ in range(times) for kind in kinds)
    kinds = raw.get("attention_layers") or list(islice(repeated, n_layers + 1))
    window = raw.get("window_size", 256)
    return ModelConfig(
        n_layers=n_layers,
        n_heads=n_heads,
        d_model=width,
        d_head=head_size(width, n_heads, where),
        d_mlp=raw.get("intermediate_size") or 4 * width,
        n_positions=n_positions,
        vocab_size=vocab,
        vocab_out=vocab,
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=raw.get("activation_function", "gelu_new"),
        windows=tuple(window if kind == "local" else 0 for kind in kinds),
    )


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms are folded in."""
    t = Checkpoint({name.removeprefix("transformer."): x for name, x in tensors.items()}, where)
    d = c.d_model
    hidden = c.d_mlp
    embedding = t.get("wte.weight", c.vocab_size, d)
    out = {"token.weight": embedding, "position.weight": t.get("wpe.weight", c.n_positions, d)}
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"h.{i}."
        for x in "qkv":
            w, b = t.fold(at + "ln_1", *t.linear(f"{at}attn.attention.{x}_proj", d, d))
            out[f"{to}{x}.weight"], out[f"{to}{x}.bias"] = heads(w, b, c.n_heads)
        w, out[to + "o.bias"] = t.linear(at + "attn.attention.out_proj", d, d)
        out[to + "o.weight"] = w.reshape(c.n_heads, c.d_head, d)
        out[to + "mlp_in.weight"], out[to + "mlp_in.bias"] = t.fold(at + "ln_2", *t.linear(at + "mlp.c_fc", d, hidden))
        out[to + "mlp_out.weight"], out[to + "mlp_out.bias"] = t.linear(at + "mlp.c_proj", hidden, d)
    head = t.get("lm_head.weight", c.vocab_out, d) if raw.get("tie_word_embeddings") is False else embedding
    out["unembed.weight"], out["unembed.bias"] = t.fold("ln_f", head.T, torch.zeros(c.vocab_out, dtype=head.dtype))
    t.finish()
    return out

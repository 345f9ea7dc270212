"""GPT-2 checkpoints (any size, vocabulary and fine-tuning) onto the transformer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.transformer import Config


def config(raw: dict[str, Any], where: str) -> Config:
    """The transformer's config from Hugging Face's config.json. Raises ModelError for what it can't represent."""
    for key, wanted in (("add_cross_attention", False), ("scale_attn_weights", True)):
        if raw.get(key, wanted) != wanted:
            raise ModelError(f"{where}: {key} is {raw[key]!r}; only {wanted} is supported")
    try:
        width, heads = raw["n_embd"], raw["n_head"]
        if width % heads:
            raise ModelError(f"{where}: n_embd {width} is no multiple of n_head {heads}")
        return Config(
            n_layers=raw["n_layer"],
            n_heads=heads,
            d_model=width,
            d_head=width // heads,
            d_mlp=raw.get("n_inner") or 4 * width,
            n_positions=raw["n_positions"],
            vocab_size=raw["vocab_size"],
            vocab_out=raw["vocab_size"],
            norm_eps=raw.get("layer_norm_epsilon", 1e-5),
            activation=raw.get("activation_function", "gelu_new"),
        )
    except KeyError as error:
        raise ModelError(f"{where}: key {error} is missing") from None


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: Config, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms and the attention scale are folded in."""
    tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}

    d, hidden = c.d_model, c.d_mlp

    def get(name: str, *shape: int) -> Tensor:
        if name not in tensors:
            raise ModelError(f"{where}: tensor {name!r} is missing; is this a whole GPT-2 checkpoint?")
        if tuple(tensors[name].shape) != shape:
            raise ModelError(f"{where}: tensor {name!r} has shape {tuple(tensors[name].shape)}, not {shape}")
        return tensors[name]

    def fold(norm: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """(x ⊙ scale + shift) @ W + b as x @ W' + b'."""
        return get(norm + ".weight", d)[:, None] * weight, bias + get(norm + ".bias", d) @ weight

    embedding = get("wte.weight", c.vocab_size, d)
    out = {"token.weight": embedding, "position.weight": get("wpe.weight", c.n_positions, d)}
    for i in range(c.n_layers):
        to, at = f"layers.{i}.", f"h.{i}."
        w, b = fold(at + "ln_1", get(at + "attn.c_attn.weight", d, 3 * d), get(at + "attn.c_attn.bias", 3 * d))
        for x, w_x, b_x in zip("qkv", w.split(d, 1), b.split(d), strict=True):
            out[f"{to}{x}.weight"] = w_x.view(d, c.n_heads, c.d_head).transpose(0, 1).contiguous()
            out[f"{to}{x}.bias"] = b_x.view(c.n_heads, c.d_head)
        scale = c.d_head**-0.5 / ((i + 1) if raw.get("scale_attn_by_inverse_layer_idx") else 1)
        out[to + "q.weight"], out[to + "q.bias"] = out[to + "q.weight"] * scale, out[to + "q.bias"] * scale
        out[to + "o.weight"] = get(at + "attn.c_proj.weight", d, d).view(c.n_heads, c.d_head, d)
        out[to + "o.bias"] = get(at + "attn.c_proj.bias", d)
        out[to + "mlp_in.weight"], out[to + "mlp_in.bias"] = fold(
            at + "ln_2", get(at + "mlp.c_fc.weight", d, hidden), get(at + "mlp.c_fc.bias", hidden)
        )
        out[to + "mlp_out.weight"] = get(at + "mlp.c_proj.weight", hidden, d)
        out[to + "mlp_out.bias"] = get(at + "mlp.c_proj.bias", d)
    head = get("lm_head.weight", c.vocab_out, d) if raw.get("tie_word_embeddings") is False else embedding
    out["unembed.weight"], out["unembed.bias"] = fold("ln_f", head.T, torch.zeros(c.vocab_out, dtype=head.dtype))
    return out

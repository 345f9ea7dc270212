"""GPT-2 checkpoints of any size, also those whose layer norm was removed by fine-tuning (Heimersheim 2024).

The latter are ordinary GPT-2: an epsilon of 1e12 drowns the variance, and scales of about 1e6 undo the division.
"""

from typing import Any

from torch import Tensor

from acdc.model.checkpoint import Checkpoint, read_sizes, refuse
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json; ModelError for a model that it can't represent."""
    refuse(raw, where, add_cross_attention=False)
    sizes = read_sizes(raw, where, n_layers="n_layer", n_heads="n_head", d_model="n_embd", n_positions="n_positions")
    return ModelConfig(
        **sizes,
        d_mlp=raw.get("n_inner") or 4 * sizes["d_model"],
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=raw.get("activation_function", "gelu_new"),
    )


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms and the attention scale are folded in."""
    t = Checkpoint(tensors, "transformer.", where)
    d = c.d_model

    def linear(name: str, n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
        return t.get(f"{name}.weight", n_in, n_out), t.get(f"{name}.bias", n_out)

    t.out["token.weight"] = t.get("wte.weight", c.vocab_size, d)
    t.out["position.weight"] = t.get("wpe.weight", c.n_positions, d)
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"h.{i}."
        w, b = t.fold(at + "ln_1", *linear(at + "attn.c_attn", d, 3 * d))
        for x, w_x, b_x in zip("qkv", w.split(d, 1), b.split(d), strict=True):
            t.put_heads(to + x, w_x, b_x, c.n_heads)
        scale = c.d_head**-0.5 if raw.get("scale_attn_weights", True) else 1.0
        t.scale(to + "q", scale / (i + 1) if raw.get("scale_attn_by_inverse_layer_idx") else scale)
        t.put_output(to + "o", *linear(at + "attn.c_proj", d, d), c.n_heads)
        t.put(to + "mlp_in", *t.fold(at + "ln_2", *linear(at + "mlp.c_fc", d, c.d_mlp)))
        t.put(to + "mlp_out", *linear(at + "mlp.c_proj", c.d_mlp, d))
    return t.finish("ln_f", tied=raw.get("tie_word_embeddings") is not False)

"""GPT-NeoX checkpoints (Pythia among them): parallel blocks, partly rotated heads, interleaved q, k and v."""

from typing import Any

from torch import Tensor

from acdc.model.checkpoint import Checkpoint, frequencies, read_sizes, rope
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json."""
    sizes = read_sizes(raw, where, d_mlp="intermediate_size")
    rotated = {"rotary_pct": 0.25, "rope_parameters": {}, **raw}
    return ModelConfig(
        **sizes,
        norm_eps=raw.get("layer_norm_eps", 1e-5),
        activation=raw.get("hidden_act", "gelu"),
        rotary=int(sizes["d_head"] * rope(rotated)["partial_rotary_factor"]),
        parallel=raw.get("use_parallel_residual", True),
    )


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms and the attention scale are folded in."""
    t = Checkpoint(tensors, "gpt_neox.", where)
    d = c.d_model
    t.out["token.weight"] = t.get("embed_in.weight", c.vocab_size, d)
    t.out["rotary.frequencies"] = frequencies(raw, c.rotary, where)
    for i in range(c.n_layers):
        at = f"layers.{i}."
        w, b = t.fold(at + "input_layernorm", *t.linear(at + "attention.query_key_value", d, 3 * d))
        w = w.view(d, c.n_heads, 3, -1)
        b = b.view(c.n_heads, 3, -1)
        for n, x in enumerate("qkv"):
            t.put_heads(at + x, w[:, :, n].flatten(1), b[:, n].flatten(), c.n_heads)
        t.scale(at + "q", c.d_head**-0.5)
        t.put_output(at + "o", *t.linear(at + "attention.dense", d, d), c.n_heads)
        mlp = t.linear(at + "mlp.dense_h_to_4h", d, c.d_mlp)
        t.put(at + "mlp_in", *t.fold(at + "post_attention_layernorm", *mlp))
        t.put(at + "mlp_out", *t.linear(at + "mlp.dense_4h_to_h", c.d_mlp, d))
    head = "lm_head" if t.has("lm_head.weight") else "embed_out"
    return t.finish("final_layer_norm", tied=bool(raw.get("tie_word_embeddings")), head=head)

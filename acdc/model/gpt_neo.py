"""GPT-Neo checkpoints (TinyStories among them): separate query, key and value, no attention scale, local attention."""

from itertools import islice
from typing import Any

from torch import Tensor

from acdc.model.checkpoint import Checkpoint, read_sizes
from acdc.model.config import ModelConfig


def config(raw: dict[str, Any], where: str) -> ModelConfig:
    """The transformer's config from Hugging Face's config.json."""
    sizes = read_sizes(raw, where, n_layers="num_layers", n_heads="num_heads")
    types = raw.get("attention_types", [])
    repeated = (kind for kinds, times in types if kinds for _ in range(times) for kind in kinds)
    kinds = raw.get("attention_layers") or list(islice(repeated, sizes["n_layers"] + 1))
    window = raw.get("window_size", 256)
    return ModelConfig(
        **sizes,
        d_mlp=raw.get("intermediate_size") or 4 * sizes["d_model"],
        norm_eps=raw.get("layer_norm_epsilon", 1e-5),
        activation=raw.get("activation_function", "gelu_new"),
        windows=tuple(window if kind == "local" else 0 for kind in kinds),
    )


def weights(raw: dict[str, Any], tensors: dict[str, Tensor], c: ModelConfig, where: str) -> dict[str, Tensor]:
    """The transformer's weights from Hugging Face's tensors: norms are folded in."""
    t = Checkpoint(tensors, "transformer.", where)
    d = c.d_model
    t.out["token.weight"] = t.get("wte.weight", c.vocab_size, d)
    t.out["position.weight"] = t.get("wpe.weight", c.n_positions, d)
    for i in range(c.n_layers):
        to = f"layers.{i}."
        at = f"h.{i}."
        for x in "qkv":
            t.put_heads(to + x, *t.fold(at + "ln_1", *t.linear(f"{at}attn.attention.{x}_proj", d, d)), c.n_heads)
        t.put_output(to + "o", *t.linear(at + "attn.attention.out_proj", d, d), c.n_heads)
        t.put(to + "mlp_in", *t.fold(at + "ln_2", *t.linear(at + "mlp.c_fc", d, c.d_mlp)))
        t.put(to + "mlp_out", *t.linear(at + "mlp.c_proj", c.d_mlp, d))
    return t.finish("ln_f", tied=raw.get("tie_word_embeddings") is not False)

"""Checkpoints of Llama and its relatives: Llama 2 and 3, SmolLM2, Mistral and Ministral, Qwen 2, 2.5 and 3, Phi-3,
Granite, StarCoder2, OLMo 2 and 3.

They have RMS norms, rotated heads, gated MLPs, and key and value heads shared by several query heads. Each query head
gets its own copy of these, as in EAP-IG and TransformerLens with ungrouped attention. StarCoder2 has layer norms and
plain MLPs; OLMo has norms behind heads and MLPs instead of before them, and norms of all heads' queries and keys.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from acdc.model.config import ModelConfig, sizes_of
from acdc.model.weights import Weights

Linear = tuple[Tensor, Tensor]  # weight Float[in out] and bias Float[out]


def sizes(config: Any) -> ModelConfig:
    """The transformer's config, from transformers' `LlamaConfig` or a relative's."""
    olmo = config.model_type in ("olmo2", "olmo3")
    window = None if config.model_type in ("granite", "llama", "olmo2") else config.sliding_window
    everywhere = config.model_type in ("mistral", "phi3", "starcoder2")
    kinds = ["sliding_attention"] * config.num_hidden_layers if everywhere else None
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    # longrope has other frequencies for prompts that are longer than this
    shorter = rope.get("original_max_position_embeddings")
    longrope = rope["rope_type"] == "longrope"
    c = sizes_of(
        config,
        getattr(config, "head_dim", None),
        d_mlp=config.intermediate_size,
        n_positions=shorter if longrope and shorter else config.max_position_embeddings,
        norm="layer" if config.model_type == "starcoder2" else "rms",
        gated=config.model_type != "starcoder2",
        head_norm=config.model_type == "qwen3",
        joint_head_norm=olmo,
        local_rotary=config.model_type == "olmo3" and len(set(config.layer_types)) > 1,
        pre_norm=not olmo,
        post_norm=olmo,
        windows=tuple(window if k == "sliding_attention" else 0 for k in kinds or config.layer_types) if window else (),
    )
    share = rope.get("partial_rotary_factor", 1.0) if config.model_type == "phi3" else 1
    return replace(c, rotary=int(c.d_head * share))


def read(config: Any, t: Weights) -> None:
    """Set the transformer's weights: norms, the attention scale and Granite's factors are folded in."""
    t.out["token.weight"] = t.take("model.embed_tokens.weight")
    granite = config.model_type == "granite"
    if granite:
        t.scale("token", config.embedding_multiplier)
    read_layers(config, t, rotations(config, t, config.attention_multiplier if granite else None))
    t.put_unembedding("model.norm")
    if granite:
        t.scale("unembed", 1 / config.logits_scaling)
        for i in range(t.sizes.n_layers):
            t.scale(f"layers.{i}.o", config.residual_multiplier)
            t.scale(f"layers.{i}.mlp_out", config.residual_multiplier)


def rotations(config: Any, t: Weights, scale: float | None) -> list[Tensor]:
    """Set the frequencies of rotations, some layers' own ones too; return the factors of the queries of each layer,
    `Weights.rotary`."""
    c = t.sizes
    if config.model_type not in ("gemma3_text", "olmo3"):
        return [t.rotary("model.rotary_emb.", scale)] * c.n_layers
    names = dict.fromkeys(config.layer_types, "frequencies")
    if c.local_rotary:
        names["sliding_attention"] = "local"
    factors = {kind: t.rotary(f"model.rotary_emb.{kind}_", scale, name) for kind, name in names.items()}
    return [factors[kind] for kind in config.layer_types]


def read_layers(config: Any, t: Weights, scales: list[Tensor]) -> None:
    """Set the weights of all layers; each has a factor of its queries, Float[d_head]."""
    c = t.sizes
    n_shared = config.num_key_value_heads
    for i, scale in enumerate(scales):
        to = f"layers.{i}."
        at = f"model.layers.{i}."
        if config.model_type == "phi3":
            widths = [n * c.d_head for n in (c.n_heads, n_shared, n_shared)]
            qkv = _split(t.linear(f"{at}self_attn.qkv_proj"), widths)
            halves = _split(t.linear(f"{at}mlp.gate_up_proj"), [c.d_mlp, c.d_mlp])
        else:
            qkv = [t.linear(f"{at}self_attn.{x}_proj") for x in "qkv"]
            halves = [t.linear(f"{at}mlp.{x}") for x in (("gate_proj", "up_proj") if c.gated else ("c_fc",))]
        for x, n, linear in zip("qkv", (c.n_heads, n_shared, n_shared), qkv, strict=True):
            folded = t.fold(at + "input_layernorm", *linear) if c.pre_norm else linear
            t.put_heads(to + x, *folded, n, c.n_heads // n)
        if c.head_norm or c.joint_head_norm:  # it would undo a scale before it
            norms = {x: t.take(f"{at}self_attn.{x}_norm.weight") for x in "qk"}
            if c.joint_head_norm:
                norms = {x: _for_each(norm.view(-1, c.d_head), c.n_heads) for x, norm in norms.items()}
            t.out[to + "q.norm"] = norms["q"] * scale
            t.out[to + "k.norm"] = norms["k"]
        else:
            t.scale(to + "q", scale)
        t.put_output(to + "o", *t.linear(at + "self_attn.o_proj"))
        before = "pre_feedforward_layernorm" if c.post_norm else "post_attention_layernorm"
        for x, linear in zip(("mlp_gate", "mlp_in")[-len(halves) :], halves, strict=True):
            t.put(to + x, *t.fold(at + before, *linear, mlp=i) if c.pre_norm else linear)
        t.put(to + "mlp_out", *t.linear(f"{at}mlp.{'down_proj' if c.gated else 'c_proj'}"))
        if c.post_norm:
            t.out[to + "o.norm"] = t.take(at + "post_attention_layernorm.weight")
            t.out[to + "mlp_out.norm"] = t.take(at + "post_feedforward_layernorm.weight")


def _for_each(shared: Tensor, n_heads: int) -> Tensor:
    """Copies of what several heads share, one for each: Float[shared d_head] to Float[head d_head]."""
    return shared.repeat_interleave(n_heads // len(shared), 0)


def _split(linear: Linear, widths: list[int]) -> list[Linear]:
    """Split the outputs of a linear map."""
    weight, bias = (x.split(widths, -1) for x in linear)
    return list(zip(weight, bias, strict=True))

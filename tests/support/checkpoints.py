"""Random checkpoints as Hugging Face saves them."""

from __future__ import annotations

import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

WORDS = {"a": 0, "b": 1, "c": 2, "<unk>": 3}
SMALL = {"vocab_size": 23, "hidden_size": 16, "max_position_embeddings": 32}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
GPT2 = {"vocab_size": 23, "n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 32}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "rope_theta": 100.0, "factor": 8.0}
GEMMA = {"num_key_value_heads": 2, "head_dim": 8, "query_pre_attn_scalar": 5, "sliding_window": 3, "pad_token_id": 0}
FAMILIES = {
    "gpt2": (hf.GPT2Config, GPT2),
    "gpt2, no layer norm": (hf.GPT2Config, {**GPT2, "layer_norm_epsilon": 1e12}),
    "gpt_neo, windows": (
        hf.GPTNeoConfig,
        {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 3},
    ),
    "gpt_neox, parallel": (hf.GPTNeoXConfig, {**SMALL, **LAYERS, "hidden_size": 32, "tie_word_embeddings": False}),
    "gpt_neox, serial": (hf.GPTNeoXConfig, {**SMALL, **LAYERS, "hidden_size": 32, "use_parallel_residual": False}),
    "llama": (hf.LlamaConfig, {**SMALL, **LAYERS, "num_key_value_heads": 4}),
    "llama, grouped, tied": (
        hf.LlamaConfig,
        {**SMALL, **LAYERS, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama, biases": (hf.LlamaConfig, {**SMALL, **LAYERS, "attention_bias": True, "mlp_bias": True}),
    "llama 3.1, grouped": (hf.LlamaConfig, {**SMALL, **LAYERS, "num_key_value_heads": 2, "rope_parameters": LLAMA3}),
    "mistral, grouped, windows": (
        hf.MistralConfig,
        {**SMALL, **LAYERS, "num_key_value_heads": 2, "sliding_window": 3},
    ),
    "qwen2, grouped": (hf.Qwen2Config, {**SMALL, **LAYERS, "num_key_value_heads": 2}),
    "qwen2, a window above": (
        hf.Qwen2Config,
        {**SMALL, **LAYERS, "num_key_value_heads": 4, "use_sliding_window": True, "sliding_window": 3}
        | {"max_window_layers": 1},
    ),
    "phi3, partly rotated, windows": (
        hf.Phi3Config,
        {**SMALL, **LAYERS, "hidden_size": 32, "num_key_value_heads": 2, "sliding_window": 3, "pad_token_id": 0}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}},
    ),
    "granite, factors": (
        hf.GraniteConfig,
        {**SMALL, **LAYERS, "num_key_value_heads": 2, "embedding_multiplier": 3.0, "attention_multiplier": 0.3}
        | {"residual_multiplier": 0.7, "logits_scaling": 2.5, "attention_bias": True, "tie_word_embeddings": True},
    ),
    "starcoder2, grouped": (hf.Starcoder2Config, {**SMALL, **LAYERS, "num_key_value_heads": 2, "sliding_window": 3}),
    "gemma2, soft caps": (
        hf.Gemma2Config,
        {**SMALL, **LAYERS, **GEMMA, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma3, two rotations": (
        hf.Gemma3TextConfig,
        {**SMALL, **LAYERS, **GEMMA, "layer_types": ["sliding_attention", "full_attention"]}
        | {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}}},
    ),
    "olmo2, grouped": (
        hf.Olmo2Config,
        {**SMALL, **LAYERS, "num_key_value_heads": 2, "attention_bias": True, "pad_token_id": 0},
    ),
    "olmo3, two rotations": (
        hf.Olmo3Config,
        {**SMALL, **LAYERS, "num_key_value_heads": 4, "pad_token_id": 0, "sliding_window": 3}
        | {"layer_types": ["sliding_attention", "full_attention"]}
        | {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": {"rope_type": "default"}}},
    ),
    "qwen3, grouped": (hf.Qwen3Config, {**SMALL, **LAYERS, "num_key_value_heads": 2, "head_dim": 8}),
}


def checkpoint(folder, seed=0, **options):
    """A random GPT-2 checkpoint in `folder`, as Hugging Face saves it."""
    torch.manual_seed(seed)
    config = hf.GPT2Config(
        **{
            "n_layer": 2,
            "n_head": 4,
            "n_embd": 16,
            "n_positions": 12,
            "vocab_size": 23,
            "initializer_range": 0.4,
            "bos_token_id": 0,
            "eos_token_id": 0,
            **options,
        }
    )
    model = hf.GPT2LMHeadModel(config).eval()
    for name, p in model.named_parameters():  # Hugging Face starts these at 0 and 1, where mistakes would not show
        if name.endswith("bias") or "ln_" in name:
            p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def of_family(name, folder):
    """A random checkpoint of one of the families in `folder`, as Hugging Face saves it."""
    torch.manual_seed(0)
    kind, options = FAMILIES[name]
    model = hf.AutoModelForCausalLM.from_config(
        kind(**options, **ENDS, initializer_range=0.4),
        attn_implementation="eager" if "neo," in name or "gemma" in name else "sdpa",
    ).eval()
    for tensor, p in model.named_parameters():
        if tensor.endswith("bias") or "norm" in tensor or "ln_" in tensor:
            p.data += 0.3 * torch.randn_like(p)
        if "ln_" in tensor and tensor.endswith("weight"):  # as such checkpoints undo a huge epsilon
            p.data *= max(1.0, options.get("layer_norm_epsilon", 0) ** 0.5)
    model.save_pretrained(folder)
    tokenizer(folder)
    return model


def tokenizer(folder):
    """A tokenizer of a few words."""
    found = Tokenizer(models.WordLevel(WORDS, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    found.save(str(folder / "tokenizer.json"))


def float64_norm(self, x):
    """Replace Hugging Face's RMS norm, which computes in float32 whatever the dtype, for parity in float64."""
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def float64_gemma_norm(self, x):
    """Likewise for Gemma's."""
    return (1 + self.weight) * x * (x.square().mean(-1, keepdim=True) + self.eps).rsqrt()

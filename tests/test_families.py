"""Every model family: Hugging Face's logits, and an engine that decides as the naive algorithm does."""

from __future__ import annotations

import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers

from acdc.model.load import load_model
from tests.random_models import random_prompts
from tests.test_oracle import compare

SMALL = {"vocab_size": 23, "hidden_size": 16, "max_position_embeddings": 32}
LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 24}
ENDS = {"bos_token_id": 0, "eos_token_id": 0}
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}  # fmt: skip
FAMILIES = {
    "gpt2": (hf.GPT2Config, {"vocab_size": 23, "n_layer": 2, "n_head": 4, "n_embd": 16, "n_positions": 32}),
    "gpt_neo": (
        hf.GPTNeoConfig,
        {**SMALL, "num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 3},
    ),
    "gpt_neox": (hf.GPTNeoXConfig, {**SMALL, **LAYERS, "hidden_size": 32, "tie_word_embeddings": False}),
    "gpt_neox, serial": (hf.GPTNeoXConfig, {**SMALL, **LAYERS, "hidden_size": 32, "use_parallel_residual": False}),
    "llama": (hf.LlamaConfig, {**SMALL, **LAYERS, "num_key_value_heads": 4}),
    "llama, grouped, tied": (
        hf.LlamaConfig,
        {**SMALL, **LAYERS, "num_key_value_heads": 2, "tie_word_embeddings": True},
    ),
    "llama, biases": (hf.LlamaConfig, {**SMALL, **LAYERS, "attention_bias": True, "mlp_bias": True}),
    "llama 3.1": (hf.LlamaConfig, {**SMALL, **LAYERS, "rope_parameters": LLAMA3}),
    "mistral": (hf.MistralConfig, {**SMALL, **LAYERS, "num_key_value_heads": 2, "sliding_window": 3}),
    "qwen2": (hf.Qwen2Config, {**SMALL, **LAYERS, "num_key_value_heads": 2}),
    "qwen3": (hf.Qwen3Config, {**SMALL, **LAYERS, "num_key_value_heads": 2, "head_dim": 8}),
}


def float64_norm(self, x):
    """Hugging Face's RMS norms compute in float32 whatever the model's dtype; for parity in float64 they must not."""
    return self.weight * x * (x.square().mean(-1, keepdim=True) + self.variance_epsilon).rsqrt()


def checkpoint(name, folder):
    torch.manual_seed(0)
    kind, options = FAMILIES[name]
    model = hf.AutoModelForCausalLM.from_config(
        kind(**options, **ENDS, initializer_range=0.4), attn_implementation="eager" if name == "gpt_neo" else "sdpa"
    ).eval()
    for tensor, p in model.named_parameters():
        if tensor.endswith("bias") or "norm" in tensor or "ln_" in tensor:
            p.data += 0.3 * torch.randn_like(p)
    model.save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return model


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-4), ("float64", 1e-9)])
def test_logits_are_hugging_faces(tmp_path, monkeypatch, name, dtype, tolerance):
    for kind in ("llama.modeling_llama.Llama", "mistral.modeling_mistral.Mistral", "qwen2.modeling_qwen2.Qwen2",
                 "qwen3.modeling_qwen3.Qwen3"):  # fmt: skip
        monkeypatch.setattr(f"transformers.models.{kind}RMSNorm.forward", float64_norm)
    if name == "gpt_neo":
        tolerance = max(tolerance, 1e-5)  # its attention scores are float32 in Hugging Face's code, whatever the dtype
    theirs = checkpoint(name, tmp_path).to(getattr(torch, dtype))
    model = load_model(str(tmp_path), "cpu", dtype)
    ours = model.transformer
    tokens = torch.randint(0, 23, (3, 12), generator=torch.Generator().manual_seed(1))
    pad = torch.tensor([0, 0, 4])
    real = torch.arange(12) >= pad[:, None]
    with torch.inference_mode():
        expected = theirs(
            tokens, attention_mask=real.long(), position_ids=(real.long().cumsum(1) - 1).clamp(min=0)
        ).logits
        found = ours.logits(ours.normalise(ours.run(tokens, pad)[1][-1]))
    assert (found - expected)[real].abs().max() < tolerance, (found - expected)[real].abs().max()


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("ablation", ["corrupted", "zero", "mean"])
def test_the_engine_decides_as_the_naive_algorithm(tmp_path, name, ablation):
    checkpoint(name, tmp_path)
    model = load_model(str(tmp_path), "cpu", "float64").transformer
    prompts = random_prompts(0, model, n_pos=6, first=2, pad=True)
    compare(model, prompts, "kl", ablation, 0.02, True, 7)

"""Random checkpoints as Hugging Face saves them."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

WORDS = {"a": 0, "b": 1, "c": 2, "<unk>": 3}


def checkpoint(folder, seed=0, **options):
    """A random GPT-2 checkpoint in `folder`, as Hugging Face saves it."""
    torch.manual_seed(seed)
    config = GPT2Config(
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
    model = GPT2LMHeadModel(config).eval()
    for name, p in model.named_parameters():  # Hugging Face starts these at 0 and 1, where mistakes would not show
        if name.endswith("bias") or "ln_" in name:
            p.data += 0.3 * torch.randn_like(p)
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

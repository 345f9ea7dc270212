"""GGUF files as llama.cpp writes them."""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

TOKENS = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet()), "ab", "Ġab", "17", "<tool>"]
MERGES = ["a b", "Ġ ab", "1 7"]
SIZES = {"vocab_size": len(TOKENS), "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}


def library() -> Any:
    """The gguf package, or a skip where it isn't installed."""
    if importlib.util.find_spec("gguf") is None:
        if os.environ.get("ACDC_CI"):
            pytest.fail("the gguf library is missing in CI; it is in the extra 'dev'")
        pytest.skip("the gguf library is not installed; `pip install gguf` brings it")
    return importlib.import_module("gguf")


def small(family: str, **more: Any) -> Any:
    """A random model of transformers with two layers."""
    import transformers as t

    sizes: dict[str, Any] = dict(SIZES)
    if family == "gpt2":
        sizes = {"vocab_size": len(TOKENS), "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 96}
        sizes |= {"layer_norm_epsilon": 1e-4}
    elif family == "gpt_neo":
        sizes |= {"num_layers": 2, "num_heads": 4, "attention_types": [[["global", "local"], 1]], "window_size": 4}
    elif family != "gpt_neox":
        sizes |= {"rms_norm_eps": 1e-4}
    if family == "qwen3":
        sizes |= {"head_dim": 16}  # heads wider than their share of the width
    sizes |= {"bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    model: Any = t.AutoModelForCausalLM.from_config(t.AutoConfig.for_model(family, **sizes | more))
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    return model.eval()


def tokenizer() -> Any:
    """The tokenizer of these models in transformers."""
    from tokenizers import Tokenizer, decoders, models
    from transformers import PreTrainedTokenizerFast

    merges = [tuple(pair.split(" ")) for pair in MERGES]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(TOKENS)}, merges=merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    made.add_tokens(["<tool>"])
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token=TOKENS[0], unk_token=None)


def tensors(family: str, model: Any) -> dict[str, np.ndarray]:
    """Weights with the names and layouts of llama.cpp: independent of the product, in the other direction."""
    names = [
        ("model.embed_tokens", "token_embd"), ("model.norm", "output_norm"), ("lm_head", "output"),
        ("transformer.wte", "token_embd"), ("transformer.wpe", "position_embd"), ("transformer.ln_f", "output_norm"),
        ("model.layers", "blk"), ("transformer.h.", "blk."), ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"), ("self_attn.o_proj", "attn_output"), ("mlp.c_proj", "ffn_down"),
        ("attn.c_attn", "attn_qkv"), ("attn.c_proj", "attn_output"), ("ln_1", "attn_norm"), ("ln_2", "ffn_norm"),
        ("mlp.c_fc", "ffn_up"), ("self_attn.", "attn_"), ("mlp.", "ffn_"), ("_proj", ""),
    ]  # fmt: skip
    out = {}
    for name, value in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        x = value.numpy()
        if family == "llama" and (which := re.search(r"\.([qk])_proj", name)):
            heads = SIZES["num_attention_heads" if which[1] == "q" else "num_key_value_heads"]
            x = x.reshape(heads, 2, x.shape[0] // heads // 2, *x.shape[1:]).swapaxes(1, 2).reshape(x.shape)
        if re.search(r"c_(attn|proj|fc).weight", name):
            x = x.T
        for old, new in names:
            name = name.replace(old, new)
        out[name] = np.ascontiguousarray(x)
    return out


def write(
    path: Path,
    family: str,
    model: Any,
    quantized: str = "F32",
    pre: str = "smollm",
    bos: int | None = 0,
    change: Callable[..., object] = id,
) -> Path:
    """Write a Hugging Face model as a GGUF file; `change` may edit tensors and keys before they are written."""
    lib = library()
    writer, c = lib.GGUFWriter(path, family), model.config
    mine = SimpleNamespace(tensors=tensors(family, model), writer=writer)
    writer.add_block_count(c.num_hidden_layers)
    writer.add_context_length(c.max_position_embeddings)
    writer.add_embedding_length(c.hidden_size)
    writer.add_feed_forward_length(c.n_inner if family == "gpt2" else c.intermediate_size)
    writer.add_head_count(c.num_attention_heads)
    if family == "gpt2":
        writer.add_layer_norm_eps(c.layer_norm_epsilon)
    else:
        writer.add_layer_norm_rms_eps(c.rms_norm_eps)
        writer.add_head_count_kv(c.num_key_value_heads)
        writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
    if family == "qwen3":
        writer.add_key_length(c.head_dim)
        writer.add_value_length(c.head_dim)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, *[1] * (len(TOKENS) - 2), 4])
    writer.add_token_merges(MERGES)
    if bos is not None:
        writer.add_bos_token_id(bos)
    change(mine)
    kind = lib.GGMLQuantizationType[quantized]
    for name, x in mine.tensors.items():
        if x.ndim == 2 and x.shape[1] % 32 == 0 and quantized != "F32":
            writer.add_tensor(name, lib.quantize(x, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, x)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

"""GGUF files: converted once to a Hugging Face directory in the user's cache, and read from there afterwards.

The `gguf` library parses the file and undoes the quantization. Settings that the directory could not express are
refused, never dropped: the converted model computes what the file's model computes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.gguf_file import SUPPORTED, GgufFile, broken, open_gguf

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": _LLAMA3_SPLIT,
    "qwen2": _LLAMA3_SPLIT.replace("{1,3}", ""),
    "deepseek-r1-qwen": _LLAMA3_SPLIT.replace("{1,3}", ""),
}


def converted(path: Path, supported: Collection[str] = SUPPORTED) -> Path:
    """Return the Hugging Face directory of a GGUF file; the first call for a file makes it, in the user's cache.

    Args:
        supported: the families (`model_type`) that the caller can load
    Raises:
        ModelError: the file can't be read or represented; nothing is left behind.
    """
    from filelock import FileLock

    root = cache() / "gguf"
    target = root / f"{path.stem}-{_hash(path)}"
    if target.is_dir():
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / ".lock"):
            if target.is_dir():  # made by another process in the meantime
                return target
            for stale in root.glob(".partial-*"):  # left by a process that was killed
                shutil.rmtree(stale, ignore_errors=True)
            partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=root))
            try:
                _convert(path, partial, supported)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{root}: can't keep the converted {path.name} there ({error}); set ACDC_CACHE") from None
    return target


def cache() -> Path:
    """The user's cache directory."""
    if own := os.environ.get("ACDC_CACHE"):
        return Path(os.path.expanduser(own))
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "acdc"


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as f:
            magic = f.read(4)
            digest.update(magic)
            while chunk := f.read(1 << 22):
                digest.update(chunk)
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from None
    if magic != b"GGUF":
        raise ModelError(f"{path}: not a GGUF file; it begins with {magic!r}")
    return digest.hexdigest()[:16]


def _convert(path: Path, to: Path, supported: Collection[str]) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = open_gguf(path)
    with broken(path):
        family = file.family(supported)
        config = _config(file, family)
        tokenizer = _tokenizer(file, family)
        tensors = _tensors(file, config)
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(to / "tokenizer.json"))
    try:
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors wraps I/O errors in its own
        raise OSError(str(error)) from None


# -- config.json


def _config(file: GgufFile, family: str) -> dict[str, Any]:
    width, vocab = file.shape("token_embd.weight")
    if width != file.own("embedding_length"):
        raise file.refuse(f"token_embd.weight is not {file.own('embedding_length')} wide")
    heads = int(file.own("attention.head_count"))
    layers = int(file.own("block_count"))
    if layers > len(file.tensors):
        raise file.refuse(f"{family}.block_count is {layers}, more than the file has tensors")
    config: dict[str, Any] = {
        "model_type": family,
        "vocab_size": vocab,
        "tie_word_embeddings": "output.weight" not in file.tensors,
        "torch_dtype": "float32",
    }
    if family == "gpt2":
        return config | {
            "architectures": ["GPT2LMHeadModel"],
            "n_layer": layers,
            "n_head": heads,
            "n_embd": width,
            "n_inner": int(file.own("feed_forward_length")),
            "n_positions": int(file.own("context_length")),
            "layer_norm_epsilon": _decimal(file.own("attention.layer_norm_epsilon")),
            "activation_function": "gelu_new",
        }
    head = int(file.own("attention.key_length", width // heads))
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.own(key, head) != head:
            raise file.refuse(f"{family}.{key} is {file.own(key)}, not the size of a head ({head})")
    config |= {
        "architectures": [{"llama": "Llama", "qwen2": "Qwen2", "qwen3": "Qwen3"}[family] + "ForCausalLM"],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": int(file.own("attention.head_count_kv", heads)),
        "head_dim": head,
        "hidden_size": width,
        "intermediate_size": int(file.own("feed_forward_length")),
        "max_position_embeddings": int(file.own("context_length")),
        "rms_norm_eps": _decimal(file.own("attention.layer_norm_rms_epsilon")),
        "rope_theta": _decimal(file.own("rope.freq_base", 10000.0)),
        "hidden_act": "silu",
    }
    if family == "qwen2":
        if head * heads != width:
            raise file.refuse(f"heads of {head} are not a whole part of the width {width}")
    else:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
    config["rope_scaling"] = _rope_scaling(file, config)
    return config


def _rope_scaling(file: GgufFile, config: dict[str, Any]) -> dict[str, Any] | None:
    """Linear scaling or Llama 3.1's, which a GGUF stores as a tensor; others are refused."""
    if (kind := file.own("rope.scaling.type", "none")) == "linear":
        return {"rope_type": "linear", "factor": _decimal(file.own("rope.scaling.factor"))}
    if kind != "none":
        raise file.refuse(f"rotary scaling {kind!r} is not supported")
    if "rope_freqs.weight" not in file.tensors:
        return None
    found = np.array(file.tensors["rope_freqs.weight"].data, dtype=np.float64)
    if found.shape != (config["head_dim"] // 2,):
        raise file.refuse(
            f"rope_freqs.weight is of shape {found.shape}, not of half a head ({config['head_dim'] // 2})"
        )
    low = 1.0
    high = 4.0
    original = 8192
    factor = float(found.max())
    wavelength = 2 * math.pi * config["rope_theta"] ** (np.arange(0, config["head_dim"], 2) / config["head_dim"])
    smooth = np.clip((original / wavelength - low) / (high - low), 0, 1)
    if not np.allclose(found, 1 / ((1 - smooth) / factor + smooth), rtol=1e-4):
        raise file.refuse("rope_freqs.weight is not the scaling of Llama 3.1 and 3.2; no other is supported")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": original,
    }


def _decimal(value: float) -> float:
    """Round a float32 to the decimal that was meant: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")


# -- model.safetensors

_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "attn_norm": "ln_1",
    "ffn_norm": "ln_2",
    "attn_qkv": "attn.c_attn",
    "attn_output": "attn.c_proj",
    "ffn_up": "mlp.c_fc",
    "ffn_down": "mlp.c_proj",
}


def _expected(config: dict[str, Any]) -> set[str]:
    """The names of all tensors in a file with this config."""
    family = config["model_type"]
    layers = int(config.get("n_layer") or config["num_hidden_layers"])
    bias: Sequence[str] = (".weight", ".bias")
    weight: Sequence[str] = (".weight",)
    if family == "gpt2":
        outer = {"token_embd": weight, "position_embd": weight, "output_norm": bias}
        inner = {name: bias for name in ("attn_norm", "ffn_norm", "attn_qkv", "attn_output", "ffn_up", "ffn_down")}
    else:
        outer = {"token_embd": weight, "output_norm": weight}
        inner = {name: weight for name in ("attn_norm", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down")}
        biased = config.get("attention_bias", family == "qwen2")
        inner |= {name: bias if biased else weight for name in ("attn_q", "attn_k", "attn_v")}
        inner["attn_output"] = bias if config.get("attention_bias") else weight
        if family == "qwen3":
            inner |= {"attn_q_norm": weight, "attn_k_norm": weight}
    if not config["tie_word_embeddings"]:
        outer["output"] = weight
    names = {name + end for name, ends in outer.items() for end in ends}
    for i in range(layers):
        names |= {f"blk.{i}.{name}{end}" for name, ends in inner.items() for end in ends}
    return names


def _tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, Tensor]:
    expected = _expected(config)
    if missing := sorted(expected - set(file.tensors)):
        raise file.refuse(f"tensor {missing[0]!r} is missing")
    if unknown := sorted(set(file.tensors) - expected - {"rope_freqs.weight"}):
        raise file.refuse(f"tensor {unknown[0]!r} has no place in a {config['model_type']} model as acdc knows it")
    names = _GPT2_NAMES if config["model_type"] == "gpt2" else _LLAMA_NAMES
    layers = "transformer.h" if config["model_type"] == "gpt2" else "model.layers"
    out = {}
    for name in sorted(expected):
        at, short, end = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)(\.\w+)", name).groups()  # type: ignore[union-attr]
        tensor = _rearrange(config, short)(_values(file.tensors[name]))
        out[(f"{layers}.{at}." if at else "") + names[short] + end] = tensor.contiguous()
    return out


def _values(tensor: Any) -> Tensor:
    """A tensor without quantization; 16-bit floats stay as they are."""
    from gguf import dequantize

    kind = tensor.tensor_type.name
    values = tensor.data if kind == "F16" else dequantize(tensor.data, tensor.tensor_type)
    out = torch.from_numpy(np.array(values))  # a copy, since the mapped file is read-only
    return out.to(torch.bfloat16) if kind == "BF16" else out


def _rearrange(config: dict[str, Any], name: str) -> Callable[[Tensor], Tensor]:
    """The function from llama.cpp's layout of a tensor to Hugging Face's."""
    if config["model_type"] == "gpt2" and name in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return lambda t: t.mT if t.ndim == 2 else t  # input × output; a bias stays
    if config["model_type"] == "llama" and name in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if name == "attn_q" else "num_key_value_heads"]
        # rotary pairs are neighbours in llama.cpp, half a head apart in Hugging Face
        return lambda t: t.view(heads, -1, 2, *t.shape[1:]).transpose(1, 2).reshape(t.shape)
    return lambda t: t


# -- tokenizer.json


def _tokenizer(file: GgufFile, family: str) -> Any:
    """The byte-level BPE tokenizer of a file.

    Raises ModelError for another kind of tokenizer or unknown rules of splitting text into words: a guess would give
    other tokens than those the model was trained on.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise file.refuse(f"tokenizer {kind!r} is not supported, only byte-level BPE; use the original checkpoint")
    splitting = file.get("tokenizer.ggml.pre", "gpt-2" if family == "gpt2" else None)
    if splitting in _SPLITS:
        first = pre_tokenizers.Split(Regex(_SPLITS[splitting]), behavior="isolated")
        split: Any = pre_tokenizers.Sequence([first, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    elif splitting == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        split = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    elif splitting == "gpt-2":
        split = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        known = ", ".join(sorted([*_SPLITS, "smollm", "gpt-2"]))
        raise file.refuse(f"pre-tokenizer {splitting!r} is not supported, only {known}; use the original checkpoint")
    tokens: list[str] = file.get("tokenizer.ggml.tokens", [])
    merges = [tuple(pair.split(" ")) for pair in file.get("tokenizer.ggml.merges", [])]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens) or len(tokens) > file.shape("token_embd.weight")[1]:
        raise file.refuse(f"its {len(tokens)} tokens are not distinct, or more than the model embeds")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=splitting == "llama-bpe"))
    if splitting in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    types = file.get("tokenizer.ggml.token_type", [1] * len(tokens))
    for number, special in ((3, True), (4, False)):  # control tokens, and user-defined ones
        chosen = [token for token, n in zip(tokens, types, strict=True) if n == number]
        added = [AddedToken(token, special=special, normalized=False) for token in chosen]
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)(added)
    if tokenizer.get_vocab_size() != len(tokens):
        raise file.refuse("its added tokens are not in its vocabulary")
    return tokenizer

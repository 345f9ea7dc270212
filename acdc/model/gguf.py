"""GGUF files: converted once to a Hugging Face directory in the user's cache, and read from there afterwards.

Settings that the directory can't express are refused, never dropped: both models compute the same.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.checkpoint import frequencies, hash_files
from acdc.model.gguf_file import GgufFile, broken, open_gguf

_LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_SPLITS = {
    "llama-bpe": _LLAMA3_SPLIT,
    "qwen2": _LLAMA3_SPLIT.replace("{1,3}", ""),
    "deepseek-r1-qwen": _LLAMA3_SPLIT.replace("{1,3}", ""),
}


def converted(path: Path) -> Path:
    """Return the Hugging Face directory of a GGUF file; the first call for a file makes it, in the user's cache."""
    from filelock import FileLock

    root = cache() / "gguf"
    try:
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise ModelError(f"{path}: not a GGUF file; it begins with {magic!r}")
        target = root / f"{path.stem}-{hash_files([path])}"
    except OSError as error:
        raise ModelError(f"{path}: can't be read ({error.strerror})") from None
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
                _convert(path, partial)
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


def _convert(path: Path, to: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    file = open_gguf(path)
    with broken(path):
        file.check()
        config = _config(file)
        tokenizer = _tokenizer(file, config["vocab_size"])
        tensors = _tensors(file, config)
    (to / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tokenizer.save(str(to / "tokenizer.json"))
    try:
        save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    except SafetensorError as error:  # safetensors wraps I/O errors in its own
        raise OSError(str(error)) from None


def _config(file: GgufFile) -> dict[str, Any]:
    family = file.architecture
    if "token_embd.weight" not in file.tensors:
        raise file.refuse("tensor 'token_embd.weight' is missing")
    width, vocab = (int(n) for n in file.tensors["token_embd.weight"].shape)  # the fastest-varying axis first
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
    head = config["head_dim"]
    found = torch.from_numpy(np.array(file.tensors["rope_freqs.weight"].data, dtype=np.float32))
    if found.shape != (head // 2,):
        raise file.refuse(f"rope_freqs.weight has shape {tuple(found.shape)}, not half a head ({head // 2})")
    scaling = {
        "rope_type": "llama3",
        "factor": float(found.max()),
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    plain = frequencies(config, head, str(file.path))
    scaled = frequencies(config | {"rope_scaling": scaling}, head, str(file.path))
    if not torch.allclose(found, plain / scaled, rtol=1e-4):
        raise file.refuse("rope_freqs.weight is not the scaling of Llama 3.1 and 3.2; no other is supported")
    return scaling


def _decimal(value: float) -> float:
    """Round a float32 to the decimal that was meant: 9.999999747378752e-06 is 1e-05."""
    return float(f"{value:.7g}")


_LLAMA_NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
    "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
    "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
    "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
    "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
    "blk.{}.attn_q_norm": "model.layers.{}.self_attn.q_norm",
    "blk.{}.attn_k_norm": "model.layers.{}.self_attn.k_norm",
    "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
    "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
    "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
    "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
}
_GPT2_NAMES = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.{}.attn_norm": "transformer.h.{}.ln_1",
    "blk.{}.ffn_norm": "transformer.h.{}.ln_2",
    "blk.{}.attn_qkv": "transformer.h.{}.attn.c_attn",
    "blk.{}.attn_output": "transformer.h.{}.attn.c_proj",
    "blk.{}.ffn_up": "transformer.h.{}.mlp.c_fc",
    "blk.{}.ffn_down": "transformer.h.{}.mlp.c_proj",
}


def _names(config: dict[str, Any]) -> dict[str, str]:
    """Hugging Face's name of every tensor in a file with this config."""
    family = config["model_type"]
    layers = config["n_layer"] if family == "gpt2" else config["num_hidden_layers"]
    names = dict(_GPT2_NAMES if family == "gpt2" else _LLAMA_NAMES)
    if config["tie_word_embeddings"]:
        del names["output"]
    if family in ("llama", "qwen2"):
        del names["blk.{}.attn_q_norm"], names["blk.{}.attn_k_norm"]
    if family == "gpt2":
        biased = set(names) - {"token_embd", "position_embd", "output"}
    elif config.get("attention_bias"):
        biased = {f"blk.{{}}.attn_{x}" for x in ("q", "k", "v", "output")}
    else:
        biased = {f"blk.{{}}.attn_{x}" for x in "qkv" if family == "qwen2"}
    out = {}
    for name, theirs in names.items():
        for end in (".weight", ".bias") if name in biased else (".weight",):
            for i in range(layers if "{}" in name else 1):
                out[name.format(i) + end] = theirs.format(i) + end
    return out


def _tensors(file: GgufFile, config: dict[str, Any]) -> dict[str, Tensor]:
    names = _names(config)
    if missing := sorted(set(names) - set(file.tensors)):
        raise file.refuse(f"tensor {missing[0]!r} is missing")
    if unknown := sorted(set(file.tensors) - set(names) - {"rope_freqs.weight"}):
        raise file.refuse(f"tensor {unknown[0]!r} has no place in a {config['model_type']} model as acdc knows it")
    return {
        theirs: _rearranged(_values(file.tensors[name]), config, name).contiguous()
        for name, theirs in sorted(names.items())
    }


def _values(tensor: Any) -> Tensor:
    """A tensor without quantization; 16-bit floats stay as they are."""
    from gguf import dequantize

    kind = tensor.tensor_type.name
    values = tensor.data if kind == "F16" else dequantize(tensor.data, tensor.tensor_type)
    out = torch.from_numpy(np.array(values))  # a copy, since the mapped file is read-only
    return out.to(torch.bfloat16) if kind == "BF16" else out


def _rearranged(tensor: Tensor, config: dict[str, Any], name: str) -> Tensor:
    """A tensor in Hugging Face's layout, from llama.cpp's."""
    kind = name.split(".")[-2]
    if config["model_type"] == "gpt2" and kind in ("attn_qkv", "attn_output", "ffn_up", "ffn_down"):
        return tensor.mT if tensor.ndim == 2 else tensor  # input × output; a bias stays
    if config["model_type"] == "llama" and kind in ("attn_q", "attn_k"):
        heads = config["num_attention_heads" if kind == "attn_q" else "num_key_value_heads"]
        # rotary pairs are neighbours in llama.cpp, half a head apart in Hugging Face
        return tensor.view(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    return tensor


def _tokenizer(file: GgufFile, n_embedded: int) -> Any:
    """The byte-level BPE tokenizer of a file; others are refused, as a guess would give other tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise file.refuse(f"tokenizer {kind!r} is not supported, only byte-level BPE; use the original checkpoint")
    splitting = file.get("tokenizer.ggml.pre", "gpt-2" if file.architecture == "gpt2" else None)
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
    if len(vocab) < len(tokens) or len(tokens) > n_embedded:
        raise file.refuse(f"its {len(tokens)} tokens are not distinct, or more than the model embeds")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=splitting == "llama-bpe"))
    if splitting in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    types = file.get("tokenizer.ggml.token_type", [1] * len(tokens))
    # 3 marks control tokens, 4 user-defined ones
    chosen = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (3, 4)]
    tokenizer.add_tokens([AddedToken(token, special=kind == 3, normalized=False) for token, kind in chosen])
    if tokenizer.get_vocab_size() != len(tokens):
        raise file.refuse("its added tokens are not in its vocabulary")
    return tokenizer

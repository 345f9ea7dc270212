"""GGUF files of llama.cpp, put into transformers' modules.

transformers' own reader drops what it doesn't know (the frequencies of Llama 3.1, biases, how text is split); here
everything in a file is used or refused.
"""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.find import reading
from acdc.model.huggingface import transformers
from acdc.model.tokenizer import Tokenizer

SUPPORTED = ("gpt2", "llama", "qwen2", "qwen3")  # a GGUF calls Mistral llama
KNOWN = (  # keys, after the architecture's prefix, that are read or change nothing; others that are set are refused
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length"),
    *("attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"),
    *("rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.finetuned"),
)
FREQUENCIES = "rope_freqs.weight"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace("{1,3}", "")
SPLITS = {"llama-bpe": LLAMA3, "qwen2": QWEN, "deepseek-r1-qwen": QWEN}  # patterns by the file's name for them


class GgufFile:
    """The keys and tensors of a file, by name; raises ModelError if it is not of a model that can be represented."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as file:
            magic = file.read(4)
        if magic != b"GGUF":
            raise self.refuse(f"not a GGUF file; it begins with {magic!r}")
        try:
            from gguf import GGUFReader
        except ImportError as error:
            needed = f"reading it needs the gguf library ({error}); pip install 'acdc-circuits[gguf]'"
            raise self.refuse(needed) from None

        class Reader(GGUFReader):
            """A reader that notices truncated files; the library itself would read on."""

            def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **order: Any) -> Any:
                self.data: Any = np.asarray(self.data)  # slices of a memmap take three times as long
                found = super()._get(offset, dtype, count, *more, **order)
                if len(found) < int(count):
                    raise EOFError(f"{count} values of {np.dtype(dtype)} at byte {offset} are not all there")
                return found

        with reading(path, "GGUF file"):
            reader: Any = Reader(path)
            self.keys: dict[str, Any] = dict(reader.fields)
            self.tensors: dict[str, Any] = {t.name: t for t in reader.tensors}
            self.family = str(self.get("general.architecture"))
            self._check()

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a key."""
        return self.keys[key].contents() if key in self.keys else default

    def own(self, key: str, default: Any = None) -> Any:
        """A key of the architecture, required if there is no default; a float32 becomes the decimal that was meant."""
        value = self.get(f"{self.family}.{key}", default)
        if value is None:
            raise self.refuse(f"{self.family}.{key} is missing")
        if isinstance(value, list):
            raise self.refuse(f"{self.family}.{key} differs between layers, which is not supported")
        return float(f"{value:.7g}") if isinstance(value, float) else value

    def refuse(self, why: str) -> ModelError:
        """The error of this file."""
        return ModelError(f"{self.path}: {why}")

    def _check(self) -> None:
        if self.family not in SUPPORTED:
            supported = ", ".join(SUPPORTED)
            raise self.refuse(f"architecture {self.family!r} is not supported as a GGUF; supported: {supported}")
        if int(self.get("split.count", 1)) > 1:
            raise self.refuse("one part of a split model; merge the parts into one file first")
        for key in self.keys:
            family, _, own = key.partition(".")
            value = self.get(key) if family == self.family and own not in KNOWN else None
            if value or value is False:
                raise self.refuse(f"{key} is set, which is not supported")
        if "token_embd.weight" not in self.tensors:
            raise self.refuse("tensor 'token_embd.weight' is missing")
        end = max(t.data_offset + t.n_bytes for t in self.tensors.values())
        if (more := self.path.stat().st_size - end) > 1_000_000:  # padding is a few bytes
            raise self.refuse(f"holds {more:,} bytes behind its tensors; is it another file?")
        if (layers := self.own("block_count")) > len(self.tensors):
            raise self.refuse(f"{self.family}.block_count is {layers}, more than the file has tensors")


def open_gguf(path: Path, name: str) -> tuple[Any, Tokenizer, tuple[Path, ...], Any]:
    """The config of transformers, the tokenizer, the files with weights, and what loads these (`Checkpoint`)."""
    file = GgufFile(path)
    with transformers(path, "GGUF file"):
        config = _config(file)
        backend = _tokenizer(file, config.vocab_size)
        bos, unknown = (file.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("bos", "unknown"))
        return config, Tokenizer(backend, name, bos, unknown), (path,), partial(_module, file, config)


def _config(file: GgufFile) -> Any:
    from transformers import AutoConfig

    width, vocab = (int(n) for n in file.tensors["token_embd.weight"].shape)  # the fastest-varying axis first
    heads = file.own("attention.head_count")
    shared: dict[str, Any] = {
        "vocab_size": vocab,
        "num_hidden_layers": file.own("block_count"),
        "num_attention_heads": heads,
        "hidden_size": width,
        "max_position_embeddings": file.own("context_length"),
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }
    if file.family == "gpt2":
        eps = file.own("attention.layer_norm_epsilon")
        return AutoConfig.for_model("gpt2", **shared, n_inner=file.own("feed_forward_length"), layer_norm_epsilon=eps)
    head = file.own("attention.key_length", width // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if file.own(key, head) != head:
            raise file.refuse(f"{file.family}.{key} is {file.own(key)}, not the size of a head ({head})")
    rope = {"rope_type": "default", "rope_theta": file.own("rope.freq_base", 10000.0)}
    if (kind := file.own("rope.scaling.type", "none")) == "linear":
        rope |= {"rope_type": "linear", "factor": file.own("rope.scaling.factor")}
    elif kind != "none":
        raise file.refuse(f"rotary scaling {kind!r} is not supported")
    return AutoConfig.for_model(
        file.family,
        **shared,
        num_key_value_heads=file.own("attention.head_count_kv", heads),
        head_dim=head,
        intermediate_size=file.own("feed_forward_length"),
        rms_norm_eps=file.own("attention.layer_norm_rms_epsilon"),
        rope_parameters=rope,
        attention_bias="blk.0.attn_q.bias" in file.tensors,
    )


def _module(file: GgufFile, config: Any, dtype: torch.dtype) -> Any:
    """The model on the CPU, with every tensor of the file in its place."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    kinds = {name: kind for kind, name in MODEL_ARCH_NAMES.items()}
    name_of = get_tensor_name_map(kinds[file.family], config.num_hidden_layers).get_name
    left = dict(file.tensors)
    factors = None if file.family == "gpt2" else left.pop(FREQUENCIES, None)
    weights = {}
    with transformers(file.path, "GGUF file"):
        with torch.device("meta"):
            module: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for theirs in module.state_dict():
            if theirs == "lm_head.weight" and config.tie_word_embeddings:
                continue
            name = name_of(theirs, (".weight", ".bias"))
            if name not in left:
                raise file.refuse(f"tensor {name!r} is missing")
            tensor = _values(left.pop(name)).to(dtype)
            if file.family == "gpt2" and tensor.ndim == 2 and ".h." in theirs:
                tensor = tensor.T.contiguous()  # input × output
            elif file.family == "llama" and (".q_proj." in theirs or ".k_proj." in theirs):
                heads = config.num_attention_heads if ".q_proj." in theirs else config.num_key_value_heads
                # rotary pairs are neighbours in llama.cpp, half a head apart in Hugging Face
                tensor = tensor.view(heads, -1, 2, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
            weights[theirs] = tensor
        if left:
            raise file.refuse(f"tensor {min(left)!r} has no place in a {file.family} model as acdc knows it")
        module.load_state_dict(weights, strict=False, assign=True)
        module.tie_weights()
        if file.family != "gpt2":  # the frequencies are no weights, and still on the device meta
            rotary = type(module.model.rotary_emb)(config)
            if factors is not None:
                rotary.inv_freq /= _values(factors).view_as(rotary.inv_freq)
            module.model.rotary_emb = rotary
    return module.eval()


def _values(tensor: Any) -> Tensor:
    """A tensor without quantization."""
    from gguf import dequantize

    values = dequantize(tensor.data, tensor.tensor_type)
    return torch.from_numpy(values if values.flags.writeable else np.array(values))  # the mapped file is read-only


def _tokenizer(file: GgufFile, n_embedded: int) -> Any:
    """The byte-level BPE tokenizer of a file; others are refused, as a guess would give other tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    kind = file.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise file.refuse(f"tokenizer {kind!r} is not supported, only byte-level BPE; use the original checkpoint")
    splitting = file.get("tokenizer.ggml.pre", "gpt-2" if file.family == "gpt2" else None)
    if splitting not in (*SPLITS, "smollm", "gpt-2"):
        known = ", ".join(sorted([*SPLITS, "smollm", "gpt-2"]))
        raise file.refuse(f"pre-tokenizer {splitting!r} is not supported, only {known}; use the original checkpoint")
    split: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=splitting not in SPLITS)]
    if splitting in SPLITS:
        split.insert(0, pre_tokenizers.Split(Regex(SPLITS[splitting]), behavior="isolated"))
    elif splitting == "smollm":
        split.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokens: list[str] = file.get("tokenizer.ggml.tokens", [])
    merges = [tuple(pair.split(" ")) for pair in file.get("tokenizer.ggml.merges", [])]
    vocab = {token: i for i, token in enumerate(tokens)}
    if len(vocab) < len(tokens) or len(tokens) > n_embedded:
        raise file.refuse(f"its {len(tokens)} tokens are not distinct, or more than the model embeds")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=splitting == "llama-bpe"))
    if splitting in ("qwen2", "deepseek-r1-qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(split)
    tokenizer.decoder = decoders.ByteLevel()
    types = file.get("tokenizer.ggml.token_type", [1] * len(tokens))
    # 3 marks control tokens, 4 user-defined ones
    chosen = [(token, kind) for token, kind in zip(tokens, types, strict=True) if kind in (3, 4)]
    tokenizer.add_tokens([AddedToken(token, special=kind == 3, normalized=False) for token, kind in chosen])
    if tokenizer.get_vocab_size() != len(tokens):
        raise file.refuse("its added tokens are not in its vocabulary")
    return tokenizer

"""A checkpoint's tensors by name and shape, converted to the transformer's form, and the values of its config.json."""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.config import MAX_NODES

IGNORED = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|^(lm_head|embed_out)\.weight$")
"""Tensors that change nothing: masks and frequencies of old checkpoints, and the copy of a tied head."""
SIZES = {
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "d_model": "hidden_size",
    "n_positions": "max_position_embeddings",
    "vocab_size": "vocab_size",
}
"""The key of config.json for each size of a `ModelConfig`, in most families."""


class Checkpoint:
    """Reads the tensors of one checkpoint, each with its shape, into the weights of a transformer, `out`."""

    def __init__(self, tensors: dict[str, Tensor], prefix: str, where: str) -> None:
        self.out: dict[str, Tensor] = {}
        self._tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        self._where = where
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def get(self, name: str, *shape: int) -> Tensor:
        """Return the tensor of this name; raise ModelError if it is missing or has another shape."""
        if name not in self._tensors:
            raise ModelError(f"{self._where}: tensor {name!r} is missing; is this a whole checkpoint?")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self._where}: tensor {name!r} has shape {tuple(tensor.shape)}, not {shape}")
        self._used.add(name)
        return tensor

    def linear(self, name: str, n_in: int, n_out: int) -> tuple[Tensor, Tensor]:
        """Weight Float[in out] and bias Float[out] of an nn.Linear; a missing bias is 0."""
        weight = self.get(f"{name}.weight", n_out, n_in).T
        bias = f"{name}.bias"
        return weight, self.get(bias, n_out) if self.has(bias) else weight.new_zeros(n_out)

    def fold(self, norm: str, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Fold a norm's scale and shift into the weights that read it: (x ⊙ scale + shift) @ W + b = x @ W' + b'."""
        d = len(weight)
        if self.has(f"{norm}.bias"):
            bias = bias + self.get(f"{norm}.bias", d) @ weight
        return self.get(f"{norm}.weight", d)[:, None] * weight, bias

    def put(self, name: str, weight: Tensor, bias: Tensor) -> None:
        """Set a weight and a bias of the transformer."""
        self.out[f"{name}.weight"] = weight
        self.out[f"{name}.bias"] = bias

    def put_heads(self, name: str, weight: Tensor, bias: Tensor, n_heads: int, repeat: int = 1) -> None:
        """Set queries, keys or values from Float[d_model head·d_head]; `repeat` query heads get a copy of each."""
        w = weight.view(len(weight), n_heads, -1).transpose(0, 1).repeat_interleave(repeat, 0)
        self.put(name, w.contiguous(), bias.view(n_heads, -1).repeat_interleave(repeat, 0))

    def put_output(self, name: str, weight: Tensor, bias: Tensor, n_heads: int) -> None:
        """Set the output projection of a layer's heads from Float[head·d_head d_model] and Float[d_model]."""
        self.put(name, weight.reshape(n_heads, -1, weight.shape[1]), bias)

    def scale(self, name: str, factor: float) -> None:
        """Multiply a weight and its bias."""
        self.put(name, self.out[f"{name}.weight"] * factor, self.out[f"{name}.bias"] * factor)

    def finish(self, norm: str, tied: bool, head: str = "lm_head") -> dict[str, Tensor]:
        """Set the unembedding, from `head` or tied to the embedding, with its norm folded in; return all weights."""
        token = self.out["token.weight"]
        weight = token if tied else self.get(f"{head}.weight", *token.shape)
        self.put("unembed", *self.fold(norm, weight.T, weight.new_zeros(len(weight))))
        # A tensor that was never read: quantized weights with scales, norms with a fixed deviation, adapters.
        if left := sorted(n for n in self._tensors if n not in self._used and not IGNORED.search(n)):
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            what = f"tensor {left[0]!r}{more} has no place in a model of this family"
            raise ModelError(f"{self._where}: {what}; without it another model would be computed")
        return self.out


def hash_files(paths: Iterable[Path]) -> str:
    """The SHA-256 of the files' content, its first 16 hex digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while chunk := file.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Raise any error inside as a ModelError: a value of config.json has a wrong type or is out of range."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: a value has a wrong type or is out of range ({error})") from None


def take(raw: dict[str, Any], where: str, name: str) -> Any:
    """Return a value of config.json; raise ModelError for a missing key."""
    if raw.get(name) is None:
        raise ModelError(f"{where}: key {name!r} is missing")
    return raw[name]


def read_sizes(raw: dict[str, Any], where: str, d_head: int | None = None, **names: str) -> dict[str, Any]:
    """Return the sizes of a `ModelConfig` that config.json gives, under `names` where keys are not those of `SIZES`."""
    out = {}
    for size, name in (SIZES | names).items():
        value = take(raw, where, name)
        if type(value) is not int or value < 1:
            raise ModelError(f"{where}: {name} is {value!r}; it must be a whole number above 0")
        out[size] = value
    if out["n_layers"] > MAX_NODES:
        raise ModelError(f"{where}: {out['n_layers']} layers; no model has so many")
    d_model = out["d_model"]
    n_heads = out["n_heads"]
    if not d_head and d_model % n_heads:
        raise ModelError(f"{where}: the width {d_model} is not a multiple of the number of heads {n_heads}")
    return out | {"vocab_out": out["vocab_size"], "d_head": d_head or d_model // n_heads}


def refuse(raw: dict[str, Any], where: str, **supported: Any) -> None:
    """Raise ModelError for an option whose value is not the only supported one."""
    for key, wanted in supported.items():
        if raw.get(key, wanted) != wanted:
            raise ModelError(f"{where}: {key} is {raw[key]!r}; only {wanted} is supported")


def rope(raw: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of rotary embeddings: one mapping in transformers 5, several keys in older versions."""
    return {
        "rope_theta": raw.get("rope_theta", raw.get("rotary_emb_base", 10_000.0)),
        "partial_rotary_factor": raw.get("partial_rotary_factor", raw.get("rotary_pct", 1.0)),
        **(raw.get("rope_scaling") or {}),
        **(raw.get("rope_parameters") or {}),
    }


def frequencies(raw: dict[str, Any], size: int, where: str) -> Tensor:
    """Angle per position of each rotated pair, Float[size/2] (Su et al. 2021), with linear or Llama 3.1's scaling."""
    settings = rope(raw)
    kind = settings.get("rope_type", settings.get("type", "default"))
    if kind not in ("default", "linear", "llama3"):
        raise ModelError(f"{where}: rope type {kind!r} is not supported; default, linear and llama3 are")
    with config_errors(where):
        f = 1.0 / settings["rope_theta"] ** (torch.arange(0, size, 2, dtype=torch.int64).float() / size)
        if kind == "default":
            return f
        if kind == "linear":
            return f / take(settings, where, "factor")
        keys = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
        factor, low, high, context = (take(settings, where, key) for key in keys)
        turns = context * f / (2 * math.pi)  # over the original context
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * f / factor + smooth * f

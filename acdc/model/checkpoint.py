"""A checkpoint's tensors by name and shape, converted to the transformer's form, and the values of its config.json."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from acdc.errors import ModelError
from acdc.model.config import MAX_NODES

IGNORED = re.compile(r"(attn|attention)\.(masked_)?bias$|rotary_emb\.inv_freq$|^(lm_head|embed_out)\.weight$")
"""Tensors that change nothing: masks and frequencies of old checkpoints, and the copy of a tied head."""


class Checkpoint:
    """The tensors of one checkpoint.

    `get` raises ModelError for a tensor that is missing or has another shape, `finish` for tensors never read.
    """

    def __init__(self, tensors: dict[str, Tensor], where: str) -> None:
        self._tensors = tensors
        self._where = where
        self._used: set[str] = set()

    def has(self, name: str) -> bool:
        """Whether there is a tensor of this name."""
        return name in self._tensors

    def get(self, name: str, *shape: int) -> Tensor:
        """The tensor of this name and shape."""
        if name not in self._tensors:
            raise ModelError(f"{self._where}: tensor {name!r} is missing; is this a whole checkpoint?")
        tensor = self._tensors[name]
        if tuple(tensor.shape) != shape:
            raise ModelError(f"{self._where}: tensor {name!r} has shape {tuple(tensor.shape)}, not {shape}")
        self._used.add(name)
        return tensor

    def finish(self) -> None:
        """Raise ModelError if a tensor was never read: then the checkpoint's model computes something else (quantized
        weights with scales, norms with a fixed deviation, adapters)."""
        if left := sorted(n for n in self._tensors if n not in self._used and not IGNORED.search(n)):
            more = f" (and {len(left) - 1} more)" if len(left) > 1 else ""
            raise ModelError(
                f"{self._where}: tensor {left[0]!r}{more} has no place in a model of this family; without it another "
                "model would be computed"
            )

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


def heads(weight: Tensor, bias: Tensor, n_heads: int, repeat: int = 1) -> tuple[Tensor, Tensor]:
    """Split weight Float[d_model head·d_head] and bias Float[head·d_head] by head.

    Args:
        repeat: query heads that share one key or value head (grouped-query attention): each gets a copy
    Returns:
        Float[head d_model d_head] and Float[head d_head]
    """
    w = weight.view(len(weight), n_heads, -1).transpose(0, 1)
    return w.repeat_interleave(repeat, 0).contiguous(), bias.view(n_heads, -1).repeat_interleave(repeat, 0)


@contextmanager
def config_errors(where: str) -> Iterator[None]:
    """Raise any error inside as a ModelError: a value of config.json has a wrong type or is out of range."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise ModelError(f"{where}: a value has a wrong type or is out of range ({error})") from None


def head_size(width: int, n_heads: int, where: str) -> int:
    """Return the size of a head, width / n_heads."""
    if width % n_heads:
        raise ModelError(f"{where}: the width {width} is not a multiple of the number of heads {n_heads}")
    return width // n_heads


def take(raw: dict[str, Any], where: str, *names: str) -> list[Any]:
    """Return values of config.json; raise ModelError for a missing key."""
    for name in names:
        if raw.get(name) is None:
            raise ModelError(f"{where}: key {name!r} is missing")
    return [raw[name] for name in names]


def sizes(raw: dict[str, Any], where: str, *names: str) -> list[int]:
    """Return values of config.json that must be whole numbers above 0, and layers at most `MAX_NODES`."""
    found = take(raw, where, *names)
    for name, value in zip(names, found, strict=True):
        if type(value) is not int or value < 1:
            raise ModelError(f"{where}: {name} is {value!r}; it must be a whole number above 0")
        if "layer" in name and value > MAX_NODES:
            raise ModelError(f"{where}: {name} is {value}; no model has so many")
    return found


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
            return f / take(settings, where, "factor")[0]
        factor, low, high, context = take(
            settings, where, "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"
        )
        turns = context * f / (2 * math.pi)  # over the original context
        smooth = ((turns - low) / (high - low)).clamp(0, 1)
        return (1 - smooth) * f / factor + smooth * f
